//! Tests of the command line and the environment: accepted values and errors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::config::{ACME_DIRECTORY, Acme, ExternalAccount, Listen, PairFiles, Serving};

const ROOT: u32 = 0;
const USER: u32 = 1000;

fn run(args: &[OsString], variables: &[(&str, OsString)], uid: u32) -> Result<Command, Refused> {
    run_with(args, variables, uid, &|| Ok(Vec::new()))
}

fn run_with(
    args: &[OsString],
    variables: &[(&str, OsString)],
    uid: u32,
    capabilities: &dyn Fn() -> Result<Vec<String>, String>,
) -> Result<Command, Refused> {
    let variables: BTreeMap<&str, OsString> = variables.iter().cloned().collect();
    let lookup = |name: &str| variables.get(name).cloned();
    parse(args.iter().cloned(), &Environment { variables: &lookup, uid, capabilities })
}

/// The line, split into arguments as by a shell; `''` is an empty argument.
fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(|word| if word == "''" { "" } else { word }.into()).collect()
}

fn parse_line(line: &str) -> Result<Command, Refused> {
    run(&words(line), &[], USER)
}

fn serve(line: &str) -> Config {
    match parse_line(line) {
        Ok(Command::Serve(config)) => config,
        other => panic!("{line}: {other:?}"),
    }
}

/// The text of the error, after checks that apply to every error.
fn text(refused: Result<Command, Refused>, what: &str) -> String {
    let text = refused.expect_err(what).to_string();
    let lines = text.lines().count();
    assert!((1..=3).contains(&lines), "{what}: {lines} lines: {text}");
    assert!(text.lines().all(|line| line.len() <= 110), "{what}: {text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{what}: {text}");
    text
}

fn refusal(line: &str) -> String {
    text(parse_line(line), line)
}

