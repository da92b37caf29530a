//! What was said of a server, by a file or by nobody, before the command line and the defaults complete it. Pure.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::flags::Flags;
use super::keys::{Choice, contradiction};
use super::table::Fault;
use super::{Address, Config, Confinement, Log, PoolConfig, ServiceConfig, Settings};

/// The master has room for twice as many: those that a reload replaces live on for a while.
const MOST_POOLS: usize = 128;

/// A place in the file, for what stands there.
type Place = Option<usize>;

/// All that was said.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) log: Log,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) control: Option<(PathBuf, Place)>,
    pub(crate) pools: Vec<PoolDraft>,
}

/// What was said of a pool.
#[derive(Debug, Default)]
pub(crate) struct PoolDraft {
    pub(crate) at: Place,
    /// What comes before a key of the pool when it is blamed.
    pub(crate) context: String,
    pub(crate) name: Option<(String, Place)>,
    pub(crate) listen: Vec<(Address, Place)>,
    pub(crate) service: Option<ServiceConfig>,
    /// The later ones win.
    pub(crate) choices: Vec<(Choice, Place)>,
    pub(crate) confinement: Confinement,
}

impl Draft {
    /// What a command line without a file begins with.
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

    /// The whole: what `flags` say before what the draft says, and that before the defaults.
    pub(crate) fn complete(mut self, flags: &Flags, defaults: &Settings) -> Result<Config, Fault> {
        self.overrule(flags)?;
        self.refuse_twins()?;
        let alone = self.pools.len() == 1;
        let complete = |pool: PoolDraft| pool.complete(alone, defaults);
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

    fn overrule(&mut self, flags: &Flags) -> Result<(), Fault> {
        let said = |path: &Option<PathBuf>, before: Option<PathBuf>| path.clone().or(before);
        self.log.file = said(&flags.log_file, self.log.file.take());
        self.pid_file = said(&flags.pid_file, self.pid_file.take());
        if let Some(path) = &flags.control {
            self.control = Some((path.clone(), None));
        }
        match (&mut self.pools[..], flags.for_one_pool()) {
            ([], _) => {
                let reason = "pool: there is none; [[pool]] begins one";
                return Err(Fault::at(None, reason));
            }
            ([pool], _) => pool.replace(flags),
            (pools, Some(what)) => {
                let count = pools.len();
                let reason = format!("{what} goes with one pool, and the file has {count}");
                return Err(Fault::at(None, reason));
            }
            (_, None) => {}
        }
        if let Some(pool) = self.pools.get(MOST_POOLS) {
            let reason = format!("pool: there are more than {MOST_POOLS}");
            return Err(Fault::at(pool.at, reason));
        }
        for pool in &mut self.pools {
            pool.overrule(flags);
        }
        Ok(())
    }

    /// No two pools have a name, and no two listeners an address in common. Port 0 is another port each time.
    fn refuse_twins(&self) -> Result<(), Fault> {
        let mut names = HashSet::new();
        let mut addresses = HashSet::new();
        for PoolDraft {
            context,
            name,
            listen,
            ..
        } in &self.pools
        {
            if let Some((name, place)) = name
                && !names.insert(name)
            {
                let reason = format!("{context}name: another pool has it");
                return Err(Fault::at(*place, reason));
            }
            for (address, place) in listen {
                let fixed = address.port() != Some(0);
                if fixed && !addresses.insert(address.to_string()) {
                    let reason = format!("{context}listen: {address} is listed twice");
                    return Err(Fault::at(*place, reason));
                }
            }
        }
        match &self.control {
            Some((path, place)) if addresses.contains(&Address::Unix(path.clone()).to_string()) => {
                Err(Fault::at(*place, "control: a pool listens on this socket"))
            }
            _ => Ok(()),
        }
    }
}

impl PoolDraft {
    /// Takes what the flags say instead of what only one pool can have.
    fn replace(&mut self, flags: &Flags) {
        if !flags.listen.is_empty() {
            let listen = flags.listen.iter().cloned();
            self.listen = listen.map(|address| (address, None)).collect();
        }
        if self.listen.is_empty() {
            let usual = SocketAddr::from(([127, 0, 0, 1], 8080));
            self.listen.push((usual.into(), None));
        }
        if flags.service.is_some() {
            self.service.clone_from(&flags.service);
        }
    }

    fn overrule(&mut self, flags: &Flags) {
        let choices = flags.choices.iter();
        self.choices.extend(choices.map(|choice| (*choice, None)));
        if flags.user.is_some() {
            self.confinement.user.clone_from(&flags.user);
        }
        if flags.group.is_some() {
            self.confinement.group.clone_from(&flags.group);
        }
    }

    fn complete(self, alone: bool, defaults: &Settings) -> Result<PoolConfig, Fault> {
        let missing = |key: &str, hint: &str| {
            let reason = format!("{}{key}: missing; {hint}", self.context);
            Fault::at(self.at, reason)
        };
        let name = match self.name {
            Some((ref name, _)) => name.clone(),
            None if alone => "main".to_owned(),
            None => return Err(missing("name", "of several pools each needs one")),
        };
        if self.listen.is_empty() {
            return Err(missing("listen", "of several pools each needs an address"));
        }
        let Some(service) = self.service.clone() else {
            return Err(missing("service", "it is \"demo\", \"echo\" or \"http\""));
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
        if *service == ServiceConfig::Echo {
            // Unless told otherwise below. Who talks to an echo by hand thinks between two lines.
            settings.idle_timeout = None;
        }
        for (choice, _) in &self.choices {
            choice.apply(&mut settings);
        }
        let Some((name, reason)) = contradiction(&settings) else {
            return Ok(settings);
        };
        let blamed = self
            .choices
            .iter()
            .rfind(|(choice, _)| choice.key.name == name);
        let place = blamed.map_or(self.at, |(_, place)| *place);
        Err(Fault::at(
            place,
            format!("{}{name}: {reason}", self.context),
        ))
    }
}
