//! Command line and environment of the built program: exit codes and messages.

use std::fs::File;
use std::net::TcpListener;
use std::process::Stdio;

use crate::support::{Process, healthz, run, run_into};

#[test]
fn refusals_exit_2_with_short_messages_and_no_secrets() {
    const SECRET: &str = "hunter2-swordfish";
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let table: &[Case<'_>] = &[
        (&["--nonsense"], &[], "nonsense"),
        (&["-nonsense"], &[], "nonsense"),
        (&["--nonsense=hunter2-swordfish"], &[], "nonsense"),
        (&["stray"], &[], "stray"),
        (&["TOKEN=hunter2-swordfish"], &[], "TOKEN"),
        (&["--insecure-listen"], &[], "insecure-listen"),
        (&["--insecure-listen", ""], &[], "insecure-listen"),
        (&["--insecure-listen", "8080"], &[], "insecure-listen"),
        (&["--insecure-listen", "127.0.0.1:99999"], &[], "insecure-listen"),
        (&["--insecure-listen", "localhost:x"], &[], "insecure-listen"),
        (&["--metrics-listen", "0.0.0.0:9090"], &[], "metrics-listen"),
        (&["--metrics-listen", "localhost:9090"], &[], "metrics-listen"),
        (&["--max-connections", "0"], &[], "max-connections"),
        (&["--max-connections=-1"], &[], "max-connections"),
        (&["--max-connections", "many"], &[], "max-connections"),
        (&["--max-connections-per-ip", "-1"], &[], "max-connections-per-ip"),
        (&["--rate-limit-per-minute", "-1"], &[], "rate-limit-per-minute"),
        (&["--rate-limit-burst", "1.5"], &[], "rate-limit-burst"),
        (&["--buffer-memory", "64M"], &[], "buffer-memory"),
        (&["--log-format", "xml"], &[], "log-format"),
        (&["--trust-x-forwarded-for=perhaps"], &[], "trust-x-forwarded-for"),
        (&["--trusted-proxies", "10.0.0.0/33"], &[], "trusted-proxies"),
        (&["--trusted-proxies", "::ffff:10.0.0.0/90"], &[], "trusted-proxies"),
        (&["--proxy-protocol=perhaps"], &[], "proxy-protocol"),
        (&["--insecure-listen=:1", "--domain=relay.example"], &[], "domain"),
        (&["--check-config", "--max-connections", "0"], &[], "max-connections"),
        (&[], &[("PYRYCODE_RELAY_LOG", "loud")], "PYRYCODE_RELAY_LOG"),
        (&[], &[("PYRYCODE_RELAY_LOG", "")], "PYRYCODE_RELAY_LOG"),
        (&[], &[("PYRYCODE_RELAY_PRODUCTION", "")], "PYRYCODE_RELAY_PRODUCTION"),
        (&[], &[("PYRYCODE_RELAY_PRODUCTION", SECRET)], "PYRYCODE_RELAY_PRODUCTION"),
        (&[], &[("PYRYCODE_RELAY_SINGLE_INSTANCE", SECRET)], "PYRYCODE_RELAY_SINGLE_INSTANCE"),
        (&[], &[("PYRYCODE_RELAY_LOG", SECRET)], "PYRYCODE_RELAY_LOG"),
        (&[], &[("PYRYCODE_RELAY_FCM_CREDENTIALS", "")], "PYRYCODE_RELAY_FCM_CREDENTIALS"),
        (&[], &[("PYRYCODE_RELAY_FCM_CREDENTIALS", SECRET)], "PYRYCODE_RELAY_FCM_CREDENTIALS"),
        (&[], &[("FLY_APP_NAME", SECRET)], "FLY_APP_NAME"),
        (
            &["--insecure-listen", "0.0.0.0:0"],
            &[("PYRYCODE_RELAY_PRODUCTION", "1")],
            "PYRYCODE_RELAY_PRODUCTION",
        ),
    ];
    for (flags, variables, named) in table {
        let output = run(flags, variables);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let case = format!("{flags:?} {variables:?}: {stderr}");
        assert_eq!(output.status.code(), Some(2), "{case}");
        assert!(output.stdout.is_empty(), "{case}");
        assert!((1..=3).contains(&stderr.lines().count()), "{case}");
        assert!(stderr.contains(named) && !stderr.contains(SECRET), "{case}");
    }
}

