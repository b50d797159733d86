//! An order, from being placed to the certificate (RFC 8555 §7.4, §7.5).
//!
//! Owns its key and how far it has come, so that an attempt that is cut short, by a lost
//! connection or an authority that takes its time, is gone on with, and not begun anew.
//! Must not know the loop or the cache.

use std::time::Duration;

use rcgen::KeyPair;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use super::challenge::{self, Method, is_token};
use super::client::{Account, AcmeError, Reply, describe};
use super::schedule::Failure;

/// Between two looks at what the authority works on, unless it says otherwise: the first
/// time, and the longest.
const POLL_FIRST: Duration = Duration::from_secs(1);
const POLL_MAX: Duration = Duration::from_secs(10);
/// How long one attempt stays with an order. It is gone on with at the next one.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// What an order needs to wait and to be heard.
pub(super) trait World {
    /// The time since 1970.
    fn now(&self) -> Duration;
    /// Waits so long, or until told to go on; `false`: the program ends.
    fn wait(&mut self, time: Duration) -> bool;
    /// Has the relay answer this, or nothing any more, before it returns.
    fn answer(&mut self, answer: Option<ChallengeAnswer>);
}

/// What to answer the authority.
pub(super) enum ChallengeAnswer {
    /// On the path of a token.
    Http { token: String, authorization: String },
    /// In a handshake with ALPN acme-tls/1.
    Tls(CertifiedKey),
}

/// Why there is no certificate yet.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The order is worth going on with.
    Kept(AcmeError),
    /// It is over; another may do better, with another challenge if this one failed.
    Over { trouble: AcmeError, is_challenge: bool },
}

fn over(trouble: AcmeError) -> Stopped {
    Stopped::Over { trouble, is_challenge: false }
}

/// A lost connection or a busy authority does not end an order; a no does.
fn kept_or_over(trouble: AcmeError) -> Stopped {
    if is_final(&trouble) { over(trouble) } else { Stopped::Kept(trouble) }
}

fn is_final(trouble: &AcmeError) -> bool {
    trouble.failure == Failure::Refused
        && !matches!(trouble.problem.as_deref(), Some("rateLimited" | "badNonce"))
}

/// An order.
pub(super) struct Order {
    domain: String,
    url: String,
    /// Of the certificate.
    pub(super) key: KeyPair,
    /// How to show that the name is ours; the other if the authority does not offer it.
    pub(super) method: Method,
    /// Whether that has been asked for.
    pub(super) is_shown: bool,
    /// When it was placed, since 1970.
    pub(super) placed_at: Duration,
}

impl Order {
    /// Orders a certificate for `domain`, in place of the one called `replaces` (RFC 9773
    /// §5).
    pub(super) fn place(
        account: &mut Account<'_>,
        domain: &str,
        method: Method,
        replaces: Option<&str>,
        now: Duration,
    ) -> Result<Self, AcmeError> {
        let key = KeyPair::generate().map_err(AcmeError::refused)?;
        let order = |replaces: Option<&str>| {
            let mut order = json!({ "identifiers": [{ "type": "dns", "value": domain }] });
            if let Some(replaces) = replaces {
                order["replaces"] = json!(replaces);
            }
            order
        };
        let new_order = account.directory.new_order.clone();
        let reply = match account.post(&new_order, Some(&order(replaces))) {
            // It was replaced already, or is another account's.
            Err(trouble) if replaces.is_some() && is_final(&trouble) => {
                log::debug!(domain, err = trouble.words; "certificate_not_replaced");
                account.post(&new_order, Some(&order(None)))
            }
            result => result,
        }?;
        match reply.header("location") {
            Some(url) => Ok(Self {
                domain: domain.to_owned(),
                url: url.to_owned(),
                key,
                method,
                is_shown: false,
                placed_at: now,
            }),
            None => Err(AcmeError::unreachable("the authority returned no order URL")),
        }
    }

