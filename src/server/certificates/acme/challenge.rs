//! Challenges: how control over the domain is proven to the authority.
//!
//! Owns the two methods and the relay's answer in each: http-01 (RFC 8555 §8.3) on the port
//! for authorities, tls-alpn-01 (RFC 8737) on the port that serves TLS. Knows no socket and
//! makes no call.

use ring::digest::{SHA256, digest};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::server::net::tls::provider;

/// A method of proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Method {
    /// On the port where TLS is served.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
    /// In plain text, on the port for authorities.
    #[serde(rename = "http-01")]
    Http,
}

impl Method {
    /// The challenge type as ACME names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TlsAlpn => "tls-alpn-01",
            Self::Http => "http-01",
        }
    }

    /// Both methods in the order in which they are tried: the one that worked last comes
    /// first, else tls-alpn-01, which needs no second open port.
    pub(super) fn order(worked: Option<Self>) -> [Self; 2] {
        match worked {
            Some(Self::Http) => [Self::Http, Self::TlsAlpn],
            _ => [Self::TlsAlpn, Self::Http],
        }
    }
}

/// Whether a token is base64url (RFC 8555 §8.3), which cannot form another path.
pub(super) fn is_token(token: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=256).contains(&token.len()) && token.bytes().all(is_digit)
}

/// The certificate that answers tls-alpn-01 for `domain` (RFC 8737 §3): self-signed, for
/// this name alone, with the digest of `authorization` in a critical extension.
pub(super) fn certificate(domain: &str, authorization: &str) -> Result<CertifiedKey, String> {
    let digest = digest(&SHA256, authorization.as_bytes());
    let key = rcgen::KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params =
        rcgen::CertificateParams::new([domain.to_owned()]).map_err(|error| error.to_string())?;
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest.as_ref())];
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    // CertifiedKey::from_der would parse the certificate to compare the keys, and reject the
    // critical extension that webpki does not know.
    let key = provider().key_provider.load_private_key(key).map_err(|error| error.to_string())?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

#[cfg(test)]
mod tests {
    use x509_cert::der::Decode;

    use super::*;

    #[test]
    fn a_token_cannot_be_another_path() {
        assert!(is_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"));
        for token in ["", "a/b", "..", "a b", "a\r\n", "ä", &"a".repeat(257)] {
            assert!(!is_token(token), "{token:?}");
        }
    }

    #[test]
    fn the_method_that_worked_is_tried_first() {
        use Method::{Http, TlsAlpn};
        assert_eq!(Method::order(None), [TlsAlpn, Http]);
        assert_eq!(Method::order(Some(TlsAlpn)), [TlsAlpn, Http]);
        assert_eq!(Method::order(Some(Http)), [Http, TlsAlpn]);
        for method in [TlsAlpn, Http] {
            let name = serde_json::to_string(&method).unwrap();
            assert_eq!(name, format!("{:?}", method.name()));
        }
    }

    #[test]
    fn the_certificate_of_a_challenge_is_as_rfc_8737_has_it() {
        let key = certificate("relay.example", "token.thumbprint").unwrap();
        let parsed = x509_cert::Certificate::from_der(&key.cert[0]).unwrap();
        let extensions = parsed.tbs_certificate().extensions().unwrap();
        let of = |oid: &str| {
            let mut found = extensions.iter().filter(|it| it.extn_id.to_string() == oid);
            (found.next().unwrap(), found.count())
        };
        let (identifier, others) = of("1.3.6.1.5.5.7.1.31");
        assert!(identifier.critical && others == 0);
        // An OCTET STRING of 32 bytes.
        let expected = digest(&SHA256, b"token.thumbprint");
        assert_eq!(identifier.extn_value.as_bytes(), [&[4, 32], expected.as_ref()].concat());
        // GeneralNames with one dNSName.
        let (names, _) = of("2.5.29.17");
        let expected = [&[0x30, 15, 0x82, 13], &b"relay.example"[..]].concat();
        assert_eq!(names.extn_value.as_bytes(), expected);
    }
}
