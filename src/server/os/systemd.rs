//! systemd: notifications (`sd_notify(3)`) and inherited sockets (`sd_listen_fds(3)`).
//!
//! Owns the messages and environment variables of both protocols. Must not know when a
//! notification is due: the event loop sends it, so that a stuck loop sends none.
//!
//! 1. Once the loop runs, a notification never blocks it: one that systemd does not accept
//!    at once is lost.
//! 2. Without a watchdog this module never wakes the loop.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;

/// How long READY=1 may block the start.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// A variable that systemd set is malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: is not a value that systemd sets; unset it", self.0)
    }
}

/// The notifications that systemd asks for, and their destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyConfig {
    /// `NOTIFY_SOCKET`; `None`: no notifications.
    socket: Option<OsString>,
    /// `WATCHDOG_USEC`, if it is meant for this process.
    watchdog: Option<Duration>,
}

impl NotifyConfig {
    /// Reads the environment, as process `pid`.
    ///
    /// # Errors
    /// If a variable does not have the form that systemd gives it.
    pub fn read(variables: &dyn Fn(&str) -> Option<OsString>, pid: u32) -> Result<Self, Malformed> {
        let number = |name: &'static str| match variables(name) {
            None => Ok(None),
            Some(value) => match value.to_str().map(str::parse::<u64>) {
                Some(Ok(number)) => Ok(Some(number)),
                _ => Err(Malformed(name)),
            },
        };
        let socket = variables("NOTIFY_SOCKET");
        // Other forms (vsock) are used by virtual machines only.
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

    /// Connects to the notification socket; `None` if none is configured.
    ///
    /// # Errors
    /// If the socket cannot be connected.
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

/// A connection to systemd's notification socket.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    /// The interval of watchdog notifications: half of systemd's timeout
    /// (`sd_watchdog_enabled(3)`).
    pub(in crate::server) watchdog: Option<Duration>,
}

impl Notifier {
    /// Notifies systemd that the loop runs.
    pub(in crate::server) fn ready(&self) {
        // systemd waits for READY=1, so it must not be lost; only this notification may block.
        let _ = self.socket.set_write_timeout(Some(READY_TIMEOUT));
        self.tell("READY=1");
        let _ = self.socket.set_nonblocking(true);
    }

    /// Notifies systemd that another program is about to take over, at this time of the
    /// monotonic clock, and notifies it with [`Self::ready`] of its own (`sd_notify(3)`).
    pub(in crate::server) fn reloading(&self, at_us: u64) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={at_us}"));
    }

    /// Notifies systemd that the program has gone on instead.
    pub(in crate::server) fn reloaded(&self) {
        self.tell("READY=1");
    }

    /// Notifies systemd that the relay is shutting down.
    pub(in crate::server) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Notifies the watchdog that the loop turns.
    pub(in crate::server) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, word: &str) {
        if let Err(error) = self.socket.send(word.as_bytes()) {
            log::debug!(err:% = error; "notify_failed");
        }
    }
}

/// The listening sockets that systemd passes to this process.
///
/// # Errors
/// If one is not a TCP socket.
pub fn inherited(variables: &dyn Fn(&str) -> Option<OsString>) -> io::Result<Vec<TcpListener>> {
    // Without LISTEN_PID the sockets are not known to be for this process (sd_listen_fds(3)).
    if variables("LISTEN_PID").is_none_or(|pid| pid.is_empty()) {
        return Ok(Vec::new());
    }
    let mut sockets = ListenFd::from_env();
    let all = (0..sockets.len()).map(|index| sockets.take_tcp_listener(index));
    all.filter_map(Result::transpose).collect()
}

/// The complaint if sockets are in the environment that are for another process, as in a
/// shell that a unit with socket activation started. Ask before [`inherited`].
#[must_use]
pub fn sockets_of_another(
    variables: &dyn Fn(&str) -> Option<OsString>,
    pid: u32,
) -> Option<String> {
    variables("LISTEN_FDS")?;
    let of = variables("LISTEN_PID").unwrap_or_default();
    (of != *pid.to_string()).then(|| {
        format!(
            "LISTEN_FDS: the sockets are for the process {of:?} (LISTEN_PID), and this one is {pid}; \
             unset the variables, or have systemd start the relay itself"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_for_another_process_are_told() {
        let told = |variables: &[(&str, &str)]| {
            let find = |name: &str| {
                variables.iter().find(|(it, _)| *it == name).map(|(_, value)| value.into())
            };
            sockets_of_another(&find, 7)
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("LISTEN_PID", "8")]), None);
        assert_eq!(told(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "7")]), None);
        for pid in ["8", "", "x"] {
            let text = told(&[("LISTEN_FDS", "1"), ("LISTEN_PID", pid)]).expect("a complaint");
            assert!(text.contains(&format!("{pid:?}")) && text.contains("is 7"), "{text}");
        }
        assert!(told(&[("LISTEN_FDS", "1")]).is_some());
    }

    fn read(variables: &[(&str, &str)]) -> Result<NotifyConfig, Malformed> {
        let find = |name: &str| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| value.into())
        };
        NotifyConfig::read(&find, 7)
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let socket = ("NOTIFY_SOCKET", "@x");
        let watchdog = |pid: &'static [(&str, &str)]| {
            let variables = [&[socket, ("WATCHDOG_USEC", "3000000")], pid].concat();
            read(&variables).map(|config| config.watchdog)
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
