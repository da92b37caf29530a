//! The flags that are settings of a pool. They are made from the list that the file has its keys
//! from, so that both have the same names, units, bounds and defaults.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::keys::{Choice, Heading, KEYS, Key, Unit};

/// The settings that were given as flags, in the order of the list.
#[derive(Debug)]
pub(super) struct SettingArgs(Vec<Choice>);

impl SettingArgs {
    pub(super) fn choices(self) -> Vec<Choice> {
        self.0
    }
}

impl Args for SettingArgs {
    fn augment_args(command: Command) -> Command {
        KEYS.iter().fold(command, |command, key| {
            let heading = match key.heading {
                Heading::Workers => "Workers",
                Heading::Limits => "Limits",
            };
            let value = match key.unit {
                Unit::Number => "N",
                Unit::Seconds => "SECS",
                Unit::Milliseconds => "MS",
                Unit::Microseconds => "US",
                Unit::Bytes => "BYTES",
            };
            let arg = Arg::new(key.name)
                .long(key.name)
                .value_name(value)
                .value_parser(|text: &str| key.parse(text))
                .help_heading(heading)
                .help(format!("{} [default: {}]", key.help, key.default()));
            command.arg(match key.short {
                Some(short) => arg.short(short),
                None => arg,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // No flag has a default of its own: what is there was given.
        let given = |key: &'static Key| Some((key, *matches.get_one::<u64>(key.name)?));
        let choices = KEYS.iter().filter_map(given);
        Ok(Self(
            choices.map(|(key, value)| Choice { key, value }).collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
