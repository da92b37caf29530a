//! The echo service.

use std::io;

use crate::service::{Connection, Fill, Service, ServiceProfile, Turn};

/// How many times one turn reads, so that a client that sends without end does not keep the others
/// waiting.
const MAX_READS: usize = 16;

/// Returns every byte to its sender.
///
/// Neither a client that sends nothing nor one that reads nothing occupies a worker: what cannot be
/// sent now stays in the connection's buffer until the client has read something. A client that
/// shuts down its sending side still gets all of its bytes back.
#[derive(Debug, Default)]
pub struct Echo {
    /// A copy of the connection's buffer, because a write cannot borrow from the connection itself.
    bytes: Vec<u8>,
}

impl Echo {
    /// Creates the service.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends what the buffer holds, as far as that goes without sleeping. Returns whether
    /// everything was sent.
    fn send_back(&mut self, connection: &mut Connection) -> io::Result<bool> {
        self.bytes.clear();
        self.bytes.extend_from_slice(connection.buffer());
        while !connection.buffer().is_empty() {
            let sent = self.bytes.len() - connection.buffer().len();
            match connection.write_now(&self.bytes[sent..])? {
                0 => return Ok(false),
                count => connection.consume(count),
            }
        }
        Ok(true)
    }
}

impl Service for Echo {
    fn profile() -> ServiceProfile {
        ServiceProfile {
            tolerates_empty_turns: true,
            ..ServiceProfile::default()
        }
    }

    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        for _ in 0..MAX_READS {
            if !self.send_back(connection)? {
                return Ok(Turn::ParkForWriting);
            }
            match connection.fill()? {
                Fill::Bytes(_) if connection.is_drained() => break,
                Fill::Bytes(_) => {}
                Fill::Empty => return Ok(Turn::Park),
                Fill::End => return Ok(Turn::Close),
            }
        }
        Ok(if self.send_back(connection)? {
            Turn::Park
        } else {
            Turn::ParkForWriting
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use crate::service::Peer;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let limit = Some(Duration::from_secs(10));
        theirs.set_read_timeout(limit).expect("set a timeout");
        theirs.set_write_timeout(limit).expect("set a timeout");
        (Connection::adopt(ours, Peer::Unix), theirs)
    }

    #[test]
    fn what_came_goes_back_and_an_idle_client_is_parked() {
        let (mut connection, mut client) = pair();
        let mut echo = Echo::new();
        assert_eq!(echo.turn(&mut connection).unwrap(), Turn::Park);
        client.write_all(b"hello").unwrap();
        assert_eq!(echo.turn(&mut connection).unwrap(), Turn::Park);
        let mut received = [0; 5];
        client.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"hello");
    }

    #[test]
    fn a_client_that_never_reads_is_parked_and_loses_nothing() {
        let (mut connection, mut client) = pair();
        client.set_nonblocking(true).unwrap();
        let mut echo = Echo::new();
        let mut sent = Vec::new();
        // Send until neither the kernel nor the service takes more.
        loop {
            let block: Vec<u8> = (0..4096_usize)
                .map(|at| (sent.len() + at * 7) as u8)
                .collect();
            match client.write(&block) {
                Ok(count) => sent.extend_from_slice(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let before = connection.buffer().len();
                    if echo.turn(&mut connection).unwrap() == Turn::ParkForWriting
                        && connection.buffer().len() == before
                        && before > 0
                    {
                        break;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        client.shutdown(Shutdown::Write).unwrap();
        client.set_nonblocking(false).unwrap();
        let mut received = Vec::new();
        let mut block = vec![0; 64 * 1024];
        while received.len() < sent.len() {
            let count = client.read(&mut block).unwrap();
            assert!(
                count > 0,
                "closed after {} of {}",
                received.len(),
                sent.len()
            );
            received.extend_from_slice(&block[..count]);
            let _ = echo.turn(&mut connection).unwrap();
        }
        assert!(received == sent, "the bytes differ");
        assert_eq!(echo.turn(&mut connection).unwrap(), Turn::Close);
    }

    #[test]
    fn everything_is_echoed_before_the_close() {
        let (mut connection, mut client) = pair();
        let mut echo = Echo::new();
        client.write_all(b"last words").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(echo.turn(&mut connection).unwrap(), Turn::Park);
        assert_eq!(echo.turn(&mut connection).unwrap(), Turn::Close);
        drop(connection);
        let mut received = String::new();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, "last words");
    }
}
