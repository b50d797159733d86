//! What systemd is told (`sd_notify(3)`) and what it hands over (`sd_listen_fds(3)`).
//!
//! Owns the protocol's words and variables. Must not know when they are true: the
//! loop says so, and so a loop that is stuck is silent.
//!
//! 1. Telling never blocks the loop: what systemd does not take at once is lost.
//! 2. Without a watchdog nothing here ever wakes the loop.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;

/// How long the start may wait for systemd to take a word.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// A variable that systemd set is malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: is not a value that systemd sets; unset it", self.0)
    }
}

/// What systemd wants to be told, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyConfig {
    /// `NOTIFY_SOCKET`; `None`: nothing.
    socket: Option<OsString>,
    /// `WATCHDOG_USEC`, if it is for this process.
    watchdog: Option<Duration>,
}

impl NotifyConfig {
    /// Reads the environment, as process `pid`.
    ///
    /// # Errors
    /// If a variable is not of the form that systemd gives it.
    pub fn read(variables: &dyn Fn(&str) -> Option<OsString>, pid: u32) -> Result<Self, Malformed> {
        let number = |name: &'static str| match variables(name) {
            None => Ok(None),
            Some(value) => match value.to_str().map(str::parse::<u64>) {
                Some(Ok(number)) => Ok(Some(number)),
                _ => Err(Malformed(name)),
            },
        };
        let socket = variables("NOTIFY_SOCKET");
        // Other forms (vsock) are for virtual machines.
        if socket.as_ref().is_some_and(|it| !matches!(it.as_bytes(), [b'/' | b'@', _, ..])) {
            return Err(Malformed("NOTIFY_SOCKET"));
        }
        let watchdog = match number("WATCHDOG_USEC")? {
            Some(0) => return Err(Malformed("WATCHDOG_USEC")),
            time => time.map(Duration::from_micros),
        };
        let is_ours = number("WATCHDOG_PID")?.is_none_or(|it| it == u64::from(pid));
        Ok(Self { socket, watchdog: watchdog.filter(|_| is_ours) })
    }

    /// Connects to who wants to be told; `None` if nobody does.
    ///
    /// # Errors
    /// If there is no such socket.
    pub fn connect(&self) -> io::Result<Option<Notifier>> {
        let Some(name) = &self.socket else { return Ok(None) };
        let socket = UnixDatagram::unbound()?;
        match name.as_bytes() {
            [b'@', name @ ..] => {
                socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
            }
            path => socket.connect(OsStr::from_bytes(path))?,
        }
        Ok(Some(Notifier { socket, watchdog: self.watchdog.map(|time| time / 2) }))
    }
}

/// systemd, as who is told.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    /// How often to say that the loop turns: twice in the time that it gives us
    /// (`sd_watchdog_enabled(3)`).
    pub(in crate::server) watchdog: Option<Duration>,
}

impl Notifier {
    /// The loop runs.
    pub(in crate::server) fn ready(&self) {
        // This word is waited for, so it may wait; no other may.
        let _ = self.socket.set_write_timeout(Some(READY_TIMEOUT));
        self.tell("READY=1");
        let _ = self.socket.set_nonblocking(true);
    }

    /// The loop ends soon.
    pub(in crate::server) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// The loop turns.
    pub(in crate::server) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, word: &str) {
        if let Err(error) = self.socket.send(word.as_bytes()) {
            log::debug!(err:% = error; "notify_failed");
        }
    }
}

/// The listening sockets that systemd hands over to this process.
///
/// # Errors
/// If one is not a TCP socket.
pub fn inherited(variables: &dyn Fn(&str) -> Option<OsString>) -> io::Result<Vec<TcpListener>> {
    // Without it, who the sockets are for is not said (sd_listen_fds(3)).
    if variables("LISTEN_PID").is_none_or(|pid| pid.is_empty()) {
        return Ok(Vec::new());
    }
    let mut sockets = ListenFd::from_env();
    let all = (0..sockets.len()).map(|index| sockets.take_tcp_listener(index));
    all.filter_map(Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<NotifyConfig, Malformed> {
        let find = |name: &str| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| value.into())
        };
        NotifyConfig::read(&find, 7)
    }

    #[test]
    fn the_watchdog_is_for_whom_it_names() {
        let socket = ("NOTIFY_SOCKET", "@x");
        let watchdog = |pid: &'static [(&str, &str)]| {
            let variables = [&[socket, ("WATCHDOG_USEC", "3000000")], pid].concat();
            read(&variables).map(|wishes| wishes.watchdog)
        };
        assert_eq!(watchdog(&[]), Ok(Some(Duration::from_secs(3))));
        assert_eq!(watchdog(&[("WATCHDOG_PID", "7")]), Ok(Some(Duration::from_secs(3))));
        assert_eq!(watchdog(&[("WATCHDOG_PID", "8")]), Ok(None));
        assert_eq!(read(&[socket]).unwrap().watchdog, None);
    }

    #[test]
    fn what_systemd_never_sets_is_refused() {
        for (name, value) in [
            ("NOTIFY_SOCKET", ""),
            ("NOTIFY_SOCKET", "@"),
            ("NOTIFY_SOCKET", "relative"),
            ("WATCHDOG_USEC", "0"),
            ("WATCHDOG_USEC", "soon"),
            ("WATCHDOG_USEC", ""),
            ("WATCHDOG_PID", "-1"),
        ] {
            let refused = read(&[(name, value)]).unwrap_err();
            assert_eq!(refused, Malformed(name), "{value:?}");
        }
        assert_eq!(read(&[]), Ok(NotifyConfig::default()));
        assert!(NotifyConfig::default().connect().unwrap().is_none());
    }
}
