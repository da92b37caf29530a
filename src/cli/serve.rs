//! `batond serve`: what its command line can say, and what it then does.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::builder::{EnumValueParser, NonEmptyStringValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Args, Command, ValueEnum};

use super::config_source::ConfigSource;
use super::settings::SettingArgs;
use super::usage::{UsageError, path};
use crate::config::flags::Flags;
use crate::config::unix_access::parse_mode;
use crate::config::{Address, PoolConfig, ServiceConfig, UnixAccess};
use crate::error::{Error, Result};
use crate::logging::{self, Role};
use crate::lookup;
use crate::server::{Pool, Server};
use crate::services::{Echo, http};
use crate::sys::signals;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// What to serve. [default: demo]
    #[arg(value_name = "SERVICE", value_parser = ServiceParser)]
    service: Option<ServiceName>,
    /// The directory that http serves.
    #[arg(value_name = "DIR")]
    argument: Option<PathBuf>,
    /// Read the settings from this file. Flags win over it.
    #[arg(short, long, value_name = "FILE", value_parser = path())]
    config: Option<PathBuf>,
    /// Listen here: 127.0.0.1:8080, [::1]:8080, :8080 for every address of this machine, or
    /// unix:/path, or fd:NAME for sockets that systemd passes. Port 0 takes a free one. May be
    /// given more than once. [default: 127.0.0.1:8080]
    #[arg(short, long, value_name = "ADDR")]
    listen: Vec<Address>,
    /// There is no such flag, but many servers have it.
    #[arg(short, long, hide = true, value_parser = no_port)]
    port: Option<Never>,
    #[command(flatten)]
    unix: UnixArgs,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    settings: SettingArgs,
    /// Keep what is too much for memory of what slow clients send, or do not take, in files without
    /// a name in this directory. [default: TMPDIR, or /tmp]
    #[arg(long, value_name = "DIR", value_parser = path(), help_heading = "Limits")]
    body_dir: Option<PathBuf>,
}

/// Who may connect to Unix sockets.
#[derive(Debug, Args)]
#[command(next_help_heading = "Unix sockets")]
struct UnixArgs {
    /// Make the files of Unix sockets with this mode, such as 0660. [default: what the umask leaves
    /// of 0777]
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    unix_mode: Option<u32>,
    /// Give the files of Unix sockets to this user, a name or a number.
    #[arg(long, value_name = "USER", value_parser = NonEmptyStringValueParser::new())]
    unix_owner: Option<String>,
    /// Give the files of Unix sockets to this group, a name or a number.
    #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
    unix_group: Option<String>,
}

