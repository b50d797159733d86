//! File watcher: reloads certificate files that are replaced while the relay runs.
//!
//! Owns the thread that polls them. Must not know the event loop beyond its mailbox.
//!
//! 1. While nothing changes, nothing is sent to the event loop.
//! 2. The two files cannot be replaced atomically, so a changed pair is read only when two
//!    polls in a row find it the same.
//! 3. If the new pair is invalid, one `certificate_refused` line is logged and the previous
//!    certificate stays in use. The pair is read again when it changes, when its validity
//!    begins, or on SIGHUP.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::config::PairFiles;
use crate::server::certificates::certificate::{BadPair, Certificate, Handshakes, read_pair};
use crate::server::certificates::renewer_handle::RenewerHandle;
use crate::server::messages::{Certified, LoopHandle, LoopMessage};
use crate::server::os::clock::wall_time;

/// The poll interval. A change is served within two of them.
const POLL_INTERVAL: Duration = Duration::from_secs(4);
/// The documented time within which a change is served.
const RELOAD_WITHIN: Duration = Duration::from_secs(10);

const _: () = assert!(2 * POLL_INTERVAL.as_secs() < RELOAD_WITHIN.as_secs());

/// Metadata that changes with a file's content; `None`: there is no file.
type Stamp = Option<[i64; 6]>;

/// The metadata of the two files at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamps([Stamp; 2]);

impl Stamps {
    /// The current metadata. Links are followed, because some tools replace only a link.
    pub(super) fn of(files: &PairFiles) -> Self {
        Self([stamp(&files.certificate), stamp(&files.key)])
    }
}

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    let (dev, ino, size) = (file.dev() as i64, file.ino() as i64, file.size() as i64);
    // ctime makes a change of mode count, which may be the remedy for a refused key file.
    Some([dev, ino, size, file.mtime(), file.mtime_nsec(), file.ctime() ^ file.ctime_nsec()])
}

/// Watches `files`, whose metadata was `seen` before they were first read, and sends the new
/// certificate to the event loop when they change, until the [`RenewerHandle`] is dropped.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn start(
    files: PairFiles,
    seen: Stamps,
    handshakes: Handshakes,
    to_loop: LoopHandle,
) -> io::Result<RenewerHandle> {
    let (sender, asked) = mpsc::sync_channel(1);
    let watcher = Watcher { files, handshakes, read: seen, last: seen, retry_at: None };
    thread::Builder::new().name("tls-files".into()).spawn(move || watcher.run(&asked, &to_loop))?;
    Ok(RenewerHandle::new(sender, Arc::default()))
}

struct Watcher {
    files: PairFiles,
    handshakes: Handshakes,
    /// The metadata when the files were last read.
    read: Stamps,
    /// The metadata at the last poll.
    last: Stamps,
    /// When the validity of a refused pair begins, since 1970.
    retry_at: Option<Duration>,
}

impl Watcher {
    fn run(mut self, asked: &Receiver<()>, to_loop: &LoopHandle) {
        loop {
            let is_asked = match asked.recv_timeout(POLL_INTERVAL) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = Stamps::of(&self.files);
            let stands_still = std::mem::replace(&mut self.last, now) == now;
            let is_due = self.retry_at.is_some_and(|begin| wall_time() >= begin);
            if is_asked || is_due || stands_still && now != self.read {
                self.read = now;
                to_loop.send(LoopMessage::Certificate(self.reload()));
            }
        }
    }

    fn reload(&mut self) -> Option<Certified> {
        self.retry_at = None;
        match self.read_acceptable() {
            Ok(certificate) => Some(self.handshakes.certified(&certificate)),
            Err(bad) => {
                log::warn!(err:% = bad; "certificate_refused");
                None
            }
        }
    }

    /// Reads the pair; an error if clients would reject it, so that the one in use stays.
    fn read_acceptable(&mut self) -> Result<Certificate, BadPair> {
        let certificate = read_pair(&self.files)?.certificate;
        let now = wall_time();
        match certificate.unacceptable(now) {
            None => Ok(certificate),
            Some(why) => {
                self.retry_at = Some(certificate.not_before).filter(|begin| now < *begin);
                Err(BadPair::certificate(&self.files, why))
            }
        }
    }
}
