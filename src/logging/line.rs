//! The format of a log line. Pure, but for the number of the process.

use std::fmt::{self, Display, Write};

use log::Level;

use super::role::Role;

/// The text of a message. Control characters (a newline in a path, an escape from a peer) are
/// written as `\n`, `\u{1b}`.
pub(super) fn text(message: &fmt::Arguments<'_>) -> String {
    let mut text = String::new();
    if write!(Escaping(&mut text), "{message}").is_err() {
        // What the message is made of does not know how to write itself.
        text.push_str(" (the rest of this line cannot be written)");
    }
    text
}

/// One record, one line. `most` is how many bytes a line may have; a text that is too long for one
/// goes on in the next, under a head of its own.
pub(super) fn format(
    time: &impl Display,
    level: Level,
    role: Role,
    text: &str,
    most: usize,
) -> Vec<String> {
    // The pid is asked for anew each time, because a fork changes it.
    let head = format!("{time} {level:<5} {role}[{}]: ", std::process::id());
    // Whatever the head takes, some of the text has a place in each line.
    let room = most.saturating_sub(head.len() + "\n".len()).max(64);
    let mut lines = Vec::with_capacity(1);
    let mut rest = text;
    loop {
        let (piece, further) = rest.split_at(rest.floor_char_boundary(room));
        lines.push(format!("{head}{piece}\n"));
        if further.is_empty() {
            return lines;
        }
        rest = further;
    }
}

/// Passes text on with its control characters escaped.
struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if char.is_control() {
                self.0.extend(char.escape_default());
            } else {
                self.0.push(char);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-22T17:45:00.123Z";

    fn line(level: Level, role: Role, message: fmt::Arguments<'_>) -> String {
        format(&TIME, level, role, &text(&message), usize::MAX).concat()
    }

    #[test]
    fn a_line_says_when_how_bad_which_process_and_what() {
        let pid = std::process::id();
        for (level, role, expected) in [
            (Level::Info, Role::Master, format!("INFO  master[{pid}]")),
            (
                Level::Error,
                Role::Worker { slot: 3 },
                format!("ERROR worker 3[{pid}]"),
            ),
            (
                Level::Warn,
                Role::Command("recv-fd"),
                format!("WARN  recv-fd[{pid}]"),
            ),
        ] {
            assert_eq!(
                line(level, role, format_args!("listening on {}", "fd.sock")),
                format!("{TIME} {expected}: listening on fd.sock\n")
            );
        }
    }

    #[test]
    fn a_record_is_one_line_without_control_characters() {
        let line = line(
            Level::Info,
            Role::Master,
            format_args!("{}", "größe\nfake\x1b[2J\u{9b}1m"),
        );
        assert!(
            line.ends_with(": größe\\nfake\\u{1b}[2J\\u{9b}1m\n"),
            "{line:?}"
        );
        assert_eq!(line.matches(char::is_control).count(), 1);
    }

    #[test]
    fn a_message_that_is_too_long_for_a_line_goes_on_in_the_next() {
        let text = "größer ".repeat(1000);
        let lines = format(&TIME, Level::Warn, Role::Master, &text, 512);
        let head = format!("{TIME} WARN  master[{}]: ", std::process::id());
        let mut whole = String::new();
        for line in &lines {
            assert!(line.len() <= 512, "{}", line.len());
            whole += line
                .strip_prefix(&head)
                .unwrap()
                .strip_suffix('\n')
                .unwrap();
        }
        assert_eq!(whole, text);
    }
}
