//! Rehearse: a child that takes the state over for a try, while this process serves on.
//!
//! Owns the child, the form of its answer, and the time that it has. Must not know what it
//! tries.
//!
//! 1. The loop never waits for the child: a thread does, and wakes the loop at the end.
//! 2. Whatever the child does, it has ended and was waited for before the outcome is told.
//! 3. Only one line counts as success, from a child that then exits with 0.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;

use super::program::Program;
use super::{Cause, Refused};
use crate::server::os::clock::monotonic;

/// The time that the child has.
pub const TIME: Duration = Duration::from_secs(10);
/// How much of the child's output is kept.
const OUTPUT_MAX: usize = 4096;
/// How much of what it said is repeated, in characters.
const WORDS_MAX: usize = 200;
/// How often to look whether the child has ended: its pipes may outlive it.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The answer of a program that can take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its version.
    pub version: String,
    /// The format of the state that it took over.
    pub format: u32,
    /// The connections that it could not take over.
    pub dropped: u64,
}

impl Ready {
    /// The line that says so.
    #[must_use]
    pub fn line(&self) -> String {
        format!("ready {} format {} dropped {}\n", self.version, self.format, self.dropped)
    }

    /// Reads such a line and nothing else.
    fn parse(said: &[u8]) -> Option<Self> {
        let line = str::from_utf8(said).ok()?;
        let words: Vec<_> = line.split(' ').collect();
        let ["ready", version, "format", format, "dropped", dropped] = words[..] else {
            return None;
        };
        let dropped = dropped.strip_suffix('\n')?.parse().ok()?;
        let ready = Self { version: version.into(), format: format.parse().ok()?, dropped };
        (ready.line() == line && !version.is_empty()).then_some(ready)
    }
}

/// The outcome of a rehearsal.
pub type Outcome = Result<Ready, Refused>;

/// A rehearsal under way. When it is dropped, the child is killed.
#[derive(Debug)]
pub struct Rehearsal {
    outcome: Receiver<Outcome>,
    /// The other end is the thread's; closing this one tells it to stop.
    _keep: UnixStream,
}

impl Rehearsal {
    /// Starts the program on a packed state. When it has ended, `wake` is called, and
    /// [`Self::outcome`] tells.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        program: &Program,
        packed: OwnedFd,
        wake: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (keep, stop) = UnixStream::pair()?;
        let (sender, outcome) = mpsc::sync_channel(1);
        let mut command = program.rehearsal();
        command.stdin(packed).stdout(Stdio::piped()).stderr(Stdio::piped());
        thread::Builder::new().name("rehearse".into()).spawn(move || {
            let spawned = command.spawn();
            // With it goes this process's end of the packed state.
            drop(command);
            let outcome = match spawned {
                Ok(child) => watch(child, &stop),
                Err(error) => Err(Refused::new(Cause::Start, error)),
            };
            // The loop may have given up.
            let _ = sender.try_send(outcome);
            wake();
        })?;
        Ok(Self { outcome, _keep: keep })
    }

    /// The outcome, once there is one.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.try_recv().ok()
    }
}

/// Waits for the child and kills it when its time is over or nothing waits for it any more.
fn watch(mut child: Child, stop: &UnixStream) -> Outcome {
    let ended = listen(&mut child, stop);
    let _ = child.kill();
    // After SIGKILL this takes no time.
    let waited = child.wait();
    let (status, [said, complaint]) = ended?;
    let status =
        waited.map_err(|error| Refused::new(Cause::Exit, error)).map(|it| status.unwrap_or(it))?;
    judge(status, &said, &complaint)
}

type Ended = (Option<ExitStatus>, [Vec<u8>; 2]);

/// What the child prints until it ends.
fn listen(child: &mut Child, stop: &UnixStream) -> Result<Ended, Refused> {
    let broken = |error: io::Error| Refused::new(Cause::Start, error);
    let until = monotonic() + TIME;
    let mut pipes = [
        child.stdout.take().map(|it| Pipe::new(it.into())),
        child.stderr.take().map(|it| Pipe::new(it.into())),
    ];
    for pipe in pipes.iter().flatten() {
        ioctl_fionbio(&pipe.stream, true).map_err(|error| broken(error.into()))?;
    }
    loop {
        let status = child.try_wait().map_err(broken)?;
        for pipe in pipes.iter_mut().flatten() {
            pipe.read();
        }
        if status.is_some() {
            let said = pipes.map(|pipe| pipe.map(|it| it.said).unwrap_or_default());
            return Ok((status, said));
        }
        if monotonic() >= until {
            let words = first_words(pipes[1].as_ref().map_or(&[], |it| &it.said));
            return Err(Refused::new(Cause::Timeout, format!("no answer within {TIME:?}{words}")));
        }
        let open = pipes.iter().flatten().filter(|pipe| pipe.is_open);
        let mut waited = vec![PollFd::new(stop, PollFlags::IN)];
        waited.extend(open.map(|pipe| PollFd::new(&pipe.stream, PollFlags::IN)));
        // Interrupted or not, the next round looks at everything.
        let _ = poll(&mut waited, Some(&LOOK_EVERY));
        if !waited[0].revents().is_empty() {
            return Err(Refused::new(Cause::Draining, "the relay is shutting down"));
        }
    }
}

struct Pipe {
    stream: std::fs::File,
    said: Vec<u8>,
    is_open: bool,
}

impl Pipe {
    fn new(stream: OwnedFd) -> Self {
        Self { stream: stream.into(), said: Vec::new(), is_open: true }
    }

