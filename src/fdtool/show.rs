//! The text for one message: the data, each descriptor, and what can be read from it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::content::{Content, content};
use super::describe::{describe, escaped};

/// How long the descriptors of one message may take until there is something to read.
const PATIENCE: Duration = Duration::from_secs(1);

/// How messages are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// The output is a terminal: let no control character of a file through.
    pub(super) escape: bool,
    /// Say what each descriptor is.
    pub(super) verbose: bool,
    /// The data is one native int.
    pub(super) tlpi: bool,
}

/// The text for one message, given away piece by piece, so that what is known is not lost if the
/// next step never returns.
pub(super) struct Block<F> {
    style: Style,
    give: F,
}

impl<E, F: FnMut(Vec<u8>) -> Result<(), E>> Block<F> {
    pub(super) fn new(style: Style, give: F) -> Self {
        Self { style, give }
    }

    /// The data of a message. It is a line of text to a reader, so nothing in it may start another
    /// one.
    pub(super) fn data(&mut self, data: &[u8]) -> Result<(), E> {
        let text = escaped(data, |_| false);
        self.line(format!("received {} bytes: {text}", data.len()))
    }

    /// The data of a message from TLPI's scm_rights_send.
    pub(super) fn number(&mut self, number: i32) -> Result<(), E> {
        self.line(format!("Received data = {number}"))
    }

    /// Shows each descriptor.
    pub(super) fn descriptors(&mut self, descriptors: &[OwnedFd]) -> Result<(), E> {
        let deadline = Instant::now() + PATIENCE;
        if descriptors.is_empty() {
            self.line("Received no fd".into())?;
        }
        for descriptor in descriptors {
            let number = descriptor.as_raw_fd();
            self.line(format!("Received fd {number}"))?;
            if self.style.verbose {
                self.line(format!("fd {number} is {}", describe(descriptor)))?;
            }
            self.line(format!("reading fd {number}..."))?;
            match content(descriptor, deadline) {
                Content::Bytes(bytes) => self.content(&bytes)?,
                Content::End => self.line("read: eof".into())?,
                Content::Empty => self.line("read 0 bytes: an empty message".into())?,
                Content::NothingYet => self.line("read: nothing to read yet".into())?,
                Content::Failed(reason) => self.line(format!("read: {reason}"))?,
            }
        }
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), E> {
        let mut text = format!("read {} bytes: ", bytes.len()).into_bytes();
        if self.style.escape {
            let kept = escaped(bytes, |char| matches!(char, '\n' | '\t'));
            text.extend_from_slice(kept.as_bytes());
        } else {
            text.extend_from_slice(bytes);
        }
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        (self.give)(text)
    }

    fn line(&mut self, mut line: String) -> Result<(), E> {
        line.push('\n');
        (self.give)(line.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stays_on_its_line() {
        let style = Style {
            escape: false,
            verbose: false,
            tlpi: false,
        };
        let mut shown = Vec::new();
        let give = |text: Vec<u8>| -> Result<(), ()> {
            shown.extend(text);
            Ok(())
        };
        Block::new(style, give).data(b"a\nread: eof").unwrap();
        assert_eq!(shown, b"received 11 bytes: a\\nread: eof\n");
    }
}
