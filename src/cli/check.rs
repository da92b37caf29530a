//! `batond check`: what `batond serve` would do with the same arguments, without doing it.
//!
//! Whatever can be known without binding an address, writing a file or starting a process is looked
//! at as `serve` does it. What is left: whether an address, a control socket or a pid file is
//! taken, whether somebody reads the FIFO of a log, which sockets systemd passes, which master
//! there is to take over from, and whether workers come to serve.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use super::config_source::ConfigSource;
use super::serve;
use crate::config::{Address, Config, PoolConfig};
use crate::error::{Error, Result};
use crate::logging;
use crate::server;

/// Writes what `serve` would do to stdout, in one line.
///
/// # Errors
/// What `serve` would fail with, as far as it shows without serving.
pub(super) fn check(source: &ConfigSource) -> Result<()> {
    let config = source.load()?;
    let summary = summary(&config);
    config.log.file.as_deref().map_or(Ok(()), logging::check)?;
    let pools: Result<_> = config.pools.into_iter().map(serve::pool).collect();
    server::check(pools?, config.control, config.pid_file)?;
    let mut line = String::new();
    if let Some(file) = &source.file {
        let _ = write!(line, "{}: ", file.display());
    }
    line += &summary;
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
        let on = match listen.is_empty() {
            true => String::new(),
            false => format!(" on {}", listen.join(" and ")),
        };
        let mut text = format!("{name}: {service}{on}, workers: {workers}");
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
