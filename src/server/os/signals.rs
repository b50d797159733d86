//! Signals: SIGTERM, SIGINT, SIGHUP and SIGUSR2 as readiness of a descriptor that the loop
//! polls.
//!
//! Owns the handlers and the mask. Must not know what a shut-down, a reload or an upgrade is.
//!
//! 1. The first SIGTERM or SIGINT is an event: [`Signals::take`] names it.
//! 2. The second SIGTERM or SIGINT ends the process at once with status 1, from the
//!    handler, because the loop may be stuck.
//! 3. With certificates, SIGHUP requests a reload. Without, it comes from a terminal that
//!    closes: a process started from a terminal shuts down as at the first SIGTERM, any
//!    other ignores it. SIGHUP never counts as the second signal, because the shell and the
//!    kernel may each send one.
//! 4. SIGUSR2 requests an upgrade, and never ends the process.
//! 5. These signals are blocked in every thread but the loop's, where they are unblocked once
//!    the loop runs: so a signal that arrives during execve(2) waits for the handlers.

use std::io::{self, Read};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::{flag, low_level};

/// The exit status after a second signal.
const STATUS_IMPATIENT: i32 = 1;

/// The handled signals, blocked in this thread and in those that it starts, until it is
/// dropped.
#[derive(Debug)]
pub struct Blocked {
    /// The mask before.
    before: SigSet,
}

impl Blocked {
    /// Blocks them.
    ///
    /// # Errors
    /// None is known.
    pub fn new() -> io::Result<Self> {
        Ok(Self { before: handled().thread_swap_mask(SigmaskHow::SIG_BLOCK)? })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // It fails only for an invalid address.
        let _ = self.before.thread_set_mask();
    }
}

fn handled() -> SigSet {
    [Number::SIGTERM, Number::SIGINT, Number::SIGHUP, Number::SIGUSR2].into_iter().collect()
}

/// Blocks the handled signals in this thread and in those that it starts, until
/// [`Signals::unblock`].
///
/// # Errors
/// None is known.
pub fn block() -> io::Result<()> {
    Ok(handled().thread_block()?)
}

/// The effect of SIGHUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// Certificates are reloaded.
    Reload,
    /// The process shuts down.
    End,
    /// None.
    Nothing,
}

impl Hangup {
    /// The effect of SIGHUP on this process, which has certificates if `reloads`.
    #[must_use]
    pub fn of_this_process(reloads: bool) -> Self {
        // A process started from a terminal has a controlling terminal (credentials(7));
        // under systemd and container engines it has none. Under nohup(1) it ignores the
        // signal.
        let has_terminal = || std::fs::File::open("/dev/tty").is_ok();
        if reloads {
            Self::Reload
        } else if has_terminal() && !is_ignored() {
            Self::End
        } else {
            Self::Nothing
        }
    }
}

/// Whether SIGHUP was ignored when the process was started; false where /proc is missing.
fn is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Whether SIGHUP's bit, the first, is set in `SigIgn` (proc(5)).
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, from a service manager.
    Terminate,
    /// SIGINT, from a keyboard.
    Interrupt,
    /// SIGHUP, from a terminal that closes.
    Hangup,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Terminate, Self::Interrupt, Self::Hangup];

    /// Its name in signal(7).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }

    const fn number(self) -> i32 {
        match self {
            Self::Terminate => SIGTERM,
            Self::Interrupt => SIGINT,
            Self::Hangup => SIGHUP,
        }
    }
}

/// The read end of the handlers' pipe.
#[derive(Debug)]
pub struct Signals {
    wakes: UnixStream,
    /// SIGHUP has arrived and requests a reload.
    hangup: Arc<AtomicBool>,
    /// SIGUSR2 has arrived.
    upgrade: Arc<AtomicBool>,
    /// The number of the signal that has arrived, 0 for none.
    pending: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handlers for the life of the process: dropping the value does not remove
    /// them.
    ///
    /// # Errors
    ///
    /// If there is no descriptor for the pipe or the kernel refuses a handler.
    pub fn install(on_hangup: Hangup) -> io::Result<Self> {
        let (wakes, waker) = StdUnixStream::pair()?;
        wakes.set_nonblocking(true)?;
        let pending = Arc::new(AtomicUsize::new(0));
        let is_second = Arc::new(AtomicBool::new(false));
        for signal in [Signal::Terminate, Signal::Interrupt] {
            let number = signal.number();
            // These run in order. The shut-down must check the flag before the first signal
            // sets it, and the byte must follow the state that it announces.
            flag::register_conditional_shutdown(number, STATUS_IMPATIENT, Arc::clone(&is_second))?;
            flag::register(number, Arc::clone(&is_second))?;
            flag::register_usize(number, Arc::clone(&pending), number as usize)?;
            low_level::pipe::register(number, waker.try_clone()?)?;
        }
        let hangup = Arc::new(AtomicBool::new(false));
        match on_hangup {
            Hangup::Reload => drop(flag::register(SIGHUP, Arc::clone(&hangup))?),
            Hangup::End => {
                flag::register_usize(SIGHUP, Arc::clone(&pending), SIGHUP as usize)?;
            }
            // The pipe's handler below replaces the default action, which would end the
            // process.
            Hangup::Nothing => {}
        }
        low_level::pipe::register(SIGHUP, waker.try_clone()?)?;
        let upgrade = Arc::new(AtomicBool::new(false));
        flag::register(SIGUSR2, Arc::clone(&upgrade))?;
        low_level::pipe::register(SIGUSR2, waker)?;
        // With SIGCHLD ignored, which is inherited, no child could be waited for (wait(2)).
        flag::register(SIGCHLD, Arc::default())?;
        Ok(Self { wakes: UnixStream::from_std(wakes), hangup, upgrade, pending })
    }

