//! Account key: signs requests to the authority (RFC 8555 §6.2, RFC 7515).
//!
//! Owns ES256 and the JSON around it. Must not know what a URL means, and makes no call.

use data_encoding::BASE64URL_NOPAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

/// How a request names its signer.
pub(super) enum Signer<'a> {
    /// By the public key, which the authority may not know yet.
    Key,
    /// By the URL of the account.
    Account(&'a str),
}

/// A P-256 key pair.
pub(super) struct AccountKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl AccountKey {
    /// A new key in PEM (PKCS#8).
    pub(super) fn generate() -> Result<String, rcgen::Error> {
        Ok(rcgen::KeyPair::generate()?.serialize_pem())
    }

    /// Parses a P-256 key in the form that [`Self::generate`] (PKCS#8) or Go's autocert
    /// (SEC1) writes; `None`: the PEM holds something else.
    pub(super) fn from_pem(pem: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let der = match PrivateKeyDer::from_pem_slice(pem).ok()? {
            PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
            PrivateKeyDer::Sec1(key) => pkcs8(key.secret_sec1_der())?,
            _ => return None,
        };
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).ok()?;
        Some(Self { pair, random })
    }

    /// The public key as a JWK (RFC 7517). serde_json sorts the members, as the thumbprint
    /// requires.
    pub(super) fn public(&self) -> Value {
        // An uncompressed point: 4, then both coordinates (RFC 5480 §2.2).
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|coordinate| BASE64URL_NOPAD.encode(coordinate));
        json!({ "crv": "P-256", "kty": "EC", "x": x, "y": y })
    }

    /// The key authorization that answers a challenge (RFC 8555 §8.1, RFC 7638).
    pub(super) fn authorization(&self, token: &str) -> String {
        let thumbprint = digest(&SHA256, self.public().to_string().as_bytes());
        format!("{token}.{}", BASE64URL_NOPAD.encode(thumbprint.as_ref()))
    }

    /// The body of a POST to `url`; without a payload, of a POST-as-GET (RFC 8555 §6.3).
    pub(super) fn sign(
        &self,
        signer: &Signer<'_>,
        nonce: &str,
        url: &str,
        payload: Option<&Value>,
    ) -> String {
        let mut header = json!({ "alg": "ES256", "nonce": nonce, "url": url });
        match signer {
            Signer::Key => header["jwk"] = self.public(),
            Signer::Account(account) => header["kid"] = json!(account),
        }
        let [header, payload] =
            [header.to_string(), payload.map_or(String::new(), Value::to_string)]
                .map(|part| BASE64URL_NOPAD.encode(part.as_bytes()));
        let signature = self
            .pair
            .sign(&self.random, format!("{header}.{payload}").as_bytes())
            .expect("the system has randomness");
        let signature = BASE64URL_NOPAD.encode(signature.as_ref());
        json!({ "protected": header, "payload": payload, "signature": signature }).to_string()
    }
}

/// Wraps the key of a SEC1 block (RFC 5915) in PKCS#8 (RFC 5208), the format that ring reads.
fn pkcs8(sec1: &[u8]) -> Option<Vec<u8>> {
    // Version 0; id-ecPublicKey with the curve prime256v1 (RFC 5480 §2.1.1).
    const HEAD: &[u8] = &[
        0x02, 1, 0, 0x30, 19, 0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 3, 1, 7,
    ];
    let key = der(0x04, sec1)?;
    der(0x30, &[HEAD, &key].concat())
}

