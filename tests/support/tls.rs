//! Test certificates, and dialling over TLS.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pyrycode_relay::config::PairFiles;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use super::connect;

/// A stream through TLS: its end without close_notify is an error.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A directory with a pair of PEM files in it, removed when dropped.
#[derive(Debug)]
pub struct Pair {
    directory: PathBuf,
    pub files: PairFiles,
    /// The self-signed certificate.
    pub root: CertificateDer<'static>,
}

impl Pair {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pyrycode-relay-pair-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        let [certificate, key] = ["chain.pem", "key.pem"].map(|name| directory.join(name));
        let root = Vec::new().into();
        let files = PairFiles { certificate, key, credentials: None };
        let mut pair = Self { directory, files, root };
        pair.renew();
        pair
    }

    /// Replaces certificate and key as tools do: each file atomically, one after the other.
    pub fn renew(&mut self) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["relay".to_owned()]).unwrap();
        self.put(&cert.pem(), &signing_key.serialize_pem());
        self.root = cert.der().clone();
    }

    /// Replaces the files by these contents.
    pub fn put(&self, certificate: &str, key: &str) {
        let PairFiles { certificate: certificate_path, key: key_path, .. } = &self.files;
        for (path, content, mode) in
            [(key_path, key, 0o600), (certificate_path, certificate, 0o644)]
        {
            let new = path.with_extension("new");
            fs::write(&new, content).unwrap();
            fs::set_permissions(&new, Permissions::from_mode(mode)).unwrap();
            fs::rename(&new, path).unwrap();
        }
    }

    /// The flags with which the relay serves it.
    pub fn flags(&self) -> [String; 2] {
        let PairFiles { certificate, key, .. } = &self.files;
        [format!("--tls-cert={}", certificate.display()), format!("--tls-key={}", key.display())]
    }

    /// A client configuration that trusts only the current certificate.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client_for(rustls::DEFAULT_VERSIONS)
    }

    /// The same for TLS 1.2.
    #[allow(dead_code, reason = "some tests use one version only")]
    pub fn client12(&self) -> Arc<ClientConfig> {
        self.client_for(&[&rustls::version::TLS12])
    }

    fn client_for(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A session on `stream` whose handshake has not begun.
pub fn through_tls(stream: TcpStream, config: &Arc<ClientConfig>) -> TlsStream {
    let name = ServerName::try_from("relay").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream)
}

/// Dials through TLS.
pub fn tls_connect(relay: SocketAddr, config: &Arc<ClientConfig>) -> TlsStream {
    through_tls(connect(relay), config)
}
