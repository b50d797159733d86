//! Certificates that are fetched and renewed (ACME, RFC 8555, http-01).
//!
//! Owns the thread on which that happens. The loop hears of it by mail and never waits:
//! which path to answer for the authority, and which certificate to serve.
//!
//! 1. While a certificate is renewed, or cannot be, the one there is stays in use.
//! 2. Every failure makes the pause longer, so nobody is hammered; SIGHUP ends it.
//! 3. What was issued is on disk before it is served.

pub(in crate::server) mod cache;
pub(in crate::server) mod client;
mod key;
mod schedule;

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use self::cache::Cache;
use self::client::{Account, Caller, Trouble};
use self::key::AccountKey;
use crate::config::Acme;
use crate::server::certificates::Certified;
use crate::server::certificates::certificate::{Certificate, Handshakes};
use crate::server::certificates::renewer_handle::Keeper;
use crate::server::mailbox::{Message, Post};
use crate::server::os::clock::wall_time;

/// The longest sleep: the calendar may be set, or the machine suspended.
const LOOK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// The loop takes its mail at once, unless it has ended.
const MAIL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is needed to fetch a certificate.
#[derive(Debug)]
pub(in crate::server) struct Fetcher {
    pub(in crate::server) acme: Acme,
    pub(in crate::server) cache: Cache,
    pub(in crate::server) caller: Caller,
    pub(in crate::server) handshakes: Handshakes,
    /// What is in use; `None`: none was in the cache.
    pub(in crate::server) certificate: Option<Certificate>,
}

impl Fetcher {
    /// Starts the thread, which ends with the [`Keeper`].
    ///
    /// # Errors
    /// If there is no cache directory and none can be made, or no thread.
    pub(in crate::server) fn start(self, post: Post) -> io::Result<Keeper> {
        self.cache.create()?;
        let (nudges, asked) = mpsc::sync_channel(1);
        thread::Builder::new().name("acme".into()).spawn(move || self.run(&asked, &post))?;
        Ok(Keeper::new(nudges))
    }

    fn run(mut self, asked: &Receiver<()>, post: &Post) {
        let mut failures = 0;
        let mut retry_at = Duration::ZERO;
        loop {
            let due = self.certificate.as_ref().map_or(Duration::ZERO, |certificate| {
                schedule::renew_at(certificate.not_before, certificate.not_after)
            });
            let wait = due.max(retry_at).saturating_sub(wall_time()).min(LOOK_INTERVAL);
            if !wait.is_zero() {
                match asked.recv_timeout(wait) {
                    Ok(()) => retry_at = Duration::ZERO,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                continue;
            }
            match self.fetch(post) {
                Ok(certificate) => {
                    let certified = Certified::new(&self.handshakes, &certificate);
                    let due = schedule::renew_at(certificate.not_before, certificate.not_after);
                    self.certificate = Some(certificate);
                    post.send(Message::Certificate(Some(certified)));
                    (failures, retry_at) = (0, Duration::ZERO);
                    if due <= wall_time() {
                        // One of the clocks is wrong, and would be the next time.
                        log::warn!(domain = self.acme.domain; "certificate_due_when_issued");
                        retry_at = wall_time() + LOOK_INTERVAL;
                    }
                }
                Err(Trouble { words, failure }) => {
                    failures += 1;
                    let pause = schedule::pause(failure, failures, random());
                    retry_at = wall_time() + pause;
                    log::warn!(
                        domain = self.acme.domain, err = words, retry_in_s = pause.as_secs();
                        "certificate_refused"
                    );
                    post.send(Message::Certificate(None));
                }
            }
        }
    }

    fn fetch(&self, post: &Post) -> Result<Certificate, Trouble> {
        let domain = &self.acme.domain;
        log::info!(domain; "certificate_ordered");
        let account_key = self.account_key()?;
        let key = rcgen::KeyPair::generate().map_err(Trouble::refused)?;
        let request = rcgen::CertificateParams::new([domain.clone()])
            .and_then(|params| params.serialize_request(&key))
            .map_err(Trouble::refused)?;
        let mut account = Account::open(&self.caller, &account_key, &self.acme.directory)?;
        let issued = account.order(domain, request.der(), |token, answer| {
            tell(post, Some((token.into(), answer.into())));
        });
        tell(post, None);
        let chain = issued?;
        let key = key.serialize_pem();
        let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes())
            .map_err(|flaw| Trouble::refused(format_args!("what was issued: {flaw:?}")))?;
        if !certificate.is_for(domain) {
            return Err(Trouble::refused("what was issued is for another name"));
        }
        // It is good all the same, until the next start.
        if let Err(error) = self.cache.keep_certificate(&format!("{key}{chain}")) {
            log::warn!(err:% = error; "certificate_not_kept");
        }
        Ok(certificate)
    }

    /// The account's key, made if there is none. One that cannot be kept is not used:
    /// every start would be another account.
    fn account_key(&self) -> Result<AccountKey, Trouble> {
        let kept = self.cache.account().map_err(Trouble::refused)?;
        if let Some(key) = kept.and_then(|pem| AccountKey::from_pem(&pem)) {
            return Ok(key);
        }
        let pem = AccountKey::generate().map_err(Trouble::refused)?;
        self.cache.keep_account(&pem).map_err(Trouble::refused)?;
        AccountKey::from_pem(pem.as_bytes()).ok_or_else(|| Trouble::refused("no account key"))
    }
}

/// Has the loop answer a challenge, or none any more, and waits until it does.
fn tell(post: &Post, challenge: Option<(String, String)>) {
    let (taken, is_taken) = mpsc::sync_channel(1);
    post.send(Message::Challenge { challenge, taken });
    let _ = is_taken.recv_timeout(MAIL_TIMEOUT);
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    #[expect(clippy::disallowed_methods, reason = "it spreads relays, nothing depends on it")]
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}
