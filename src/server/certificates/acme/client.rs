//! One authority, and the few requests of RFC 8555 that get a certificate from it.
//!
//! Owns nonces, polling and the bounds on a call. Must not know the loop, the cache, or
//! what time it is beyond how long to wait.

use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::HeaderMap;

use super::key::{AccountKey, Signer};
use super::schedule::Failure;
use crate::server::os::clock::wall_time;
use crate::server::outbound::https;
use crate::server::outbound::retry_after::retry_after;

/// The longest that one call takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a reply: a certificate chain is some kilobytes.
const REPLY_MAX: u64 = 256 * 1024;
/// Nonces may be refused (RFC 8555 §6.5); then a fresh one came with the refusal.
const NONCES_MAX: usize = 8;
/// Between two looks at what the authority works on, unless it says otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Looks at one thing at most: a few minutes.
const POLLS_MAX: usize = 60;

/// What went wrong, in words for the operator, and what that means for the next time.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) words: String,
    pub(super) failure: Failure,
}

impl Trouble {
    #[expect(clippy::needless_pass_by_value, reason = "that is what map_err passes")]
    fn unreachable(words: impl ToString) -> Self {
        Self { words: words.to_string(), failure: Failure::Unreachable }
    }

    #[expect(clippy::needless_pass_by_value, reason = "that is what map_err passes")]
    pub(super) fn refused(words: impl ToString) -> Self {
        Self { words: words.to_string(), failure: Failure::Refused(None) }
    }
}

/// How calls are made, and whom they trust.
#[derive(Clone, Debug)]
pub(in crate::server) struct Caller(Agent);

impl Caller {
    /// Trusts the authorities in the PEM file `ca` and no others; without one those
    /// that browsers trust.
    ///
    /// # Errors
    /// Why the file does not do.
    pub(in crate::server) fn new(ca: Option<&Path>) -> Result<Self, String> {
        let config = https::config(ca)?.timeout_global(Some(CALL_TIMEOUT)).build();
        Ok(Self(https::agent(config)))
    }
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers, wall_time())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The problem (RFC 7807) that it tells of, or that it is no reply to us at all.
    fn trouble(&self) -> Trouble {
        match self.json() {
            Value::Object(problem) if (400..500).contains(&self.status) => Trouble {
                words: describe(&Value::Object(problem)),
                failure: Failure::Refused(self.retry_after()),
            },
            _ => Trouble::unreachable(format!("status {}", self.status)),
        }
    }
}

/// What a problem document says.
fn describe(problem: &Value) -> String {
    let [kind, detail] =
        ["type", "detail"].map(|member| problem[member].as_str().unwrap_or_default());
    format!("{}: {detail}", kind.trim_start_matches("urn:ietf:params:acme:error:"))
}

/// An account at an authority.
pub(super) struct Account<'a> {
    caller: &'a Caller,
    key: &'a AccountKey,
    new_nonce: String,
    new_order: String,
    /// The account's URL.
    url: String,
    nonce: Option<String>,
}

impl<'a> Account<'a> {
    /// Signs in with `key`, or up: to the authority it is the same request.
    pub(super) fn open(
        caller: &'a Caller,
        key: &'a AccountKey,
        directory: &str,
    ) -> Result<Self, Trouble> {
        let reply = caller.get(directory)?;
        if reply.status != 200 {
            return Err(reply.trouble());
        }
        let directory = reply.json();
        let url = |name: &str| match directory[name].as_str() {
            Some(url) => Ok(url.to_owned()),
            None => Err(Trouble::unreachable(format!("no {name} in the directory"))),
        };
        let mut account = Self {
            caller,
            key,
            new_nonce: url("newNonce")?,
            new_order: url("newOrder")?,
            url: String::new(),
            nonce: None,
        };
        let terms = json!({ "termsOfServiceAgreed": true });
        let reply = account.post(&url("newAccount")?, Some(&terms))?;
        let Some(url) = reply.header("location") else {
            return Err(Trouble::unreachable("the account has no URL"));
        };
        account.url = url.to_owned();
        Ok(account)
    }

    /// Has the authority issue a certificate for `domain` to the key that `request`
    /// (PKCS#10, DER) names; the chain in PEM. `publish` sees to it that the path of
    /// a token is answered before it returns.
    pub(super) fn order(
        &mut self,
        domain: &str,
        request: &[u8],
        mut publish: impl FnMut(&str, &str),
    ) -> Result<String, Trouble> {
        let identifiers = json!({ "identifiers": [{ "type": "dns", "value": domain }] });
        let new_order = self.new_order.clone();
        let reply = self.post(&new_order, Some(&identifiers))?;
        let Some(order_url) = reply.header("location").map(str::to_owned) else {
            return Err(Trouble::unreachable("the order has no URL"));
        };
        let order = reply.json();
        let authorizations = order["authorizations"].as_array().cloned().unwrap_or_default();
        for url in authorizations.iter().filter_map(Value::as_str) {
            self.authorize(url, &mut publish)?;
        }
        self.poll(&order_url, &["ready", "valid"])?;
        let Some(finalize) = order["finalize"].as_str() else {
            return Err(Trouble::unreachable("the order cannot be finalized"));
        };
        let request = data_encoding::BASE64URL_NOPAD.encode(request);
        self.post(finalize, Some(&json!({ "csr": request })))?;
        let order = self.poll(&order_url, &["valid"])?;
        let Some(certificate) = order["certificate"].as_str() else {
            return Err(Trouble::unreachable("the order has no certificate"));
        };
        let reply = self.post(certificate, None)?;
        String::from_utf8(reply.body)
            .map_err(|_| Trouble::unreachable("the certificate is no text"))
    }

