//! PROXY header: the result for a prefix agrees with the result for the whole, and an accepted
//! header matches the specification, read a second time by its offsets.

use std::net::IpAddr;

use pyrycode_relay::config::PROXY_HEADER_MAX;
use pyrycode_relay::protocol::proxy_header::{self, Header, Malformed, Proxied};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads the header whole and at every length that it could have come in.
pub(crate) fn run(data: &[u8]) {
    // Longer inputs find nothing that these do not.
    let data = &data[..data.len().min(PROXY_HEADER_MAX + 64)];
    let whole = proxy_header::parse(data);
    // All lengths of a short one, some of a long one.
    for len in (0..data.len()).step_by(1 + data.len() / 512) {
        let part = proxy_header::parse(&data[..len]);
        let is_settled = matches!(whole, Ok(Header::Complete { len: whole, .. }) if whole <= len);
        let is_same = part == whole;
        let is_early = part == Ok(Header::Partial) && !is_settled;
        assert!(is_same || is_early, "{len}: {part:?}, whole: {whole:?}");
    }
    let begins = data.iter().zip(SIGNATURE).all(|(byte, right)| byte == right);
    match whole {
        Ok(Header::Partial) => assert!(begins && data.len() < PROXY_HEADER_MAX),
        Ok(Header::Complete { proxied, len }) => {
            assert!(begins && len <= data.len() && len <= PROXY_HEADER_MAX);
            assert_eq!(expected(&data[..len]), Some(proxied));
        }
        Err(Malformed) => {
            let len =
                data.get(14..16).map(|len| 16 + usize::from(len[0]) * 256 + usize::from(len[1]));
            let header = len.filter(|len| *len <= PROXY_HEADER_MAX).and_then(|len| data.get(..len));
            assert!(!begins || len.is_some(), "{data:?}");
            assert_eq!(header.filter(|_| begins).and_then(expected), None);
        }
    }
}

/// The client that a complete header names.
fn expected(header: &[u8]) -> Option<Proxied> {
    let fixed = header.get(..16)?;
    match (fixed[12], fixed[13]) {
        (0x20, _) => Some(Proxied::Local),
        (0x21, 0x11) if header.len() >= 28 => {
            let source: [u8; 4] = header[16..20].try_into().ok()?;
            Some(Proxied::Client(IpAddr::from(source)))
        }
        (0x21, 0x21) if header.len() >= 52 => {
            let source: [u8; 16] = header[16..32].try_into().ok()?;
            Some(Proxied::Client(IpAddr::from(source)))
        }
        _ => None,
    }
}
