//! Out of file descriptors: with more dialers than descriptors the relay waits, and keeps
//! serving its open connections.

use std::net::TcpStream;

use crate::support::{
    Opcode, Peer, Process, Scrape, connect, envelope, eventually, healthz, millis,
    run_with_descriptors,
};

#[test]
fn out_of_descriptors_it_stops_accepting_without_a_spin_and_recovers() {
    let process = Process::start_with_descriptors(100, &[]);
    let relay = process.relay;
    assert!(process.listening.contains(" connections=36 "), "{}", process.listening);
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    let dialers: Vec<TcpStream> = (0..200).map(|_| connect(relay)).collect();
    process.expect_line("accept_paused");

    // The loop sleeps, and logs nothing further.
    let before = process.processor_time();
    if let Some(line) = process.next_line(millis(1500)) {
        panic!("{line}");
    }
    let used = process.processor_time() - before;
    assert!(used <= 15, "{used} of 150 hundredths of a second");
    // Each thread of the metrics listener has the descriptor of its next connection.
    assert!(process.descriptors() >= 95);
    let scrape = Scrape::of(process.metrics);
    assert_eq!(scrape.value("connected_phones"), 1.0);
    assert!(scrape.0["process_open_fds"] >= 95.0);

    for n in 0..100 {
        phone.send_text(&n.to_string());
        assert_eq!(binary.receive_text(), envelope(&phone.id, &n.to_string()));
        binary.send_to(&phone.id, &n.to_string());
        assert_eq!(phone.receive_text(), n.to_string());
    }

    drop(dialers);
    let mut late = Peer::phone(relay, "home");
    late.send(Opcode::Text, b"1");
    assert_eq!(binary.receive_text(), envelope(&late.id, "1"));
    eventually("all that left are gone", || process.descriptors() < 20);
    assert_eq!(healthz(relay), (1, 2));
    let again = std::iter::from_fn(|| process.next_line(millis(0)));
    assert!(again.filter(|line| line.contains("accept_paused")).count() <= 1);
}

#[test]
fn fewer_connections_than_asked_for_are_warned_of_and_fewer_than_two_refused() {
    const TEXT: &str = "--max-connections 5000: the limit on open files, 100, leaves room for 36; \
                        raise it to 5064 (LimitNOFILE= in the unit, ulimit -n)";
    let process = Process::start_with_descriptors(100, &["--max-connections=5000"]);
    assert!(process.listening.contains(" connections=36 "), "{}", process.listening);
    let warning = process.warnings.concat();
    assert!(warning.contains("level=WARN msg=max_connections_lowered"), "{warning}");
    assert!(warning.contains(TEXT), "{warning}");

    let output = run_with_descriptors(100, &["--check-config", "--max-connections=5000"]);
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said:?}");
    assert!(said[0].contains("\nmax-connections 36\n"), "{said:?}");
    assert_eq!(said[1], format!("pyrycode-relay: warning: {TEXT}\n"));

    for (count, flag) in [(65, "--check-config"), (40, "--insecure-listen=127.0.0.1:0")] {
        let output = run_with_descriptors(count, &[flag]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("raise it to 66 or more (LimitNOFILE="), "{stderr}");
    }
}