/// The server as a process among others: where its log lines go, where it is found, its user.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
struct ProcessArgs {
    /// Append log lines to this file instead of writing them to stderr.
    #[arg(long, value_name = "FILE", value_parser = path())]
    log_file: Option<PathBuf>,
    /// Write the number of the master process into this file.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pid_file: Option<PathBuf>,
    /// Hand over to a new master that asks on this Unix socket.
    #[arg(long, value_name = "SOCKET", value_parser = path())]
    control: Option<PathBuf>,
    /// Take over from the master that listens on this socket (its --control), with all of its
    /// connections.
    #[arg(long, value_name = "SOCKET", value_parser = path())]
    takeover: Option<PathBuf>,
    /// Run the workers as this user, a name or a number.
    #[arg(long, value_name = "USER", value_parser = NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// Run the workers as this group, a name or a number. [default: the user's]
    #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
    group: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ServiceName {
    /// A page that shows which worker answered.
    Demo,
    /// Send back what the client sends.
    Echo,
    /// Serve the files of a directory over HTTP.
    Http,
}

/// What cannot be given.
#[derive(Debug, Clone, Copy)]
enum Never {}

/// Refuses `--port` with what to say instead.
fn no_port(port: &str) -> Result<Never, String> {
    Err(format!(
        "say -l 127.0.0.1:{port}, or -l :{port} for every address of this machine"
    ))
}

/// A parser for the names of the services, which knows what a path in their place is meant to be.
#[derive(Debug, Clone)]
struct ServiceParser;

impl TypedValueParser for ServiceParser {
    type Value = ServiceName;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<ServiceName, clap::Error> {
        let parser = EnumValueParser::<ServiceName>::new();
        parser.parse_ref(command, arg, value).map_err(|error| {
            let path = value.to_string_lossy();
            if !path.contains(['/', '.']) && !Path::new(value).is_dir() {
                return error;
            }
            let this = command.get_bin_name().unwrap_or(command.get_name());
            let reason = format!("'{path}' is no service; did you mean '{this} http {path}'?\n");
            clap::Error::raw(ErrorKind::InvalidValue, reason).with_cmd(command)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = ServiceName::value_variants().iter();
        Some(Box::new(values.filter_map(ValueEnum::to_possible_value)))
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) config: ConfigSource,
    /// The control socket of the master to take over from.
    takeover: Option<PathBuf>,
}

impl ServeArgs {
    /// The request that the words stand for.
    ///
    /// # Errors
    /// When words contradict each other, and no file is needed to see it.
    pub(super) fn check(self) -> Result<Request, UsageError> {
        let service = match (self.service, self.argument) {
            (None, None) => None,
            (Some(ServiceName::Demo), None) => Some(ServiceConfig::Demo),
            (Some(ServiceName::Echo), None) => Some(ServiceConfig::Echo),
            (Some(ServiceName::Http), Some(root)) => Some(ServiceConfig::Http {
                root,
                fallback: None,
            }),
            (Some(ServiceName::Http), None) => {
                return Err(UsageError::new(
                    ErrorKind::MissingRequiredArgument,
                    "http needs the directory that it is to serve: http DIR",
                ));
            }
            (_, Some(extra)) => {
                let extra = extra.display();
                return Err(UsageError::new(
                    ErrorKind::UnknownArgument,
                    format_args!("unexpected argument '{extra}': only http has one"),
                ));
            }
        };
        let config = ConfigSource {
            file: self.config,
            flags: Flags {
                listen: self.listen,
                service,
                choices: self.settings.choices(),
                body_dir: self.body_dir,
                user: self.process.user,
                group: self.process.group,
                unix: UnixAccess {
                    mode: self.unix.unix_mode,
                    owner: self.unix.unix_owner,
                    group: self.unix.unix_group,
                },
                log_file: self.process.log_file,
                pid_file: self.process.pid_file,
                control: self.process.control,
            },
        };
        if config.file.is_none()
            && let Err(error) = config.load()
        {
            return Err(UsageError::new(ErrorKind::ArgumentConflict, error));
        }
        Ok(Request {
            config,
            takeover: self.process.takeover,
        })
    }
}

/// Serves until it is told to stop.
///
/// # Errors
/// When the configuration is wrong, or the server can't start.
pub(super) fn serve(request: Request) -> Result<()> {
    signals::reset_inherited().map_err(|error| Error::new("set up signals", error))?;
    let mut config = request.config.load()?;
    // What a pipe has said once (`-c <(...)`) it does not say again.
    let mut first = Some(std::mem::take(&mut config.pools));
    let log = &config.log;
    logging::open(Role::Master, log.filter.as_deref(), log.file.as_deref())?;
    let mut server = Server::builder();
    if let Some(path) = config.control {
        server = server.control(path);
    }
    if let Some(path) = config.pid_file {
        server = server.pid_file(path);
    }
    if let Some(path) = request.takeover {
        server = server.takeover(path);
    }
    let pools = || {
        let pools = first
            .take()
            .map_or_else(|| Ok(request.config.load()?.pools), Ok::<_, Error>);
        pools?.into_iter().map(pool).collect()
    };
    server.pools(pools)?.run()
}

/// The pool that the configuration describes.
///
/// # Errors
/// When the directory that it is to serve can't be opened.
pub(super) fn pool(config: PoolConfig) -> Result<Pool<'static>> {
    let PoolConfig {
        name,
        listen,
        service,
        settings,
        confinement,
    } = config;
    let mut pool = match service {
        ServiceConfig::Demo => Pool::new(name, || http::Http::new(http::Demo::default())),
        ServiceConfig::Echo => Pool::new(name, Echo::new),
        ServiceConfig::Http { root, fallback } => {
            let files = lookup::descriptor(&format!("directory {}", root.display()), || {
                let files = http::Files::open(&root)?;
                let copy = files.as_fd().try_clone_to_owned();
                copy.map_err(|error| Error::new(format!("serve {}", root.display()), error))
            });
            let mut files = http::Files::of_directory(files?)?;
            if let Some(pool) = &fallback {
                files = files.fallback(pool);
            }
            let served = files.clone();
            let pool = Pool::new(name, move || http::Http::new(served.clone())).keep(files);
            match fallback {
                Some(fallback) => pool.fallback(fallback),
                None => pool,
            }
        }
    };
    for address in listen {
        pool = pool.listen(address);
    }
    Ok(pool
        .settings(|default| *default = settings)
        .confinement(confinement))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Command as Asked;
    use super::super::tests::parse;
    use super::*;
    use crate::config::keys::KEYS;
    use crate::config::{Config, Confinement, Settings};
    use crate::sys::processors;

    fn parse_serve(words: &str) -> Config {
        match parse(words) {
            Ok(Asked::Serve(args)) => args.check().unwrap().config.load().unwrap(),
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn the_service_may_stand_before_or_after_the_options() {
        let before = parse_serve("serve echo -l 127.0.0.1:0 -l unix:/tmp/s -w 2 --grace 5");
        let after = parse_serve("serve -l 127.0.0.1:0 -w 2 -l unix:/tmp/s --grace 5 echo");
        assert_eq!(before, after);
        let [pool] = &before.pools[..] else {
            panic!("{before:?}");
        };
        assert_eq!(pool.service, ServiceConfig::Echo);
        assert_eq!(pool.listen.len(), 2);
        assert_eq!(pool.settings.workers, 2);
        assert_eq!(pool.settings.grace, Duration::from_secs(5));
        assert_eq!(pool.settings.idle_timeout, None);
    }

    #[test]
    fn serve_alone_is_the_demo_on_the_usual_port() {
        let config = parse_serve("serve");
        let usual = PoolConfig {
            name: "main".to_owned(),
            listen: vec!["127.0.0.1:8080".parse().unwrap()],
            service: ServiceConfig::Demo,
            settings: Settings::for_processors(processors::available()),
            confinement: Confinement::default(),
        };
        assert_eq!(config.pools, [usual]);
        assert_eq!((config.control, config.pid_file), (None, None));
        let http = parse_serve("serve -w 1 http some/dir");
        let root = PathBuf::from("some/dir");
        assert_eq!(
            http.pools[0].service,
            ServiceConfig::Http {
                root,
                fallback: None
            }
        );
    }

    #[test]
    fn every_setting_is_a_flag() {
        for key in KEYS {
            // No default, and within all bounds.
            let words = format!("serve --{} 9", key.name);
            let pools = parse_serve(&words).pools;
            assert_ne!(pools, parse_serve("serve").pools, "{}", key.name);
        }
    }

    #[test]
    fn the_process_has_flags_too() {
        let words = "serve --user www --group 33 --log-file l --pid-file p --control c";
        let config = parse_serve(words);
        let confinement = &config.pools[0].confinement;
        assert_eq!(confinement.user.as_deref(), Some("www"));
        assert_eq!(confinement.group.as_deref(), Some("33"));
        let words = "serve --unix-mode 0660 --unix-owner www --unix-group 33";
        let unix = &parse_serve(words).pools[0].settings.unix;
        assert_eq!(unix.mode, Some(0o660));
        assert_eq!(unix.owner.as_deref(), Some("www"));
        assert_eq!(unix.group.as_deref(), Some("33"));
        assert_eq!(config.log.file, Some("l".into()));
        assert_eq!(config.pid_file, Some("p".into()));
        assert_eq!(config.control, Some("c".into()));
    }
}