fn with_variables(variables: &[(&str, &str)], line: &str, uid: u32) -> Result<Command, Refused> {
    let variables: Vec<_> = variables.iter().map(|&(name, value)| (name, value.into())).collect();
    run(&words(line), &variables, uid)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn plain(text: &str) -> Serving {
    Serving::Plain(Listen::at(address(text)))
}

#[test]
fn without_flags_and_variables_the_defaults_apply() {
    assert_eq!(parse_line(""), Ok(Command::Serve(Config::default())));
    assert_eq!(serve("").serving, plain("127.0.0.1:8080"));
    assert_eq!(serve("--").serving, plain("127.0.0.1:8080"));
}

#[test]
fn each_flag_reaches_its_field() {
    let default = Config::default();
    let limits = |change: fn(&mut crate::config::Limits)| {
        let mut config = Config::default();
        change(&mut config.limits);
        config
    };
    let behind = |text: &str| {
        let listen = Listen { proxy_protocol: true, ..Listen::at(address(text)) };
        Config { serving: Serving::Plain(listen), ..Config::default() }
    };
    let forwarded = |trust: bool, networks: Option<&[&str]>| Config {
        forwarded: crate::config::Forwarded {
            trust_x_forwarded_for: trust,
            trusted_proxies: networks
                .map(|networks| networks.iter().map(|network| network.parse().unwrap()).collect()),
        },
        ..Config::default()
    };
    let cases = [
        ("--max-connections 1", limits(|l| l.connections = Some(1))),
        ("--max-connections 4294967295", limits(|l| l.connections = Some(4_294_967_295))),
        ("--max-connections-per-ip 7", limits(|l| l.connections_per_ip = 7)),
        ("--max-connections-per-ip 0", default.clone()),
        ("--rate-limit-per-minute 0", limits(|l| l.rate_per_minute = 0)),
        ("--rate-limit-per-minute 4294967295", limits(|l| l.rate_per_minute = u32::MAX)),
        ("--rate-limit-burst 1", limits(|l| l.rate_burst = 1)),
        (
            "--buffer-memory 1048576",
            limits(|l| (l.buffer_memory, l.is_buffer_memory_given) = (1_048_576, true)),
        ),
        ("--proxy-protocol", behind("127.0.0.1:8080")),
        ("--proxy-protocol=false", default.clone()),
        ("--insecure-listen :1 -proxy-protocol", behind("[::]:1")),
        ("--proxy-protocol --insecure-listen :1", behind("[::]:1")),
        ("--trust-x-forwarded-for", forwarded(true, None)),
        ("--trusted-proxies 10.0.0.0/8,::1", forwarded(false, Some(&["10.0.0.0/8", "::1/128"]))),
        ("--trusted-proxies 10.1.2.3/8", forwarded(false, Some(&["10.0.0.0/8"]))),
        ("--trusted-proxies ::ffff:10.1.2.3", forwarded(false, Some(&["10.1.2.3/32"]))),
        ("--trusted-proxies ::ffff:10.1.2.3/104", forwarded(false, Some(&["10.0.0.0/8"]))),
        ("--trusted-proxies ::ffff:0:0/96", forwarded(false, Some(&["0.0.0.0/0"]))),
        ("--trusted-proxies ::ffff:10.1.2.3/128", forwarded(false, Some(&["10.1.2.3/32"]))),
        ("--trusted-proxies 0.0.0.0/0,::/0", forwarded(false, Some(&["0.0.0.0/0", "::/0"]))),
        ("--drain-seconds 8", Config { drain: Duration::from_secs(8), ..Config::default() }),
        ("--drain-seconds 0", default.clone()),
        ("--log-format json", Config { log_format: LogFormat::Json, ..default.clone() }),
        ("--log-format logfmt", default.clone()),
        ("--log-level debug", Config { log_level: log::LevelFilter::Debug, ..default.clone() }),
        ("--log-level=off", Config { log_level: log::LevelFilter::Off, ..default.clone() }),
        ("--metrics-listen=", Config { metrics_listen: None, ..default.clone() }),
        ("--metrics-listen ''", Config { metrics_listen: None, ..default }),
    ];
    for (line, expected) in cases {
        assert_eq!(serve(line), expected, "{line}");
    }
    let spaced = ["--trusted-proxies".into(), "10.0.0.0/8, ::1".into()];
    assert_eq!(
        run(&spaced, &[], USER),
        Ok(Command::Serve(forwarded(false, Some(&["10.0.0.0/8", "::1/128"]))))
    );
}

#[test]
fn a_rate_limit_that_is_off_needs_no_burst() {
    let limits = serve("--rate-limit-burst 0 --rate-limit-per-minute 0").limits;
    assert_eq!((limits.rate_per_minute, limits.rate_burst), (0, 0));
    assert!(refusal("--rate-limit-burst 0").starts_with("--rate-limit-burst: "));
    assert!(refusal("--rate-limit-per-minute 1 --rate-limit-burst 0").contains("-per-minute 0"));
}

#[test]
fn one_dash_equals_two() {
    for line in [
        "--max-connections 5 --trust-x-forwarded-for",
        "--max-connections=5 --trust-x-forwarded-for=true",
        "-max-connections 5 -trust-x-forwarded-for",
        "-max-connections=5 -trust-x-forwarded-for=1",
    ] {
        let config = serve(line);
        assert_eq!(config.limits.connections, Some(5), "{line}");
        assert!(config.forwarded.trust_x_forwarded_for, "{line}");
    }
}

#[test]
fn the_last_value_of_a_repeated_flag_applies() {
    assert_eq!(serve("--max-connections 5 -max-connections=6").limits.connections, Some(6));
    let config = serve("--trust-x-forwarded-for --trust-x-forwarded-for=false");
    assert!(!config.forwarded.trust_x_forwarded_for);
    assert!(matches!(parse_line("--check-config --check-config=false"), Ok(Command::Serve(_))));
}

#[test]
fn booleans_are_spelt_as_in_go() {
    for (words, on) in [
        (["1", "t", "T", "true", "TRUE", "True"], true),
        (["0", "f", "F", "false", "FALSE", "False"], false),
    ] {
        for word in words {
            let config = serve(&format!("--trust-x-forwarded-for={word}"));
            assert_eq!(config.forwarded.trust_x_forwarded_for, on, "{word}");
        }
    }
    for word in ["", "yes", "tRUE", "2", "on"] {
        let refused = refusal(&format!("--trust-x-forwarded-for={word}"));
        assert!(refused.contains("not true or false"), "{refused}");
    }
    // A value after a space is an unexpected argument, as in Go.
    assert!(refusal("--trust-x-forwarded-for false").contains("--name=false"));
}

#[test]
fn listen_addresses_are_parsed_or_refused() {
    for (given, expected) in [
        (":8080", "[::]:8080"),
        (":0", "[::]:0"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("192.0.2.1:65535", "192.0.2.1:65535"),
        ("[::1]:8080", "[::1]:8080"),
        ("[::]:8080", "[::]:8080"),
        ("localhost:8080", "127.0.0.1:8080"),
    ] {
        assert_eq!(
            serve(&format!("--insecure-listen {given}")).serving,
            plain(expected),
            "{given}"
        );
    }
    for given in [
        "''",
        ":",
        "8080",
        "::1:8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        ":-1",
        ":+1",
        ":http",
        "*:8080",
        "example.org:80",
        "localhost",
        "localhost.:80",
        "127.1:80",
        "[::1]",
        "http://127.0.0.1:80",
        "127.0.0.1:80/",
        "[127.0.0.1]:80",
        "::8080",
        "[::1:80",
        "]:80",
    ] {
        let refused = refusal(&format!("--insecure-listen {given}"));
        assert!(refused.starts_with("--insecure-listen: "), "{refused}");
        assert!(refused.contains(":8080 (every interface)"), "{refused}");
    }
}

#[test]
fn metrics_beyond_loopback_need_metrics_allow() {
    for given in ["127.0.0.1:9090", "127.8.8.8:0", "[::1]:9090", "[::ffff:127.0.0.1]:9090"] {
        let config = serve(&format!("--metrics-listen {given}"));
        assert_eq!(config.metrics_listen, Some(address(given)));
    }
    for given in [":9090", "0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090"] {
        let refused = refusal(&format!("--metrics-listen {given}"));
        assert!(refused.contains("with --metrics-allow 10.0.0.0/8"), "{refused}");
        for line in [
            "--metrics-listen {} --metrics-allow 10.0.0.0/8,::1",
            "--metrics-allow 10.0.0.0/8,::1 --metrics-listen {}",
        ] {
            let config = serve(&line.replace("{}", given));
            assert_eq!(config.metrics_listen.unwrap().port(), 9090, "{line}");
            assert_eq!(config.metrics_allow.len(), 2, "{line}");
        }
    }
    for given in ["localhost:9090", "9090", "relay:9090", ":x"] {
        let refused = refusal(&format!("--metrics-listen {given} --metrics-allow ::1"));
        assert!(refused.contains("not an address and a port"), "{refused}");
    }
    assert!(refusal("--metrics-allow everybody").contains("not an address or a network"));
}

#[test]
fn numbers_are_decimal_and_in_range() {
    for (flag, low, high) in [
        ("max-connections", "1", "4294967295"),
        ("max-connections-per-ip", "0", "4294967295"),
        ("rate-limit-per-minute", "0", "4294967295"),
        ("rate-limit-burst", "0", "4294967295"),
        ("buffer-memory", "1048576", "18446744073709551615"),
        ("drain-seconds", "0", "8"),
    ] {
        let range = format!("not a whole number from {low} to {high}");
        for value in
            ["-1", "+1", "''", "0x10", "1_000", "1.0", "1e3", "ten", "18446744073709551616"]
        {
            let refused = refusal(&format!("--{flag} {value}"));
            let value = if value == "''" { "" } else { value };
            assert_eq!(refused, format!("--{flag}: {value:?} is {range}"));
        }
    }
    for line in ["--max-connections 0", "--max-connections=-5", "--max-connections 4294967296"] {
        assert!(refusal(line).contains("from 1 to 4294967295"), "{line}");
    }
    assert!(refusal("--buffer-memory 1048575").contains("from 1048576 "));
}

#[test]
fn unknown_flags_and_malformed_values_are_refused() {
    for (line, expected) in [
        ("serve", "unexpected argument \"serve\""),
        ("--log-format json extra", "unexpected argument \"extra\""),
        ("PYRYCODE_RELAY_LOG=hunter2", "unexpected argument \"PYRYCODE_RELAY_LOG\";"),
        ("-- --help", "unexpected argument \"--help\""),
        ("-", "unexpected argument \"-\""),
        ("''", "unexpected argument \"\""),
        ("--bogus", "unknown flag --bogus;"),
        ("-bogus=hunter2", "unknown flag --bogus;"),
        ("---help", "unknown flag ---help;"),
        ("--=x", "unknown flag --;"),
        ("-5", "unknown flag -5;"),
        ("--insecure-listen=:1 --max-conns 5", "unknown flag --max-conns;"),
        ("--max-connection 5", "unknown flag --max-connection;"),
        ("--Help", "unknown flag --Help;"),
        ("--help=false --bogus", "unknown flag --bogus;"),
        ("--PYRYCODE_RELAY_FCM_CREDENTIALS=hunter2", "unknown flag --PYRYCODE_"),
        ("--max-connections", "--max-connections: needs a value"),
        ("-log-format", "--log-format: needs a value"),
        ("--log-format text", "--log-format: \"text\" is not logfmt or json"),
        ("--log-level loud", "--log-level: \"loud\" is not off, error, warn,"),
        ("--trusted-proxies=", "--trusted-proxies: \"\" is not an address or a network"),
        ("--trusted-proxies 10.0.0.0/8,", "--trusted-proxies: \"\" is not"),
        ("--trusted-proxies 10.0.0.0/33", "--trusted-proxies: \"10.0.0.0/33\" is not"),
        ("--trusted-proxies ::ffff:10.0.0.0/95", "--trusted-proxies: \"::ffff:10.0.0.0/95\" mixes"),
        ("--trusted-proxies 10.0.0.1:80", "--trusted-proxies: \"10.0.0.1:80\" is not"),
        ("--trusted-proxies example.org", "--trusted-proxies: \"example.org\" is not"),
    ] {
        let refused = refusal(line);
        assert!(refused.starts_with(expected), "{line}: {refused}");
        assert!(!refused.contains("hunter2"), "{line}: {refused}");
    }
}

#[test]
fn non_utf8_is_refused() {
    let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for (args, expected) in [
        (vec![bytes(b"--insecure-listen=\xff")], "--insecure-listen: the value is not UTF-8"),
        (vec!["--log-format".into(), bytes(b"js\xffon")], "--log-format: the value is not UTF-8"),
        (vec![bytes(b"--trust-x-forwarded-for=\xff")], "--trust-x-forwarded-for: the value is not"),
        (vec![bytes(b"--bo\xffgus")], "unknown flag --bo"),
        (vec![bytes(b"\xff")], "unexpected argument "),
        (vec!["--bo\ngus\n\n\n".into()], "unknown flag --bo\\ngus"),
        (vec!["--log-format=a\nb\nc\nd\x1b".into()], "--log-format: \"a\\nb\\nc\\nd"),
    ] {
        let refused = text(run(&args, &[], USER), expected);
        assert!(refused.starts_with(expected), "{refused}");
    }
    for name in
        ["PYRYCODE_RELAY_PRODUCTION", "PYRYCODE_RELAY_SINGLE_INSTANCE", "PYRYCODE_RELAY_LOG"]
    {
        let refused = text(run(&[], &[(name, bytes(b"1\xff"))], USER), name);
        assert!(refused.starts_with(&format!("{name}: must be ")), "{refused}");
    }
}

#[test]
fn help_and_version_end_parsing() {
    for line in ["--help", "-help", "-h", "--h", "--help=true --bogus", "--check-config -h"] {
        assert_eq!(parse_line(line), Ok(Command::Help), "{line}");
    }
    for line in ["--version", "-version", "-V", "--version --bogus"] {
        assert_eq!(parse_line(line), Ok(Command::Version), "{line}");
    }
    // They work even in an environment where the relay would refuse to start.
    let broken = [("PYRYCODE_RELAY_LOG", "loud"), ("PYRYCODE_RELAY_PRODUCTION", "")];
    assert_eq!(with_variables(&broken, "--help", ROOT), Ok(Command::Help));
    assert_eq!(with_variables(&broken, "--version", ROOT), Ok(Command::Version));
    assert_eq!(serve("--help=false --version=false"), Config::default());
}

#[test]
fn check_config_applies_the_checks_of_serving() {
    let Ok(Command::CheckConfig(config)) = parse_line("--check-config --insecure-listen :1") else {
        panic!("not a check");
    };
    assert_eq!(config, serve("--insecure-listen :1"));
    refusal("--check-config --rate-limit-burst 0");
    let production = [("PYRYCODE_RELAY_PRODUCTION", "1")];
    text(with_variables(&production, "--check-config --insecure-listen :1", USER), "production");
}

const CREDENTIALS: &str = "PYRYCODE_RELAY_FCM_CREDENTIALS";
/// A service account key, with more fields than the relay reads. `hunter2` marks values
/// that no error may repeat.
const ACCOUNT: &str = r#"{
    "type": "service_account",
    "project_id": "hunter2-project",
    "private_key_id": "hunter2",
    "private_key": "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n",
    "client_email": "hunter2@example.org",
    "client_id": "1",
    "token_uri": "https://oauth2.googleapis.com/token"
}"#;

#[test]
fn a_service_account_turns_push_wake_on() {
    let run = |line| with_variables(&[(CREDENTIALS, ACCOUNT)], line, USER);
    let Ok(Command::Serve(config)) = run("") else { panic!("refused") };
    let PushWake { account, endpoint, ca } = config.push_wake.as_ref().expect("it is on");
    assert_eq!((endpoint.as_str(), ca), ("https://fcm.googleapis.com", &None));
    assert_eq!(account.project_id, "hunter2-project");
    assert_eq!(account.client_email, "hunter2@example.org");
    assert_eq!(account.token_uri, "https://oauth2.googleapis.com/token");
    assert_eq!(account.private_key_id.as_deref(), Some("hunter2"));
    assert_eq!(account.private_key.lines().count(), 3);
    assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    assert!(!describe(&config).contains("hunter2"), "{}", describe(&config));

    let Ok(Command::Serve(config)) = run("--fcm-endpoint https://[::1]:8443/x/ --fcm-ca ca.pem")
    else {
        panic!("refused")
    };
    let PushWake { endpoint, ca, .. } = config.push_wake.as_ref().expect("it is on");
    assert_eq!(endpoint, "https://[::1]:8443/x");
    assert_eq!(ca.as_deref(), Some(std::path::Path::new("ca.pem")));
    // Without an account they are validated, but have no effect.
    assert_eq!(serve("--fcm-endpoint https://localhost --fcm-ca x"), Config::default());
}

#[test]
fn invalid_service_accounts_are_refused_without_repeating_them() {
    let field = |name: &str, value: &str| {
        let mut account: serde_json::Value = serde_json::from_str(ACCOUNT).unwrap();
        account[name] = serde_json::from_str(value).unwrap();
        account.to_string()
    };
    let long = format!("\"{}\"", "a".repeat(129));
    let cases: &[(String, &str)] = &[
        ("".into(), "is set but empty"),
        ("hunter2.json".into(), "is not the JSON"),
        ("{\"hunter2\"".into(), "the JSON is invalid at line 1, column 10"),
        (
            "[\"service_account\",\"hunter2\",null,\"k\",\"a@b\",\"https://c\"]".into(),
            "is not the JSON",
        ),
        ("{}".into(), "type must be"),
        (field("type", "\"authorized_user\""), "type must be"),
        (field("type", "null"), "type must be"),
        (field("project_id", "[\"hunter2\"]"), "line 1, column "),
        (field("project_id", "\"\""), "project_id must"),
        (field("project_id", "\"../hunter2\""), "project_id must"),
        (field("project_id", "\"hunter2/x\""), "project_id must"),
        (field("project_id", "\"hunter2?x\""), "project_id must"),
        (field("project_id", &long), "project_id must"),
        (field("client_email", "\"hunter2\""), "client_email must"),
        (field("client_email", "\"hunter2@\\n\""), "client_email must"),
        (field("token_uri", "\"http://hunter2\""), "token_uri must"),
        (field("token_uri", "\"https://hunter2@x\""), "token_uri must"),
        (field("private_key", "\"\""), "private_key must"),
        (field("private_key", "7"), "line 1, column "),
        (ACCOUNT.replace("client_id", "client_email"), "line 7, column "),
    ];
    for (value, expected) in cases {
        let refused = text(with_variables(&[(CREDENTIALS, value)], "", USER), value);
        assert!(refused.starts_with(&format!("{CREDENTIALS}: {expected}")), "{value}: {refused}");
        assert!(!refused.contains("hunter2"), "{value}: {refused}");
    }
    let not_utf8 = OsString::from_vec(b"hunter2\xff".to_vec());
    let refused = text(run(&[], &[(CREDENTIALS, not_utf8)], USER), "not UTF-8");
    assert_eq!(refused, format!("{CREDENTIALS}: is not UTF-8"));
}

#[test]
fn project_and_token_endpoint_have_defaults() {
    let mut account: serde_json::Value = serde_json::from_str(ACCOUNT).unwrap();
    for value in [None, Some(serde_json::Value::Null)] {
        for field in ["project_id", "token_uri"] {
            account.as_object_mut().unwrap().remove(field);
            if let Some(value) = &value {
                account[field] = value.clone();
            }
        }
        let command = with_variables(&[(CREDENTIALS, &account.to_string())], "", USER);
        let Ok(Command::Serve(config)) = command else { panic!("refused: {command:?}") };
        let PushWake { account, .. } = config.push_wake.expect("it is on");
        assert_eq!(account.project_id, "pyrycode-mobile");
        assert_eq!(account.token_uri, "https://oauth2.googleapis.com/token");
    }
}

/// Keys damaged by environment files, shells and clipboards, and the error for each.
#[test]
fn a_damaged_key_is_refused_with_the_cause_and_the_remedy() {
    let breaks = "write line breaks in private_key as \\n; in an EnvironmentFile quote with '…'";
    let base64 = data_encoding::BASE64.encode(ACCOUNT.as_bytes());
    let cases = [
        (
            "line breaks made real",
            ACCOUNT.replace("\\n", "\n"),
            "invalid at the end of line 5",
            breaks,
        ),
        ("quotes kept", format!("'{ACCOUNT}'"), "begins with a quote", "without them"),
        ("base64", base64, "is in base64", "base64 -d"),
        ("a byte order mark", format!("\u{feff}{ACCOUNT}"), "byte order mark", "without one"),
        ("a legacy key", "AAAAhunter2:APA91bhunter2".into(), "legacy server key", "Firebase"),
        ("the file's name", "/etc/hunter2.json".into(), "is not the JSON", "not to its name"),
        ("doubled", ACCOUNT.replace("\\n", "\\\\n"), "are doubled", breaks),
        ("eaten", ACCOUNT.replace("\\n", "n"), "are lost", breaks),
        ("blanks", ACCOUNT.replace("\\n", " "), "by spaces", breaks),
        ("nothing left of them", ACCOUNT.replace("\\n", ""), "has no line breaks", breaks),
        ("every backslash and quote eaten", ACCOUNT.replace(['"', '\\'], ""), "line 2", breaks),
        ("cut off", ACCOUNT[..200].into(), "the JSON is invalid at line ", breaks),
    ];
    for (what, value, wrong, way_out) in cases {
        let refused = text(with_variables(&[(CREDENTIALS, &value)], "", USER), what);
        assert!(refused.contains(wrong) && refused.contains(way_out), "{what}: {refused}");
        assert!(!refused.contains("hunter2"), "{what}: {refused}");
        assert!(refused.lines().count() <= 3, "{what}: {refused}");
    }
}

#[test]
fn fcm_endpoint_must_be_an_https_url() {
    for bad in [
        "''",
        "localhost",
        "https:",
        "https://",
        "https://:1",
        "https:///x",
        "http://localhost",
        "ftp://localhost",
        "https://user@localhost",
        "https://localhost?x",
        "https://localhost#x",
        "https://localhost:x",
        "https://localhost:",
        "https://localhost:99999",
        "//localhost",
    ] {
        let refused = refusal(&format!("--fcm-endpoint {bad}"));
        assert!(refused.contains("is not an https URL"), "{bad}: {refused}");
    }
    assert_eq!(refusal("--fcm-ca="), "--fcm-ca: \"\" is not a path");
}

#[test]
fn switches_of_the_environment_are_1_or_0() {
    for name in ["PYRYCODE_RELAY_PRODUCTION", "PYRYCODE_RELAY_SINGLE_INSTANCE"] {
        for value in ["1", "0"] {
            let command = with_variables(&[(name, value)], "", USER);
            assert_eq!(command, Ok(Command::Serve(Config::default())), "{name}={value}");
        }
        for value in ["", " 1", "1\n", "true", "yes", "01", "hunter2"] {
            let refused = text(with_variables(&[(name, value)], "", USER), value);
            assert_eq!(refused, format!("{name}: must be 1 (on) or 0 (off), or not set"));
        }
    }
}

#[test]
fn log_level_comes_from_the_environment() {
    use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
    for (value, level) in [
        ("off", Off),
        ("error", Error),
        ("warn", Warn),
        ("info", Info),
        ("debug", Debug),
        ("trace", Trace),
        ("TRACE", Trace),
    ] {
        let command = with_variables(&[("PYRYCODE_RELAY_LOG", value)], "", USER);
        let expected = Config { log_level: level, ..Config::default() };
        assert_eq!(command, Ok(Command::Serve(expected)), "{value}");
    }
    for value in ["", "loud", "info ", "3", "info,mio=debug"] {
        let refused = text(with_variables(&[("PYRYCODE_RELAY_LOG", value)], "", USER), value);
        assert!(refused.starts_with("PYRYCODE_RELAY_LOG: must be off, "), "{refused}");
    }
    let command = with_variables(&[("PYRYCODE_RELAY_LOG", "trace")], "--log-level warn", USER);
    let expected = Config { log_level: Warn, ..Config::default() };
    assert_eq!(command, Ok(Command::Serve(expected)), "the flag wins");
    let refused =
        text(with_variables(&[("PYRYCODE_RELAY_LOG", "x")], "--log-level warn", USER), "");
    assert!(refused.starts_with("PYRYCODE_RELAY_LOG"), "and the variable is checked: {refused}");
}

#[test]
fn production_refuses_plain_text_beyond_loopback_and_root() {
    let on = [("PYRYCODE_RELAY_PRODUCTION", "1")];
    for line in ["", "--insecure-listen [::1]:80", "--insecure-listen localhost:80"] {
        assert!(with_variables(&on, line, USER).is_ok(), "{line}");
    }
    for address in [":8080", "0.0.0.0:8080", "[::]:8080", "10.0.0.1:8080", "[2001:db8::1]:8080"] {
        let line = format!("--insecure-listen {address}");
        let refused = text(with_variables(&on, &line, USER), &line);
        assert!(
            refused.starts_with("PYRYCODE_RELAY_PRODUCTION=1: --insecure-listen "),
            "{refused}"
        );
        assert!(refused.contains("listen on 127.0.0.1:8080"), "{refused}");
        for off in [&[("PYRYCODE_RELAY_PRODUCTION", "0")][..], &[]] {
            assert!(with_variables(off, &line, ROOT).is_ok(), "{line}");
        }
    }
    let refused = text(with_variables(&on, "", ROOT), "root");
    assert!(
        refused.starts_with("PYRYCODE_RELAY_PRODUCTION=1: refuses to run as root"),
        "{refused}"
    );
    assert!(refused.contains("start it as a dedicated user"), "{refused}");
}

#[test]
fn production_refuses_every_capability_but_net_bind_service() {
    let on = [("PYRYCODE_RELAY_PRODUCTION", "1".into())];
    let off = [("PYRYCODE_RELAY_PRODUCTION", "0".into())];
    let capabilities = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("CAP_{name}")).collect()
    };
    let cases: [(&[&str], Option<&str>); 5] = [
        (&[], None),
        (&["NET_BIND_SERVICE"], None),
        (&["NET_BIND_SERVICE", "NET_RAW"], Some("\nCAP_NET_RAW; drop all but CAP_NET")),
        (&["CHOWN", "FOWNER", "KILL"], Some("\nCAP_CHOWN, CAP_FOWNER, CAP_KILL; drop")),
        (
            &["CHOWN", "NET_BIND_SERVICE", "FOWNER", "KILL", "SETUID", "SYS_CHROOT"],
            Some("\nCAP_CHOWN, CAP_FOWNER, CAP_KILL and 2 more; drop"),
        ),
    ];
    for (names, expected) in cases {
        let found = || Ok(capabilities(names));
        let command = run_with(&[], &on, USER, &found);
        match expected {
            None => assert!(command.is_ok(), "{names:?}: {command:?}"),
            Some(expected) => {
                let refused = text(command, "capabilities");
                assert!(refused.contains(expected), "{refused}");
            }
        }
        for variables in [&off[..], &[]] {
            assert!(run_with(&[], variables, USER, &found).is_ok(), "{names:?}");
        }
    }
    let refused = text(run_with(&[], &on, USER, &|| Err("EPERM".into())), "untold");
    assert!(refused.contains("EPERM; allow the system call capget"), "{refused}");
}