/// Where the relay refuses to run, and that what the refusal says helps.
#[test]
fn guards_name_a_fix_that_works() {
    let production = ("PYRYCODE_RELAY_PRODUCTION", "1");
    let fly = ("FLY_APP_NAME", "a-relay");
    let is_root = rustix::process::geteuid().is_root();
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);
    let table: &[Case<'_>] = &[
        ("--insecure-listen=:8080", &[production], Some("listen on 127.0.0.1:8080")),
        ("--insecure-listen=10.0.0.1:80", &[production], Some("listen on 127.0.0.1:80 ")),
        ("--insecure-listen=:8080", &[("PYRYCODE_RELAY_PRODUCTION", "0")], None),
        ("--insecure-listen=:8080", &[], None),
        (
            "--insecure-listen=127.0.0.1:8080",
            &[production],
            is_root.then_some("start it as a dedicated user"),
        ),
        ("--proxy-protocol", &[fly], Some("PYRYCODE_RELAY_SINGLE_INSTANCE=1")),
        (
            "--proxy-protocol",
            &[fly, ("PYRYCODE_RELAY_SINGLE_INSTANCE", "0")],
            Some("PYRYCODE_RELAY_SINGLE_INSTANCE=1"),
        ),
        ("--proxy-protocol", &[fly, ("PYRYCODE_RELAY_SINGLE_INSTANCE", "1")], None),
    ];
    for (flag, variables, refused) in table {
        let output = run(&["--check-config", flag], variables);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let case = format!("{flag} {variables:?}: {stderr}");
        let code = if refused.is_some() { 2 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{case}");
        assert!(refused.is_none_or(|fix| stderr.contains(fix)), "{case}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for flag in ["--help", "-help", "--version", "-version"] {
        let output = run(&[flag], &[]);
        assert_eq!(output.status.code(), Some(0), "{flag}");
        assert!(output.stderr.is_empty(), "{flag}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        if flag.ends_with("version") {
            assert!(stdout.contains(env!("CARGO_PKG_VERSION")), "{stdout}");
        } else {
            for flag in ["--insecure-listen", "--max-connections", "--check-config"] {
                assert!(stdout.contains(flag), "{flag}");
            }
        }
    }
}

#[test]
fn check_config_prints_the_configuration_and_starts_nothing() {
    // The address is taken: it is not bound.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for (flags, says) in [
        (vec![], "127.0.0.1:8080"),
        (vec!["--insecure-listen", taken.as_str()], taken.as_str()),
        (vec!["--insecure-listen=[::1]:7"], "[::1]:7"),
        (vec!["-max-connections=5"], "max-connections 5"),
        (vec!["--max-connections", "5", "--max-connections", "6"], "max-connections 6"),
        (vec!["--trust-x-forwarded-for=false"], "trust-x-forwarded-for false"),
        (vec!["-trust-x-forwarded-for"], "trust-x-forwarded-for true"),
    ] {
        let output = run(&[vec!["--check-config"], flags.clone()].concat(), &[]);
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{flags:?}");
        assert!(stdout.contains(says), "{flags:?}: {stdout}");
    }
}

#[test]
fn an_address_in_use_exits_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--insecure-listen", &address], &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("err="), "{stderr}");
}

#[test]
fn flags_apply_and_the_log_is_json() {
    let process = Process::start(&["-log-format=json", "--max-connections=7"]);
    assert_eq!(healthz(process.relay), (0, 0));
    drop(crate::support::Peer::phone(process.relay, "none"));
    let line = process.expect_line("phone_register_no_server");
    let fields: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(fields["server_id"], "none");
}

/// A pipe without a reader.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A disk without room (null(4)).
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn exit_codes_do_not_depend_on_stdout_and_stderr() {
    let asked = [&["--help"][..], &["--version"], &["--check-config"], &["probe", "--help"]];
    for flags in asked {
        for stderr in [Stdio::piped, closed_pipe, full] {
            let output = run_into(flags, closed_pipe(), stderr());
            assert_eq!(output.status.code(), Some(0), "{flags:?}: {:?}", output.status);
            assert!(output.stderr.is_empty(), "{flags:?}");
            let status = run_into(flags, full(), stderr()).status;
            assert_eq!(status.code(), Some(1), "{flags:?}: {status:?}");
        }
        let stderr = String::from_utf8(run_into(flags, full(), Stdio::piped()).stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("cannot write to stdout: No space left"), "{stderr}");
    }
    for flags in [&["--nope"][..], &["probe", "--nope"], &["--check-config", "--tls-key=k"]] {
        for stderr in [closed_pipe(), full()] {
            let status = run_into(flags, closed_pipe(), stderr).status;
            assert_eq!(status.code(), Some(2), "{flags:?}: {status:?}");
        }
    }
    // A failed start is told by the log.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--insecure-listen={}", taken.local_addr().unwrap());
    for stderr in [closed_pipe(), full()] {
        let status = run_into(&[&listen], full(), stderr).status;
        assert_eq!(status.code(), Some(1), "{status:?}");
    }
}
