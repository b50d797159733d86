//! Request target: from the request line to an endpoint.
//!
//! Owns the four forms of RFC 9112, 3.2, and the authority that they share with the Host
//! field. Must not know methods or fields. Nothing is normalised: a path that a proxy in
//! front would have to decode to recognise an endpoint is no endpoint.

use std::net::Ipv6Addr;

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/server`: for binaries.
    Server,
    /// `/v1/client`: for phones.
    Client,
    /// `/healthz`
    Health,
    /// `/readyz`
    Ready,
    /// Any other: 404.
    Other,
}

impl Endpoint {
    /// Compares byte for byte, percent signs included.
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/v1/server" => Self::Server,
            "/v1/client" => Self::Client,
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            _ => Self::Other,
        }
    }
}

/// The path of a request target (RFC 9112, 3.2), which alone selects the endpoint, and the
/// authority before it in the absolute form. The authority form of CONNECT and `*` have no
/// path. `None`: the target is malformed.
pub(super) fn path(target: &str) -> Option<(&str, Option<&str>)> {
    if !target.is_ascii() || target.contains('#') {
        return None;
    }
    let (path, authority) = if target.starts_with('/') {
        (target, None)
    } else if let Some((scheme, rest)) = target.split_once("://") {
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_scheme(scheme) || !is_authority(authority) {
            return None;
        }
        (path, Some(authority))
    } else if is_authority(target) {
        // `*` is a host name as far as RFC 3986 goes.
        ("", None)
    } else {
        return None;
    };
    Some((path.split_once('?').map_or(path, |(path, _query)| path), authority))
}

/// The host in an authority, without its port and the brackets of an IP literal.
pub(super) fn host(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((literal, _)) => literal,
        None => authority.split_once(':').map_or(authority, |(name, _)| name),
    }
}

/// Whether two host names are equal, regardless of case and of the trailing dot that marks a
/// fully qualified name (RFC 3986, 3.2.2).
#[must_use]
pub fn is_same_host(one: &str, other: &str) -> bool {
    without_root(one).eq_ignore_ascii_case(without_root(other))
}

/// A host name without the trailing dot.
pub(super) fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// RFC 3986, 3.1.
fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// A non-empty host and an optional port (RFC 3986, 3.2; RFC 9110, 7.2): no user, and of IP
/// literals only IPv6.
pub(super) fn is_authority(authority: &str) -> bool {
    let (is_host, port) = match authority.strip_prefix('[').and_then(|v| v.split_once(']')) {
        Some((literal, port)) => (literal.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (name, port) = authority.split_at(end);
            let in_name = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&b);
            (!name.is_empty() && name.bytes().all(in_name), port)
        }
    };
    let is_digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_digits))
}
