//! Sends a body that is read while it is sent.

use std::io::{self, Read, Write};

use super::failure::Failure;
use crate::service::{Connection, Turn};

/// How much is read at a time, in bytes.
const BLOCK: usize = 64 * 1024;

/// What stands in front of a chunk, until its length is known: five digits are enough for it.
const SIZE: &[u8] = b"00000\r\n";

/// What a log line calls it.
const BODY: &str = "body";

/// The end of a body in chunks.
const LAST: &[u8] = b"0\r\n\r\n";

/// See the module.
pub(super) struct Stream {
    source: Box<dyn Read>,
    /// How much is still to come, if that is known.
    left: Option<u64>,
    chunked: bool,
}

impl Stream {
    pub(super) fn new(source: Box<dyn Read>, length: Option<u64>, chunked: bool) -> Self {
        Self {
            source,
            left: length,
            chunked,
        }
    }

    /// Sends the head that is in the buffer, and the body. With `last`, the connection ends with
    /// it.
    pub(super) fn send(
        mut self,
        connection: &mut Connection,
        buffer: &mut Vec<u8>,
        last: bool,
    ) -> Result<(), Failure> {
        let mut begun = false;
        loop {
            match self.read(buffer) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if begun => return Err(Failure::CutOff(BODY, error)),
                Err(error) => return Err(Failure::Body(BODY, error)),
            }
            connection.write_all(buffer)?;
            buffer.clear();
            begun = true;
        }
        if self.chunked {
            buffer.extend_from_slice(LAST);
        }
        connection.write_last(buffer, if last { Turn::Close } else { Turn::Park })?;
        Ok(())
    }

    /// Adds what the source gives next to the buffer; false at the end.
    fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let most = match self.left {
            Some(left) => usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK)),
            None => BLOCK,
        };
        if most == 0 {
            return Ok(false);
        }
        let begin = buffer.len();
        if self.chunked {
            buffer.extend_from_slice(SIZE);
        }
        let at = buffer.len();
        buffer.resize(at + most, 0);
        let count = loop {
            match self.source.read(&mut buffer[at..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                count => break count?,
            }
        };
        buffer.truncate(at + count);
        match &mut self.left {
            _ if count > most => return Err(io::Error::other("it claims to give more than asked")),
            Some(_) if count == 0 => {
                let text = "it has ended before the length of the body";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Some(left) => *left -= count as u64,
            None => {}
        }
        if count == 0 {
            buffer.truncate(begin);
            return Ok(false);
        }
        if self.chunked {
            let mut size = &mut buffer[begin..at];
            write!(size, "{count:05x}").expect("there is room for five digits");
            buffer.extend_from_slice(b"\r\n");
        }
        Ok(true)
    }
}