    /// Unblocks the handled signals in this thread, which is the loop's.
    ///
    /// # Errors
    /// None is known.
    pub fn unblock(&self) -> io::Result<()> {
        Ok(handled().thread_unblock()?)
    }

    /// Makes `registry` report `token` readable when a signal has arrived.
    ///
    /// # Errors
    ///
    /// Those of [`Registry::register`].
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.wakes, token, Interest::READABLE)
    }

    /// The signal that has arrived and was not taken yet; `None` after spurious readiness.
    pub fn take(&mut self) -> Option<Signal> {
        // The pipe is emptied first: a later byte causes new readiness.
        while matches!(self.wakes.read(&mut [0; 16]), Ok(1..)) {}
        let number = self.pending.swap(0, Ordering::SeqCst);
        Signal::ALL.into_iter().find(|signal| signal.number() as usize == number)
    }

    /// Whether a signal that ends the process has arrived and was not taken yet.
    pub(in crate::server) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }

    /// Whether SIGHUP has arrived since the last call. Call [`Self::take`] first: it empties
    /// the pipe, so that a later SIGHUP causes new readiness.
    pub fn take_hangup(&mut self) -> bool {
        self.hangup.swap(false, Ordering::SeqCst)
    }

    /// The same for SIGUSR2.
    pub fn take_upgrade(&mut self) -> bool {
        self.upgrade.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use rustix::process::{Pid, kill_process};

    use super::*;

    /// After this time a child that gets no signal ends by itself, with status 0.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Not a test but the process that the tests signal: says `ready`, then the
    /// first signal's name, then is stuck as a loop might be.
    #[test]
    #[ignore = "run by the other tests in a process of its own"]
    fn child() {
        let mut poll = mio::Poll::new().unwrap();
        let mut events = mio::Events::with_capacity(4);
        let mut signals = Signals::install(Hangup::End).unwrap();
        signals.register(poll.registry(), Token(7)).unwrap();
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty() && signals.take().is_none());
        println!("\nready");

        // The handler may run on this thread and interrupt its wait.
        while events.is_empty() {
            if let Err(error) = poll.poll(&mut events, Some(PATIENCE)) {
                assert_eq!(error.kind(), io::ErrorKind::Interrupted);
            }
        }
        assert!(events.iter().any(|event| event.token() == Token(7) && event.is_readable()));
        let signal = signals.take().unwrap();
        assert_eq!(signals.take(), None);
        println!("\n{}", signal.name());

        let (_stuck, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(PATIENCE);
    }

    struct Process {
        child: Child,
        lines: Box<dyn Iterator<Item = String>>,
    }

    impl Process {
        fn start() -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "server::os::signals::tests::child", "--ignored", "--nocapture"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            Self { child, lines: Box::new(lines.map(Result::unwrap)) }
        }

        fn expect(&mut self, line: &str) {
            assert!(self.lines.any(|said| said == line), "the child did not say {line}");
        }

        fn signal(&self, signal: Signal) {
            let signal = match signal {
                Signal::Terminate => rustix::process::Signal::TERM,
                Signal::Interrupt => rustix::process::Signal::INT,
                Signal::Hangup => rustix::process::Signal::HUP,
            };
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn an_ignored_hangup_is_seen() {
        // nohup sh -c 'grep SigIgn /proc/$$/status'
        assert!(ignores_hangup("Name:\tsh\nSigIgn:\t0000000000000001\nSigCgt:\t0\n"));
        assert!(ignores_hangup("SigIgn:\t0000000000001007\n"));
        assert!(!ignores_hangup("SigIgn:\t0000000000001006\nSigCgt:\t0000000000000001\n"));
        assert!(!ignores_hangup("") && !ignores_hangup("SigIgn:\tx\n"));
    }

    #[test]
    fn the_first_signal_wakes_the_loop_and_the_second_ends_a_stuck_process() {
        for first in Signal::ALL {
            for second in [Signal::Terminate, Signal::Interrupt] {
                let mut process = Process::start();
                process.expect("ready");
                process.signal(first);
                process.expect(first.name());
                if first == Signal::Hangup {
                    // SIGHUP does not count. Two of one signal may arrive as one.
                    process.signal(first);
                    let other = [Signal::Terminate, Signal::Interrupt];
                    let other = other.into_iter().find(|other| *other != second).unwrap();
                    process.signal(other);
                }
                process.signal(second);
                let status = process.child.wait().unwrap();
                assert_eq!(status.code(), Some(1), "{first:?} {second:?}");
            }
        }
    }
}
