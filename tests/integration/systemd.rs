//! systemd: notifications and socket activation of the built program, against a stand-in
//! that follows `sd_notify(3)` and `sd_listen_fds(3)`.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{
    Answer, PATIENCE, Process, connect, healthz, millis, run, run_with_sockets, settled,
};

const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n";

/// The stand-in, under a name of its own that needs no file.
struct Systemd {
    socket: UnixDatagram,
    name: String,
}

impl Systemd {
    fn new(test: &str) -> Self {
        let name = format!("pyrycode-relay-{test}-{}", std::process::id());
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Self { socket, name: format!("@{name}") }
    }

    /// What it is told next, if anything within `time`.
    fn told(&self, time: Duration) -> Option<String> {
        let mut word = [0; 100];
        self.socket.set_read_timeout(Some(time)).unwrap();
        match self.socket.recv(&mut word) {
            Ok(count) => Some(String::from_utf8(word[..count].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn expect(&self, word: &str) {
        assert_eq!(self.told(PATIENCE).as_deref(), Some(word));
    }
}

fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn systemd_is_told_when_the_relay_is_ready_and_when_it_stops() {
    let systemd = Systemd::new("ready");
    let mut process = Process::start_in(&[("NOTIFY_SOCKET", &systemd.name)]);
    systemd.expect("READY=1");
    healthz(process.relay);
    process.signal(Signal::TERM);
    systemd.expect("STOPPING=1");
    assert_eq!(process.wait().0, Some(0));
}

#[test]
fn systemd_is_told_of_a_hand_over() {
    let systemd = Systemd::new("handover");
    let process = Process::start_in(&[("NOTIFY_SOCKET", &systemd.name)]);
    systemd.expect("READY=1");
    process.signal(Signal::USR2);
    let reloading = systemd.told(PATIENCE).unwrap();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    systemd.expect("READY=1");
}

#[test]
fn a_notify_socket_may_be_a_path_and_a_missing_one_is_harmless() {
    let directory = std::env::temp_dir();
    let path = directory.join(format!("pyrycode-relay-notify-{}", std::process::id()));
    let name = path.to_str().unwrap();
    let socket = UnixDatagram::bind(&path).unwrap();
    let systemd = Systemd { socket, name: name.into() };
    let process = Process::start_in(&[("NOTIFY_SOCKET", name)]);
    systemd.expect("READY=1");
    drop((process, systemd));
    std::fs::remove_file(&path).unwrap();

    let process = Process::start_in(&[("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "10000")]);
    healthz(process.relay);
}

#[test]
fn the_watchdog_is_notified_at_half_its_interval_by_a_running_loop() {
    let systemd = Systemd::new("watchdog");
    let variables = [("NOTIFY_SOCKET", systemd.name.as_str()), ("WATCHDOG_USEC", "600000")];
    let process = Process::start_in(&variables);
    systemd.expect("READY=1");
    systemd.expect("WATCHDOG=1");
    let began = Instant::now();
    for _ in 0..6 {
        systemd.expect("WATCHDOG=1");
    }
    // Six times 300 ms, and what a slow machine adds.
    let took = began.elapsed();
    assert!(took > millis(1650), "{took:?}");
    assert!(took < millis(3600), "{took:?}: a watchdog would have bitten");

    // A stopped relay sends no notification; those already sent are read first.
    process.signal(Signal::STOP);
    while systemd.told(millis(500)).is_some() {}
    assert_eq!(systemd.told(millis(1000)), None);
    process.signal(Signal::CONT);
    systemd.expect("WATCHDOG=1");
    // The watchdog is also notified during the drain.
    process.signal(Signal::TERM);
    while systemd.told(PATIENCE).expect("it says that it stops") != "STOPPING=1" {}
}

#[test]
fn without_a_watchdog_an_idle_relay_never_wakes() {
    let systemd = Systemd::new("idle");
    let name = systemd.name.as_str();
    for other in [None, Some(("WATCHDOG_PID", "1"))] {
        let mut variables = vec![("NOTIFY_SOCKET", name)];
        if let Some(other) = other {
            variables.extend([("WATCHDOG_USEC", "10000"), other]);
        }
        let process = Process::start_in(&variables);
        systemd.expect("READY=1");
        let sleeps = settled(|| process.sleeps());
        assert_eq!(systemd.told(millis(1000)), None);
        assert_eq!(process.sleeps(), sleeps);
    }
}

#[test]
fn malformed_systemd_variables_are_refused() {
    for (name, value) in
        [("WATCHDOG_USEC", "soon"), ("WATCHDOG_PID", "x"), ("NOTIFY_SOCKET", "relative")]
    {
        let output = run(&["--insecure-listen=127.0.0.1:0"], &[(name, value)]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(name) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn inherited_sockets_and_their_waiting_connections_are_served() {
    let (first, one) = listener("127.0.0.1:0");
    let (second, other) = listener("127.0.0.1:0");
    // Connected, and the request sent, before the relay starts.
    let mut early: Vec<TcpStream> = [one, other].map(connect).into();
    for stream in &mut early {
        stream.write_all(HEALTHZ.as_bytes()).unwrap();
    }
    let process = Process::start_with_sockets([first, second], "$$");
    assert_eq!(process.relay, one);
    for stream in &mut early {
        assert_eq!(Answer::read(stream).status, 200);
    }
    assert_eq!((healthz(one), healthz(other)), ((0, 0), (0, 0)));
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let (first, one) = listener("127.0.0.1:0");
    let (second, other) = listener("127.0.0.1:0");
    for pid in ["1", "", "x"] {
        let sockets = [first.try_clone().unwrap(), second.try_clone().unwrap()];
        let process = Process::start_with_sockets(sockets, pid);
        assert!(![one, other].contains(&process.relay), "{pid:?}");
        healthz(process.relay);
    }
}

#[test]
fn a_socket_open_to_more_than_the_configuration_is_refused() {
    let sockets = [listener("127.0.0.1:0").0, listener("0.0.0.0:0").0];
    let output = run_with_sockets(sockets);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("make them agree"), "{text}");
}
