//! Upgrade: asks a running relay to hand over to the program that is installed now.
//!
//! Owns finding the relay's process, the signal to it, and the wait for the outcome. Shares no
//! code with the relay: the two may be of different versions.
//!
//! 1. A process that SIGUSR2 would end is never sent it.
//! 2. A number is a process only in its own namespace: in another it names another process.

use std::fmt::{self, Display};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::config::METRICS_LISTEN;

/// How long to wait for one answer. While another program takes over, none comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often to ask.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How often to ask at most: longer than a hand-over may take, which is 81 s, with an order of
/// a certificate before it.
const ASKS_MAX: u32 = 2_000;
/// The longest answer that is read.
const ANSWER_MAX: u64 = 64 * 1024;
/// SIGUSR2 as a bit of the masks in proc(5).
const SIGUSR2_BIT: u64 = 1 << (12 - 1);

const REQUEST: &[u8] = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n";
const RESTART: &str = "restart it, which closes its connections (systemctl restart pyrycode-relay)";

/// Which relay to upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The one whose metrics listener this is.
    Metrics(SocketAddr),
    /// This process.
    Pid(i32),
}

/// Why a relay was not upgraded, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It refused, or was not asked.
    Refused(String),
    /// It is of a version that cannot hand over.
    TooOld(String),
}

impl Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(told) | Self::TooOld(told)) = self;
        f.write_str(told)
    }
}

/// The fields of `/healthz` that matter here.
#[derive(Debug, Deserialize)]
struct Health {
    version: String,
    pid: Option<i32>,
    pid_namespace: Option<String>,
    handovers: Option<Handovers>,
}

#[derive(Debug, Deserialize)]
struct Handovers {
    running: bool,
    done: u64,
    refused: u64,
    last_done: Option<Done>,
    last_refusal: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Done {
    from: String,
    connections: u64,
    dropped: u64,
    pause_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    cause: String,
    err: String,
}

/// Upgrades a relay. Returns what to tell of it.
///
/// # Errors
/// Why it was not upgraded.
pub fn run(request: Request) -> Result<String, Failed> {
    match request {
        Request::Metrics(address) => upgrade(address),
        Request::Pid(pid) => match metrics_listener(pid).filter(|it| is_of(*it, pid)) {
            Some(address) => upgrade(address),
            None => {
                send(pid)?;
                Ok(format!("asked process {pid} to upgrade: its log tells the outcome\n"))
            }
        },
    }
}

fn upgrade(address: SocketAddr) -> Result<String, Failed> {
    let health = ask_twice(address).map_err(|error| {
        Failed::Refused(format!(
            "no relay answers at {address}: {error};\n\
             give its --metrics-listen address, or --pid PID if it has none"
        ))
    })?;
    let (Some(pid), Some(before)) = (health.pid, health.handovers) else {
        let version = health.version;
        return Err(Failed::TooOld(format!(
            "the relay at {address}, version {version}, cannot hand over:\n{RESTART}"
        )));
    };
    let own = namespace();
    if health.pid_namespace != own || own.is_none() {
        return Err(Failed::Refused(format!(
            "the relay at {address} is in another container, or it cannot be seen whether it is:\n\
             run `pyrycode-relay upgrade` beside it, or give --pid PID"
        )));
    }
    if before.running {
        return Err(Failed::Refused("an upgrade is under way already".into()));
    }
    send(pid)?;
    for _ in 0..ASKS_MAX {
        std::thread::park_timeout(ASK_EVERY);
        let Some(Health { version, handovers: Some(now), .. }) = ask(address).ok() else {
            if has_ended(pid) {
                return Err(Failed::Refused(format!("the relay, process {pid}, has ended")));
            }
            continue;
        };
        if let (true, Some(done)) = (now.done != before.done, now.last_done) {
            return Ok(told(&done, &version));
        }
        match now.last_refusal {
            // That was another one's request.
            Some(Refusal { cause, .. }) if cause == "running" => {}
            Some(Refusal { cause, err }) if now.refused != before.refused => {
                let told = format!("refused ({cause}): {err};\nthe old program serves on");
                return Err(Failed::Refused(told));
            }
            _ => {}
        }
    }
    Err(Failed::Refused("the relay did not tell the outcome in time: see its log".into()))
}

/// Whether a process has ended, even if its parent has not waited for it.
fn has_ended(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => is_zombie(&status),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn is_zombie(status: &str) -> bool {
    status.contains("\nState:\tZ")
}

/// This process's namespace of process ids.
fn namespace() -> Option<String> {
    fs::read_link("/proc/self/ns/pid").ok()?.into_os_string().into_string().ok()
}

/// Where the command line of a process says that it listens for metrics.
fn metrics_listener(pid: i32) -> Option<SocketAddr> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    listener_of(line.split('\0'))
}

fn listener_of<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Option<SocketAddr> {
    let mut found = Some(METRICS_LISTEN);
    while let Some(argument) = arguments.next() {
        let name = argument.trim_start_matches('-');
        let value = match name.split_once('=') {
            Some(("metrics-listen", value)) => value,
            None if name == "metrics-listen" && name != argument => arguments.next()?,
            _ => continue,
        };
        found = match value.strip_prefix(':') {
            Some(port) => format!("[::]:{port}").parse().ok(),
            None => value.parse().ok(),
        };
    }
    found
}

/// Whether the process itself answers there.
fn is_of(address: SocketAddr, pid: i32) -> bool {
    ask(address).is_ok_and(|health| {
        health.pid == Some(pid) && health.pid_namespace.is_some_and(|it| Some(it) == namespace())
    })
}

fn told(Done { from, connections, dropped, pause_ms }: &Done, version: &str) -> String {
    let mut text =
        format!("upgraded from {from} to {version}: {connections} connections, {pause_ms} ms\n");
    if *dropped > 0 {
        text += &format!("{dropped} connections could not move and were closed\n");
    }
    text
}

/// Sends SIGUSR2 to a process that handles it.
fn send(pid: i32) -> Result<(), Failed> {
    let refuse = |why: &dyn Display| Failed::Refused(format!("process {pid}: {why}"));
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refuse(&"there is none, or it is hidden from this user"),
        _ => refuse(&error),
    })?;
    if is_zombie(&status) {
        return Err(refuse(&"it has ended, and its parent has not waited for it"));
    }
    if !survives(&status) {
        let told = format!("process {pid} does not know how to hand over:\n{RESTART}");
        return Err(Failed::TooOld(told));
    }
    let process = Pid::from_raw(pid).ok_or_else(|| refuse(&"no process has this number"))?;
    kill_process(process, Signal::USR2).map_err(|error| match error {
        Errno::PERM => refuse(&"not permitted: run this as root or as the user of the relay"),
        error => refuse(&error),
    })
}

