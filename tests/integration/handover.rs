//! Hand-over of the built program to itself. More of it, with other programs and with peers
//! of other libraries, is in tests/handover.

use rustix::process::Signal;

use crate::support::{Peer, Process, Scrape, envelope, healthz, run};

#[test]
fn connections_go_on_in_the_next_program() {
    let process = Process::start(&[]);
    let mut binary = Peer::binary(process.relay, "home");
    let mut phone = Peer::phone(process.relay, "home");
    let metrics = process.metrics.to_string();
    for round in 1..=2 {
        let upgraded = run(&["upgrade", "--metrics-listen", &metrics], &[]);
        let said = String::from_utf8_lossy(&upgraded.stdout);
        assert_eq!(upgraded.status.code(), Some(0), "{upgraded:?}");
        assert!(said.starts_with("upgraded from "), "{said}");
        phone.send_text("{ }");
        assert_eq!(binary.receive_text(), envelope(&phone.id, "{ }"));
        binary.send_to(&phone.id, "1");
        assert_eq!(phone.receive_text(), "1");
        phone.expect_alive();
        let scrape = Scrape::of(process.metrics);
        assert_eq!(scrape.value("handovers_total{outcome=\"done\"}"), f64::from(round));
        assert!(scrape.value("handover_pause_seconds") > 0.0);
        let frames = scrape.value("frames_forwarded_total{direction=\"phone_to_binary\"}");
        assert_eq!(frames, f64::from(round), "counters go on");
    }
    assert_eq!(healthz(process.relay), (1, 1));
    let line = process.expect_line("handover_done");
    assert!(line.contains("connections=2 pause_ms="), "{line}");
}

#[test]
fn a_relay_that_drains_refuses() {
    let mut process = Process::start(&[]);
    let _binary = Peer::binary(process.relay, "home");
    process.signal(Signal::TERM);
    process.expect_line("shutting_down");
    process.signal(Signal::USR2);
    let line = process.expect_line("handover_refused");
    assert!(line.contains("cause=draining"), "{line}");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().0, Some(1));
}