#[test]
fn several_relays_behind_one_address_are_refused() {
    const FLY: (&str, &str) = ("FLY_APP_NAME", "my-relay");
    for (variables, starts) in [
        (&[FLY][..], false),
        (&[FLY, ("PYRYCODE_RELAY_SINGLE_INSTANCE", "0")], false),
        (&[FLY, ("PYRYCODE_RELAY_SINGLE_INSTANCE", "1")], true),
        (&[("FLY_APP_NAME", "")], true),
    ] {
        let command = with_variables(variables, "", USER);
        if starts {
            assert!(command.is_ok(), "{variables:?}: {command:?}");
        } else {
            let refused = text(command, "fly");
            assert!(refused.starts_with("FLY_APP_NAME is set"), "{refused}");
            assert!(refused.contains("PYRYCODE_RELAY_SINGLE_INSTANCE=1"), "{refused}");
            assert!(!refused.contains("my-relay"), "{refused}");
        }
    }
}

#[test]
fn check_config_describes_the_effective_configuration() {
    assert_eq!(
        describe(&serve("")),
        "insecure-listen 127.0.0.1:8080\n\
         proxy-protocol false\n\
         metrics-listen 127.0.0.1:9090\n\
         metrics-allow this machine\n\
         trust-x-forwarded-for false\n\
         trusted-proxies loopback and private ranges \
         (unused without --proxy-protocol or --trust-x-forwarded-for)\n\
         max-connections what the limit on open files leaves\n\
         max-connections-per-ip off\n\
         rate-limit-per-minute 10\n\
         rate-limit-burst 20\n\
         buffer-memory 67108864\n\
         drain-seconds 0\n\
         fcm-endpoint off (PYRYCODE_RELAY_FCM_CREDENTIALS is not set)\n\
         fcm-ca off\n\
         log-format logfmt\n\
         log-level info\n"
    );
    let line = "--insecure-listen :1 --metrics-listen= --trust-x-forwarded-for --log-format json \
                --trusted-proxies 10.0.0.0/8,::1 --max-connections 5 --max-connections-per-ip 6 \
                --rate-limit-per-minute 0 --rate-limit-burst 0 --buffer-memory 1048576 \
                --drain-seconds 7 --metrics-allow 10.0.0.0/8";
    assert_eq!(
        describe(&serve(line)),
        "insecure-listen [::]:1\n\
         proxy-protocol false\n\
         metrics-listen off\n\
         metrics-allow this machine,10.0.0.0/8\n\
         trust-x-forwarded-for true\n\
         trusted-proxies 10.0.0.0/8,::1/128\n\
         max-connections 5\n\
         max-connections-per-ip 6\n\
         rate-limit-per-minute off\n\
         rate-limit-burst 0\n\
         buffer-memory 1048576\n\
         drain-seconds 7\n\
         fcm-endpoint off (PYRYCODE_RELAY_FCM_CREDENTIALS is not set)\n\
         fcm-ca off\n\
         log-format json\n\
         log-level info\n"
    );
}