    /// Goes on with it until there is a certificate: its chain in PEM.
    pub(super) fn finish(
        &mut self,
        account: &mut Account<'_>,
        world: &mut impl World,
    ) -> Result<Vec<u8>, Stopped> {
        let mut polls = Polls::new(world.now());
        let mut is_authorized = false;
        let mut reply = self.look(account)?;
        loop {
            let order = reply.json();
            match order["status"].as_str().unwrap_or_default() {
                "pending" if !is_authorized => {
                    self.authorize_all(account, &order, &mut polls, world)?;
                    is_authorized = true;
                    reply = self.look(account)?;
                    continue;
                }
                "ready" => {
                    // Its reply is the order (RFC 8555 §7.4).
                    reply = self.finalize(account, &order)?;
                    if reply.json()["status"] != "valid" {
                        polls.wait(&reply, world)?;
                        reply = self.look(account)?;
                    }
                    continue;
                }
                "pending" | "processing" => {}
                "valid" => {
                    let Some(url) = order["certificate"].as_str() else {
                        let words = "the order is valid but has no certificate URL";
                        return Err(over(AcmeError::unreachable(words)));
                    };
                    return Ok(account.post(url, None).map_err(kept_or_over)?.body);
                }
                status => return Err(over(AcmeError::refused(problem(&order, status)))),
            }
            polls.wait(&reply, world)?;
            reply = self.look(account)?;
        }
    }

    fn look(&self, account: &mut Account<'_>) -> Result<Reply, Stopped> {
        account.post(&self.url, None).map_err(kept_or_over)
    }

    fn finalize(&self, account: &mut Account<'_>, order: &Value) -> Result<Reply, Stopped> {
        let Some(url) = order["finalize"].as_str() else {
            return Err(over(AcmeError::unreachable("the order has no finalize URL")));
        };
        let request = rcgen::CertificateParams::new([self.domain.clone()])
            .and_then(|params| params.serialize_request(&self.key))
            .map_err(|error| over(AcmeError::refused(error)))?;
        let request = data_encoding::BASE64URL_NOPAD.encode(request.der());
        account.post(url, Some(&json!({ "csr": request }))).map_err(kept_or_over)
    }

    fn authorize_all(
        &mut self,
        account: &mut Account<'_>,
        order: &Value,
        polls: &mut Polls,
        world: &mut impl World,
    ) -> Result<(), Stopped> {
        let urls = order["authorizations"].as_array().cloned().unwrap_or_default();
        for url in urls.iter().filter_map(Value::as_str) {
            let done = self.authorize(account, url, polls, world);
            world.answer(None);
            done?;
        }
        Ok(())
    }

    /// Shows that a name is ours.
    fn authorize(
        &mut self,
        account: &mut Account<'_>,
        url: &str,
        polls: &mut Polls,
        world: &mut impl World,
    ) -> Result<(), Stopped> {
        let mut is_answered = false;
        loop {
            let reply = account.post(url, None).map_err(kept_or_over)?;
            let authorization = reply.json();
            match authorization["status"].as_str().unwrap_or_default() {
                "valid" => return Ok(()),
                "pending" if !is_answered => {
                    self.show(account, &authorization, world)?;
                    is_answered = true;
                    continue;
                }
                "pending" | "processing" => polls.wait(&reply, world)?,
                status => {
                    let trouble = AcmeError::refused(format!(
                        "{}: {}",
                        self.method.name(),
                        problem(&authorization, status)
                    ));
                    return Err(Stopped::Over { trouble, is_challenge: self.is_shown });
                }
            }
        }
    }

    /// Publishes the answer and asks the authority to look at it.
    fn show(
        &mut self,
        account: &mut Account<'_>,
        authorization: &Value,
        world: &mut impl World,
    ) -> Result<(), Stopped> {
        let offered = authorization["challenges"].as_array().cloned().unwrap_or_default();
        let found = Method::order(Some(self.method)).into_iter().find_map(|method| {
            let challenge = offered.iter().find(|it| it["type"] == method.name())?;
            let token = challenge["token"].as_str().filter(|token| is_token(token))?;
            Some((method, token, challenge["url"].as_str()?, &challenge["status"]))
        });
        let Some((method, token, url, status)) = found else {
            let words = "the authority offers neither tls-alpn-01 nor http-01";
            return Err(over(AcmeError::refused(words)));
        };
        self.method = method;
        let authorization = account.key.authorization(token);
        world.answer(Some(match method {
            Method::Http => ChallengeAnswer::Http { token: token.to_owned(), authorization },
            Method::TlsAlpn => {
                let key = challenge::certificate(&self.domain, &authorization);
                ChallengeAnswer::Tls(key.map_err(|error| over(AcmeError::refused(error)))?)
            }
        }));
        self.is_shown = true;
        // One that was asked for in an earlier attempt is being looked at.
        if status == "pending" {
            account.post(url, Some(&json!({}))).map_err(kept_or_over)?;
        }
        Ok(())
    }
}

