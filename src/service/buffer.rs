//! The bytes that were read from a client and not yet consumed.

/// The unconsumed bytes of a connection. The worker hands the memory on from one connection to the
/// next, so that a turn need not allocate any.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Initialized throughout; the bytes from `start` to `end` are the unconsumed ones.
    memory: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the connection's that are held back until more comes to be sent.
    pub(super) held: Vec<u8>,
    /// Room for what goes from a file to a socket. It holds nothing between two calls.
    pub(super) block: Vec<u8>,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(super) fn set(&mut self, bytes: &[u8]) {
        (self.start, self.end) = (0, 0);
        self.held.clear();
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.end = bytes.len();
    }

    /// Puts bytes in front of the unconsumed ones.
    pub(super) fn prepend(&mut self, bytes: &[u8]) {
        let length = self.end - self.start;
        self.room(bytes.len());
        self.memory.copy_within(0..length, bytes.len());
        self.memory[..bytes.len()].copy_from_slice(bytes);
        self.end = bytes.len() + length;
    }

    pub(super) fn consume(&mut self, count: usize) {
        assert!(
            count <= self.end - self.start,
            "consumed more than the buffer holds"
        );
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Drops what comes after the first `length` unconsumed bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        self.end = self.end.min(self.start + length);
    }

    /// Makes room for `count` bytes after the unconsumed ones. What the caller stores there becomes
    /// part of the buffer with [`Buffer::grow`].
    pub(super) fn room(&mut self, count: usize) -> &mut [u8] {
        if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.memory.len() < self.end + count {
            self.memory.resize(self.end + count, 0);
        }
        &mut self.memory[self.end..self.end + count]
    }

    /// Adds the first `count` bytes of the last [`Buffer::room`] to the unconsumed ones.
    pub(super) fn grow(&mut self, count: usize) {
        self.end += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_is_in_front_of_the_rest() {
        for (first, length) in [(0, 0), (3, 0), (3, 5), (0, 5), (5, 5)] {
            let mut buffer = Buffer::default();
            buffer.set(&b"abcdefgh"[..3 + length]);
            buffer.consume(3);
            assert_eq!(buffer.bytes(), &b"defgh"[..length]);
            buffer.prepend(&b"12345"[..first]);
            let expected = [&b"12345"[..first], &b"defgh"[..length]].concat();
            assert_eq!(buffer.bytes(), expected);
            buffer.room(2)[..2].copy_from_slice(b"!?");
            buffer.grow(2);
            assert_eq!(buffer.bytes(), [&expected[..], b"!?"].concat());
        }
    }
}