#[test]
fn check_config_describes_the_trusted_proxies() {
    for (line, expected) in [
        ("--proxy-protocol", "anyone"),
        ("--trust-x-forwarded-for", "loopback and private ranges"),
        (
            "--proxy-protocol --trust-x-forwarded-for",
            "anyone, for X-Forwarded-For loopback and private ranges",
        ),
        ("--proxy-protocol --trusted-proxies 10.1.2.3", "10.1.2.3/32"),
        (
            "--trusted-proxies 10.1.2.3",
            "10.1.2.3/32 (unused without --proxy-protocol or --trust-x-forwarded-for)",
        ),
    ] {
        let description = describe(&serve(line));
        let is_line = |found: &str| found == format!("trusted-proxies {expected}");
        assert!(description.lines().any(is_line), "{line}: {description}");
    }
}

/// The flags that begin a line of the help.
fn flags_in_help() -> Vec<&'static str> {
    let lines = HELP.lines().filter_map(|line| line.strip_prefix("  --"));
    lines.map(|line| line.split([' ', ',']).next().unwrap()).collect()
}

#[test]
fn help_lists_exactly_the_flags_that_exist() {
    let flags = flags_in_help();
    for flag in &flags {
        let refused = parse_line(&format!("--{flag}=\u{1}")).expect_err("a value nothing accepts");
        assert!(refused.to_string().starts_with(&format!("--{flag}: \"")), "{refused}");
    }
    // Each described setting has a flag, and each flag is in the help.
    for line in describe(&Config::default()).lines() {
        let name = line.split(' ').next().unwrap();
        assert!(flags.contains(&name) || name == "log-level", "{name}");
    }
    for flag in ["help", "version", "check-config"] {
        assert!(flags.contains(&flag), "{flag}");
    }
}