    /// Reads what there is; what is too much is thrown away.
    fn read(&mut self) {
        let mut buffer = [0; 1024];
        // Bounded: a child that writes without end must not keep the thread here.
        for _ in 0..64 {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.is_open = false,
                Ok(count) => {
                    let room = OUTPUT_MAX - self.said.len();
                    self.said.extend_from_slice(&buffer[..count.min(room)]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.is_open = false,
            }
            return;
        }
    }
}

fn judge(status: ExitStatus, said: &[u8], complaint: &[u8]) -> Outcome {
    let words = first_words(if complaint.is_empty() { said } else { complaint });
    match (status.code(), status.signal()) {
        (Some(0), _) => Ready::parse(said).ok_or_else(|| {
            Refused::new(Cause::Answer, format!("not the answer of a relay{words}"))
        }),
        (Some(2), _) => Err(Refused::new(
            Cause::Exit,
            format!("exit status 2: configuration refused, or a program without hand-over{words}"),
        )),
        (Some(code), _) => Err(Refused::new(Cause::Exit, format!("exit status {code}{words}"))),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            Err(Refused::new(Cause::Signal, format!("ended by signal {signal}{words}")))
        }
    }
}

/// The first words of a program's output, behind a colon.
fn first_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map(|line| format!(": {}", line.chars().take(WORDS_MAX).collect::<String>()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::program::Flags;
    use super::*;

    fn rehearse(script: &str) -> Outcome {
        let flags = Flags { rehearse: "-c", adopt: "" };
        let program = Program::new(Path::new("/bin/sh"), ["sh".into(), script.into()], [], flags);
        run(&program)
    }

    fn run(program: &Program) -> Outcome {
        let (socket, _) = UnixStream::pair().unwrap();
        let (sender, ended) = mpsc::channel();
        let rehearsal =
            Rehearsal::start(program, socket.into(), move || sender.send(()).unwrap()).unwrap();
        ended.recv_timeout(2 * TIME).unwrap();
        rehearsal.outcome().unwrap()
    }

    fn cause(outcome: Outcome) -> (Cause, String) {
        let Refused { cause, said } = outcome.unwrap_err();
        (cause, said)
    }

    #[test]
    fn only_the_answer_of_a_relay_counts() {
        let ready = Ready { version: "1.2".into(), format: 3, dropped: 4 };
        assert_eq!(ready.line(), "ready 1.2 format 3 dropped 4\n");
        assert_eq!(rehearse("echo ready 1.2 format 3 dropped 4").unwrap(), ready);
        for script in [
            ":",
            "echo",
            "echo ready",
            "printf 'ready 1.2 format 3 dropped 4'",
            "echo 'ready 1.2 format 03 dropped 4'",
            "echo 'ready  format 3 dropped 4'",
            "echo ready 1.2 format 3 dropped 4; echo",
            "head -c 1000000 /dev/zero",
        ] {
            assert_eq!(cause(rehearse(script)).0, Cause::Answer, "{script}");
        }
    }

    #[test]
    fn another_end_is_refused_with_the_first_words() {
        let (ready, words) = ("echo ready 1 format 1 dropped 0;", "echo; echo why >&2; ");
        for (script, end, said) in [
            (format!("{ready}{words}exit 1"), Cause::Exit, "exit status 1: why"),
            (format!("{ready}{words}kill -9 $$"), Cause::Signal, "ended by signal 9: why"),
            (format!("{words}exit 3"), Cause::Exit, "exit status 3: why"),
            (format!("{ready}exit 7"), Cause::Exit, "exit status 7: ready 1 format 1 dropped 0"),
        ] {
            assert_eq!(cause(rehearse(&script)), (end, said.into()), "{script}");
        }
        let (end, said) = cause(rehearse("echo unknown flag >&2; exit 2"));
        assert!(end == Cause::Exit && said.ends_with(": unknown flag"), "{said}");
    }

    #[test]
    fn what_cannot_be_started_is_refused() {
        let flags = Flags { rehearse: "", adopt: "" };
        for path in ["/nonexistent", "/dev/null", "/etc/passwd"] {
            let program = Program::new(Path::new(path), [], [], flags);
            assert_eq!(cause(run(&program)).0, Cause::Start, "{path}");
        }
    }

    #[test]
    fn a_pipe_that_outlives_the_child_delays_nothing() {
        // The child of the child keeps both pipes; it ends when its stdin does.
        let began = monotonic();
        let outcome = rehearse("echo ready 1 format 1 dropped 0; cat <&0 & exit 0");
        assert_eq!(outcome.unwrap().version, "1");
        assert!(monotonic() - began < TIME);
    }

    #[test]
    fn a_child_is_killed_when_it_is_not_waited_for() {
        let flags = Flags { rehearse: "-c", adopt: "" };
        let script = "exec cat /dev/zero >/dev/null";
        let program = Program::new(Path::new("/bin/sh"), ["sh".into(), script.into()], [], flags);
        let (sender, ended) = mpsc::channel();
        let (socket, _) = UnixStream::pair().unwrap();
        let wake = move || sender.send(()).unwrap();
        drop(Rehearsal::start(&program, socket.into(), wake).unwrap());
        ended.recv_timeout(TIME).unwrap();
    }

    #[test]
    fn silence_is_refused() {
        let (end, said) = cause(rehearse("echo late >&2; exec cat /dev/zero >/dev/null"));
        assert_eq!((end, said.as_str()), (Cause::Timeout, "no answer within 10s: late"));
    }
}
