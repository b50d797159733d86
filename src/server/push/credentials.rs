//! Credentials: the service account's key and the signed request for an access token.
//!
//! Owns the private key. Must not know the network.
//!
//! A JWT (RFC 7519) signed with RS256 (RFC 7518 section 3.3) is three base64url texts; the
//! RSA comes from ring, which rustls already links into the program.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use crate::config::ServiceAccount;

/// The OAuth scope of the access token.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// The validity of the signed request; Google accepts an hour at most.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How far the issue time is set back: Google refuses a request from the future, and this
/// machine's clock may be ahead.
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

/// A service account with its signing key.
pub(super) struct Credentials {
    key: RsaKeyPair,
    key_id: Option<String>,
    issuer: String,
    token_uri: String,
}

impl Credentials {
    /// # Errors
    /// The reason why the key cannot be used, without any of its content.
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

    /// The form that requests an access token (RFC 7523 section 2.1).
    ///
    /// # Errors
    /// If the system provides no randomness, which blinding the key needs.
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
