//! The configuration file: its layout, and how its text becomes a configuration or a message that
//! names the mistake and its line. Pure. docs/configuration.md says what each key means.

mod confinement;
mod sockets;

use std::path::Path;

use toml::de::DeTable;

use crate::config::address::Address;
use crate::config::draft::{Draft, PoolDraft};
use crate::config::flags::Flags;
use crate::config::keys::{Choice, KEYS, Key, Unit};
use crate::config::server::{Config, Log, ServiceConfig, name_fault};
use crate::config::settings::Settings;
use crate::config::table::{Entry, Fault, Table};
use crate::error::{Error, Result};
use crate::logging::filter;

/// The keys at the top of the file, the names of its tables included.
const TOP: &[&str] = &["log", "pid-file", "control", "pool"];

/// The keys of `[log]`.
const LOG: &[&str] = &["filter", "file"];

/// The keys of `[[pool]]` that no list of its own has.
const POOL: &[&str] = &["name", "listen", "service", "root", "fallback", "body-dir"];

/// The configuration that the text of a file and the flags make together. `file` is the path that
/// the text was read from: errors name it, and relative paths in the text are taken from its
/// directory.
///
/// # Errors
/// A mistake in the text, as `FILE:LINE: pool "NAME": KEY: why`.
pub(crate) fn parse(text: &str, file: &Path, flags: &Flags, defaults: &Settings) -> Result<Config> {
    let directory = file.parent().unwrap_or(Path::new(""));
    read(text, directory)
        .and_then(|draft| draft.complete(flags, defaults))
        .map_err(|Fault { offset, reason }| {
            let file = file.display();
            Error::because(
                match offset {
                    Some(offset) => format!("read {file}:{}", line_number(text, offset)),
                    None => format!("read {file}"),
                },
                reason,
            )
        })
}

/// The configuration that the flags make without a file.
///
/// # Errors
/// Flags that contradict each other or a default.
pub(crate) fn without_file(flags: &Flags, defaults: &Settings) -> Result<Config, String> {
    let completed = Draft::without_file().complete(flags, defaults);
    completed.map_err(|fault| fault.reason)
}

/// The number of the line at an offset in bytes, from 1.
fn line_number(text: &str, offset: usize) -> usize {
    let before = text.bytes().take(offset);
    before.filter(|byte| *byte == b'\n').count() + 1
}

fn read(text: &str, directory: &Path) -> Result<Draft, Fault> {
    let root = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map(|span| span.start);
        Fault::new(offset, error.message())
    })?;
    let top = Table::new(root.get_ref(), "", TOP)?;
    let path = |key| top.get(key).map(|entry| entry.path(directory)).transpose();
    let offset = top.get("control").map(|entry| entry.offset());
    Ok(Draft {
        log: top
            .get("log")
            .map_or_else(|| Ok(Log::default()), |log| read_log(log, directory))?,
        pid_file: path("pid-file")?,
        control: path("control")?.map(|path| (path, offset)),
        pools: top
            .get("pool")
            .map_or_else(|| Ok(Vec::new()), |pools| read_pools(pools, directory))?,
    })
}

fn read_log(log: Entry<'_>, directory: &Path) -> Result<Log, Fault> {
    let table = log
        .table()
        .ok_or_else(|| log.fault("expected a table, [log]"))?;
    let table = Table::new(table, "log: ", LOG)?;
    let filter = match table.get("filter") {
        None => None,
        Some(entry) => Some(read_filter(entry)?.to_owned()),
    };
    let file = table.get("file").map(|entry| entry.path(directory));
    Ok(Log {
        filter,
        file: file.transpose()?,
    })
}

/// Reads the filter of the log, and refuses one that makes no sense: it would silence the log.
fn read_filter(entry: Entry<'_>) -> Result<&str, Fault> {
    let text = entry.text()?;
    filter::check(text).map_err(|reason| entry.fault(reason))?;
    Ok(text)
}