#[test]
fn help_states_the_defaults_and_fits_a_terminal() {
    let config = Config::default();
    let listen = config.serving.listens().next().unwrap().0.address;
    let metrics = config.metrics_listen.expect("a default").to_string();
    for default in [
        format!("on {listen}, for this machine only"),
        format!("default {listen}"),
        format!("{metrics}, empty"),
        format!("default {}, which turns it off", config.limits.connections_per_ip),
        format!("default\n{:30}{}; 0 turns", "", config.limits.rate_per_minute),
        format!("default {})", config.limits.rate_burst),
        format!("default {},", config.limits.buffer_memory),
        format!("least {BUFFER_MEMORY_MIN}"),
        format!("0 to {DRAIN_SECONDS_MAX} (default {},", config.drain.as_secs()),
    ] {
        assert!(HELP.contains(&default), "{default}");
    }
    for line in HELP.lines().chain(PROBE_HELP.lines()).chain(UPGRADE_HELP.lines()) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for example in HELP.lines().filter_map(|line| line.strip_prefix("  pyrycode-relay")) {
        assert!(parse_line(example).is_ok(), "{example}");
    }
}

#[test]
fn an_upgrade_names_a_relay() {
    let metrics = |address: &str| Ok(Command::Upgrade(Request::Metrics(self::address(address))));
    assert_eq!(parse_line("upgrade"), metrics("127.0.0.1:9090"));
    assert_eq!(parse_line("upgrade -metrics-listen=[::1]:1"), metrics("[::1]:1"));
    assert_eq!(parse_line("upgrade --pid 7"), Ok(Command::Upgrade(Request::Pid(7))));
    assert_eq!(parse_line("upgrade --help"), Ok(Command::UpgradeHelp));
    for line in [
        "upgrade --metrics-listen=",
        "upgrade --pid 0",
        "upgrade --pid 7 --metrics-listen 127.0.0.1:1",
        "upgrade now",
        "upgrade -p",
        "upgrade --insecure-listen :80",
    ] {
        text(parse_line(line), line);
    }
}

