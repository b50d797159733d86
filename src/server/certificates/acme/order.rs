//! Order: one certificate order, from placement to issuance (RFC 8555 §7.4, §7.5).
//!
//! Owns the certificate's key and the progress of the order, so that an attempt interrupted
//! by a lost connection or a slow authority is resumed instead of started anew. Must not
//! know the event loop or the cache.

use std::time::Duration;

use rcgen::KeyPair;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use super::challenge::{self, Method, is_token};
use super::client::{Account, AcmeError, Reply, describe};
use super::schedule::Failure;

/// The first and the longest interval between polls of the authority, unless its reply names
/// one (Retry-After).
const POLL_FIRST: Duration = Duration::from_secs(1);
const POLL_MAX: Duration = Duration::from_secs(10);
/// How long one attempt waits for an order. The next attempt resumes it.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The clock and the relay as an order needs them.
pub(super) trait Environment {
    /// The time since 1970.
    fn now(&self) -> Duration;
    /// Waits for `time` or until renewal is requested; `false`: the relay is shutting down.
    fn wait(&mut self, time: Duration) -> bool;
    /// Makes the relay give this answer, or none any more, from before the call returns.
    fn answer(&mut self, answer: Option<ChallengeAnswer>);
}

/// The relay's answer to the authority's validation request.
pub(super) enum ChallengeAnswer {
    /// http-01: the key authorization, on the path of the token.
    Http { token: String, authorization: String },
    /// tls-alpn-01: the certificate of a handshake with ALPN acme-tls/1.
    Tls(CertifiedKey),
}

/// Why an attempt ended without a certificate.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The order can be resumed.
    Kept(AcmeError),
    /// The order has failed; a new one is needed, with the other challenge if
    /// `is_challenge`.
    Over { error: AcmeError, is_challenge: bool },
}

fn over(error: AcmeError) -> Stopped {
    Stopped::Over { error, is_challenge: false }
}

/// A lost connection or a busy authority does not end an order; a refusal does.
fn kept_or_over(error: AcmeError) -> Stopped {
    if is_final(&error) { over(error) } else { Stopped::Kept(error) }
}

fn is_final(error: &AcmeError) -> bool {
    error.failure == Failure::Refused
        && !matches!(error.problem.as_deref(), Some("rateLimited" | "badNonce"))
}

/// An order in progress.
pub(super) struct Order {
    domain: String,
    url: String,
    /// The certificate's key.
    pub(super) key: KeyPair,
    /// The challenge to use; the other one if the authority does not offer it.
    pub(super) method: Method,
    /// Whether the challenge's answer has been published.
    pub(super) is_shown: bool,
    /// When it was placed, since 1970.
    pub(super) placed_at: Duration,
}

impl Order {
    /// Orders a certificate for `domain` that replaces the one with the identifier `replaces`
    /// (RFC 9773 §5).
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
            // The certificate was replaced already, or belongs to another account.
            Err(error) if replaces.is_some() && is_final(&error) => {
                log::debug!(domain, err = error.words; "certificate_not_replaced");
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

    /// Advances the order until the certificate is issued; returns its chain in PEM.
    pub(super) fn finish(
        &mut self,
        account: &mut Account<'_>,
        environment: &mut impl Environment,
    ) -> Result<Vec<u8>, Stopped> {
        let mut polls = Polls::new(environment.now());
        let mut is_authorized = false;
        let mut reply = self.look(account)?;
        loop {
            let order = reply.json();
            match order["status"].as_str().unwrap_or_default() {
                "pending" if !is_authorized => {
                    self.authorize_all(account, &order, &mut polls, environment)?;
                    is_authorized = true;
                    reply = self.look(account)?;
                    continue;
                }
                "ready" => {
                    // The reply to finalize is the order (RFC 8555 §7.4).
                    reply = self.finalize(account, &order)?;
                    if reply.json()["status"] != "valid" {
                        polls.wait(&reply, environment)?;
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
            polls.wait(&reply, environment)?;
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
        environment: &mut impl Environment,
    ) -> Result<(), Stopped> {
        let urls = order["authorizations"].as_array().cloned().unwrap_or_default();
        for url in urls.iter().filter_map(Value::as_str) {
            let done = self.authorize(account, url, polls, environment);
            environment.answer(None);
            done?;
        }
        Ok(())
    }

    /// Proves control over the name of one authorization.
    fn authorize(
        &mut self,
        account: &mut Account<'_>,
        url: &str,
        polls: &mut Polls,
        environment: &mut impl Environment,
    ) -> Result<(), Stopped> {
        let mut is_answered = false;
        loop {
            let reply = account.post(url, None).map_err(kept_or_over)?;
            let authorization = reply.json();
            match authorization["status"].as_str().unwrap_or_default() {
                "valid" => return Ok(()),
                "pending" if !is_answered => {
                    self.show(account, &authorization, environment)?;
                    is_answered = true;
                    continue;
                }
                "pending" | "processing" => polls.wait(&reply, environment)?,
                status => {
                    let error = AcmeError::refused(format!(
                        "{}: {}",
                        self.method.name(),
                        problem(&authorization, status)
                    ));
                    return Err(Stopped::Over { error, is_challenge: self.is_shown });
                }
            }
        }
    }

    /// Publishes the answer and asks the authority to validate it.
    fn show(
        &mut self,
        account: &mut Account<'_>,
        authorization: &Value,
        environment: &mut impl Environment,
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
        environment.answer(Some(match method {
            Method::Http => ChallengeAnswer::Http { token: token.to_owned(), authorization },
            Method::TlsAlpn => {
                let key = challenge::certificate(&self.domain, &authorization);
                ChallengeAnswer::Tls(key.map_err(|error| over(AcmeError::refused(error)))?)
            }
        }));
        self.is_shown = true;
        // Any other status: an earlier attempt has asked for validation already.
        if status == "pending" {
            account.post(url, Some(&json!({}))).map_err(kept_or_over)?;
        }
        Ok(())
    }
}

/// The reason that a failed order or authorization gives.
fn problem(object: &Value, status: &str) -> String {
    let challenges = object["challenges"].as_array().into_iter().flatten();
    let mut errors = challenges.map(|challenge| &challenge["error"]).chain([&object["error"]]);
    let error = errors.find(|error| error.is_object());
    error.map_or_else(|| format!("its status is {status:?}"), describe)
}

/// The poll intervals of one attempt.
struct Polls {
    until: Duration,
    next: Duration,
}

impl Polls {
    fn new(now: Duration) -> Self {
        Self { until: now + ORDER_TIMEOUT, next: POLL_FIRST }
    }

    /// Waits as long as `reply` asks for (Retry-After), else with growing intervals.
    fn wait(&mut self, reply: &Reply, environment: &mut impl Environment) -> Result<(), Stopped> {
        let asked = reply.retry_after();
        let pause = self.pause(asked, environment.now());
        let Some(pause) = pause else {
            let error = AcmeError::unreachable("the authority has not completed the order yet");
            return Err(Stopped::Kept(AcmeError { retry_after: asked, ..error }));
        };
        if environment.wait(pause) {
            Ok(())
        } else {
            Err(Stopped::Kept(AcmeError::unreachable("the relay is shutting down")))
        }
    }

    /// The time to wait; `None`: it would exceed the time of this attempt.
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
        for error in [limited, AcmeError::unreachable("status 503")] {
            assert!(matches!(kept_or_over(error), Stopped::Kept(_)));
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
