//! ACME client: requests to one authority (RFC 8555 §6, §7.1 to §7.3).
//!
//! Owns the nonces, the account's session and the limits of a call. Must not know the event
//! loop, the cache or orders.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::HeaderMap;

use super::binding::Binding;
use super::key::{AccountKey, Signer};
use super::schedule::Failure;
use crate::server::os::clock::wall_time;
use crate::server::outbound::https;
use crate::server::outbound::retry_after::retry_after;

/// The time limit of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The size limit of a reply: a certificate chain takes a few kilobytes.
const REPLY_MAX: u64 = 256 * 1024;
/// Nonces tried per request: the authority may refuse any (RFC 8555 §6.5), and sends a fresh
/// one with the refusal.
const NONCES_MAX: usize = 32;
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// A failed call: a text for the operator, and what it means for the next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AcmeError {
    pub(super) words: String,
    pub(super) failure: Failure,
    /// The time to wait before the next attempt, if the authority names one.
    pub(super) retry_after: Option<Duration>,
    /// The ACME error type without its URN prefix (RFC 8555 §6.7), if the reply has one.
    pub(super) problem: Option<String>,
}

impl AcmeError {
    fn new(words: String, failure: Failure) -> Self {
        Self { words, failure, retry_after: None, problem: None }
    }

    #[expect(clippy::needless_pass_by_value, reason = "that is what map_err passes")]
    pub(super) fn unreachable(words: impl ToString) -> Self {
        Self::new(words.to_string(), Failure::Unreachable)
    }

    #[expect(clippy::needless_pass_by_value, reason = "that is what map_err passes")]
    pub(super) fn refused(words: impl ToString) -> Self {
        Self::new(words.to_string(), Failure::Refused)
    }
}

/// Makes calls, with the trusted roots and the time limit.
#[derive(Clone, Debug)]
pub(in crate::server) struct Caller(Agent);

/// A reply.
pub(super) struct Reply {
    status: u16,
    headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers, wall_time())
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The problem document (RFC 7807) in the reply, or an error with its HTTP status alone.
    fn error(&self) -> AcmeError {
        let error = match self.json() {
            Value::Object(problem) if (400..500).contains(&self.status) => {
                let problem = Value::Object(problem);
                let kind = problem["type"].as_str().and_then(|it| it.strip_prefix(PROBLEM));
                let error = AcmeError::refused(describe(&problem));
                AcmeError { problem: kind.map(str::to_owned), ..error }
            }
            _ => AcmeError::unreachable(format!("HTTP status {}", self.status)),
        };
        AcmeError { retry_after: self.retry_after(), ..error }
    }
}

/// The text of a problem document: its type and its detail.
pub(super) fn describe(problem: &Value) -> String {
    let [kind, detail] =
        ["type", "detail"].map(|member| problem[member].as_str().unwrap_or_default());
    format!("{}: {detail}", kind.trim_start_matches(PROBLEM))
}

/// The authority's directory (RFC 8555 §7.1.1).
#[derive(Debug)]
pub(super) struct Directory {
    new_nonce: String,
    new_account: String,
    pub(super) new_order: String,
    /// The URL for renewal windows (RFC 9773 §4.1), if the authority has them.
    pub(super) renewal_info: Option<String>,
    /// New accounts require an external account binding (RFC 8555 §7.3.4).
    needs_binding: bool,
}

impl Directory {
    /// Reads it at `url`.
    pub(super) fn read(caller: &Caller, url: &str) -> Result<Self, AcmeError> {
        let directory = caller.get(url)?.json();
        let url = |name: &str| match directory[name].as_str() {
            Some(url) => Ok(url.to_owned()),
            None => Err(AcmeError::unreachable(format!("the authority's directory has no {name}"))),
        };
        Ok(Self {
            new_nonce: url("newNonce")?,
            new_account: url("newAccount")?,
            new_order: url("newOrder")?,
            renewal_info: url("renewalInfo").ok().map(|url| url.trim_end_matches('/').to_owned()),
            needs_binding: directory["meta"]["externalAccountRequired"] == true,
        })
    }
}

/// An account at an authority.
pub(super) struct Account<'a> {
    caller: &'a Caller,
    pub(super) key: &'a AccountKey,
    pub(super) directory: Directory,
    /// The account's URL.
    url: String,
    nonce: Option<String>,
}

impl<'a> Account<'a> {
    /// Opens the account of `key`, and creates it if it does not exist.
    pub(super) fn open(
        caller: &'a Caller,
        key: &'a AccountKey,
        directory: Directory,
        binding: Option<&Binding>,
    ) -> Result<Self, AcmeError> {
        let mut account = Self { caller, key, directory, url: String::new(), nonce: None };
        let reply = account.sign_in_or_up(binding)?;
        let Some(url) = reply.header("location") else {
            return Err(AcmeError::unreachable("the authority returned no account URL"));
        };
        account.url = url.to_owned();
        Ok(account)
    }