#[test]
fn the_flags_of_a_hand_over_come_first_and_are_not_told() {
    let config = || Config { metrics_listen: None, ..Config::default() };
    for (flag, command) in
        [(REHEARSE, Command::Rehearse(config())), (ADOPT, Command::Adopt(config()))]
    {
        assert_eq!(parse_line(&format!("{flag} --metrics-listen=")), Ok(command));
        assert!(parse_line(&format!("--metrics-listen= {flag}")).is_err());
        assert!(!HELP.contains(flag.split('=').next().unwrap()));
    }
    assert!(parse_line("--handover=other").is_err());
}

fn own(https: &str) -> Serving {
    let pair =
        PairFiles { certificate: "chain.pem".into(), key: "key.pem".into(), credentials: None };
    Serving::Own { https: Listen::at(address(https)), pair }
}

#[test]
fn tls_is_served_with_a_pair_or_for_a_domain() {
    assert_eq!(serve("--tls-cert chain.pem --tls-key key.pem").serving, own("[::]:443"));
    let elsewhere = "-tls-key=key.pem -https-listen=127.0.0.1:8443 -tls-cert=chain.pem";
    assert_eq!(serve(elsewhere).serving, own("127.0.0.1:8443"));

    let line = "--tls-cert chain.pem --tls-key key.pem";
    let directory = with_variables(&[("CREDENTIALS_DIRECTORY", "/run/c")], line, USER);
    let Ok(Command::Serve(Config { serving: Serving::Own { pair, .. }, .. })) = directory else {
        panic!("{directory:?}");
    };
    assert_eq!(pair.credentials, Some("/run/c".into()));

    let acme = Acme {
        domain: "relay.example.com".into(),
        cache: "/home/relay/.pyrycode-relay/certs".into(),
        directory: ACME_DIRECTORY.into(),
        ca: None,
        account: None,
    };
    let automatic = |https: &str, http: &str, acme: Acme| Serving::Automatic {
        https: Listen::at(address(https)),
        http: Listen::at(address(http)),
        acme,
    };
    let home = [("HOME", "/home/relay")];
    for (line, expected) in [
        ("--domain Relay.Example.com", automatic("[::]:443", "[::]:80", acme.clone())),
        ("--domain relay.example.com.", automatic("[::]:443", "[::]:80", acme.clone())),
        (
            "--domain relay.example.com --https-listen :8443 --http-listen 127.0.0.1:8080 \
             --cert-cache certs --acme-directory https://ca.example:14000/dir --acme-ca ca.pem \
             --acme-eab-kid customer/7 --acme-eab-hmac-file hmac",
            automatic(
                "[::]:8443",
                "127.0.0.1:8080",
                Acme {
                    cache: "certs".into(),
                    directory: "https://ca.example:14000/dir".into(),
                    ca: Some("ca.pem".into()),
                    account: Some(ExternalAccount {
                        kid: "customer/7".into(),
                        hmac_file: "hmac".into(),
                        credentials: None,
                    }),
                    ..acme
                },
            ),
        ),
    ] {
        let Ok(Command::Serve(config)) = with_variables(&home, line, USER) else {
            panic!("{line}");
        };
        assert_eq!(config.serving, expected, "{line}");
        assert_eq!(config.serving.domain(), Some("relay.example.com"));
        assert!(describe(&config).starts_with("domain relay.example.com\nhttps-listen "));
    }
    assert!(describe(&serve(elsewhere)).starts_with("https-listen 127.0.0.1:8443\nhttps-proxy-"));
    let proxied = format!("{elsewhere} --https-proxy-protocol --proxy-protocol=false");
    assert!(serve(&proxied).serving.listens().all(|(listen, _)| listen.proxy_protocol));
}

