//! Serving flags: plain, TLS with a given certificate, or TLS with a fetched one.
//!
//! Owns which of these flags require or exclude each other, and the errors for it. Reads
//! no file: whether a certificate can be read is checked by the server.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::flag::Flag;
use super::{Environment, Refused};
use crate::config::{ACME_DIRECTORY, Acme, ExternalAccount, Listen, PairFiles, Serving};

/// The values of the flags as given.
#[derive(Debug, Default)]
pub(super) struct Flags {
    insecure_listen: Option<SocketAddr>,
    https_listen: Option<SocketAddr>,
    http_listen: Option<SocketAddr>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    domain: Option<String>,
    cert_cache: Option<PathBuf>,
    acme_directory: Option<String>,
    acme_ca: Option<PathBuf>,
    eab_kid: Option<String>,
    eab_hmac_file: Option<PathBuf>,
    proxy_protocol: bool,
    https_proxy_protocol: bool,
}

impl Flags {
    /// Stores the flag's value and returns true if it is one of these flags.
    pub(super) fn take(&mut self, flag: &mut Flag<'_>) -> Result<bool, Refused> {
        match flag.name.as_str() {
            "insecure-listen" => self.insecure_listen = Some(flag.listen_address()?),
            "https-listen" => self.https_listen = Some(flag.listen_address()?),
            "http-listen" => self.http_listen = Some(flag.listen_address()?),
            "tls-cert" => self.tls_cert = Some(flag.path()?),
            "tls-key" => self.tls_key = Some(flag.path()?),
            "domain" => self.domain = Some(flag.domain()?),
            "cert-cache" => self.cert_cache = Some(flag.path()?),
            "acme-directory" => self.acme_directory = Some(flag.https_url()?),
            "acme-ca" => self.acme_ca = Some(flag.path()?),
            "acme-eab-kid" => self.eab_kid = Some(flag.key_name()?),
            "acme-eab-hmac-file" => self.eab_hmac_file = Some(flag.path()?),
            "proxy-protocol" => self.proxy_protocol = flag.is_on()?,
            "https-proxy-protocol" => self.https_proxy_protocol = flag.is_on()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn into_serving(self, environment: &Environment<'_>) -> Result<Serving, Refused> {
        let is_tls = self.tls_cert.is_some() || self.domain.is_some();
        match (self.proxy_protocol, self.https_proxy_protocol) {
            (true, _) if is_tls => {
                return Err(needs(
                    "proxy-protocol",
                    "--insecure-listen; with TLS use --https-proxy-protocol",
                ));
            }
            (_, true) if !is_tls => {
                return Err(needs("https-proxy-protocol", "TLS; without TLS use --proxy-protocol"));
            }
            _ => {}
        }
        let of_domain = [
            (self.http_listen.is_some(), "http-listen"),
            (self.cert_cache.is_some(), "cert-cache"),
            (self.acme_directory.is_some(), "acme-directory"),
            (self.acme_ca.is_some(), "acme-ca"),
            (self.eab_kid.is_some(), "acme-eab-kid"),
            (self.eab_hmac_file.is_some(), "acme-eab-hmac-file"),
        ];
        let of_domain = of_domain.iter().find(|(is_given, _)| *is_given).map(|(_, name)| *name);
        let https = Listen {
            address: self.https_listen.unwrap_or(every_interface(443)),
            proxy_protocol: self.https_proxy_protocol,
        };
        let plain = |address| Listen { address, proxy_protocol: self.proxy_protocol };
        match (self.insecure_listen, self.tls_cert, self.tls_key, self.domain) {
            (None, Some(certificate), Some(key), None) => match of_domain {
                Some(name) => Err(needs(name, "--domain instead of --tls-cert and --tls-key")),
                None => {
                    let credentials = environment.credentials_directory();
                    let pair = PairFiles { certificate, key, credentials };
                    Ok(Serving::Own { https, pair })
                }
            },
            (None, None, None, Some(domain)) => Ok(Serving::Automatic {
                https,
                http: Listen::at(self.http_listen.unwrap_or(every_interface(80))),
                acme: Acme {
                    domain,
                    cache: self.cert_cache.map_or_else(|| default_cache(environment), Ok)?,
                    directory: self.acme_directory.unwrap_or_else(|| ACME_DIRECTORY.into()),
                    ca: self.acme_ca,
                    account: external_account(self.eab_kid, self.eab_hmac_file, environment)?,
                },
            }),
            (None, None, None, None) => match (self.https_listen, of_domain) {
                (Some(_), _) => Err(needs("https-listen", "--domain, or --tls-cert and --tls-key")),
                (None, Some(name)) => Err(needs(name, "--domain")),
                (None, None) => Ok(Serving::Plain(plain(Listen::default().address))),
            },
            (Some(address), None, None, None) => match (self.https_listen, of_domain) {
                (None, None) => Ok(Serving::Plain(plain(address))),
                (Some(_), _) => Err(excludes("https-listen")),
                (None, Some(name)) => Err(excludes(name)),
            },
            (Some(_), _, _, Some(_)) => Err(excludes("domain")),
            (Some(_), ..) => Err(excludes("tls-cert")),
            (None, _, _, Some(_)) => Err(Refused(
                "--domain: excludes --tls-cert and --tls-key; keep --domain to have a certificate\n\
                 fetched, or the other two to use your own"
                    .into(),
            )),
            (None, Some(_), None, None) => Err(needs("tls-cert", "--tls-key as well")),
            (None, None, Some(_), None) => Err(needs("tls-key", "--tls-cert as well")),
        }
    }
}

fn external_account(
    kid: Option<String>,
    hmac_file: Option<PathBuf>,
    environment: &Environment<'_>,
) -> Result<Option<ExternalAccount>, Refused> {
    match (kid, hmac_file) {
        (None, None) => Ok(None),
        (Some(kid), Some(hmac_file)) => {
            let credentials = environment.credentials_directory();
            Ok(Some(ExternalAccount { kid, hmac_file, credentials }))
        }
        (Some(_), None) => Err(needs("acme-eab-kid", "--acme-eab-hmac-file as well")),
        (None, Some(_)) => Err(needs("acme-eab-hmac-file", "--acme-eab-kid as well")),
    }
}

fn every_interface(port: u16) -> SocketAddr {
    SocketAddr::from(([0; 16], port))
}

fn needs(name: &str, what: &str) -> Refused {
    Refused(format!("--{name}: needs {what}"))
}

fn excludes(name: &str) -> Refused {
    Refused(format!(
        "--{name}: excludes --insecure-listen, which serves without TLS; remove one\n\
         of the two (the address for TLS is --https-listen)"
    ))
}

fn default_cache(environment: &Environment<'_>) -> Result<PathBuf, Refused> {
    match (environment.variables)("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".pyrycode-relay/certs")),
        None => Err(Refused(
            "--domain: HOME is not set, so there is no default directory for the certificate;\n\
             give --cert-cache DIR"
                .into(),
        )),
    }
}

/// The names and values for `--check-config`.
pub(super) fn describe(serving: &Serving) -> Vec<(&'static str, String)> {
    let path = |path: &PathBuf| path.display().to_string();
    match serving {
        Serving::Plain(listen) => vec![
            ("insecure-listen", listen.address.to_string()),
            ("proxy-protocol", listen.proxy_protocol.to_string()),
        ],
        Serving::Own { https, pair } => vec![
            ("https-listen", https.address.to_string()),
            ("https-proxy-protocol", https.proxy_protocol.to_string()),
            ("tls-cert", path(&pair.certificate)),
            ("tls-key", path(&pair.key)),
        ],
        Serving::Automatic { https, http, acme } => vec![
            ("domain", acme.domain.clone()),
            ("https-listen", https.address.to_string()),
            ("https-proxy-protocol", https.proxy_protocol.to_string()),
            ("http-listen", http.address.to_string()),
            ("cert-cache", path(&acme.cache)),
            ("acme-directory", acme.directory.clone()),
            ("acme-ca", acme.ca.as_ref().map_or("the web's".into(), path)),
            ("acme-eab-kid", acme.account.as_ref().map_or("none".into(), |it| it.kid.clone())),
            (
                "acme-eab-hmac-file",
                acme.account.as_ref().map_or("none".into(), |it| path(&it.hmac_file)),
            ),
        ],
    }
}
