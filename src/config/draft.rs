//! A configuration before it is complete: what a file says, until the command line and the defaults
//! are added. Pure.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::address::Address;
use crate::config::confinement::Confinement;
use crate::config::flags::Flags;
use crate::config::keys::{Choice, contradiction};
use crate::config::server::{Config, Log, PoolConfig, ServiceConfig};
use crate::config::settings::Settings;
use crate::config::table::Fault;
use crate::config::unix_access::UnixAccess;

/// How many pools a file may have. The master has room for twice as many, because the pools that a
/// reload replaces live on for a while.
const MOST_POOLS: usize = 128;

/// The place of a value in the file, in bytes from its beginning; `None` if a flag gave the value.
type Offset = Option<usize>;

/// What is known about a server so far.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) log: Log,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) control: Option<(PathBuf, Offset)>,
    pub(crate) pools: Vec<PoolDraft>,
}

/// What is known about a pool so far.
#[derive(Debug, Default)]
pub(crate) struct PoolDraft {
    pub(crate) offset: Offset,
    /// What precedes a key of this pool in a message: `pool "site": `.
    pub(crate) context: String,
    pub(crate) name: Option<(String, Offset)>,
    pub(crate) listen: Vec<(Address, Offset)>,
    pub(crate) service: Option<ServiceConfig>,
    /// The place of the name of the pool to which the service passes requests.
    pub(crate) fallback: Offset,
    /// Settings in the order in which they apply: a later one overrides an earlier one.
    pub(crate) choices: Vec<(Choice, Offset)>,
    pub(crate) body_dir: Option<PathBuf>,
    pub(crate) confinement: Confinement,
    pub(crate) unix: UnixAccess,
}

impl Draft {
    /// The draft that a command line without a file completes: one pool with the demo.
    pub(crate) fn without_file() -> Self {
        let pool = PoolDraft {
            service: Some(ServiceConfig::Demo),
            ..PoolDraft::default()
        };
        Self {
            pools: vec![pool],
            ..Self::default()
        }
    }

    /// The complete configuration. `flags` take precedence over the draft, and the draft over
    /// `defaults`.
    pub(crate) fn complete(mut self, flags: &Flags, defaults: &Settings) -> Result<Config, Fault> {
        self.apply_flags(flags)?;
        self.refuse_duplicates()?;
        self.refuse_bad_fallbacks()?;
        let only = self.pools.len() == 1;
        let services = self.pools.iter().filter_map(|pool| pool.service.as_ref());
        let fallbacks: HashSet<_> = services
            .filter_map(ServiceConfig::fallback)
            .map(str::to_owned)
            .collect();
        let complete = |pool: PoolDraft| pool.complete(only, &fallbacks, defaults);
        Ok(Config {
            log: self.log,
            pid_file: self.pid_file,
            control: self.control.map(|(path, _)| path),
            pools: self
                .pools
                .into_iter()
                .map(complete)
                .collect::<Result<_, _>>()?,
        })
    }

    fn apply_flags(&mut self, flags: &Flags) -> Result<(), Fault> {
        let either = |flag: &Option<PathBuf>, value: Option<PathBuf>| flag.clone().or(value);
        self.log.file = either(&flags.log_file, self.log.file.take());
        self.pid_file = either(&flags.pid_file, self.pid_file.take());
        if let Some(path) = &flags.control {
            self.control = Some((path.clone(), None));
        }
        match (&mut self.pools[..], flags.for_single_pool()) {
            ([], _) => {
                let reason = "pool: no pool is configured; begin one with [[pool]]";
                return Err(Fault::new(None, reason));
            }
            ([pool], _) => pool.apply_single_pool_flags(flags),
            (pools, Some(what)) => {
                let count = pools.len();
                let reason = format!("{what} applies to a single pool, but the file has {count}");
                return Err(Fault::new(None, reason));
            }
            (_, None) => {}
        }
        if let Some(pool) = self.pools.get(MOST_POOLS) {
            let reason = format!("pool: there are more than {MOST_POOLS} pools");
            return Err(Fault::new(pool.offset, reason));
        }
        for pool in &mut self.pools {
            pool.apply_flags(flags);
        }
        Ok(())
    }

    /// Checks that no two pools have the same name, and no two listeners the same address. Port 0
    /// may be there several times, because it stands for another port each time.
    fn refuse_duplicates(&self) -> Result<(), Fault> {
        let mut names = HashSet::new();
        let mut addresses = HashSet::new();
        for PoolDraft {
            context,
            name,
            listen,
            ..
        } in &self.pools
        {
            if let Some((name, offset)) = name
                && !names.insert(name)
            {
                let reason = format!("{context}name: another pool has the same name");
                return Err(Fault::new(*offset, reason));
            }
            for (address, offset) in listen {
                let fixed = address.port() != Some(0);
                if fixed && !addresses.insert(address.to_string()) {
                    let reason = format!("{context}listen: {address} is listed twice");
                    return Err(Fault::new(*offset, reason));
                }
            }
        }
        match &self.control {
            Some((path, offset))
                if addresses.contains(&Address::Unix(path.clone()).to_string()) =>
            {
                let reason = "control: a pool listens on this socket";
                Err(Fault::new(*offset, reason))
            }
            _ => Ok(()),
        }
    }
}

