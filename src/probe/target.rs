//! Target: the URL of the relay to probe, and the address to dial in its place, parsed.
//!
//! Owns the accepted forms of both and the errors for any other. Does not resolve names.

use std::fmt::{self, Display};
use std::net::IpAddr;

use http::Uri;

/// The advice about names outside ASCII (IDN), which neither DNS nor TLS carries.
const PUNYCODE: &str = "is not ASCII: write the name in punycode, such as\n\
                        xn--bcher-kva.example; idn2 and browsers convert it";

/// A relay's address: `http` and `ws` mean the same, and so do `https` and `wss`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether connections use TLS.
    pub is_tls: bool,
    /// A name or an IP address; IPv6 without brackets.
    pub host: String,
    /// As given, or 80 or 443 by default.
    pub port: u16,
}

impl Target {
    /// Parses a URL.
    ///
    /// # Errors
    /// The fault, and the accepted forms.
    pub fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "write https://relay.example, wss://relay.example:8443,\n\
                            http://127.0.0.1:8080 or ws://[::1]:8080";
        let refuse = |why: &str| Err(format!("{url:?} {why};\n{FORM}"));
        if !url.is_ascii() {
            return refuse(PUNYCODE);
        }
        let Ok(uri) = url.parse::<Uri>() else { return refuse("is not a URL") };
        let is_tls = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return refuse("does not begin with http, https, ws or wss"),
        };
        let Some(authority) = uri.authority() else { return refuse("has no host") };
        if authority.as_str().contains('@') {
            // The URL may hold a password and is not repeated.
            return Err(format!("the URL contains a user, which a relay does not use;\n{FORM}"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return refuse("has no host");
        }
        let port = match authority.port_u16() {
            Some(0) => return refuse("has port 0, which cannot be dialled"),
            Some(port) => port,
            None if authority.as_str() != authority.host() => return refuse("has an invalid port"),
            None => default_port(is_tls),
        };
        if uri.path_and_query().is_some_and(|it| it != "/") {
            return refuse("has a path or a query; remove it: the relay's paths are fixed");
        }
        Ok(Self { is_tls, host: host.into(), port })
    }

    /// The value of the Host header: the port is left out if it is the scheme's default.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { is_tls, host, port } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == default_port(*is_tls) { host } else { format!("{host}:{port}") }
    }
}

/// Where to dial in place of a target's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// A name or an IP address; IPv6 without brackets.
    pub host: String,
    /// `None`: the target's.
    pub port: Option<u16>,
}

impl Via {
    /// Parses a name or an address with or without a port.
    ///
    /// # Errors
    /// The fault, and the accepted forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| {
            Err(format!(
                "{text:?} {why};\nwrite 192.0.2.7, 192.0.2.7:8443, [2001:db8::7]:8443 or a name"
            ))
        };
        if !text.is_ascii() {
            return refuse(PUNYCODE);
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self { host: ip.to_string(), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((host, port)) => match port.parse::<u16>() {
                Ok(port @ 1..) => (host, Some(port)),
                _ => return refuse("has no valid port"),
            },
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_address = host.parse::<IpAddr>().is_ok();
        if host.is_empty() || (!is_address && host.contains([':', '/', '@', ' '])) {
            return refuse("is not an address to connect to");
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

const fn default_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_urls_are_parsed() {
        for (url, is_tls, host, port, authority) in [
            ("http://127.0.0.1:8080", false, "127.0.0.1", 8080, "127.0.0.1:8080"),
            ("ws://relay.example", false, "relay.example", 80, "relay.example"),
            ("ws://relay.example:80/", false, "relay.example", 80, "relay.example"),
            ("https://relay.example/", true, "relay.example", 443, "relay.example"),
            ("wss://relay.example:8443", true, "relay.example", 8443, "relay.example:8443"),
            ("WSS://relay.example:80", true, "relay.example", 80, "relay.example:80"),
            ("http://[::1]:8080", false, "::1", 8080, "[::1]:8080"),
            ("https://[2001:db8::7]", true, "2001:db8::7", 443, "[2001:db8::7]"),
        ] {
            let target = Target::parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!(target, Target { is_tls, host: host.into(), port }, "{url}");
            assert_eq!(target.authority(), authority, "{url}");
            assert_eq!(Target::parse(&target.to_string()), Ok(target), "{url}");
        }
    }

    #[test]
    fn names_outside_ascii_are_to_be_written_in_punycode() {
        for url in ["https://bücher.example", "wss://例え.テスト:8443"] {
            let why = Target::parse(url).unwrap_err();
            assert!(why.contains("xn--bcher-kva.example"), "{url}: {why}");
        }
        assert!(Via::parse("bücher.example:443").unwrap_err().contains("punycode"));
        assert!(Target::parse("https://xn--bcher-kva.example").is_ok());
    }

    #[test]
    fn an_address_to_dial_is_parsed() {
        for (text, host, port) in [
            ("192.0.2.7", "192.0.2.7", None),
            ("192.0.2.7:8443", "192.0.2.7", Some(8443)),
            ("2001:db8::7", "2001:db8::7", None),
            ("[2001:db8::7]", "2001:db8::7", None),
            ("[2001:db8::7]:8443", "2001:db8::7", Some(8443)),
            ("localhost", "localhost", None),
            ("relay.internal:80", "relay.internal", Some(80)),
        ] {
            let via = Via { host: host.into(), port };
            assert_eq!(Via::parse(text), Ok(via), "{text}");
        }
        for text in ["", ":80", "a:", "a:0", "a:65536", "https://a", "a b", "a/b", "[::1]:x"] {
            assert!(Via::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_urls_are_refused_with_the_accepted_forms() {
        for url in [
            "",
            "relay.example",
            "127.0.0.1:8080",
            "ftp://relay.example",
            "http://",
            "http://:8080",
            "http://relay.example:",
            "http://relay.example:0",
            "http://relay.example:65536",
            "http://relay.example:x",
            "wss://relay.example/v1/client",
            "http://relay.example/?a=b",
            "http://relay example",
        ] {
            let why = Target::parse(url).expect_err(url);
            assert!(why.contains("https://relay.example"), "{url}: {why}");
        }
        let why = Target::parse("https://root:hunter2@relay.example").unwrap_err();
        assert!(!why.contains("hunter2"), "{why}");
    }
}
