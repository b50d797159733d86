//! HTTPS calls beside the loop.
//!
//! Owns whom TLS trusts and what every call keeps to. Knows none of the services that are
//! called, nor how long they may take.
//!
//! 1. A redirect is a reply like any other; no proxy is asked; nothing is sent in plain
//!    text.
//! 2. Names are looked up within the call's time, and by no more threads than
//!    [`LOOKUPS_MAX`](crate::server::outbound::dns::LOOKUPS_MAX).

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use ureq::Agent;
use ureq::config::{Config, ConfigBuilder};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::unversioned::transport::DefaultConnector;

use crate::pem::{self, NumberedCertificate};
use crate::server::certificates::certificate::provider;
use crate::server::outbound::dns::Lookup;

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

/// What makes the calls.
pub(in crate::server) fn agent(config: Config) -> Agent {
    Agent::with_parts(config, DefaultConnector::default(), Lookup::default())
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
