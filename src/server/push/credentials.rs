//! The service account's key, and the signed request for an access token.
//!
//! Owns the private key. Must not know a network.
//!
//! A JWT (RFC 7519) signed with RS256 (RFC 7518 section 3.3) is three base64url
//! texts; ring does the RSA, which rustls has in the program already.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use crate::config::ServiceAccount;

/// What an access token may be used for.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// How long the signed request is good for; Google takes an hour at most.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How much earlier than now it says it was issued: Google refuses one from the
/// future, and our clock may be ahead.
const SKEW: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'static str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

/// A service account that can sign.
pub(super) struct Credentials {
    key: RsaKeyPair,
    key_id: Option<String>,
    issuer: String,
    token_uri: String,
}

impl Credentials {
    /// # Errors
    /// Why the key is none we can sign with, in words that repeat nothing of it.
    pub(super) fn new(account: &ServiceAccount) -> Result<Self, &'static str> {
        let key = PrivateKeyDer::from_pem_slice(account.private_key.as_bytes());
        let key = match key.map_err(|_| "private_key is not a private key in PEM")? {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err("private_key is not an RSA key"),
        };
        Ok(Self {
            key: key.map_err(|_| "private_key is not a valid RSA key of 2048 to 4096 bits")?,
            key_id: account.private_key_id.clone(),
            issuer: account.client_email.clone(),
            token_uri: account.token_uri.clone(),
        })
    }

    pub(super) fn token_uri(&self) -> &str {
        &self.token_uri
    }

    /// The form that asks for an access token (RFC 7523 section 2.1).
    ///
    /// # Errors
    /// If the operating system has no randomness; blinding the key needs some.
    pub(super) fn token_request(&self, wall_time: Duration) -> Result<String, &'static str> {
        let assertion = self.assertion(wall_time)?;
        Ok(format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}"
        ))
    }

    fn assertion(&self, wall_time: Duration) -> Result<String, &'static str> {
        let issued = wall_time.saturating_sub(SKEW);
        let header = Header { alg: "RS256", typ: "JWT", kid: self.key_id.as_deref() };
        let claims = Claims {
            iss: &self.issuer,
            scope: SCOPE,
            aud: &self.token_uri,
            iat: issued.as_secs(),
            exp: (issued + LIFETIME).as_secs(),
        };
        let mut jwt = format!("{}.{}", base64url(&header), base64url(&claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), jwt.as_bytes(), &mut signature)
            .map_err(|_| "cannot sign the token request")?;
        jwt.push('.');
        BASE64URL_NOPAD.encode_append(&signature, &mut jwt);
        Ok(jwt)
    }
}

fn base64url(part: &impl Serialize) -> String {
    BASE64URL_NOPAD.encode(&serde_json::to_vec(part).expect("strings and numbers become JSON"))
}
