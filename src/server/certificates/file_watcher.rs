//! Certificate files that are replaced while the relay runs.
//!
//! Owns the thread that looks at them. Must not know the loop, but for where to post
//! a new certificate; while nothing changes it posts nothing.
//!
//! A pair of files is not replaced in one stroke. So what has changed is read once it
//! has stood still from one look to the next; of a pair that is of no use one line is
//! logged, and it is not looked at again before it changes, or before its validity begins.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::config::PairFiles;
use crate::server::certificates::Certified;
use crate::server::certificates::certificate::{BadPair, Certificate, Handshakes, read_pair};
use crate::server::certificates::renewer_handle::RenewerHandle;
use crate::server::messages::{LoopHandle, LoopMessage};
use crate::server::os::clock::wall_time;

/// Between two looks. A change is served within two of them.
const LOOK_INTERVAL: Duration = Duration::from_secs(4);
/// What is promised: a change is served so soon.
const RELOAD_WITHIN: Duration = Duration::from_secs(10);

const _: () = assert!(2 * LOOK_INTERVAL.as_secs() < RELOAD_WITHIN.as_secs());

/// What tells one content of a file from another, without reading it; `None`: there is
/// no file.
type Stamp = Option<[i64; 6]>;

/// What the two files looked like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamps([Stamp; 2]);

impl Stamps {
    /// What they look like now. Links are followed, for some tools replace only a link.
    pub(super) fn of(files: &PairFiles) -> Self {
        Self([stamp(&files.certificate), stamp(&files.key)])
    }
}

fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    let (dev, ino, size) = (file.dev() as i64, file.ino() as i64, file.size() as i64);
    // A change of mode counts, too: it may be the mending of a refusal.
    Some([dev, ino, size, file.mtime(), file.mtime_nsec(), file.ctime() ^ file.ctime_nsec()])
}

/// Watches `files`, which looked like `seen` before they were first read, and posts
/// what they hold when it has changed, until the [`RenewerHandle`] is dropped.
///
/// # Errors
/// If there can be no more threads.
pub(super) fn start(
    files: PairFiles,
    seen: Stamps,
    handshakes: Handshakes,
    to_loop: LoopHandle,
) -> io::Result<RenewerHandle> {
    let (nudges, asked) = mpsc::sync_channel(1);
    let watcher = Watcher { files, handshakes, read: seen, last: seen, retry_at: None };
    thread::Builder::new().name("tls-files".into()).spawn(move || watcher.run(&asked, &to_loop))?;
    Ok(RenewerHandle::new(nudges))
}

struct Watcher {
    files: PairFiles,
    handshakes: Handshakes,
    /// What they looked like when they were last read.
    read: Stamps,
    /// The same for the last look.
    last: Stamps,
    /// When the validity of a pair that was refused begins, since 1970.
    retry_at: Option<Duration>,
}

impl Watcher {
    fn run(mut self, asked: &Receiver<()>, to_loop: &LoopHandle) {
        loop {
            let is_asked = match asked.recv_timeout(LOOK_INTERVAL) {
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
            Ok(certificate) => Some(Certified::new(&self.handshakes, &certificate)),
            Err(bad) => {
                log::warn!(err:% = bad; "certificate_refused");
                None
            }
        }
    }

    /// The pair, unless no client accepts it: then the one in use is better.
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
