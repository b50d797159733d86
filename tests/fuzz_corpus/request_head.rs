//! Request head: the result for a prefix agrees with the result for the whole, and an accepted
//! head satisfies the contract, checked by a second, simple parser.

use pyrycode_relay::config::{Forwarded, HEAD_MAX, HEADERS_MAX};
use pyrycode_relay::protocol::client_address::client_address;
use pyrycode_relay::protocol::request::{self, Head, Identity, Request, SERVER_ID_MAX};
use pyrycode_relay::protocol::response::Refusal;

/// Of a head, without the blank one.
const LINES_MAX: usize = 1 + HEADERS_MAX;

/// What a head came to, to compare.
#[derive(Debug, PartialEq)]
enum Verdict {
    Partial,
    Refused(Refusal),
    Complete { len: usize, identity: Result<String, Refusal>, upgrade: Result<String, Refusal> },
}

fn verdict(bytes: &[u8]) -> Verdict {
    match request::parse(bytes) {
        Ok(Head::Partial) => Verdict::Partial,
        Err(fault) => Verdict::Refused(fault.refusal),
        Ok(Head::Complete { request, len }) => Verdict::Complete {
            len,
            identity: request
                .identity()
                .map(|identity| format!("{identity:?}"))
                .map_err(|fault| fault.refusal),
            upgrade: request.upgrade().map(str::to_owned).map_err(|fault| fault.refusal),
        },
    }
}

/// Reads the head whole and at every length that it could have come in.
pub(crate) fn run(data: &[u8]) {
    // Longer inputs find nothing that these do not.
    let data = &data[..data.len().min(HEAD_MAX + 64)];
    let whole = verdict(data);
    // All lengths of a short one, some of a long one.
    for len in (0..data.len()).step_by(1 + data.len() / 512) {
        let part = verdict(&data[..len]);
        assert!(part == Verdict::Partial || part == whole, "{len}: {part:?}, whole: {whole:?}");
    }
    assert!(whole != Verdict::Partial || data.len() < HEAD_MAX);
    // One line for the request, one for each field: more are too many.
    let lines = split_lines(&data[..data.len().min(HEAD_MAX)]);
    let is_line = |line: &&[u8]| !line.is_empty() && is_clean(line);
    let is_too_many = lines.len() > LINES_MAX + 1 && lines[..=LINES_MAX].iter().all(is_line);
    if is_too_many {
        assert_eq!(whole, Verdict::Refused(Refusal::HeadTooLarge));
    } else if whole == Verdict::Refused(Refusal::HeadTooLarge) {
        assert!(data.len() >= HEAD_MAX);
    }
    if let Ok(Head::Complete { request, len }) = request::parse(data) {
        check(&request, &data[..len]);
    }
}

fn check(request: &Request<'_>, head: &[u8]) {
    assert!(head.len() <= HEAD_MAX);
    let head = head.strip_suffix(b"\r\n\r\n").expect("ends with a blank line");
    let lines: Vec<&[u8]> = split_lines(head);
    assert!(lines.iter().all(|line| is_clean(line)), "a control byte");
    let (first, fields) = lines.split_first().expect("has a request line");
    assert!(fields.len() <= HEADERS_MAX);
    let fields: Vec<(String, &[u8])> = fields.iter().map(|line| split_field(line)).collect();
    let values = |name: &str| -> Vec<&[u8]> {
        fields.iter().filter(|field| field.0 == name).map(|field| field.1).collect()
    };

    let hosts = values("host").len();
    assert!(hosts == 1 || hosts == 0 && first.ends_with(b" HTTP/1.0"), "{hosts} hosts");
    assert!(matches!(*values("content-length"), [] | [b"0"]));
    assert!(values("transfer-encoding").is_empty());

    if let Ok(identity) = request.identity() {
        let (Identity::Binary { server_id, .. } | Identity::Phone { server_id, .. }) = &identity;
        assert!((1..=SERVER_ID_MAX).contains(&server_id.len()));
        assert!(server_id.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(values("x-pyrycode-server"), [server_id.as_bytes()]);
        let required: &[&str] = match &identity {
            Identity::Binary { version, .. } => {
                assert_eq!(**version, *String::from_utf8_lossy(values("x-pyrycode-version")[0]));
                &["user-agent", "x-pyrycode-version"]
            }
            Identity::Phone { .. } => &["user-agent", "x-pyrycode-token"],
        };
        for name in required {
            assert!(values(name).first().is_some_and(|value| !value.is_empty()), "{name}");
        }
    }
    if let Ok(key) = request.upgrade() {
        assert!(first.starts_with(b"GET ") && first.ends_with(b" HTTP/1.1"));
        assert_eq!(values("sec-websocket-key"), [key.as_bytes()]);
        assert_eq!(values("sec-websocket-version"), [b"13"]);
        assert_eq!(key.len(), 24);
        assert!(!values("upgrade").is_empty() && !values("connection").is_empty());
    }
    let forwarded = Forwarded { trust_x_forwarded_for: true, ..Forwarded::default() };
    let peer = std::net::IpAddr::from([127, 0, 0, 1]);
    let client = client_address(&forwarded, peer, request.forwarded_for());
    assert_eq!(client, client.to_canonical());
    if values("x-forwarded-for").is_empty() {
        assert_eq!(client, peer);
    }
}

fn is_clean(line: &[u8]) -> bool {
    line.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\t')
}

fn split_lines(mut head: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&head[..end]);
        head = &head[end + 2..];
    }
    lines.push(head);
    lines
}

/// The name in lower case, and the value without the white space around it.
fn split_field(line: &[u8]) -> (String, &[u8]) {
    let colon = line.iter().position(|byte| *byte == b':').expect("a field has a colon");
    let (name, value) = line.split_at(colon);
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    assert!(!name.is_empty() && name.iter().all(is_token), "the name of a field");
    (String::from_utf8_lossy(name).to_ascii_lowercase(), value[1..].trim_ascii())
}
