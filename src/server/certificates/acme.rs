//! ACME: fetching and renewing the certificate (RFC 8555).
//!
//! Owns the thread that does so. The event loop never waits for it: the answers to the
//! authority's challenges and the certificates to serve arrive in its mailbox.
//!
//! 1. The certificate in use stays in use while it is renewed and if renewal fails.
//! 2. Each failure in a row lengthens the pause before the next attempt, so that the
//!    authority is not flooded. SIGHUP ends the pause.
//! 3. A certificate is written to disk before it is served, and none is ordered while the
//!    cache cannot be written.
//! 4. A failure that does not end an order keeps it, and the next attempt resumes it.

mod binding;
pub(in crate::server) mod cache;
mod challenge;
pub(in crate::server) mod client;
mod directory;
mod key;
mod order;
mod renewal_info;
mod schedule;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

pub(in crate::server) use self::binding::Binding;
use self::cache::Cache;
use self::challenge::Method;
use self::client::{Account, AcmeError, Caller, Directory};
use self::key::AccountKey;
use self::order::{ChallengeAnswer, Environment, Order, Stopped};
use self::renewal_info::{Window, certificate_id};
use self::schedule::{Schedule, Step};
use crate::config::Acme;
use crate::server::certificates::certificate::{Certificate, Handshakes};
use crate::server::certificates::renewer_handle::{Orders, RenewerHandle};
use crate::server::messages::{Challenge, LoopHandle, LoopMessage};
use crate::server::os::clock::wall_time;

/// How long to wait for the event loop to take a challenge. It takes messages at once
/// unless it has ended.
const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to try an order that a hand-over holds.
const HELD_RETRY: Duration = Duration::from_secs(1);
/// The greatest age at which an order is resumed: authorities expire orders after some days.
const ORDER_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Everything needed to fetch a certificate.
#[derive(Debug)]
pub(in crate::server) struct Fetcher {
    pub(in crate::server) acme: Acme,
    pub(in crate::server) binding: Option<Binding>,
    pub(in crate::server) cache: Cache,
    pub(in crate::server) caller: Caller,
    pub(in crate::server) handshakes: Handshakes,
    /// The certificate in use; `None`: the cache held none.
    pub(in crate::server) certificate: Option<Certificate>,
}

impl Fetcher {
    /// Starts the thread, which ends when the [`RenewerHandle`] is dropped.
    ///
    /// # Errors
    /// If the cache directory cannot be created or secured, or the thread cannot be started.
    pub(in crate::server) fn start(self, to_loop: LoopHandle) -> io::Result<RenewerHandle> {
        self.cache.create()?;
        let (sender, asked) = mpsc::sync_channel(1);
        let schedule = Schedule::new(self.certificate.as_ref().map(validity));
        let orders = Arc::<Orders>::default();
        let handle = RenewerHandle::new(sender, Arc::clone(&orders));
        let renewal = Renewal { fetcher: self, asked, to_loop, schedule, order: None, orders };
        thread::Builder::new().name("acme".into()).spawn(move || renewal.run())?;
        Ok(handle)
    }
}

/// The thread's state.
struct Renewal {
    fetcher: Fetcher,
    asked: Receiver<()>,
    to_loop: LoopHandle,
    schedule: Schedule,
    /// The order in progress.
    order: Option<Order>,
    /// What the loop may hold.
    orders: Arc<Orders>,
}