#[test]
fn conflicting_and_incomplete_tls_flags_are_refused() {
    for (line, named) in [
        ("--tls-cert c", "--tls-cert: needs --tls-key"),
        ("--tls-key k", "--tls-key: needs --tls-cert"),
        ("--https-listen :443", "--https-listen: needs --domain, or"),
        ("--http-listen :80", "--http-listen: needs --domain"),
        ("--cert-cache c", "--cert-cache: needs --domain"),
        ("--acme-ca c", "--acme-ca: needs --domain"),
        ("--acme-directory https://ca", "--acme-directory: needs --domain"),
        ("--tls-cert c --tls-key k --http-listen :80", "--http-listen: needs --domain"),
        ("--tls-cert c --tls-key k --domain relay.example", "--domain: excludes --tls-cert"),
        ("--insecure-listen :1 --domain relay.example", "--domain: excludes --insecure-listen"),
        ("--insecure-listen :1 --tls-cert c --tls-key k", "--tls-cert: excludes --insecure-listen"),
        ("--insecure-listen :1 --tls-key k", "--tls-cert: excludes --insecure-listen"),
        ("--insecure-listen :1 --https-listen :2", "--https-listen: excludes --insecure-listen"),
        ("--insecure-listen :1 --cert-cache c", "--cert-cache: excludes --insecure-listen"),
        ("--acme-eab-kid k", "--acme-eab-kid: needs --domain"),
        (
            "--domain relay.example --cert-cache c --acme-eab-kid k",
            "--acme-eab-kid: needs --acme-eab-hmac-file",
        ),
        (
            "--domain relay.example --cert-cache c --acme-eab-hmac-file f",
            "--acme-eab-hmac-file: needs --acme-",
        ),
        ("--domain relay.example --acme-eab-kid=", "--acme-eab-kid: \"\" is not a key ID"),
        ("--domain relay.example --acme-directory http://ca", "--acme-directory: \"http://ca\""),
        ("--domain relay.example", "--domain: HOME is not set"),
        ("--proxy-protocol --tls-cert c --tls-key k", "--proxy-protocol: needs --insecure-listen"),
        ("--https-proxy-protocol", "--https-proxy-protocol: needs TLS"),
        ("--tls-cert= --tls-key k", "--tls-cert: \"\" is not a path"),
    ] {
        assert!(refusal(line).starts_with(named), "{line}: {}", refusal(line));
    }
}