impl Draft {
    /// Checks that each pool to which another one passes requests is there, speaks HTTP, and passes
    /// nothing on itself.
    fn refuse_bad_fallbacks(&self) -> Result<(), Fault> {
        for pool in &self.pools {
            let Some(wanted) = pool.service.as_ref().and_then(ServiceConfig::fallback) else {
                continue;
            };
            let is_target = |pool: &&PoolDraft| pool.name() == Some(wanted);
            let target = self.pools.iter().find(is_target);
            let service = target.map(|target| (target, &target.service));
            let reason = match service {
                None => format!("there is no pool {wanted:?}"),
                Some((target, _)) if std::ptr::eq(target, pool) => {
                    "a pool can't be its own fallback".to_owned()
                }
                Some((_, Some(ServiceConfig::Echo))) => {
                    format!("pool {wanted:?} does not speak HTTP")
                }
                Some((_, Some(service))) if service.fallback().is_some() => {
                    format!("pool {wanted:?} has a fallback itself")
                }
                Some(_) => continue,
            };
            let reason = format!("{}fallback: {reason}", pool.context);
            return Err(Fault::new(pool.fallback, reason));
        }
        Ok(())
    }
}

impl PoolDraft {
    fn name(&self) -> Option<&str> {
        self.name.as_ref().map(|(name, _)| name.as_str())
    }

    /// Applies the flags that are allowed with a single pool only, and the address that a single
    /// pool has by default.
    fn apply_single_pool_flags(&mut self, flags: &Flags) {
        if !flags.listen.is_empty() {
            let listen = flags.listen.iter().cloned();
            self.listen = listen.map(|address| (address, None)).collect();
        }
        if self.listen.is_empty() {
            let default = SocketAddr::from(([127, 0, 0, 1], 8080));
            self.listen.push((default.into(), None));
        }
        if flags.service.is_some() {
            self.service.clone_from(&flags.service);
        }
    }

    fn apply_flags(&mut self, flags: &Flags) {
        let choices = flags.choices.iter();
        self.choices.extend(choices.map(|choice| (*choice, None)));
        self.unix = flags.unix.clone().or(std::mem::take(&mut self.unix));
        if flags.body_dir.is_some() {
            self.body_dir.clone_from(&flags.body_dir);
        }
        if flags.user.is_some() {
            self.confinement.user.clone_from(&flags.user);
        }
        if flags.group.is_some() {
            self.confinement.group.clone_from(&flags.group);
        }
    }

    fn complete(
        self,
        only: bool,
        fallbacks: &HashSet<String>,
        defaults: &Settings,
    ) -> Result<PoolConfig, Fault> {
        let missing = |key: &str, hint: &str| {
            let reason = format!("{}{key}: missing; {hint}", self.context);
            Fault::new(self.offset, reason)
        };
        let name = match self.name {
            Some((ref name, _)) => name.clone(),
            None if only => "main".to_owned(),
            None => return Err(missing("name", "with several pools, each needs one")),
        };
        if self.listen.is_empty() && !fallbacks.contains(&name) {
            let hint = "with several pools, each needs an address";
            return Err(missing("listen", hint));
        }
        let Some(service) = self.service.clone() else {
            let hint = "expected \"demo\", \"echo\" or \"http\"";
            return Err(missing("service", hint));
        };
        let settings = self.settings(&service, defaults)?;
        Ok(PoolConfig {
            name,
            listen: self
                .listen
                .into_iter()
                .map(|(address, _)| address)
                .collect(),
            service,
            settings,
            confinement: self.confinement,
        })
    }

    fn settings(&self, service: &ServiceConfig, defaults: &Settings) -> Result<Settings, Fault> {
        let mut settings = defaults.clone();
        settings.unix = self.unix.clone().or(settings.unix);
        settings.body_dir = self.body_dir.clone().or(settings.body_dir);
        if *service == ServiceConfig::Echo {
            // People who talk to an echo by hand think between two lines. A choice below overrides
            // this.
            settings.idle_timeout = None;
        }
        for (choice, _) in &self.choices {
            choice.apply(&mut settings);
        }
        let Some((name, reason)) = contradiction(&settings) else {
            return Ok(settings);
        };
        let last = self
            .choices
            .iter()
            .rfind(|(choice, _)| choice.key.name == name);
        let offset = last.map_or(self.offset, |(_, offset)| *offset);
        Err(Fault::new(
            offset,
            format!("{}{name}: {reason}", self.context),
        ))
    }
}
