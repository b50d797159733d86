//! HTTPS calls beside the loop.
//!
//! Owns whom TLS trusts and what every call keeps to. Knows none of the services that are
//! called, nor how long they may take.
//!
//! 1. A redirect is a reply like any other; no proxy is asked; nothing is sent in plain
//!    text.
//! 2. A name is looked up within the call's time, and no more than [`LOOKUPS_MAX`] at once.
//! 3. A host's addresses are tried 250 ms apart (RFC 8305), all within the call's time. What
//!    that takes beyond one socket for each call is [`ATTEMPTS_BESIDE_MAX`] at most.

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
use crate::server::certificates::certificate::provider;

/// Attempts to connect of all calls of one agent, beside the first of each.
pub(in crate::server) const ATTEMPTS_BESIDE_MAX: usize = 16;

/// What every call keeps to, for the caller to add its own bounds; it trusts the
/// authorities in the PEM file `ca` and no others, without one those that browsers trust.
///
/// # Errors
/// Why the file does not do.
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
        // RFC 8555 §6.1: it has to be there.
        .user_agent(concat!("pyrycode-relay/", env!("CARGO_PKG_VERSION"))))
}

/// What makes the calls; the configuration must bound the time of a whole call.
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
