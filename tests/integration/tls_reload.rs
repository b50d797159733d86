//! Certificate reload while the relay runs.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use rustls::ClientConfig;

use crate::support::{Answer, Pair, Peer, Process, binary_head, run, tls_connect};

/// Whether the relay shows a certificate that this client trusts.
fn is_trusted(relay: SocketAddr, client: &Arc<ClientConfig>) -> bool {
    let mut stream = tls_connect(relay, client);
    match stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n") {
        Ok(()) => Answer::read(&mut stream).status == 200,
        Err(error) => {
            assert!(error.to_string().contains("invalid peer certificate"), "{error}");
            false
        }
    }
}

#[test]
fn sighup_and_a_changed_file_reload_and_connections_stay_open() {
    let mut pair = Pair::new();
    let mut process = Process::start_talkative(&pair.flags());
    let first = pair.client();
    let stream = tls_connect(process.relay, &first);
    let mut standing = Peer::upgrade(stream, &binary_head("home"));

    pair.renew();
    process.signal(Signal::HUP);
    process.expect_line("certificate_served");
    // The second client has no session: a resumed one shows no certificate.
    let (second, stranger) = (pair.client(), pair.client());
    assert!(is_trusted(process.relay, &second));
    standing.expect_alive();

    // Without a signal, within 10 s.
    pair.renew();
    process.expect_line("certificate_served");
    assert!(is_trusted(process.relay, &pair.client()));
    assert!(!is_trusted(process.relay, &stranger) && is_trusted(process.relay, &second));
    standing.expect_alive();

    process.signal(Signal::TERM);
    standing.expect_close(1001, "shutting down");
    drop(standing);
    assert_eq!(process.wait().0, Some(0), "SIGHUP did not count as a first signal");
}

#[test]
fn an_invalid_pair_is_logged_once_and_the_previous_stays_in_use() {
    let pair = Pair::new();
    let process = Process::start_talkative(&pair.flags());
    let client = pair.client();
    let key = fs::read_to_string(&pair.files.key).unwrap();
    for (certificate, key) in [
        (fs::read_to_string(&Pair::new().files.certificate).unwrap(), key.clone()),
        ("no certificate".into(), key),
        (fs::read_to_string(&pair.files.certificate).unwrap(), String::new()),
    ] {
        pair.put(&certificate, &key);
        process.signal(Signal::HUP);
        let line = process.expect_line("certificate_refused");
        assert!(line.contains(".pem: "), "{line}");
        assert!(is_trusted(process.relay, &client));
    }
    // Several polls later no further line was logged.
    let lines = std::iter::from_fn(|| process.next_line(Duration::from_secs(9)));
    assert_eq!(lines.filter(|line| line.contains("certificate_")).count(), 0);
}

#[test]
fn an_invalid_pair_is_refused_at_start_with_advice() {
    let pair = Pair::new();
    let refused = |named: &str| {
        let [certificate, key] = pair.flags();
        for mode in ["--check-config", "--https-listen=127.0.0.1:0"] {
            let output = run(&[&certificate, &key, mode], &[]);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(stderr.contains(named) && stderr.lines().count() <= 3, "{stderr}");
        }
    };
    let path = pair.files.key.display();
    // PostgreSQL's rule: a key that root owns may be readable by its group.
    let (modes, others) = if rustix::process::geteuid().is_root() {
        ([0o604, 0o644, 0o620, 0o660], "others than root and its group")
    } else {
        ([0o640, 0o604, 0o644, 0o620], "others than its owner")
    };
    for mode in modes {
        fs::set_permissions(&pair.files.key, Permissions::from_mode(mode)).unwrap();
        refused(&format!("--tls-key {path}: {others}"));
        refused(&format!("chmod 600 {path}"));
    }
    fs::set_permissions(&pair.files.key, Permissions::from_mode(0o600)).unwrap();
    let other = Pair::new();
    let [own_chain, other_chain] =
        [&pair, &other].map(|pair| fs::read_to_string(&pair.files.certificate).unwrap());
    let put = |chain: &str| fs::write(&pair.files.certificate, chain).unwrap();
    put(&other_chain);
    refused("is not the key of the certificate");
    put(&format!("{other_chain}{own_chain}"));
    let line = other_chain.lines().count() + 1;
    refused(&format!("the leaf must come first; the key fits the 2nd certificate (line {line})"));
    put(&format!("{}{other_chain}", own_chain.trim_end()));
    refused("two blocks are glued together");
    fs::write(&pair.files.key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
    put(&own_chain);
    refused("line 1: the block that begins here is cut off: its END line is missing");
    fs::remove_file(&pair.files.certificate).unwrap();
    refused(&format!("--tls-cert {}: No such file", pair.files.certificate.display()));
}

/// A certificate for `relay` that is valid from `begin` to `end`, days from now, and its key.
fn valid(begin: i64, end: i64, names: &[&str]) -> (String, String) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let day = |days: i64| rcgen::date_time_ymd(1970, 1, 1) + time_of(now + days * 86_400);
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let mut parameters = rcgen::CertificateParams::new(names).unwrap();
    (parameters.not_before, parameters.not_after) = (day(begin), day(end));
    let key = rcgen::KeyPair::generate().unwrap();
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn time_of(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs())
}

const UNACCEPTABLE: [(i64, i64, &[&str], &str); 3] = [
    (-9, -3, &["relay"], "the certificate expired on 2"),
    (1, 9, &["relay"], "the certificate is not valid before 2"),
    (-9, 9, &[], "the certificate names no host"),
];

#[test]
fn a_pair_that_no_client_accepts_does_not_replace_another() {
    let pair = Pair::new();
    let process = Process::start_talkative(&pair.flags());
    let client = pair.client();
    for (begin, end, names, why) in UNACCEPTABLE {
        let (certificate, key) = valid(begin, end, names);
        pair.put(&certificate, &key);
        process.signal(Signal::HUP);
        let line = process.expect_line("certificate_");
        assert!(line.contains("level=WARN msg=certificate_refused"), "{line}");
        assert!(line.contains(why) && line.contains("chain.pem: "), "{line}");
        assert!(is_trusted(process.relay, &client));
    }
}

#[test]
fn a_pair_that_no_client_accepts_is_warned_of_at_start() {
    let pair = Pair::new();
    let [certificate_flag, key_flag] = pair.flags();
    for (begin, end, names, why) in UNACCEPTABLE {
        let (certificate, key) = valid(begin, end, names);
        pair.put(&certificate, &key);
        let output = run(&["--check-config", &certificate_flag, &key_flag], &[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("warning: --tls-cert ") && stderr.contains(why), "{stderr}");
        let process = Process::start_talkative(&pair.flags());
        let line = process.warnings.concat();
        assert!(line.contains("level=WARN msg=certificate_unacceptable"), "{line}");
        assert!(line.contains(why), "{line}");
    }
}
