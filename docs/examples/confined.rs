//! Workers that have given root up: the master binds port 80, and nobody serves it. As root, run
//!
//! ```sh
//! cargo run --example confined -- --listen :80 --user nobody --no-new-privs
//! ```
//!
//! Then `curl localhost` says who serves, and `curl localhost/escape` what it tries in vain.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IoSliceMut};
use std::path::PathBuf;
use std::process::ExitCode;

use batond::Server;
use batond::config::{Address, Confinement, Resource};
use batond::http::{Files, Handler, Http, Request, Response, StatusCode};
use clap::Parser;
use nix::sys::signal::kill;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{
    Gid, Uid, chroot, getgroups, getpid, getppid, getresgid, getresuid, setgid, setgroups, setuid,
};

#[derive(Parser)]
struct Arguments {
    #[arg(short, long, default_value = "127.0.0.1:8080")]
    listen: Address,
    #[arg(short, long, default_value_t = 2)]
    workers: usize,
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// Serve the files of this directory, too.
    #[arg(long)]
    files: Option<PathBuf>,
    #[arg(long)]
    user: Option<String>,
    #[arg(long)]
    group: Option<String>,
    #[arg(long, value_delimiter = ',')]
    groups: Option<Vec<String>>,
    #[arg(long)]
    chroot: Option<PathBuf>,
    #[arg(long)]
    no_new_privs: bool,
    /// In octal.
    #[arg(long, value_parser = |text: &str| u32::from_str_radix(text, 8))]
    umask: Option<u32>,
    /// The most open descriptors.
    #[arg(long)]
    nofile: Option<u64>,
    #[arg(long, value_delimiter = ',')]
    processors: Option<Vec<usize>>,
}

/// What each worker serves.
struct Inmate {
    files: Option<Files>,
}

impl Handler for Inmate {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        match (request.path(), &mut self.files) {
            ("/", _) => Response::text(who()),
            ("/escape", _) => Response::text(escape()),
            (_, Some(files)) => files.handle(request),
            (_, None) => Response::error(StatusCode::NOT_FOUND),
        }
    }
}

fn who() -> String {
    format!(
        "pid {}\n{:?}\n{:?}\n{:?}\n",
        getpid(),
        getresuid(),
        getresgid(),
        getgroups()
    )
}

/// What a worker under an attacker's control would try first, and what comes of it.
fn escape() -> String {
    // The fork has left it at the same address in the master.
    static SECRET: [u8; 6] = *b"secret";
    let master = getppid();
    let read_memory = || {
        let mut copy = SECRET;
        let theirs = RemoteIoVec {
            base: SECRET.as_ptr().addr(),
            len: SECRET.len(),
        };
        process_vm_readv(master, &mut [IoSliceMut::new(&mut copy)], &[theirs]).map(drop)
    };
    let root = Gid::from_raw(0);
    let attempts: [(&str, io::Result<()>); 7] = [
        ("become root", setuid(Uid::from_raw(0)).map_err(Into::into)),
        ("join its group", setgid(root).map_err(Into::into)),
        ("choose groups", setgroups(&[root]).map_err(Into::into)),
        ("change the root", chroot("/").map_err(Into::into)),
        ("signal the master", kill(master, None).map_err(Into::into)),
        ("read its memory", read_memory().map_err(Into::into)),
        (
            "list its descriptors",
            fs::read_dir(format!("/proc/{master}/fd")).map(drop),
        ),
    ];
    let mut text = String::new();
    for (what, result) in attempts {
        let outcome = result.map_or_else(|error| error.to_string(), |()| "done".to_owned());
        let _ = writeln!(text, "{what}: {outcome}");
    }
    text
}

fn main() -> ExitCode {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    match serve(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> batond::Result<()> {
    let limits = arguments.nofile.map(|limit| (Resource::Nofile, limit));
    let confinement = Confinement {
        user: arguments.user,
        group: arguments.group,
        groups: arguments.groups,
        chroot: arguments.chroot,
        no_new_privs: arguments.no_new_privs,
        umask: arguments.umask,
        limits: limits.into_iter().collect(),
        processors: arguments.processors,
    };
    // Opened as root, and read as the user: what that one may not read is not served.
    let files = arguments.files.as_deref().map(Files::open).transpose()?;
    Server::bind(arguments.listen)?
        .workers(arguments.workers)
        .threads(arguments.threads)
        .confinement(confinement)
        .run(move || {
            let files = files.clone();
            Http::new(Inmate { files })
        })
}