/// What an order or an authorization that came to nothing says of it.
fn problem(object: &Value, status: &str) -> String {
    let challenges = object["challenges"].as_array().into_iter().flatten();
    let mut errors = challenges.map(|challenge| &challenge["error"]).chain([&object["error"]]);
    let error = errors.find(|error| error.is_object());
    error.map_or_else(|| format!("its status is {status:?}"), describe)
}

/// The looks at what the authority works on, in one attempt.
struct Polls {
    until: Duration,
    next: Duration,
}

impl Polls {
    fn new(now: Duration) -> Self {
        Self { until: now + PATIENCE, next: POLL_FIRST }
    }

    /// Waits as long as `reply` asks for, or a little longer each time.
    fn wait(&mut self, reply: &Reply, world: &mut impl World) -> Result<(), Stopped> {
        let asked = reply.retry_after();
        let pause = self.pause(asked, world.now());
        let Some(pause) = pause else {
            let trouble = AcmeError::unreachable("the authority has not completed the order yet");
            return Err(Stopped::Kept(AcmeError { retry_after: asked, ..trouble }));
        };
        if world.wait(pause) {
            Ok(())
        } else {
            Err(Stopped::Kept(AcmeError::unreachable("the relay is shutting down")))
        }
    }

    /// `None`: that is for another attempt.
    fn pause(&mut self, asked: Option<Duration>, now: Duration) -> Option<Duration> {
        let pause = asked.unwrap_or(self.next).max(POLL_FIRST);
        self.next = (self.next * 2).min(POLL_MAX);
        (now.saturating_add(pause) <= self.until).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn patience_is_in_time_and_the_authority_says_how_often_it_is_asked() {
        let mut polls = Polls::new(seconds(1000));
        let pauses: Vec<_> =
            (0..6).map(|_| polls.pause(None, seconds(1000)).unwrap().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert_eq!(polls.pause(Some(seconds(0)), seconds(1000)), Some(seconds(1)));
        assert_eq!(polls.pause(Some(seconds(100)), seconds(1000)), Some(seconds(100)));
        // However often it was asked, until the time is over.
        assert_eq!(polls.pause(Some(seconds(60)), seconds(4540)), Some(seconds(60)));
        assert_eq!(polls.pause(Some(seconds(60)), seconds(4541)), None);
        assert_eq!(polls.pause(Some(Duration::MAX), seconds(1000)), None);
    }

    #[test]
    fn what_does_not_end_an_order_keeps_it() {
        let limited =
            AcmeError { problem: Some("rateLimited".into()), ..AcmeError::refused("later") };
        for trouble in [limited, AcmeError::unreachable("status 503")] {
            assert!(matches!(kept_or_over(trouble), Stopped::Kept(_)));
        }
        let gone =
            AcmeError { problem: Some("malformed".into()), ..AcmeError::refused("no order") };
        assert_eq!(gone.failure, Failure::Refused);
        assert!(matches!(kept_or_over(gone), Stopped::Over { is_challenge: false, .. }));
    }

    #[test]
    fn the_challenges_problem_is_told_before_the_orders() {
        let problems = json!({
            "challenges": [{}, { "error": { "type": "x", "detail": "first" } }],
            "error": { "type": "y", "detail": "second" }
        });
        assert_eq!(problem(&problems, "invalid"), "x: first");
        assert_eq!(problem(&json!({ "error": problems["error"] }), "invalid"), "y: second");
        assert_eq!(problem(&json!({}), "invalid"), "its status is \"invalid\"");
    }
}
