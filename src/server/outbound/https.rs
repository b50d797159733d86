//! HTTPS: the agent for calls beside the event loop.
//!
//! Owns the trusted roots and the settings of every call. Must not know the services that
//! are called, nor their time limits.
//!
//! 1. Redirects are not followed, no proxy is used, and plain HTTP is refused.
//! 2. A name lookup counts against the call's time; at most [`LOOKUPS_MAX`] run at once.
//! 3. A host's addresses are tried 250 ms apart (RFC 8305), all within the call's time. The
//!    calls of an agent together have at most [`ATTEMPTS_BESIDE_MAX`] sockets beyond one each.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use ureq::Agent;
use ureq::config::{Config, ConfigBuilder};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::{Connector, RustlsConnector};

use super::dns::{DnsResolver, LOOKUPS_MAX};
use super::places::Places;
use super::stream::Dialer;
use crate::pem::{self, NumberedCertificate};
use crate::server::net::tls::provider;

/// The maximum of concurrent connection attempts of one agent, beside one per call.
pub(in crate::server) const ATTEMPTS_BESIDE_MAX: usize = 16;

/// The settings of every call, to which the caller adds its own limits. Trusts the
/// certificate authorities in the PEM file `ca` and no others; without a file, those that
/// browsers trust.
///
/// # Errors
/// The reason why the file cannot be used.
pub(in crate::server) fn config(ca: Option<&Path>) -> Result<ConfigBuilder<AgentScope>, String> {
    let roots = match ca {
        Some(path) => RootCerts::Specific(Arc::new(authorities(path)?)),
        None => RootCerts::WebPki,
    };
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(provider()))
        .build();
    Ok(Config::builder()
        .tls_config(tls)
        .https_only(true)
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        // RFC 8555 §6.1 requires one.
        .user_agent(concat!("pyrycode-relay/", env!("CARGO_PKG_VERSION"))))
}

/// The agent that makes the calls; the configuration must limit the time of a whole call.
pub(in crate::server) fn agent(config: Config) -> Agent {
    debug_assert!(config.timeouts().global.is_some(), "a call without a deadline");
    Agent::with_parts(config, connector(), DnsResolver::new(Places::new(LOOKUPS_MAX)))
}

fn connector() -> impl Connector {
    Dialer(Places::new(ATTEMPTS_BESIDE_MAX)).chain(RustlsConnector::default())
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let mut roots = RootCertStore::empty();
    let mut authorities = Vec::new();
    for NumberedCertificate { line, der } in
        pem::certificates(&pem).map_err(|why| format!("{shown}: {why}"))?
    {
        authorities.push(Certificate::from_der(&der).to_owned());
        roots.add(der).map_err(|error| format!("{shown}: line {line}: {error}"))?;
    }
    Ok(authorities)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;
    use std::time::Duration;

    use ureq::http::Uri;
    use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
    use ureq::unversioned::transport::NextTimeout;
    use ureq::{Error, Timeout};

    use super::super::dial::tests::BlackHole;
    use super::*;

    /// A name that has these addresses.
    #[derive(Debug)]
    struct Name(Vec<SocketAddr>);

    impl Resolver for Name {
        fn resolve(
            &self,
            _: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, Error> {
            let mut addresses = self.empty();
            self.0.iter().for_each(|address| addresses.push(*address));
            Ok(addresses)
        }
    }

    fn get(addresses: Vec<SocketAddr>, within: Duration) -> Result<String, Error> {
        let config = Config::builder().proxy(None).timeout_global(Some(within)).build();
        let agent = Agent::with_parts(config, connector(), Name(addresses));
        agent.get("http://localhost/").call()?.body_mut().read_to_string()
    }

    #[test]
    fn a_call_reaches_the_address_that_answers() {
        let (hole, listener) = (BlackHole::new(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.extend(byte);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
            });
            let body = get(vec![hole.address, address], Duration::from_secs(10));
            assert_eq!(body.unwrap(), "hi");
        });
    }

    #[test]
    fn a_call_ends_at_its_deadline_in_each_of_its_parts() {
        let within = Duration::from_millis(500);
        let hole = BlackHole::new();
        let is_late =
            |addresses| matches!(get(addresses, within), Err(Error::Timeout(Timeout::Global)));
        assert!(is_late(vec![hole.address, hole.address]), "none connects");
        // The kernel accepts the connection, and nothing ever answers on it.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is_late(vec![mute.local_addr().unwrap()]), "no answer");
    }
}
