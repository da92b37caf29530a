//! Files that are right, files that are wrong, and the messages about the wrong ones.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::confinement::{Confinement, Resource};
use crate::config::server::PoolConfig;

fn defaults() -> Settings {
    Settings::for_processors(2)
}

fn parse_with(text: &str, flags: &Flags) -> Result<Config> {
    parse(text, Path::new("/etc/batond.toml"), flags, &defaults())
}

#[track_caller]
fn good(text: &str) -> Config {
    parse_with(text, &Flags::default()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The message about a wrong file, after the name of the file.
#[track_caller]
fn bad_with(text: &str, flags: &Flags) -> String {
    let error = parse_with(text, flags).expect_err(text).to_string();
    assert!(!error.contains(char::is_control), "{error:?}");
    let rest = error.strip_prefix("cannot read /etc/batond.toml:");
    rest.unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[track_caller]
fn bad(text: &str) -> String {
    bad_with(text, &Flags::default())
}

#[test]
fn one_pool_needs_no_name_and_no_address() {
    let config = good("[[pool]]\nservice = 'demo'\n");
    let pool = PoolConfig {
        name: "main".to_owned(),
        listen: vec!["127.0.0.1:8080".parse().unwrap()],
        service: ServiceConfig::Demo,
        settings: defaults(),
        confinement: Confinement::default(),
    };
    let expected = Config {
        log: Log::default(),
        pid_file: None,
        control: None,
        pools: vec![pool],
    };
    assert_eq!(config, expected);
}

#[test]
fn relative_paths_begin_beside_the_file() {
    let config = good(
        "pid-file = 'run/pid'\ncontrol = '/run/c.sock'\n[log]\nfile = 'log'\nfilter = 'warn,batond=debug'\n\
         [[pool]]\nservice = 'http'\nroot = '../srv'\nlisten = ['unix:s.sock', ':80']\nchroot = 'jail'\n\
         body-dir = 'spool'\n",
    );
    assert_eq!(config.pid_file, Some("/etc/run/pid".into()));
    assert_eq!(config.control, Some("/run/c.sock".into()));
    assert_eq!(config.log.file, Some("/etc/log".into()));
    assert_eq!(config.log.filter.as_deref(), Some("warn,batond=debug"));
    let pool = &config.pools[0];
    let root = PathBuf::from("/etc/../srv");
    assert_eq!(
        pool.service,
        ServiceConfig::Http {
            root,
            fallback: None
        }
    );
    let listen: Vec<_> = pool.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["unix:/etc/s.sock", ":80"]);
    assert_eq!(pool.confinement.chroot, Some("/etc/jail".into()));
    assert_eq!(pool.settings.body_dir, Some("/etc/spool".into()));
}

#[test]
fn every_setting_is_a_key() {
    for key in KEYS {
        let text = format!("[[pool]]\nservice = 'demo'\n{} = 9\n", key.name);
        let mut settings = defaults();
        Choice { key, value: 9 }.apply(&mut settings);
        assert_ne!(settings, defaults());
        assert_eq!(good(&text).pools[0].settings, settings, "{}", key.name);
        let text = format!("[[pool]]\nservice = 'demo'\n\n{} = [9]\n", key.name);
        let expected = format!("4: pool \"main\": {}: expected a ", key.name);
        assert!(bad(&text).starts_with(&expected), "{}", bad(&text));
    }
    let size = good("[[pool]]\nservice = 'demo'\nmax-rss = '200M'\n");
    assert_eq!(size.pools[0].settings.max_rss, Some(200 << 20));
}

#[test]
fn an_echo_waits_for_ever_unless_told() {
    let idle = |text| good(text).pools[0].settings.idle_timeout;
    assert_eq!(idle("[[pool]]\nservice = 'echo'"), None);
    let told = "[[pool]]\nservice = 'echo'\nidle-timeout = 75";
    assert_eq!(idle(told), Some(Duration::from_secs(75)));
    let flags = Flags {
        service: Some(ServiceConfig::Echo),
        ..Flags::default()
    };
    let config = parse_with("[[pool]]\nservice = 'http'\nroot = '/'", &flags).unwrap();
    assert_eq!(config.pools[0].service, ServiceConfig::Echo);
    assert_eq!(config.pools[0].settings.idle_timeout, None);
}

#[test]
fn the_confinement_of_a_pool() {
    let config = good(
        "[[pool]]\nservice = 'demo'\nuser = 'www'\ngroup = 33\ngroups = ['adm', 4]\nno-new-privs = true\n\
         umask = '027'\ncpu-affinity = [3, '0-1', '1,5']\n[pool.limits]\nnofile = 1024\nas = '1G'\n",
    );
    let expected = Confinement {
        user: Some("www".to_owned()),
        group: Some("33".to_owned()),
        groups: Some(vec!["adm".to_owned(), "4".to_owned()]),
        chroot: None,
        no_new_privs: true,
        umask: Some(0o027),
        limits: vec![(Resource::As, 1 << 30), (Resource::Nofile, 1024)],
        processors: Some(vec![0, 1, 3, 5]),
    };
    assert_eq!(config.pools[0].confinement, expected);
    let rest = good("[[pool]]\nservice = 'demo'\numask = 0o22\ngroups = []\ncpu-affinity = 0\n");
    let confinement = &rest.pools[0].confinement;
    assert_eq!(confinement.umask, Some(0o22));
    assert_eq!(confinement.groups, Some(Vec::new()));
    assert_eq!(confinement.processors, Some(vec![0]));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, expected) in [
        ("", " pool: no pool is configured; begin one with [[pool]]"),
        (
            "[log]\nfile = 'x'\n",
            " pool: no pool is configured; begin one with [[pool]]",
        ),
        ("x = 1\n", "1: x: unknown key"),
        ("\npools = 1\n", "2: pools: unknown key; did you mean pool?"),
        ("[logs]\n", "1: logs: unknown key; did you mean log?"),
        ("[log]\nlevel = 'info'\n", "2: log: level: unknown key"),
        ("\"a\\nb\" = 1\n", r#"1: "a\nb": unknown key"#),
        ("pool = 1\n", "1: pool: expected tables, [[pool]]"),
        (
            "[pool]\n",
            "1: pool: write [[pool]] instead of [pool], because there may be several",
        ),
        ("log = 1\n", "1: log: expected a table, [log]"),
        ("pid-file = ''\n", "1: pid-file: the text is empty"),
        ("pid-file = 7\n", "1: pid-file: expected text in quotes"),
        (
            "control = \"a\\u0000\"\n",
            "1: control: the text contains a NUL character",
        ),
        (
            "[log]\nfilter = 'warn,batond=loud'\n",
            "2: log: filter: \"loud\" is not a level: expected off, error, warn, info, debug or trace",
        ),
        (
            "\n\n[[pool]]\nlisten = ':80'\n",
            "3: pool \"main\": service: missing; expected \"demo\", \"echo\" or \"http\"",
        ),
    ] {
        let found = bad(text);
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn what_is_wrong_in_a_pool_is_named_with_its_line() {
    for (line, expected) in [
        ("worker = 4", "worker: unknown key; did you mean workers?"),
        (
            "max_turns = 4",
            "max_turns: unknown key; did you mean max-turns?",
        ),
        ("workers = 0", "workers: expected a number from 1 to 10000"),
        ("workers = -1", "workers: expected a number from 1 to 10000"),
        (
            "workers = 1.5",
            "workers: expected a number from 1 to 10000",
        ),
        (
            "workers = '4'",
            "workers: expected a number from 1 to 10000",
        ),
        (
            "grace = 'soon'",
            "grace: expected a whole number of seconds",
        ),
        (
            "max-rss = '200 MB'",
            "max-rss: expected a number of bytes, or a size such as 200M",
        ),
        (
            "max-turns = 99999999999999999999",
            "max-turns: expected a number",
        ),
        (
            "max-workers = 3",
            "max-workers: 3 is less than workers, which is 4",
        ),
        (
            "umask = 27",
            "umask: expected octal digits in quotes, such as \"027\"",
        ),
        (
            "umask = '1777'",
            "umask: expected octal digits in quotes, such as \"027\"",
        ),
        (
            "umask = 'rw'",
            "umask: expected octal digits in quotes, such as \"027\"",
        ),
        ("user = true", "user: expected a name or a number"),
        ("user = -1", "user: expected a name or a number"),
        ("groups = ['']", "groups: expected a name or a number"),
        ("no-new-privs = 1", "no-new-privs: expected true or false"),
        (
            "limits = 7",
            "limits: expected a table, such as { nofile = 1024 }",
        ),
        (
            "limits = { nofiles = 7 }",
            "limits.nofiles: unknown key; did you mean nofile?",
        ),
        (
            "limits = { core = -7 }",
            "limits.core: expected a number, or a size such as \"64M\"",
        ),
        (
            "cpu-affinity = []",
            "cpu-affinity: expected at least one processor",
        ),
        (
            "cpu-affinity = '3-1'",
            "cpu-affinity: expected processors from 0 to 1023, such as [0, 1] or \"0-3\"",
        ),
        (
            "cpu-affinity = [1024]",
            "cpu-affinity: expected processors from 0 to 1023, such as [0, 1] or \"0-3\"",
        ),
        ("root = 'x'", "root: only the service \"http\" takes a root"),
        ("chroot = ''", "chroot: the text is empty"),
    ] {
        let text = format!("[[pool]]\nname = 'site'\nservice = 'demo'\n{line}\n");
        let expected = format!("4: pool \"site\": {expected}");
        assert_eq!(bad(&text), expected);
    }
    for (pool, expected) in [
        (
            "service = 'ftp'",
            "2: pool \"main\": service: expected \"demo\", \"echo\" or \"http\"",
        ),
        (
            "\nservice = 'http'",
            "3: pool \"main\": service: http needs a root, the directory that it serves",
        ),
        (
            "service = 'demo'\nmin-spare = 3\nmax-spare = 2",
            "3: pool \"main\": min-spare: 3 is more than max-spare, which is 2",
        ),
        (
            "name = 'a b'",
            "2: pool \"a b\": name: expected 1 to 64 letters, digits, hyphens, underscores and dots",
        ),
        ("name = ''", "2: pool \"\": name: the text is empty"),
        (
            "service = 'demo'\nlisten = []",
            "3: pool \"main\": listen: expected at least one address",
        ),
        (
            "service = 'demo'\nlisten = [\n':1',\n':x'\n]",
            "5: pool \"main\": listen: the port is not a number; an address looks like 127.0.0.1:8080, \
             [::1]:8080, :8080, unix:/path or fd:NAME",
        ),
        (
            "service = 'demo'\nlisten = [':1', ':2',\n':1']",
            "4: pool \"main\": listen: :1 is listed twice",
        ),
        ("service = 'demo'\nservice = 'echo'", "3: duplicate key"),
    ] {
        assert_eq!(bad(&format!("[[pool]]\n{pool}\n")), expected);
    }
    assert!(
        bad("[[pool]]\nservice = \n").starts_with("2: "),
        "{}",
        bad("[[pool]]\nservice = \n")
    );
}

#[test]
fn a_fallback_is_another_pool_that_speaks_http_and_has_none() {
    let site = "[[pool]]\nname = 'site'\nservice = 'http'\nroot = '.'\nlisten = ':1'\n\
                fallback = 'app'\n";
    let pool = |name: &str, more: &str| format!("[[pool]]\nname = '{name}'\n{more}\n");
    let app = pool("app", "service = 'demo'");
    let config = good(&format!("{site}{app}"));
    assert_eq!(config.pools[0].service.fallback(), Some("app"));
    assert!(config.pools[1].listen.is_empty());
    good(&(site.to_owned() + &pool("app", "service = 'http'\nroot = '.'\nlisten = ':2'")));
    let http = "service = 'http'\nroot = '.'\nlisten = ':2'\nfallback = ";
    for (text, expected) in [
        (
            site.to_owned(),
            "6: pool \"site\": fallback: there is no pool \"app\"",
        ),
        (
            site.replace("'app'", "'site'") + &app.replace("service", "listen = ':2'\nservice"),
            "6: pool \"site\": fallback: a pool can't be its own fallback",
        ),
        (
            site.to_owned() + &pool("app", &format!("{http}'deep'")) + &pool("deep", ""),
            "6: pool \"site\": fallback: pool \"app\" has a fallback itself",
        ),
        (
            site.to_owned() + &pool("app", "service = 'echo'"),
            "6: pool \"site\": fallback: pool \"app\" does not speak HTTP",
        ),
        (
            site.to_owned() + &app + &pool("else", "service = 'demo'"),
            "10: pool \"else\": listen: missing; with several pools, each needs an address",
        ),
        (
            pool("app", "service = 'demo'\nlisten = ':2'\nfallback = 'site'"),
            "5: pool \"app\": fallback: only the service \"http\" takes a fallback",
        ),
        (
            site.replace("'app'", "'a b'") + &app,
            "6: pool \"site\": fallback: expected 1 to 64 letters, digits, hyphens, \
             underscores and dots",
        ),
    ] {
        assert_eq!(bad(&text), expected);
    }
}

#[test]
fn several_pools_each_have_a_name_and_addresses_of_their_own() {
    let one = "[[pool]]\nname = 'one'\nservice = 'demo'\nlisten = [':1', ':0', 'unix:/s']\n";
    let two = "[[pool]]\nname = 'two'\nservice = 'echo'\nlisten = ':0'\n";
    let names: Vec<_> = good(&format!("{one}{two}")).pools;
    assert_eq!(names.len(), 2);
    for (other, expected) in [
        (
            "service = 'demo'\nlisten = ':2'",
            "5: pool 2: name: missing; with several pools, each needs one",
        ),
        (
            "name = 'one'\nlisten = ':2'",
            "6: pool \"one\": name: another pool has the same name",
        ),
        (
            "name = 'two'\nservice = 'demo'",
            "5: pool \"two\": listen: missing; with several pools, each needs an address",
        ),
        (
            "name = 'two'\nlisten = ':1'",
            "7: pool \"two\": listen: :1 is listed twice",
        ),
        (
            "name = 'two'\nlisten = 'unix:/s'",
            "7: pool \"two\": listen: unix:/s is listed twice",
        ),
    ] {
        assert_eq!(bad(&format!("{one}[[pool]]\n{other}\n")), expected);
    }
    let pool = |n| format!("[[pool]]\nname = '{n}'\nservice = 'demo'\nlisten = ':0'\n");
    let most: String = (0..128).map(pool).collect();
    assert_eq!(good(&most).pools.len(), 128);
    let expected = "513: pool: there are more than 128 pools";
    assert_eq!(bad(&(most + &pool(128))), expected);
    let control = format!("control = '/s'\n{one}");
    assert_eq!(bad(&control), "1: control: a pool listens on this socket");
}

#[test]
fn flags_win() {
    let choice = |name: &str, value| {
        let key = KEYS.iter().find(|key| key.name == name).unwrap();
        Choice { key, value }
    };
    let one = "[[pool]]\nname = 'one'\nservice = 'demo'\nworkers = 8\ngrace = 5\nuser = 'a'\ngroup = 'g'\n";
    let flags = Flags {
        choices: vec![choice("workers", 3)],
        listen: vec![":9".parse().unwrap()],
        user: Some("b".to_owned()),
        ..Flags::default()
    };
    let pool = &parse_with(one, &flags).unwrap().pools[0];
    assert_eq!(pool.settings.workers, 3);
    assert_eq!(pool.settings.grace, Duration::from_secs(5));
    assert_eq!(pool.listen, flags.listen);
    assert_eq!(pool.confinement.user.as_deref(), Some("b"));
    assert_eq!(pool.confinement.group.as_deref(), Some("g"));

    // A file that is right can become wrong by a flag.
    let flags = Flags {
        choices: vec![choice("max-workers", 7)],
        ..Flags::default()
    };
    let expected = " pool \"one\": max-workers: 7 is less than workers, which is 8";
    assert_eq!(bad_with(one, &flags), expected);

    let two =
        format!("{one}listen = ':1'\n[[pool]]\nname = 'two'\nservice = 'echo'\nlisten = ':2'\n");
    let flags = Flags {
        choices: vec![choice("grace", 1)],
        ..Flags::default()
    };
    let pools = parse_with(&two, &flags).unwrap().pools;
    assert!(
        pools
            .iter()
            .all(|pool| pool.settings.grace == Duration::from_secs(1))
    );
    let flags = Flags {
        listen: vec![":9".parse().unwrap()],
        ..Flags::default()
    };
    let expected = " --listen applies to a single pool, but the file has 2";
    assert_eq!(bad_with(&two, &flags), expected);
    let flags = Flags {
        service: Some(ServiceConfig::Echo),
        ..Flags::default()
    };
    let expected = " a service on the command line applies to a single pool, but the file has 2";
    assert_eq!(bad_with(&two, &flags), expected);
}

#[test]
fn the_example_has_every_key() {
    let text = include_str!("../../../docs/examples/batond.toml");
    let config = good(text);
    let names: Vec<_> = config.pools.iter().map(|pool| &pool.name).collect();
    assert_eq!(names, ["site", "app", "echo"]);
    // The lines that are commented out have to be right too.
    let full: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        })
        .collect();
    let full = full.join("\n");
    good(&full);
    for key in TOP.iter().chain(LOG).copied().chain(pool_keys()) {
        let said = |line: &str| {
            line.starts_with(&format!("{key} = ")) || line.trim_matches(['[', ']']) == key
        };
        assert!(full.lines().any(said), "{key}");
    }
    // A line that is commented out shows the default.
    for line in text.lines().filter_map(|line| line.strip_prefix('#')) {
        let Some((name, value)) = line.split_once(" = ") else {
            continue;
        };
        if let Some(key) = KEYS.iter().find(|key| key.name == name) {
            let default = key.default();
            let value = value.trim_matches('"');
            assert_eq!(default.split(',').next(), Some(value), "{name}");
        }
    }
}

#[test]
fn the_document_has_every_key_and_default() {
    let text = include_str!("../../../docs/configuration.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(str::trim).skip(1).collect())
        .collect();
    let row = |name: &str| {
        let name = format!("`{name}`");
        let row = rows.iter().find(|row| row[0] == name);
        row.unwrap_or_else(|| panic!("{name} has no row"))
    };
    for key in KEYS {
        let unit = match key.unit {
            Unit::Number => "number",
            Unit::Seconds => "seconds",
            Unit::Milliseconds => "milliseconds",
            Unit::Microseconds => "microseconds",
            Unit::Bytes => "bytes",
        };
        let row = row(key.name);
        assert_eq!((row[1], row[2]), (unit, &*key.default()), "{}", key.name);
    }
    let tables = ["log", "pool"];
    let others = TOP.iter().filter(|key| !tables.contains(key));
    let others = others.chain(LOG).chain(POOL).chain(confinement::KEYS);
    let others = others.chain(sockets::KEYS);
    let limits = confinement::LIMITS.iter().map(|(name, _)| name);
    for name in others.chain(limits) {
        row(name);
    }
    // The document has no other rows.
    assert_eq!(
        rows.len(),
        KEYS.len() + TOP.len() - tables.len()
            + LOG.len()
            + POOL.len()
            + sockets::KEYS.len()
            + confinement::KEYS.len()
            + confinement::LIMITS.len()
    );
}

/// Lines that are almost right, so that the parser gets further than the first one.
fn line() -> impl Strategy<Value = String> {
    let names = pool_keys()
        .into_iter()
        .chain(TOP.iter().chain(LOG).copied());
    let key = proptest::sample::select(names.collect::<Vec<_>>());
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        "[a-z0-9:,-]{0,8}".prop_map(|text| format!("'{text}'")),
        "\\PC{0,8}",
        Just("[1, '0-3', {}]".to_owned()),
        Just("{ nofile = 1 }".to_owned()),
        Just("true".to_owned()),
        Just("'http'".to_owned()),
    ];
    prop_oneof![
        4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => Just("[[pool]]".to_owned()),
        1 => Just("[log]".to_owned()),
        1 => Just("[pool.limits]".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*(\n\\PC*){0,3}") {
        let _ = parse_with(&text, &Flags::default());
    }

    #[test]
    fn no_lines_make_it_panic(lines in proptest::collection::vec(line(), 0..12)) {
        if let Err(error) = parse_with(&lines.join("\n"), &Flags::default()) {
            prop_assert!(!error.to_string().contains(char::is_control), "{error}");
        }
    }
}
