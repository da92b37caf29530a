//! `batond check`: what `batond serve` would do with the same arguments, without doing it.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use nix::unistd::{Group, User};

use super::config_source::ConfigSource;
use crate::config::{Address, Config, Confinement, PoolConfig, ServiceConfig, UnixAccess};
use crate::error::{Error, Result};
use crate::services::http;

/// Writes what `serve` would do to stdout, in one line.
///
/// # Errors
/// What `serve` would fail with, as far as it shows without serving.
pub(super) fn check(source: &ConfigSource) -> Result<()> {
    let config = source.load()?;
    for pool in &config.pools {
        look_up(pool)?;
    }
    let mut line = String::new();
    if let Some(file) = &source.file {
        let _ = write!(line, "{}: ", file.display());
    }
    line += &summary(&config);
    // A name with a newline must not make it two lines.
    let line = line.replace(char::is_control, "?");
    writeln!(io::stdout(), "{line}").map_err(|error| Error::new("write to stdout", error))
}

/// `2 pools: site: http /srv on 127.0.0.1:8080, 4 workers; echo: ...`
fn summary(config: &Config) -> String {
    let count = config.pools.len();
    let noun = if count == 1 { "pool" } else { "pools" };
    let pools = config.pools.iter().map(|pool| {
        let listen: Vec<_> = pool.listen.iter().map(ToString::to_string).collect();
        let PoolConfig { name, service, .. } = pool;
        let workers = pool.settings.workers;
        let addresses = listen.join(" and ");
        let mut text = format!("{name}: {service} on {addresses}, workers: {workers}");
        let is_unix = |address: &&Address| matches!(address, Address::Unix(_));
        let uncounted = pool.listen.iter().filter(is_unix);
        let uncounted: Vec<_> = uncounted.map(ToString::to_string).collect();
        if pool.settings.per_client.is_some() && !uncounted.is_empty() {
            let _ = write!(
                text,
                " (per-client has no effect on {})",
                uncounted.join(", ")
            );
        }
        text
    });
    let pools: Vec<_> = pools.collect();
    format!("{count} {noun}: {}", pools.join("; "))
}

/// Fails if the directory, the user or a group that the pool names is missing.
fn look_up(pool: &PoolConfig) -> Result<()> {
    if let ServiceConfig::Http { root } = &pool.service {
        http::Files::open(root)?;
    }
    let Confinement {
        user,
        group,
        groups,
        chroot,
        ..
    } = &pool.confinement;
    let find = |what: &str, name: &str, found: nix::Result<bool>| {
        let attempt = || format!("use pool {:?}: find the {what} {name:?}", pool.name);
        match found {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::because(attempt(), "there is none of this name")),
            Err(error) => Err(Error::new(attempt(), error)),
        }
    };
    // A number needs no entry in the user database.
    let named = |name: &&String| name.parse::<u32>().is_err();
    let UnixAccess {
        owner,
        group: socket_group,
        ..
    } = &pool.settings.unix;
    for user in user.iter().chain(owner).filter(named) {
        find(
            "user",
            user,
            User::from_name(user).map(|found| found.is_some()),
        )?;
    }
    let groups = group.iter().chain(groups.iter().flatten());
    for group in groups.chain(socket_group).filter(named) {
        find(
            "group",
            group,
            Group::from_name(group).map(|found| found.is_some()),
        )?;
    }
    match chroot {
        Some(chroot) if !chroot.is_dir() => Err(Error::because(
            format!("use pool {:?}: chroot to {}", pool.name, chroot.display()),
            "it is not a directory",
        )),
        _ => Ok(()),
    }
}