fn read_pools(pools: Entry<'_>, directory: &Path) -> Result<Vec<PoolDraft>, Fault> {
    if pools.table().is_some() {
        return Err(pools.fault("write [[pool]] instead of [pool], because there may be several"));
    }
    let pools = pools.list();
    let only = pools.len() == 1;
    let mut drafts = Vec::new();
    for (number, pool) in (1..).zip(pools) {
        let table = pool
            .table()
            .ok_or_else(|| pool.fault("expected tables, [[pool]]"))?;
        let context = match table.get("name").and_then(|name| name.get_ref().as_str()) {
            Some(name) => format!("pool {name:?}: "),
            None if only => "pool \"main\": ".to_owned(),
            None => format!("pool {number}: "),
        };
        let draft = read_pool(table, &context, directory)?;
        drafts.push(PoolDraft {
            offset: Some(pool.offset()),
            context,
            ..draft
        });
    }
    Ok(drafts)
}

/// Every key that a `[[pool]]` may have.
fn pool_keys() -> Vec<&'static str> {
    let settings = KEYS.iter().map(|key| key.name);
    let others = [POOL, confinement::KEYS, sockets::KEYS].concat();
    others.into_iter().chain(settings).collect()
}

fn read_pool(table: &DeTable<'_>, context: &str, directory: &Path) -> Result<PoolDraft, Fault> {
    let table = Table::new(table, context, &pool_keys())?;
    let name = match table.get("name") {
        None => None,
        Some(entry) => Some((read_name(entry)?, Some(entry.offset()))),
    };
    let mut listen = Vec::new();
    for entry in table.get("listen").iter().flat_map(Entry::list) {
        let address = entry.text()?.parse().map_err(|error| entry.fault(error))?;
        listen.push((relative_to(directory, address), Some(entry.offset())));
    }
    if let Some(entry) = table.get("listen")
        && listen.is_empty()
    {
        return Err(entry.fault("expected at least one address"));
    }
    let mut choices = Vec::new();
    for key in KEYS {
        if let Some(entry) = table.get(key.name) {
            choices.push((read_choice(key, entry)?, Some(entry.offset())));
        }
    }
    let body_dir = table.get("body-dir").map(|entry| entry.path(directory));
    Ok(PoolDraft {
        name,
        listen,
        choices,
        body_dir: body_dir.transpose()?,
        service: read_service(table, directory)?,
        fallback: table.get("fallback").map(|entry| entry.offset()),
        confinement: confinement::read(table, context, directory)?,
        unix: sockets::read(table)?,
        ..PoolDraft::default()
    })
}

fn read_name(entry: Entry<'_>) -> Result<String, Fault> {
    let name = entry.text()?;
    match name_fault(name) {
        Some(expected) => Err(entry.fault(expected)),
        None => Ok(name.to_owned()),
    }
}

fn read_choice(key: &'static Key, entry: Entry<'_>) -> Result<Choice, Fault> {
    let value = match (key.unit, entry.text()) {
        (Unit::Bytes, Ok(text)) => key.parse(text),
        _ => key.accept(entry.number().map(|(number, _)| number)),
    };
    let value = value.map_err(|expected| entry.fault(expected))?;
    Ok(Choice { key, value })
}

fn read_service(table: Table<'_>, directory: &Path) -> Result<Option<ServiceConfig>, Fault> {
    let service = table.get("service");
    let name = service.map(|entry| entry.text()).transpose()?;
    let root = table.get("root");
    let fallback = match table.get("fallback") {
        None => None,
        Some(entry) if name == Some("http") => Some(read_name(entry)?),
        Some(entry) => {
            return Err(entry.fault("only the service \"http\" takes a fallback"));
        }
    };
    Ok(match (service, name, root) {
        (Some(_), Some("http"), Some(root)) => {
            let root = root.path(directory)?;
            Some(ServiceConfig::Http { root, fallback })
        }
        (Some(http), Some("http"), None) => {
            return Err(http.fault("http needs a root, the directory that it serves"));
        }
        (_, Some("demo" | "echo") | None, Some(root)) => {
            return Err(root.fault("only the service \"http\" takes a root"));
        }
        (_, Some("demo"), None) => Some(ServiceConfig::Demo),
        (_, Some("echo"), None) => Some(ServiceConfig::Echo),
        (Some(other), Some(_), _) => {
            return Err(other.fault("expected \"demo\", \"echo\" or \"http\""));
        }
        _ => None,
    })
}

/// Takes the path of a Unix socket from `directory` if it is relative.
fn relative_to(directory: &Path, address: Address) -> Address {
    match address {
        Address::Unix(path) => Address::Unix(directory.join(path)),
        other => other,
    }
}

#[cfg(test)]
mod tests;
