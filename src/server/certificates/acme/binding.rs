//! External account binding (RFC 8555 §7.3.4): ties an ACME account to a customer account
//! at the authority.
//!
//! Owns the HMAC key, which never appears in a log line or an error text. Makes no call.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use serde_json::{Value, json};

use crate::config::ExternalAccount;
use crate::server::certificates::key_file;

/// The key ID and HMAC key that the authority issued to the operator.
#[derive(Clone)]
pub(in crate::server) struct Binding {
    kid: String,
    key: hmac::Key,
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Binding(..)")
    }
}

impl Binding {
    /// Reads the key file, and returns with it a warning about the file's permissions.
    ///
    /// # Errors
    /// Describes what is wrong with the file, without any of its content.
    pub(in crate::server) fn read(
        account: &ExternalAccount,
    ) -> Result<(Self, Option<String>), String> {
        let path = account.hmac_file.display();
        let file = key_file::read(&account.hmac_file, account.credentials.as_deref())
            .map_err(|why| format!("{path}: {why}"))?;
        let key = decode(&file.content).ok_or_else(|| {
            format!(
                "{path}: is not an HMAC key in base64url; the file must hold the HMAC key as the\n\
                 authority shows it, and nothing else"
            )
        })?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok((Self { kid: account.kid.clone(), key }, file.warning))
    }

    /// The member `externalAccountBinding` of the request to `url` that creates an account
    /// with the key `jwk`.
    pub(super) fn sign(&self, url: &str, jwk: &Value) -> Value {
        let header = json!({ "alg": "HS256", "kid": self.kid, "url": url });
        let [header, payload] =
            [&header, jwk].map(|part| BASE64URL_NOPAD.encode(part.to_string().as_bytes()));
        let signature = hmac::sign(&self.key, format!("{header}.{payload}").as_bytes());
        let signature = BASE64URL_NOPAD.encode(signature.as_ref());
        json!({ "protected": header, "payload": payload, "signature": signature })
    }
}

/// Decodes base64url, and also base64 and padding, which some authorities show.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .trim_ascii()
        .iter()
        .map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            byte => *byte,
        })
        .collect();
    let padding = digits.iter().rev().take_while(|byte| **byte == b'=').count();
    let key = BASE64URL_NOPAD.decode(&digits[..digits.len() - padding.min(2)]).ok()?;
    (!key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_authorities_show_it() {
        for text in ["-_8AAQ", "-_8AAQ==", "+/8AAQ==\n", " -_8AAQ\r\n"] {
            assert_eq!(decode(text.as_bytes()), Some(vec![0xfb, 0xff, 0, 1]), "{text:?}");
        }
        for text in ["", "\n", "=", "-_8AAQ===", "a b", "HMAC key: -_8AAQ", "A"] {
            assert_eq!(decode(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_signed_says_which_account_and_where() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let binding = Binding { kid: "customer".into(), key: key.clone() };
        let jwk = json!({ "kty": "EC" });
        let signed = binding.sign("https://ca.example/new-account", &jwk);
        let text = |member: &str| signed[member].as_str().unwrap().to_owned();
        let decoded = |member: &str| BASE64URL_NOPAD.decode(text(member).as_bytes()).unwrap();
        let header: Value = serde_json::from_slice(&decoded("protected")).unwrap();
        let expected = json!({
            "alg": "HS256", "kid": "customer", "url": "https://ca.example/new-account"
        });
        assert_eq!(header, expected);
        assert_eq!(decoded("payload"), jwk.to_string().as_bytes());
        let said = format!("{}.{}", text("protected"), text("payload"));
        hmac::verify(&key, said.as_bytes(), &decoded("signature")).unwrap();
    }
}