    fn sign_in_or_up(&mut self, binding: Option<&Binding>) -> Result<Reply, AcmeError> {
        let url = self.directory.new_account.clone();
        let mut terms = json!({ "termsOfServiceAgreed": true });
        if binding.is_none() && !self.directory.needs_binding {
            // newAccount returns an existing account or creates one (RFC 8555 §7.3).
            return self.post(&url, Some(&terms));
        }
        // At some authorities an HMAC key is valid for one account only, so it is used only
        // when the account has to be created.
        match self.post(&url, Some(&json!({ "onlyReturnExisting": true }))) {
            Err(error) if error.problem.as_deref() == Some("accountDoesNotExist") => {}
            result => return result,
        }
        let Some(binding) = binding else {
            return Err(AcmeError::refused(
                "the authority requires an external account binding: \
                 give --acme-eab-kid and --acme-eab-hmac-file",
            ));
        };
        terms["externalAccountBinding"] = binding.sign(&url, &self.key.public());
        self.post(&url, Some(&terms))
    }

    /// Makes a signed request; any status outside 2xx is an error.
    pub(super) fn post(&mut self, url: &str, payload: Option<&Value>) -> Result<Reply, AcmeError> {
        let mut error = None;
        for _ in 0..NONCES_MAX {
            let nonce = match self.nonce.take() {
                Some(nonce) => nonce,
                None => self.caller.nonce(&self.directory.new_nonce)?,
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
            let refused = reply.error();
            let is_stale = refused.problem.as_deref() == Some("badNonce");
            error = Some(refused);
            if !is_stale {
                break;
            }
        }
        Err(error.unwrap_or_else(|| AcmeError::unreachable("the authority accepts no nonce")))
    }
}

impl Caller {
    /// A caller that trusts the certificate authorities in the PEM file `ca` and no others;
    /// without a file, those that browsers trust.
    ///
    /// # Errors
    /// The reason why the file cannot be used.
    pub(in crate::server) fn new(ca: Option<&Path>) -> Result<Self, String> {
        let config = https::config(ca)?.timeout_global(Some(CALL_TIMEOUT)).build();
        Ok(Self(https::agent(config)))
    }

    /// Makes an unsigned request; any status but 200 is an error.
    pub(super) fn get(&self, url: &str) -> Result<Reply, AcmeError> {
        let reply = self.0.get(url).call().map_err(AcmeError::unreachable).and_then(read)?;
        if reply.status == 200 { Ok(reply) } else { Err(reply.error()) }
    }

    fn nonce(&self, url: &str) -> Result<String, AcmeError> {
        let reply = self.0.head(url).call().map_err(AcmeError::unreachable).and_then(read)?;
        match reply.header("replay-nonce") {
            Some(nonce) => Ok(nonce.to_owned()),
            None => Err(AcmeError {
                retry_after: reply.retry_after(),
                ..AcmeError::unreachable("the authority sent no nonce")
            }),
        }
    }

    fn post(&self, url: &str, body: &str) -> Result<Reply, AcmeError> {
        let request = self.0.post(url).header("content-type", "application/jose+json");
        request.send(body).map_err(AcmeError::unreachable).and_then(read)
    }
}

fn read(response: http::Response<ureq::Body>) -> Result<Reply, AcmeError> {
    let (head, mut body) = response.into_parts();
    let body = body.with_config().limit(REPLY_MAX).read_to_vec().map_err(AcmeError::unreachable)?;
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> AcmeError {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        Reply { status, headers, body: body.into() }.error()
    }

    #[test]
    fn a_problem_is_told_from_a_reply_that_is_none() {
        let problem = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"later"}"#;
        let refused = reply(429, problem);
        assert_eq!(refused.words, "rateLimited: later");
        assert_eq!(refused.failure, Failure::Refused);
        assert_eq!(refused.problem.as_deref(), Some("rateLimited"));
        for (status, body) in [(503, problem), (404, "<html>"), (400, "[]"), (302, "")] {
            let error = reply(status, body);
            assert_eq!(error.failure, Failure::Unreachable, "{status} {body}");
            assert_eq!(error.problem, None);
        }
    }

    #[test]
    fn every_refusal_may_say_when_to_come_back() {
        for (status, body) in [(429, "{}"), (403, "{}"), (503, ""), (500, "x")] {
            assert_eq!(reply(status, body).retry_after, Some(Duration::from_secs(7)));
        }
    }
}