/// One DER value of up to 255 bytes (X.690 §8.1.3); a P-256 key is shorter.
fn der(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let len = u8::try_from(content.len()).ok()?;
    let head = if len < 0x80 { vec![tag, len] } else { vec![tag, 0x81, len] };
    Some([&head, content].concat())
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn decoded(part: &Value) -> Vec<u8> {
        BASE64URL_NOPAD.decode(part.as_str().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn what_is_signed_can_be_verified_and_says_who_where_and_once() {
        let key = AccountKey::from_pem(AccountKey::generate().unwrap().as_bytes()).unwrap();
        for (signer, payload) in [
            (Signer::Key, Some(json!({ "termsOfServiceAgreed": true }))),
            (Signer::Account("https://ca.example/account/1"), None),
        ] {
            let body = key.sign(&signer, "once", "https://ca.example/x", payload.as_ref());
            let body: Value = serde_json::from_str(&body).unwrap();
            let signed = format!(
                "{}.{}",
                body["protected"].as_str().unwrap(),
                body["payload"].as_str().unwrap()
            );
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key())
                .verify(signed.as_bytes(), &decoded(&body["signature"]))
                .unwrap();
            let header: Value = serde_json::from_slice(&decoded(&body["protected"])).unwrap();
            assert_eq!(header["alg"], "ES256");
            assert_eq!(
                (&header["nonce"], &header["url"]),
                (&json!("once"), &json!("https://ca.example/x"))
            );
            match signer {
                Signer::Key => assert!(header["jwk"]["x"].is_string() && header["kid"].is_null()),
                Signer::Account(url) => assert!(header["kid"] == url && header["jwk"].is_null()),
            }
            let expected = payload.map_or(Vec::new(), |payload| payload.to_string().into_bytes());
            assert_eq!(decoded(&body["payload"]), expected);
        }
    }

    #[test]
    fn a_key_that_go_wrote_is_the_same_key() {
        // openssl ecparam -name prime256v1 -genkey -noout, and openssl pkcs8 -topk8.
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\n\
            MHcCAQEEIB/gdV/N6Gwq8y0cRCtFBwL7iXfh4SOhMPcuoBrXj00LoAoGCCqGSM49\n\
            AwEHoUQDQgAEn/ZRY0Aex7cGm1Yq0rlUp8mzOB/IKdLGlxEYF/wnoT3Z0h34wEfr\n\
            GbGfSfY9LdHwz72Ln6T6tVHgCvAxl4z87w==\n\
            -----END EC PRIVATE KEY-----\n";
        let pkcs8 = "-----BEGIN PRIVATE KEY-----\n\
            MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgH+B1X83obCrzLRxE\n\
            K0UHAvuJd+HhI6Ew9y6gGtePTQuhRANCAASf9lFjQB7HtwabVirSuVSnybM4H8gp\n\
            0saXERgX/CehPdnSHfjAR+sZsZ9J9j0t0fDPvYufpPq1UeAK8DGXjPzv\n\
            -----END PRIVATE KEY-----\n";
        let [sec1, pkcs8] = [sec1, pkcs8].map(|pem| AccountKey::from_pem(pem.as_bytes()).unwrap());
        assert_eq!(sec1.public(), pkcs8.public());
        // Another curve, and an invalid key.
        let other = "-----BEGIN EC PRIVATE KEY-----\n\
            MIGkAgEBBDDrPvSro9Vsp1Ps7nMSLvzB0yj9SFZJVjQs0DLLZoR5pbl1AMIyK8cx\n\
            g6zusyzXXhOgBwYFK4EEACKhZANiAARDqneJDEMB7h6jRC/7qy5QwZd3uVZGYWYy\n\
            a+mhLC0yc+/ARxljez3StFkniXhUb8WeIcUJLpmGAA9YqEc1Wo8a/xuL9bNxCM69\n\
            jNa6RZ0WKOU0m6Tnl96TgKVxu5hw6Dw=\n\
            -----END EC PRIVATE KEY-----\n";
        for pem in [other, "", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----"]
        {
            assert!(AccountKey::from_pem(pem.as_bytes()).is_none());
        }
    }

    #[test]
    fn the_thumbprint_is_over_the_members_in_order() {
        let key = AccountKey::from_pem(AccountKey::generate().unwrap().as_bytes()).unwrap();
        let public = key.public();
        // RFC 7638 §3: no white space, members in lexicographic order.
        let expected =
            format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, public["x"], public["y"]);
        assert_eq!(public.to_string(), expected);
        let authorization = key.authorization("token");
        assert_eq!(authorization.len(), "token.".len() + 43);
    }
}