    /// Shows that the name is ours (http-01, RFC 8555 §8.3).
    fn authorize(
        &mut self,
        url: &str,
        publish: &mut impl FnMut(&str, &str),
    ) -> Result<(), Trouble> {
        let authorization = self.post(url, None)?.json();
        if authorization["status"] == "valid" {
            return Ok(());
        }
        let challenges = authorization["challenges"].as_array().cloned().unwrap_or_default();
        let challenge = challenges.iter().find(|challenge| challenge["type"] == "http-01");
        let found = challenge
            .and_then(|challenge| Some((challenge["token"].as_str()?, challenge["url"].as_str()?)));
        let Some((token, challenge)) = found.filter(|(token, _)| is_token(token)) else {
            return Err(Trouble::refused("the authority offers no http-01 challenge"));
        };
        publish(token, &self.key.authorization(token));
        self.post(challenge, Some(&json!({})))?;
        self.poll(url, &["valid"]).map(|_| ())
    }

    /// Looks at an order or an authorization until it has one of the states.
    fn poll(&mut self, url: &str, wanted: &[&str]) -> Result<Value, Trouble> {
        for _ in 0..POLLS_MAX {
            let reply = self.post(url, None)?;
            let object = reply.json();
            let status = object["status"].as_str().unwrap_or_default();
            if wanted.contains(&status) {
                return Ok(object);
            }
            if !matches!(status, "pending" | "processing" | "ready") {
                let errors = object["challenges"].as_array().into_iter().flatten();
                let mut errors =
                    errors.map(|challenge| &challenge["error"]).chain([&object["error"]]);
                let error = errors.find(|error| error.is_object());
                return Err(Trouble::refused(error.map_or(format!("it is {status}"), describe)));
            }
            let asked = reply.retry_after().unwrap_or(POLL_INTERVAL);
            #[expect(clippy::disallowed_methods, reason = "nobody waits for this thread")]
            thread::sleep(asked.clamp(POLL_INTERVAL, POLL_INTERVAL_MAX));
        }
        Err(Trouble::refused("the authority does not come to an end"))
    }

    /// A signed request; its reply is a success.
    fn post(&mut self, url: &str, payload: Option<&Value>) -> Result<Reply, Trouble> {
        let mut trouble = None;
        for _ in 0..NONCES_MAX {
            let nonce = match self.nonce.take() {
                Some(nonce) => nonce,
                None => self.caller.nonce(&self.new_nonce)?,
            };
            let signer = match &*self.url {
                "" => Signer::Key,
                url => Signer::Account(url),
            };
            let body = self.key.sign(&signer, &nonce, url, payload);
            let reply = self.caller.post(url, &body)?;
            self.nonce = reply.header("replay-nonce").map(str::to_owned);
            if (200..300).contains(&reply.status) {
                return Ok(reply);
            }
            let is_stale = reply.json()["type"] == "urn:ietf:params:acme:error:badNonce";
            trouble = Some(reply.trouble());
            if !is_stale {
                break;
            }
        }
        Err(trouble.unwrap_or_else(|| Trouble::unreachable("no nonce is taken")))
    }
}

/// RFC 8555 §8.3: base64url, and so nothing that could become another path.
fn is_token(token: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=256).contains(&token.len()) && token.bytes().all(is_digit)
}

impl Caller {
    fn get(&self, url: &str) -> Result<Reply, Trouble> {
        self.0.get(url).call().map_err(Trouble::unreachable).and_then(read)
    }

    fn nonce(&self, url: &str) -> Result<String, Trouble> {
        let reply = self.0.head(url).call().map_err(Trouble::unreachable).and_then(read)?;
        match reply.header("replay-nonce") {
            Some(nonce) => Ok(nonce.to_owned()),
            None => Err(Trouble::unreachable("no nonce")),
        }
    }

    fn post(&self, url: &str, body: &str) -> Result<Reply, Trouble> {
        let request = self.0.post(url).header("content-type", "application/jose+json");
        request.send(body).map_err(Trouble::unreachable).and_then(read)
    }
}

fn read(response: http::Response<ureq::Body>) -> Result<Reply, Trouble> {
    let (head, mut body) = response.into_parts();
    let body = body.with_config().limit(REPLY_MAX).read_to_vec().map_err(Trouble::unreachable)?;
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_cannot_be_another_path() {
        assert!(is_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"));
        for token in ["", "a/b", "..", "a b", "a\r\n", "ä", &"a".repeat(257)] {
            assert!(!is_token(token), "{token:?}");
        }
    }

    #[test]
    fn a_problem_is_told_from_a_reply_that_is_none() {
        let reply = |status, body: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", "7".parse().unwrap());
            Reply { status, headers, body: body.into() }.trouble()
        };
        let problem = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"later"}"#;
        let refused = reply(429, problem);
        assert_eq!(refused.words, "rateLimited: later");
        assert_eq!(refused.failure, Failure::Refused(Some(Duration::from_secs(7))));
        for (status, body) in [(503, problem), (404, "<html>"), (400, "[]"), (302, "")] {
            assert_eq!(reply(status, body).failure, Failure::Unreachable, "{status} {body}");
        }
    }
}