/// Whether SIGUSR2 is handled or, during a hand-over, blocked.
fn survives(status: &str) -> bool {
    let mask = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigCgt:") | mask("SigBlk:")) & SIGUSR2_BIT != 0
}

/// A listener that many ask at once may close a connection without an answer.
fn ask_twice(address: SocketAddr) -> io::Result<Health> {
    match ask(address) {
        Err(error) if is_cut_off(&error) => ask(address),
        first => first,
    }
}

fn is_cut_off(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn ask(address: SocketAddr) -> io::Result<Health> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = head.map_or(&[][..], |head| &answer[head + 4..]);
    serde_json::from_slice(body)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer is not a relay's"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::thread;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    #[test]
    fn a_process_that_would_end_is_told_from_one_that_would_not() {
        assert!(!survives(""));
        assert!(!survives("SigBlk:\t0000000000000000\nSigCgt:\t0000000180004403\n"));
        assert!(survives("SigBlk:\t0000000000000000\nSigCgt:\t0000000180004c03\n"));
        assert!(survives("SigBlk:\t0000000000000800\nSigCgt:\t0000000000000000\n"));
    }

    #[test]
    fn a_process_that_was_not_waited_for_has_ended() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(!has_ended(pid));
        drop(child.stdin.take());
        let ends = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&child)), ends).unwrap();
        assert!(has_ended(pid));
        let told = send(pid).unwrap_err().to_string();
        assert!(told.contains("it has ended"), "{told}");
        child.wait().unwrap();
        assert!(has_ended(pid));
    }

    /// What is said about a listener that gives this answer.
    fn told_about(answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::Builder::new()
            .spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            })
            .unwrap();
        let told = run(Request::Metrics(address)).unwrap_err().to_string();
        server.join().unwrap();
        told
    }

    #[test]
    fn what_cannot_be_upgraded_is_told_from_each_other() {
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}");
        let own = fs::read_link("/proc/self/ns/pid").unwrap();
        let own = own.to_str().unwrap();
        let health = |namespace: &str, running: bool, pid: i32| {
            format!(
                "{{\"version\":\"0.9\",\"pid\":{pid},\"pid_namespace\":\"{namespace}\",\
                 \"handovers\":{{\"running\":{running},\"done\":0,\"refused\":0}}}}"
            )
        };
        for (body, words) in [
            ("<html>".into(), "not a relay's"),
            ("{\"version\":\"0.2.0\"}".into(), "version 0.2.0, cannot hand over"),
            (health("pid:[1]", false, 1), "another container"),
            (health(own, true, 1), "under way"),
            // No process has a number as large.
            (health(own, false, i32::MAX), "process 2147483647: "),
        ] {
            let told = told_about(answer(&body));
            assert!(told.contains(words), "{body}: {told}");
        }
        let nothing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let told = run(Request::Metrics(nothing)).unwrap_err().to_string();
        assert!(told.contains("no relay answers"), "{told}");
        // This process does not handle the signal, and survives.
        let told = run(Request::Pid(std::process::id() as i32)).unwrap_err();
        assert!(matches!(told, Failed::TooOld(_)), "{told}");
    }

    #[test]
    fn a_command_line_tells_where_metrics_are() {
        let found = |line: &str| listener_of(line.split(' ')).map(|it| it.to_string());
        for (line, address) in [
            ("relay", Some("127.0.0.1:9090")),
            ("relay --insecure-listen :80 metrics-listen :1", Some("127.0.0.1:9090")),
            ("relay --metrics-listen 127.0.0.1:1 --metrics-listen=[::1]:2 -x", Some("[::1]:2")),
            ("relay -metrics-listen :3", Some("[::]:3")),
            ("relay --metrics-listen=", None),
            ("relay --metrics-listen", None),
        ] {
            assert_eq!(found(line).as_deref(), address, "{line}");
        }
    }

    #[test]
    fn what_was_dropped_is_told() {
        let done = Done { from: "1".into(), connections: 3, dropped: 0, pause_ms: 4 };
        assert_eq!(told(&done, "2"), "upgraded from 1 to 2: 3 connections, 4 ms\n");
        let told = told(&Done { dropped: 5, ..done }, "2");
        assert!(told.ends_with("5 connections could not move and were closed\n"), "{told}");
    }
}
