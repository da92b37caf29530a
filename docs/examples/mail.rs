//! A mail server in its smallest form (RFC 5321), with a dialogue that any worker goes on with: who
//! writes to whom travels as the connection's note, and the text of the message as its luggage. So
//! a reload, an upgrade, or the death of a worker between two lines costs no client anything.
//!
//! ```sh
//! mkdir mails
//! cargo run --example mail -- --listen 127.0.0.1:2525 --mails mails
//! curl smtp://127.0.0.1:2525 --mail-from me@example.org --mail-rcpt you@example.org -T README.md
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;

use batond::config::Address;
use batond::{Connection, Error, Fill, Server, Service, ServiceProfile, Turn};
use clap::Parser;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The longest text of a mail, in bytes.
const MAX_TEXT: u64 = 1024 * 1024;

#[derive(Parser, Clone)]
struct Arguments {
    #[arg(short, long, default_value = "127.0.0.1:2525")]
    listen: Address,
    #[arg(short, long, default_value_t = 2)]
    workers: usize,
    /// The directory for the mails that come.
    #[arg(long)]
    mails: PathBuf,
}

/// What is known of the mail that a client is about to send: between turns, the lines of its note.
#[derive(Default)]
struct Envelope {
    from: Option<String>,
    to: Vec<String>,
    /// How long the text is so far, once there may be one.
    text: Option<u64>,
}

impl Envelope {
    fn of_note(note: &[u8]) -> Self {
        let mut envelope = Self::default();
        for line in String::from_utf8_lossy(note).lines() {
            match line.split_once(' ') {
                Some(("from", sender)) => envelope.from = Some(sender.to_owned()),
                Some(("to", recipient)) => envelope.to.push(recipient.to_owned()),
                Some(("text", length)) => envelope.text = length.parse().ok(),
                _ => {}
            }
        }
        envelope
    }

    fn to_note(&self) -> Vec<u8> {
        let mut note = String::new();
        let lines = [
            ("from", self.from.clone()),
            ("text", self.text.map(|n| n.to_string())),
        ];
        let recipients = self
            .to
            .iter()
            .map(|recipient| ("to", Some(recipient.clone())));
        for (name, value) in lines.into_iter().chain(recipients) {
            if let Some(value) = value {
                note += &format!("{name} {value}\n");
            }
        }
        note.into_bytes()
    }
}

struct Mail {
    mails: PathBuf,
    delivered: u64,
}

impl Mail {
    /// The reply to a command.
    fn command(
        line: &str,
        envelope: &mut Envelope,
        connection: &mut Connection,
    ) -> io::Result<&'static str> {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let address = argument
            .split_once(':')
            .map(|(_, address)| address.trim().to_owned());
        let address = address.filter(|address| address.starts_with('<') && address.len() < 120);
        Ok(match (verb.to_ascii_uppercase().as_str(), address) {
            ("HELO" | "EHLO", _) => "250 mail.example",
            ("MAIL", Some(address)) if envelope.from.is_none() => {
                envelope.from = Some(address);
                "250 go on"
            }
            ("RCPT", Some(_)) if envelope.to.len() == 20 => "452 enough of them",
            ("RCPT", Some(address)) if envelope.from.is_some() => {
                envelope.to.push(address);
                "250 go on"
            }
            ("DATA", _) if !envelope.to.is_empty() => {
                connection.set_luggage(memfd_create("mail", MFdFlags::MFD_CLOEXEC)?)?;
                envelope.text = Some(0);
                "354 a line with a dot alone ends it"
            }
            ("MAIL" | "RCPT" | "DATA", _) => "503 not now",
            ("RSET", _) => {
                *envelope = Envelope::default();
                "250 forgotten"
            }
            ("NOOP", _) => "250 yes",
            ("QUIT", _) => "221 bye",
            _ => "500 what?",
        })
    }

    /// Adds a line to the text of a mail, which is so long already, or delivers it; the reply if
    /// there is one.
    fn text(
        &mut self,
        line: &[u8],
        length: u64,
        envelope: &mut Envelope,
        connection: &mut Connection,
    ) -> io::Result<Option<&'static str>> {
        if line != b".\r\n" {
            // A dot was put before a line that begins with one (RFC 5321 §4.5.2).
            let line = line.strip_prefix(b".").unwrap_or(line);
            if length + line.len() as u64 > MAX_TEXT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let luggage = connection.luggage().ok_or(io::ErrorKind::NotFound)?;
            File::from(luggage.try_clone_to_owned()?).write_all_at(line, length)?;
            envelope.text = Some(length + line.len() as u64);
            return Ok(None);
        }
        let text = connection.take_luggage().ok_or(io::ErrorKind::NotFound)?;
        let Envelope { from, to, .. } = std::mem::take(envelope);
        self.delivered += 1;
        let name = format!("{}-{}.txt", std::process::id(), self.delivered);
        let mut mail = File::create_new(self.mails.join(name))?;
        writeln!(
            mail,
            "from {}\nto {}\n",
            from.unwrap_or_default(),
            to.join(", ")
        )?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        File::from(text).read_exact_at(&mut bytes, 0)?;
        mail.write_all(&bytes)?;
        Ok(Some("250 delivered"))
    }
}

impl Service for Mail {
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        if connection.turn() == 1 {
            connection.write_all(b"220 mail.example\r\n")?;
        }
        let mut envelope = Envelope::of_note(connection.note());
        let fill = connection.fill()?;
        let mut replies = String::new();
        while let Some(end) = connection.buffer().iter().position(|byte| *byte == b'\n') {
            let line = connection.buffer()[..=end].to_vec();
            connection.consume(end + 1);
            let reply = match envelope.text {
                Some(length) => self.text(&line, length, &mut envelope, connection)?,
                None => {
                    let line = String::from_utf8_lossy(&line);
                    Some(Self::command(line.trim_end(), &mut envelope, connection)?)
                }
            };
            replies.extend(reply.into_iter().flat_map(|reply| [reply, "\r\n"]));
        }
        connection.set_note(&envelope.to_note())?;
        connection.write_all(replies.as_bytes())?;
        match fill {
            Fill::End => Ok(Turn::Close),
            _ if replies.ends_with("221 bye\r\n") => Ok(Turn::Close),
            Fill::Bytes(_) | Fill::Empty => Ok(Turn::Park),
        }
    }

    fn profile() -> ServiceProfile {
        ServiceProfile {
            speaks_first: true,
            tolerates_empty_turns: true,
            crashed: b"421 sorry\r\n".into(),
            overloaded: b"421 too busy\r\n".into(),
            ..ServiceProfile::default()
        }
    }
}

fn main() -> ExitCode {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    let arguments = Arguments::parse();
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> batond::Result<()> {
    let Arguments {
        listen,
        workers,
        mails,
    } = arguments;
    let mails = fs::canonicalize(&mails)
        .map_err(|error| Error::new(format!("use {}", mails.display()), error))?;
    Server::bind(listen)?.workers(workers).run(move || Mail {
        mails: mails.clone(),
        delivered: 0,
    })
}
