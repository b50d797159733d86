//! One authority, and how requests are made to it (RFC 8555 §6, §7.1 to §7.3).
//!
//! Owns nonces, the account's session and the bounds on a call. Must not know the loop, the
//! cache, or what an order is.

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

/// The longest that one call takes.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a reply: a certificate chain is some kilobytes.
const REPLY_MAX: u64 = 256 * 1024;
/// Nonces may be refused (RFC 8555 §6.5); then a fresh one came with the refusal.
const NONCES_MAX: usize = 8;
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// What went wrong, in words for the operator, and what that means for the next time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AcmeError {
    pub(super) words: String,
    pub(super) failure: Failure,
    /// When to come back, if the authority says so.
    pub(super) retry_after: Option<Duration>,
    /// The kind of problem, if it is one that RFC 8555 §6.7 lists or a later one does.
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

/// How calls are made, and whom they trust.
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

    /// The problem (RFC 7807) that it tells of, or that it is no reply to us at all.
    fn trouble(&self) -> AcmeError {
        let trouble = match self.json() {
            Value::Object(problem) if (400..500).contains(&self.status) => {
                let problem = Value::Object(problem);
                let kind = problem["type"].as_str().and_then(|it| it.strip_prefix(PROBLEM));
                let trouble = AcmeError::refused(describe(&problem));
                AcmeError { problem: kind.map(str::to_owned), ..trouble }
            }
            _ => AcmeError::unreachable(format!("HTTP status {}", self.status)),
        };
        AcmeError { retry_after: self.retry_after(), ..trouble }
    }
}

/// What a problem document says.
pub(super) fn describe(problem: &Value) -> String {
    let [kind, detail] =
        ["type", "detail"].map(|member| problem[member].as_str().unwrap_or_default());
    format!("{}: {detail}", kind.trim_start_matches(PROBLEM))
}

/// What the authority's directory says (RFC 8555 §7.1.1).
#[derive(Debug)]
pub(super) struct Directory {
    new_nonce: String,
    new_account: String,
    pub(super) new_order: String,
    /// Where windows are asked for (RFC 9773 §4.1), if there are any.
    pub(super) renewal_info: Option<String>,
    /// Accounts are for its customers only (RFC 8555 §7.3.4).
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
    /// Signs in with `key`, or up.
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
            // To the authority both are the same request.
            return self.post(&url, Some(&terms));
        }
        // A key for a binding is good for one account at some authorities: it is used only
        // to sign up.
        match self.post(&url, Some(&json!({ "onlyReturnExisting": true }))) {
            Err(trouble) if trouble.problem.as_deref() == Some("accountDoesNotExist") => {}
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

    /// A signed request; its reply is a success.
    pub(super) fn post(&mut self, url: &str, payload: Option<&Value>) -> Result<Reply, AcmeError> {
        let mut trouble = None;
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
            let refused = reply.trouble();
            let is_stale = refused.problem.as_deref() == Some("badNonce");
            trouble = Some(refused);
            if !is_stale {
                break;
            }
        }
        Err(trouble.unwrap_or_else(|| AcmeError::unreachable("the authority accepts no nonce")))
    }
}

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

    /// Anybody's request; its reply is a success.
    pub(super) fn get(&self, url: &str) -> Result<Reply, AcmeError> {
        let reply = self.0.get(url).call().map_err(AcmeError::unreachable).and_then(read)?;
        if reply.status == 200 { Ok(reply) } else { Err(reply.trouble()) }
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
        Reply { status, headers, body: body.into() }.trouble()
    }

    #[test]
    fn a_problem_is_told_from_a_reply_that_is_none() {
        let problem = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"later"}"#;
        let refused = reply(429, problem);
        assert_eq!(refused.words, "rateLimited: later");
        assert_eq!(refused.failure, Failure::Refused);
        assert_eq!(refused.problem.as_deref(), Some("rateLimited"));
        for (status, body) in [(503, problem), (404, "<html>"), (400, "[]"), (302, "")] {
            let trouble = reply(status, body);
            assert_eq!(trouble.failure, Failure::Unreachable, "{status} {body}");
            assert_eq!(trouble.problem, None);
        }
    }

    #[test]
    fn every_refusal_may_say_when_to_come_back() {
        for (status, body) in [(429, "{}"), (403, "{}"), (503, ""), (500, "x")] {
            assert_eq!(reply(status, body).retry_after, Some(Duration::from_secs(7)));
        }
    }
}
