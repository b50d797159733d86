//! Certificates that are replaced while the relay runs.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

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
fn sighup_and_a_change_reload_and_connections_live_on() {
    let mut pair = Pair::new();
    let mut process = Process::start_talkative(&pair.flags());
    let first = pair.client();
    let stream = tls_connect(process.relay, &first);
    let mut standing = Peer::upgrade(stream, &binary_head("home"));

    pair.renew();
    process.signal(Signal::HUP);
    process.expect_line("certificate_served");
    // The other of the two has no session to resume, for which no certificate is shown.
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
fn a_pair_of_no_use_keeps_the_one_in_use_and_is_told_of_once() {
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
    // Several looks later nothing more was said of it.
    let lines = std::iter::from_fn(|| process.next_line(std::time::Duration::from_secs(9)));
    assert_eq!(lines.filter(|line| line.contains("certificate_")).count(), 0);
}

#[test]
fn a_pair_of_no_use_is_refused_at_start_with_what_to_do() {
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
    for mode in [0o640, 0o604, 0o644, 0o620] {
        fs::set_permissions(&pair.files.key, Permissions::from_mode(mode)).unwrap();
        refused(&format!("--tls-key {path}: others than its owner"));
        refused(&format!("chmod 600 {path}"));
    }
    fs::set_permissions(&pair.files.key, Permissions::from_mode(0o600)).unwrap();
    let other = Pair::new();
    fs::copy(&other.files.certificate, &pair.files.certificate).unwrap();
    refused("is not the key of the certificate");
    fs::write(&pair.files.key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
    refused("needs no passphrase");
    fs::remove_file(&pair.files.certificate).unwrap();
    refused(&format!("--tls-cert {}: No such file", pair.files.certificate.display()));
}
