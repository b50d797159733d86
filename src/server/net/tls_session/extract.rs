//! Extraction: a session leaves rustls when its handshake is complete.
//!
//! Owns the way from a connection of rustls to a [`RecordLayer`], and every reason against
//! it. Must not know sockets or records.
//!
//! 1. A session about which anything is in doubt stays in rustls for its life. What can be
//!    checked is checked before the extraction, which consumes the connection.
//! 2. The iv derived here from each secret is compared with the one that rustls uses. Should
//!    they differ, that connection ends, and no later session leaves rustls.
//! 3. Caught secrets are overwritten when dropped. rustls does the same with the keys.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Debug};

use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuite, ConnectionTrafficSecrets, Error, KeyLog, ProtocolVersion};
use zeroize::Zeroize;

use crate::server::net::tls_record::{Known, RecordLayer, SECRET_MAX, Suite};

/// The application traffic secrets of a handshake (RFC 8446 §7.1). Those after a KeyUpdate
/// are derived from them, and rustls shows them to a [`KeyLog`] only.
pub(super) struct Secrets {
    client: Secret,
    server: Secret,
}

impl Secrets {
    /// Whether their length is that of the suite.
    fn are_for(&self, suite: Suite) -> bool {
        [&self.client, &self.server].iter().all(|secret| secret.len == suite.secret_len())
    }
}

struct Secret {
    bytes: [u8; SECRET_MAX],
    len: usize,
}

impl Secret {
    const NONE: Self = Self { bytes: [0; SECRET_MAX], len: 0 };

    fn copy(&mut self, secret: &[u8]) {
        if secret.len() <= SECRET_MAX {
            self.bytes[..secret.len()].copy_from_slice(secret);
            self.len = secret.len();
        }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

thread_local! {
    /// What rustls has shown on this thread since it was last taken. It shows the secrets of
    /// the session whose handshake is being driven, on the thread that drives it.
    static CAUGHT: RefCell<Option<Box<Secrets>>> = const { RefCell::new(None) };
    /// Derived and extracted keys differed once: sessions of this thread, which is the only
    /// one that has any, stay in rustls.
    static IS_DISTRUSTED: Cell<bool> = const { Cell::new(false) };
}

/// The key log of every server configuration: keeps the secrets of one handshake until they
/// are taken, and writes nothing.
pub(in crate::server) struct Catcher;

impl Debug for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Catcher")
    }
}

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for Catcher {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        CAUGHT.with_borrow_mut(|caught| {
            let caught = caught.get_or_insert_with(|| {
                Box::new(Secrets { client: Secret::NONE, server: Secret::NONE })
            });
            let kept = if label == CLIENT { &mut caught.client } else { &mut caught.server };
            kept.copy(secret);
        });
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }
}

/// The secrets that rustls has shown since the last call.
pub(super) fn take_caught() -> Option<Box<Secrets>> {
    CAUGHT.take()
}

/// What has become of a connection.
pub(super) enum Extracted {
    /// It continues in the record layer.
    Rest(RecordLayer),
    /// It stays in rustls.
    Kept(Box<UnbufferedServerConnection>),
    /// It cannot continue.
    Lost(Error),
}

/// Extracts a connection whose handshake is complete, whose output was taken, and which has
/// seen no byte behind the handshake: rustls would drop an answer that it still owes.
pub(super) fn extract(
    inner: Box<UnbufferedServerConnection>,
    secrets: Option<&Secrets>,
) -> Extracted {
    let is_safe = !inner.is_handshaking() && !inner.wants_write() && !IS_DISTRUSTED.get();
    let version = inner.protocol_version();
    let suite = inner.negotiated_cipher_suite().and_then(|it| suite(it.suite()));
    let (Some(suite), true) = (suite, is_safe) else { return Extracted::Kept(inner) };
    let secrets = match (version, secrets) {
        (Some(ProtocolVersion::TLSv1_2), _) => None,
        (Some(ProtocolVersion::TLSv1_3), Some(secrets)) if secrets.are_for(suite) => Some(secrets),
        _ => return Extracted::Kept(inner),
    };
    let extracted = match inner.dangerous_into_kernel_connection() {
        Ok((extracted, _)) => extracted,
        Err(error) => return Extracted::Lost(error),
    };
    let ((sent, send), (received, receive)) = (extracted.tx, extracted.rx);
    let (Some(send), Some(receive)) = (parts(suite, &send), parts(suite, &receive)) else {
        return distrust();
    };
    let layer = match secrets {
        None => {
            let (send, receive) = ((sent, send.0, send.1), (received, receive.0, receive.1));
            RecordLayer::tls12(suite, send, receive)
        }
        Some(Secrets { client, server }) => {
            let known = |sequence, secret, (key, iv)| Known { sequence, secret, key, iv };
            let send = known(sent, server.get(), send);
            RecordLayer::tls13_known(suite, send, known(received, client.get(), receive))
        }
    };
    layer.map_or_else(distrust, Extracted::Rest)
}

/// Should rustls one day mean something else by its secrets, one connection is lost, and not
/// every one.
fn distrust() -> Extracted {
    IS_DISTRUSTED.set(true);
    Extracted::Lost(Error::General("derived and extracted TLS keys differ".into()))
}

/// Key and iv, if they are those of the suite.
fn parts(suite: Suite, secrets: &ConnectionTrafficSecrets) -> Option<(&[u8], &[u8])> {
    let (its_suite, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (Suite::ChaCha20Poly1305, key, iv)
        }
        _ => return None,
    };
    (its_suite == suite).then_some((key.as_ref(), iv.as_ref()))
}

/// What a cipher suite is after the handshake; `None`: unknown here.
fn suite(suite: CipherSuite) -> Option<Suite> {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(Suite::Aes128Gcm),
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(Suite::Aes256Gcm),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(Suite::ChaCha20Poly1305),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rustls::crypto::ring::ALL_CIPHER_SUITES;

    use super::*;

    /// A key log that shows other secrets than those in use.
    #[derive(Debug)]
    pub(in crate::server::net::tls_session) struct Forger;

    impl KeyLog for Forger {
        fn log(&self, label: &str, random: &[u8], secret: &[u8]) {
            let forged: Vec<u8> = secret.iter().map(|byte| byte ^ 1).collect();
            Catcher.log(label, random, &forged);
        }

        fn will_log(&self, label: &str) -> bool {
            Catcher.will_log(label)
        }
    }

    #[test]
    fn every_suite_of_the_provider_is_known() {
        for known in ALL_CIPHER_SUITES {
            assert!(suite(known.suite()).is_some(), "{known:?}");
        }
        assert!(suite(CipherSuite::TLS13_AES_128_CCM_SHA256).is_none());
    }

    #[test]
    fn only_traffic_secrets_are_caught_and_once() {
        assert!(take_caught().is_none());
        Catcher.log(SERVER, &[], &[2; 48]);
        Catcher.log(CLIENT, &[], &[1; 32]);
        let caught = take_caught().unwrap();
        assert_eq!((caught.client.get(), caught.server.get()), (&[1; 32][..], &[2; 48][..]));
        assert!(take_caught().is_none());
        assert!(!Catcher.will_log("CLIENT_RANDOM") && !Catcher.will_log("EXPORTER_SECRET"));
        assert_eq!(format!("{Catcher:?}"), "Catcher");
    }
}