#[test]
fn domains_without_a_possible_certificate_are_refused_with_advice() {
    for (name, advice) in [
        ("relay", "a full name such as"),
        ("relay.example..", "a full name such as"),
        (".", "a full name such as"),
        ("bücher.example", "punycode, such as xn--"),
        ("*.example.com", "dns-01"),
        ("https://relay.example", "not a URL"),
        ("relay.example/path", "not a URL"),
        ("relay.example:443", "the port with --https-listen"),
        ("192.0.2.1", "IP addresses are not fetched"),
        ("192.0.2.1:443", "IP addresses are not fetched"),
        ("2001:db8::1", "IP addresses are not fetched"),
        ("[2001:db8::1]:443", "IP addresses are not fetched"),
        ("a.example,b.example", "write one name"),
    ] {
        let line = format!("--domain {name}");
        let said = refusal(&line);
        let expected = format!("--domain: {name:?} is not a host name that a certificate");
        assert!(said.starts_with(&expected) && said.contains(advice), "{line}: {said}");
        assert!(said.lines().count() <= 3, "{said}");
    }
}

#[test]
fn production_tls_is_refused_as_root_and_names_the_needed_capability() {
    let production = [("PYRYCODE_RELAY_PRODUCTION", "1")];
    let line = "--tls-cert chain.pem --tls-key key.pem";
    assert!(with_variables(&production, line, USER).is_ok());
    let refused = text(with_variables(&production, line, ROOT), line);
    assert!(refused.contains("CAP_NET_BIND_SERVICE"), "{refused}");
}