impl Renewal {
    fn run(mut self) {
        loop {
            match self.schedule.step(wall_time()) {
                Step::Wait(time) => match self.asked.recv_timeout(time) {
                    Ok(()) => self.schedule.renew_now(),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                Step::Ask => self.ask(),
                Step::Order if self.orders.begin() => {
                    match self.found().map_or_else(|| self.fetch(), Ok) {
                        Ok(certificate) => self.serve(certificate),
                        Err(error) => self.on_error(&error),
                    }
                    self.orders.end();
                }
                // The program is about to be replaced.
                Step::Order => match self.asked.recv_timeout(HELD_RETRY) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            }
        }
    }

    /// Asks the authority for its renewal window (ARI, RFC 9773).
    fn ask(&mut self) {
        let id = self.certificate_id();
        let Fetcher { caller, acme, .. } = &self.fetcher;
        let reply = Directory::read(caller, &acme.directory).and_then(|directory| {
            let url = directory.renewal_info.zip(id);
            url.map(|(url, id)| caller.get(&format!("{url}/{id}"))).transpose()
        });
        let now = wall_time();
        match reply {
            Ok(Some(reply)) => {
                let window = Window::read(&reply.json());
                if let Some(Window { start, end }) = window {
                    let in_hours = |at: Duration| at.as_secs().saturating_sub(now.as_secs()) / 3600;
                    log::debug!(
                        domain = acme.domain, from = in_hours(start), to = in_hours(end);
                        "renewal_window"
                    );
                }
                self.schedule.on_window(window, reply.retry_after(), now, random());
            }
            Ok(None) => self.schedule.on_no_windows(now),
            Err(AcmeError { words, retry_after, .. }) => {
                log::debug!(domain = acme.domain, err = words; "renewal_window_unknown");
                self.schedule.on_unanswered(retry_after, now);
            }
        }
    }

    fn certificate_id(&self) -> Option<String> {
        certificate_id(self.fetcher.certificate.as_ref()?.leaf())
    }

    /// A certificate in the cache that expires later than the one in use: another relay, or
    /// the Go relay, may share the directory.
    fn found(&self) -> Option<Certificate> {
        let now = wall_time();
        let found = self.fetcher.cache.certificate(now).ok()??;
        let ours = self.fetcher.certificate.as_ref();
        let is_better = ours.is_none_or(|ours| found.not_after > ours.not_after);
        let is_due = Schedule::new(Some(validity(&found))).is_due(now);
        (is_better && !is_due).then_some(found)
    }

    fn serve(&mut self, certificate: Certificate) {
        if self.schedule.on_certificate(validity(&certificate), wall_time()) {
            log::warn!(domain = self.fetcher.acme.domain; "certificate_due_when_issued");
        }
        let certified = self.fetcher.handshakes.certified(&certificate);
        self.fetcher.certificate = Some(certificate);
        self.to_loop.send(LoopMessage::Certificate(Some(certified)));
    }

    fn on_error(&mut self, error: &AcmeError) {
        let AcmeError { words, failure, retry_after, .. } = error;
        let pause = self.schedule.on_failure(*failure, *retry_after, wall_time(), random());
        log::warn!(
            domain = self.fetcher.acme.domain, err = words, retry_in_s = pause.as_secs();
            "certificate_refused"
        );
        self.to_loop.send(LoopMessage::Certificate(None));
    }

    fn fetch(&mut self) -> Result<Certificate, AcmeError> {
        let Self { fetcher, order: under_way, asked, to_loop, .. } = self;
        let Fetcher { acme, cache, caller, .. } = &*fetcher;
        cache.try_write().map_err(AcmeError::refused)?;
        let account_key = account_key(cache)?;
        let directory = Directory::read(caller, &acme.directory)?;
        let binding = fetcher.binding.as_ref();
        let mut account = Account::open(caller, &account_key, directory, binding)?;
        let replaces = fetcher.certificate.as_ref().and_then(|it| certificate_id(it.leaf()));
        let replaces = replaces.filter(|_| account.directory.renewal_info.is_some());
        let mut environment = LoopEnvironment {
            asked,
            to_loop,
            domain: &acme.domain,
            handshakes: &fetcher.handshakes,
            certificate: fetcher.certificate.as_ref(),
        };
        let mut untried = Method::order(cache.challenge()).to_vec();
        let mut failed = Vec::new();
        loop {
            let now = environment.now();
            let kept = under_way.take().filter(|it| now < it.placed_at + ORDER_AGE_MAX);
            let mut order = match (kept, untried.first()) {
                (Some(order), _) => order,
                (None, Some(&method)) => {
                    log::info!(domain = acme.domain; "certificate_ordered");
                    Order::place(&mut account, &acme.domain, method, replaces.as_deref(), now)?
                }
                (None, None) => return Err(AcmeError::refused(failed.join("; "))),
            };
            match order.finish(&mut account, &mut environment) {
                Ok(chain) => return fetcher.take(&order, &chain),
                Err(Stopped::Kept(error)) => {
                    *under_way = Some(order);
                    return Err(error);
                }
                Err(Stopped::Over { error, is_challenge: true }) => {
                    log::warn!(domain = acme.domain, err = error.words; "challenge_failed");
                    untried.retain(|method| *method != order.method);
                    failed.push(error.words);
                }
                Err(Stopped::Over { error, .. }) => return Err(error),
            }
        }
    }
}

impl Fetcher {
    /// Checks the chain issued for an order and writes it to the cache.
    fn take(&self, order: &Order, chain: &[u8]) -> Result<Certificate, AcmeError> {
        let key = order.key.serialize_pem();
        let certificate = Certificate::from_pem(chain, key.as_bytes())
            .map_err(|error| AcmeError::refused(format_args!("the issued chain: {error:?}")))?;
        if !certificate.is_for(&self.acme.domain) {
            return Err(AcmeError::refused("the issued certificate is for another name"));
        }
        let kept = self.cache.keep_certificate(&key, chain).and_then(|()| {
            if order.is_shown { self.cache.keep_challenge(order.method) } else { Ok(()) }
        });
        // The certificate is valid all the same; it is lost only at the next start.
        if let Err(error) = kept {
            log::warn!(err:% = error; "certificate_not_kept");
        }
        Ok(certificate)
    }
}

/// The account key, created if it does not exist. A key that cannot be stored is not used,
/// because every start would create another account.
fn account_key(cache: &Cache) -> Result<AccountKey, AcmeError> {
    if let Some((name, pem)) = cache.account().map_err(AcmeError::refused)? {
        if let Some(key) = AccountKey::from_pem(&pem) {
            return Ok(key);
        }
        let aside = cache.put_aside(&name).map_err(AcmeError::refused)?;
        log::warn!(path:% = aside.display(), err = "is not a P-256 key"; "account_key_put_aside");
        // The cache may hold another key under a legacy name.
        return account_key(cache);
    }
    let pem = AccountKey::generate().map_err(AcmeError::refused)?;
    cache.keep_account(&pem).map_err(AcmeError::refused)?;
    AccountKey::from_pem(pem.as_bytes())
        .ok_or_else(|| AcmeError::refused("the new account key cannot be parsed"))
}

/// The clock and the event loop as an order uses them.
struct LoopEnvironment<'a> {
    asked: &'a Receiver<()>,
    to_loop: &'a LoopHandle,
    domain: &'a str,
    handshakes: &'a Handshakes,
    certificate: Option<&'a Certificate>,
}

impl Environment for LoopEnvironment<'_> {
    fn now(&self) -> Duration {
        wall_time()
    }

    fn wait(&mut self, time: Duration) -> bool {
        !matches!(self.asked.recv_timeout(time), Err(RecvTimeoutError::Disconnected))
    }

    fn answer(&mut self, answer: Option<ChallengeAnswer>) {
        let challenge = match answer {
            Some(ChallengeAnswer::Http { token, authorization }) => {
                Challenge::Http(token, authorization)
            }
            Some(ChallengeAnswer::Tls(key)) => {
                log::debug!(domain = self.domain; "challenge_published");
                Challenge::Tls(self.handshakes.with_challenge(self.certificate, Arc::new(key)))
            }
            None => Challenge::None(self.handshakes.with(self.certificate)),
        };
        let (taken, is_taken) = mpsc::sync_channel(1);
        self.to_loop.send(LoopMessage::Challenge { challenge, taken });
        let _ = is_taken.recv_timeout(CHALLENGE_TIMEOUT);
    }
}

fn validity(certificate: &Certificate) -> (Duration, Duration) {
    (certificate.not_before, certificate.not_after)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    #[expect(clippy::disallowed_methods, reason = "it spreads relays, nothing depends on it")]
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}
