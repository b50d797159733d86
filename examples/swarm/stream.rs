//! Stream of a client: TCP, or TLS on it.
//!
//! Must not know what is sent.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use mio::net::TcpStream;
use pyrycode_relay::pem;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

/// The settings of every TLS client.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    pub resumes: bool,
}

impl Tls {
    /// Clients that trust the authorities in the file `ca`.
    pub fn new(ca: &Path, name: &str, is_12: bool, resumes: bool) -> Result<Self, Box<dyn Error>> {
        let mut roots = RootCertStore::empty();
        let path = ca.display();
        let text = std::fs::read(ca).map_err(|error| format!("{path}: {error}"))?;
        for certificate in pem::certificates(&text).map_err(|error| format!("{path}: {error}"))? {
            roots.add(certificate.der)?;
        }
        let version = if is_12 { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !resumes {
            config.resumption = rustls::client::Resumption::disabled();
        }
        let name = ServerName::try_from(name.to_owned())?;
        Ok(Self { config: Arc::new(config), name, resumes })
    }
}

#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    pub fn new(stream: TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        let Some(Tls { config, name, .. }) = tls else { return Ok(Self::Plain(stream)) };
        let connection = ClientConnection::new(Arc::clone(config), name.clone());
        let connection = connection.map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, stream))))
    }

    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    pub fn is_resumed(&self) -> bool {
        let Self::Tls(stream) = self else { return false };
        stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends the first bytes, with TLS once its handshake is complete.
    pub fn begin(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Tls(stream) => {
                stream.conn.writer().write_all(bytes)?;
                match stream.conn.complete_io(&mut stream.sock) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
