//! Flag: one flag of the command line with its validated value.
//!
//! Owns the format of each kind of value and the error for a malformed one. Does not know
//! the flags; only the advice in its errors names some.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use log::LevelFilter;
use rustls::pki_types::DnsName;

use super::Refused;
use crate::config::LogFormat;

/// One flag and its optional value.
pub(super) struct Flag<'p> {
    /// Without its dashes.
    pub(super) name: String,
    /// Positioned after the name.
    pub(super) parser: &'p mut lexopt::Parser,
}

impl Flag<'_> {
    pub(super) fn refuse(&self, why: impl Display) -> Refused {
        Refused(format!("--{}: {why}", self.name))
    }

    fn utf8(&self, value: OsString) -> Result<String, Refused> {
        value.into_string().map_err(|_| self.refuse("the value is not UTF-8"))
    }

    pub(super) fn value(&mut self) -> Result<String, Refused> {
        let value = self.parser.value().map_err(|_| self.refuse("needs a value"))?;
        self.utf8(value)
    }

    /// The value of a boolean flag, in the spellings of Go's `strconv.ParseBool`.
    pub(super) fn is_on(&mut self) -> Result<bool, Refused> {
        let Some(value) = self.parser.optional_value() else { return Ok(true) };
        match self.utf8(value)?.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(self.refuse(format_args!("{other:?} is not true or false"))),
        }
    }

    /// Decimal digits only: Go's `flag` package reads `0x10` as 16 and `1_000` as 1000;
    /// both are refused here.
    pub(super) fn number<N>(&mut self, range: RangeInclusive<N>) -> Result<N, Refused>
    where
        N: FromStr + PartialOrd + Display,
    {
        let value = self.value()?;
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse() {
            Ok(number) if digits && range.contains(&number) => Ok(number),
            _ => Err(self.refuse(format_args!(
                "{value:?} is not a whole number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    pub(super) fn listen_address(&mut self) -> Result<SocketAddr, Refused> {
        let value = self.value()?;
        let address = match value.rsplit_once(':') {
            // As in Go: every interface, for IPv6 and IPv4.
            Some(("", port)) => format!("[::]:{port}").parse(),
            Some(("localhost", port)) => format!("127.0.0.1:{port}").parse(),
            _ => value.parse(),
        };
        address.map_err(|_| {
            self.refuse(format_args!(
                "{value:?} is not an address to listen on;\n\
                 write :8080 (every interface), 127.0.0.1:8080, [::1]:8080 or localhost:8080"
            ))
        })
    }

    pub(super) fn metrics_address(&mut self) -> Result<Option<SocketAddr>, Refused> {
        let value = self.value()?;
        if value.is_empty() {
            return Ok(None);
        }
        let address = match value.strip_prefix(':') {
            Some(port) => format!("[::]:{port}").parse(),
            None => value.parse(),
        };
        address.map(Some).map_err(|_| {
            self.refuse(format_args!(
                "{value:?} is not an address and a port;\n\
                 write 127.0.0.1:9090 or [::1]:9090, or turn metrics off with --metrics-listen="
            ))
        })
    }

    pub(super) fn networks(&mut self) -> Result<Vec<IpNet>, Refused> {
        let value = self.value()?;
        let network = |item: &str| {
            let Some(network) = network(item.trim()) else {
                return Err(self.refuse(format_args!(
                    "{item:?} is not an address or a network; write 10.0.0.0/8,2001:db8::1"
                )));
            };
            canonical(network).ok_or_else(|| {
                self.refuse(format_args!(
                    "{item:?} mixes IPv4-mapped and other IPv6 addresses;\n\
                     write the IPv4 network, such as 10.0.0.0/8"
                ))
            })
        };
        value.split(',').map(network).collect()
    }

    pub(super) fn https_url(&mut self) -> Result<String, Refused> {
        let value = self.value()?;
        if is_https_url(&value) {
            Ok(value)
        } else {
            Err(self.refuse(format_args!(
                "{value:?} is not an https URL without user, query or fragment;\n\
                 write a URL such as https://127.0.0.1:8443"
            )))
        }
    }

    pub(super) fn path(&mut self) -> Result<PathBuf, Refused> {
        let value = self.parser.value().map_err(|_| self.refuse("needs a value"))?;
        let text = value.to_string_lossy();
        if value.is_empty() || text.contains(char::is_control) {
            return Err(self.refuse(format_args!("{text:?} is not a path")));
        }
        Ok(value.into())
    }

    /// The key ID of an external account; its format is up to the authority, so any
    /// printable ASCII is accepted.
    pub(super) fn key_name(&mut self) -> Result<String, Refused> {
        let value = self.value()?;
        if !value.is_empty() && value.len() <= 256 && value.bytes().all(|it| it.is_ascii_graphic())
        {
            Ok(value)
        } else {
            Err(self.refuse(format_args!(
                "{value:?} is not a key ID; write the one that the authority shows"
            )))
        }
    }

    /// A host name that a certificate can be issued for, in lower case and without the
    /// trailing dot of the root, which does not change the name.
    pub(super) fn domain(&mut self) -> Result<String, Refused> {
        let value = self.value()?.to_ascii_lowercase();
        let name = value.strip_suffix('.').unwrap_or(&value);
        let is_address = |name: &str| name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_name = |name: &str| {
            DnsName::try_from(name).is_ok()
                && name.contains('.')
                && !name.ends_with('.')
                && !is_address(name)
        };
        if is_name(name) {
            return Ok(name.to_owned());
        }
        let advice = if !value.is_ascii() {
            "write it in punycode, such as xn--bcher-kva.example; idn2 and browsers convert it"
        } else if value.starts_with("*.") {
            "a wildcard needs the dns-01 challenge, which is not supported;\n\
             write the name that clients connect to, such as relay.example.com"
        } else if value.contains("://") || value.contains('/') {
            "write the host name alone, such as relay.example.com, not a URL"
        } else if is_address(name) || name.parse::<SocketAddr>().is_ok() {
            "certificates for IP addresses are not fetched; write a name that resolves to this\n\
             machine, such as relay.example.com, or give --tls-cert and --tls-key"
        } else if value.contains(',') || value.contains(' ') {
            "write one name; a relay serves only one"
        } else if value.rsplit_once(':').is_some_and(|(name, _)| is_name(name)) {
            "write the name alone, such as relay.example.com; set the port with --https-listen"
        } else {
            "write a full name such as relay.example.com"
        };
        Err(self.refuse(format_args!(
            "{value:?} is not a host name that a certificate can be issued for;\n{advice}"
        )))
    }

    pub(super) fn log_format(&mut self) -> Result<LogFormat, Refused> {
        match self.value()?.as_str() {
            "logfmt" => Ok(LogFormat::Logfmt),
            "json" => Ok(LogFormat::Json),
            other => Err(self.refuse(format_args!("{other:?} is not logfmt or json"))),
        }
    }

    pub(super) fn log_level(&mut self) -> Result<LevelFilter, Refused> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            self.refuse(format_args!("{value:?} is not off, error, warn, info, debug or trace"))
        })
    }
}

/// Whether `text` is an https URL to which a path can be appended, and without a user,
/// query or fragment, where a secret might be.
pub(super) fn is_https_url(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else { return false };
    let Some(authority) = url.authority() else { return false };
    url.scheme() == Some(&http::uri::Scheme::HTTPS)
        && !authority.host().is_empty()
        && !text.contains(['@', '?', '#'])
        // Either a valid port, or no colon.
        && (authority.port_u16().is_some() || authority.as_str() == authority.host())
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into())).ok()
}

/// The network in the form of the addresses that it is compared with: IPv4 peers as IPv4,
/// never as `::ffff:a.b.c.d`. `None` if the network contains both mapped and other IPv6
/// addresses.
fn canonical(network: IpNet) -> Option<IpNet> {
    const MAPPED: u8 = 96;
    let is_mapped = network.addr().to_canonical().is_ipv4() && network.addr().is_ipv6();
    if !is_mapped {
        return Some(network.trunc());
    }
    let prefix = network.prefix_len().checked_sub(MAPPED)?;
    IpNet::new(network.addr().to_canonical(), prefix).ok().map(|network| network.trunc())
}

/// Includes the IPv4-mapped `::ffff:127.0.0.1`.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
