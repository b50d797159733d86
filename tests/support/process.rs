//! Process: the built program as a child process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pyrycode-relay");

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A running relay, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The address for peers.
    pub relay: SocketAddr,
    /// The address of the metrics.
    pub metrics: SocketAddr,
    /// The log line with these addresses.
    pub listening: String,
    /// Warnings before that line.
    pub warnings: Vec<String>,
    /// Lines that a thread has read from its stderr.
    lines: Receiver<String>,
    /// Its stderr while it is not read.
    stuck: Option<BufReader<ChildStderr>>,
}

impl Process {
    /// Starts it on a free port, without rate limit unless a flag says otherwise.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_at(ANY_PORT, flags)
    }

    /// The same on a given address, which another process may have used before.
    pub fn start_at(listen: SocketAddr, flags: &[&str]) -> Self {
        let mut command = bare_command(PROGRAM);
        command.args(flags);
        Self::spawn(command, listen)
    }

    /// Starts it with these flags in this environment.
    pub fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = bare_command(PROGRAM);
        command.args(flags).envs(variables.iter().copied());
        Self::spawn(command, ANY_PORT)
    }

    /// Starts it in this environment.
    pub fn start_in(variables: &[(&str, &str)]) -> Self {
        Self::start_with(&[], variables)
    }

    /// Starts it with sockets at descriptors 3 and 4, as systemd does, for the process
    /// `pid`, a word for the shell: `$$` is the relay itself.
    pub fn start_with_sockets(sockets: [TcpListener; 2], pid: &str) -> Self {
        Self::spawn(command_with_sockets(sockets, pid), ANY_PORT)
    }

    /// Starts it with a limit on descriptors.
    pub fn start_with_descriptors(count: u32, flags: &[&str]) -> Self {
        let mut command = command_with_descriptors(count);
        command.args(flags);
        Self::spawn(command, ANY_PORT)
    }

    /// Starts it with a stderr that is not read once it listens.
    pub fn start_with_stuck_stderr(level: &str) -> Self {
        let mut command = bare_command(PROGRAM);
        command.env("PYRYCODE_RELAY_LOG", level);
        Self::spawn_stuck(command, ANY_PORT)
    }

    /// Starts it with the most verbose log.
    pub fn start_talkative(flags: &[String]) -> Self {
        let mut command = bare_command(PROGRAM);
        command.args(flags).env("PYRYCODE_RELAY_LOG", "debug");
        Self::spawn(command, ANY_PORT)
    }

    fn spawn(command: Command, listen: SocketAddr) -> Self {
        let mut process = Self::spawn_stuck(command, listen);
        process.read_on();
        process
    }

    fn spawn_stuck(mut command: Command, listen: SocketAddr) -> Self {
        let is_tls = command.get_args().any(|arg| arg.to_string_lossy().starts_with("--tls-cert"));
        let listener = if is_tls { "https-listen" } else { "insecure-listen" };
        command.arg(format!("--{listener}={listen}")).arg("--metrics-listen=127.0.0.1:0");
        if !command.get_args().any(|arg| arg.to_string_lossy().starts_with("--rate-limit")) {
            command.arg("--rate-limit-per-minute=0");
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (mut line, mut warnings) = (String::new(), Vec::new());
        while !line.contains("msg=listening") && !line.contains("\"msg\":\"listening\"") {
            if line.contains("level=WARN") || line.contains("\"level\":\"WARN\"") {
                warnings.push(line.clone());
            }
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended before it listened");
        }
        // `listen=127.0.0.1:4711 metrics_listen=…` or `"listen":"127.0.0.1:4711",…`
        let mut addresses = line.split("127.0.0.1:").skip(1).map(|rest| {
            let port = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))
        });
        let (relay, metrics) = (addresses.next().unwrap(), addresses.next().unwrap());
        let (_, lines) = mpsc::channel();
        Self { child, relay, metrics, listening: line, warnings, lines, stuck: Some(stderr) }
    }

    /// Starts to read a stderr that was not read so far.
    pub fn read_on(&mut self) {
        let stderr = self.stuck.take().unwrap();
        let (sender, lines) = mpsc::channel();
        self.lines = lines;
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
    }

    /// Stops and continues it, as Ctrl-Z and `fg` do.
    pub fn suspend(&self) {
        suspend(&self.child);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its exit; returns the exit status and the time that it took.
    pub fn wait(&mut self) -> (Option<i32>, Duration) {
        let (began, mut status) = (Instant::now(), None);
        eventually("the relay ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (status.and_then(|status| status.code()), began.elapsed())
    }

    /// Waits for a line that contains `word`.
    pub fn expect_line(&self, word: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.next_line(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|| panic!("no line says {word}"));
            if line.contains(word) {
                return line;
            }
        }
    }

    /// The next line, if one comes within `time`.
    pub fn next_line(&self, time: Duration) -> Option<String> {
        self.lines.recv_timeout(time).ok()
    }

    /// Resident memory in bytes: now, and at its highest.
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            1024 * value.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Processor time used so far, in hundredths of a second (`proc_pid_stat(5)`).
    pub fn processor_time(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The second field, a name in parentheses, may hold spaces.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// The number of times that its loop has slept so far (`proc_pid_status(5)`).
    pub fn sleeps(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// The number of its open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program with these flags and environment variables to its exit, which must
/// come soon.
pub fn run(flags: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = bare_command(PROGRAM);
    command.args(flags).envs(variables.iter().copied());
    end(command.stdout(Stdio::piped()).stderr(Stdio::piped()), &format!("{flags:?} {variables:?}"))
}

/// [`run`] with these flags and its output redirected.
pub fn run_into(flags: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let mut command = bare_command(PROGRAM);
    end(command.args(flags).stdout(stdout).stderr(stderr), &format!("{flags:?}"))
}

/// [`run`] with a limit on descriptors.
pub fn run_with_descriptors(count: u32, flags: &[&str]) -> Output {
    let mut command = command_with_descriptors(count);
    command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    end(&mut command, &format!("{count} {flags:?}"))
}

fn command_with_descriptors(count: u32) -> Command {
    let mut command = bare_command("sh");
    command.arg("-c").arg(format!("ulimit -n {count}; exec \"$0\" \"$@\"")).arg(PROGRAM);
    command
}

/// [`run`], stopped (SIGSTOP) on a message to `stop`, then continued, which drops the
/// sender `resumed`.
pub fn run_suspended(flags: &[&str], stop: &Receiver<()>, resumed: Sender<()>) -> Output {
    let mut command = bare_command(PROGRAM);
    let child = command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    stop.recv_timeout(PATIENCE).unwrap();
    suspend(&child);
    drop(resumed);
    child.wait_with_output().unwrap()
}

fn suspend(child: &Child) {
    let signal = |signal| kill_process(Pid::from_child(child), signal).unwrap();
    signal(Signal::STOP);
    eventually("it stands still", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    });
    signal(Signal::CONT);
}

/// The output up to its exit, which must come soon.
fn end(command: &mut Command, what: &str) -> Output {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{what}: it runs and runs");
        }
        thread::park_timeout(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// The same with sockets at descriptors 3 and 4, and its own first listener.
pub fn run_with_sockets(sockets: [TcpListener; 2]) -> Output {
    let mut command = command_with_sockets(sockets, "$$");
    command.args(["--insecure-listen=127.0.0.1:0", "--metrics-listen="]);
    end(command.stderr(Stdio::piped()), "with sockets")
}

fn command_with_sockets(sockets: [TcpListener; 2], pid: &str) -> Command {
    let mut command = bare_command("sh");
    let [first, second] = sockets.map(OwnedFd::from);
    command.stdin(first).stdout(second).arg("-c").arg(format!(
        "exec 3<&0 4>&1 </dev/null >/dev/null; LISTEN_FDS=2 LISTEN_PID={pid} exec \"$0\" \"$@\""
    ));
    command.arg(PROGRAM);
    command
}

/// A command without the environment variables of the test runner.
fn bare_command(program: &str) -> Command {
    const NAMES: [&str; 11] = [
        "CREDENTIALS_DIRECTORY",
        "FLY_APP_NAME",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "PYRYCODE_RELAY_FCM_CREDENTIALS",
        "PYRYCODE_RELAY_LOG",
        "PYRYCODE_RELAY_PRODUCTION",
        "PYRYCODE_RELAY_SINGLE_INSTANCE",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ];
    let mut command = Command::new(program);
    for name in NAMES {
        command.env_remove(name);
    }
    command
}
