//! Request heads: tables of valid and invalid ones, every prefix, and random mutations.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A head: its lines, each with CR LF, and the blank line.
fn head(lines: &[&str]) -> Vec<u8> {
    let mut head: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    head.push_str("\r\n");
    head.into_bytes()
}

/// A head for `target` with a Host and these fields.
fn get(target: &str, fields: &[&str]) -> Vec<u8> {
    let line = format!("GET {target} HTTP/1.1");
    head(&[&[line.as_str(), "Host: relay.example"], fields].concat())
}

fn request(bytes: &[u8]) -> Request<'_> {
    match parse(bytes) {
        Ok(Head::Complete { request, .. }) => request,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

/// Length of the head, `None` while it is partial.
fn verdict(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    Ok(match parse(bytes).map_err(|fault| fault.refusal)? {
        Head::Partial => None,
        Head::Complete { len, .. } => Some(len),
    })
}

fn a_phone() -> Vec<u8> {
    get(
        "/v1/client",
        &[
            "User-Agent: phone/1",
            "X-Pyrycode-Server: home-1",
            "X-Pyrycode-Token: hunter2",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ],
    )
}

/// Whole heads that are malformed, or have a body, or one of ambiguous length.
const BAD: &[&[u8]] = &[
    // Line ends.
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    // The request line.
    b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / \r\nHost: a\r\n\r\n",
    b"GET /\r\nHost: a\r\n\r\n",
    b"GET\r\n\r\n",
    b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    b"GET / HTTP/01.1\r\nHost: a\r\n\r\n",
    b"GET / http/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1,1\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    // The target.
    b"GET /#top HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /?q#top HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/#top HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET v1/server HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET ?q HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http:///v1/server HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET ://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET 1http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
    // Fields.
    b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x01c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x0bc\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x7fc\r\n\r\n",
    // Host.
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET http://a/ HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \t \r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: http://a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:http\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1]80\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [a]\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: []\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
    // A body, or an ambiguous length.
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0;\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\ncontent-length: 9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
];

/// Whole heads that are well-formed.
const GOOD: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    b"BREW / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"get / HTTP/1.1\r\nHOST:a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \t a:8080 \t\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: xn--bcher-kva.example_.\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: b\tc\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xe9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:0 \t\r\n\r\n",
];

#[test]
fn malformed_heads_and_bodies_are_refused() {
    for bytes in BAD {
        assert_eq!(verdict(bytes), Err(Refusal::BadRequest), "{}", bytes.escape_ascii());
    }
}

#[test]
fn well_formed_heads_are_complete_and_leave_the_rest() {
    for bytes in GOOD {
        assert_eq!(verdict(bytes), Ok(Some(bytes.len())), "{}", bytes.escape_ascii());
        for rest in [&b"\x81\x85"[..], b"\n", b"\0", b"GET / HTTP/1.1\r\n\r\n", &[b'x'; HEAD_MAX]] {
            let with_rest = [bytes, rest].concat();
            assert_eq!(verdict(&with_rest), Ok(Some(bytes.len())), "{}", with_rest.escape_ascii());
        }
    }
}

/// Every prefix is partial, or has the result of the whole head.
#[track_caller]
fn assert_prefixes_agree(bytes: &[u8], note: &str) {
    let whole = verdict(bytes);
    for end in 0..bytes.len() {
        let prefix = verdict(&bytes[..end]);
        let agrees = prefix == Ok(None) || prefix == whole;
        assert!(agrees, "{prefix:?} at {end}, {whole:?}: {} {note}", bytes.escape_ascii());
    }
}

#[test]
fn byte_at_a_time_is_the_same_as_at_once() {
    for bytes in BAD.iter().chain(GOOD) {
        assert_prefixes_agree(bytes, "");
    }
    assert_prefixes_agree(&a_phone(), "");
    let long = get("/", &[&format!("X: {}", "y".repeat(HEAD_MAX))]);
    assert_prefixes_agree(&long, "");
    assert_prefixes_agree(&get("/", &["X: y"; HEADERS_MAX]), "");
    // The first error in reading order decides, not the most severe one.
    let late = [&long[..], b"\n"].concat();
    assert_eq!(verdict(&late), Err(Refusal::HeadTooLarge));
    let early = [b"GET / HTTP/1.1\n", &long[..]].concat();
    assert_eq!(verdict(&early), Err(Refusal::BadRequest));
}

#[test]
fn a_malformed_prefix_is_refused_before_the_blank_line() {
    for bytes in [
        // A TLS ClientHello, a PROXY v2 signature, an empty line, a bare LF, NUL.
        &b"\x16\x03\x01"[..],
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\r\n",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\0",
        b"GET / HTTP/1.1\r\rH",
    ] {
        assert_eq!(verdict(bytes), Err(Refusal::BadRequest), "{}", bytes.escape_ascii());
    }
}

#[test]
fn head_length_is_limited() {
    let filled = |len: usize| {
        let short = get("/", &["X: "]).len();
        get("/", &[&format!("X: {}", "y".repeat(len - short))])
    };
    assert_eq!(verdict(&filled(HEAD_MAX)), Ok(Some(HEAD_MAX)));
    assert_eq!(verdict(&filled(HEAD_MAX + 1)), Err(Refusal::HeadTooLarge));
    assert_eq!(verdict(&filled(HEAD_MAX)[..HEAD_MAX - 1]), Ok(None));
    // No blank line within the limit: refused without waiting for one more byte.
    assert_eq!(verdict(&filled(HEAD_MAX + 1)[..HEAD_MAX]), Err(Refusal::HeadTooLarge));
    assert_eq!(verdict(&[b'G'; HEAD_MAX]), Err(Refusal::HeadTooLarge));
    assert_eq!(verdict(&[b'G'; HEAD_MAX - 1]), Ok(None));
}

#[test]
fn field_count_is_limited() {
    let most = get("/", &["X: y"; HEADERS_MAX - 1]);
    assert_eq!(verdict(&most), Ok(Some(most.len())));
    let more = get("/", &["X: y"; HEADERS_MAX]);
    assert_eq!(verdict(&more), Err(Refusal::HeadTooLarge));
    assert_eq!(verdict(&more[..more.len() - 2]), Err(Refusal::HeadTooLarge), "partial");
}

#[test]
fn the_path_alone_decides() {
    for (target, endpoint) in [
        ("/v1/server", Endpoint::Server),
        ("/v1/client", Endpoint::Client),
        ("/healthz", Endpoint::Health),
        ("/readyz", Endpoint::Ready),
        ("/v1/server?", Endpoint::Server),
        ("/v1/client?a=/healthz", Endpoint::Client),
        ("/healthz?u=http://b/v1/server", Endpoint::Health),
        ("http://b/v1/server", Endpoint::Server),
        ("HTTPS://b:443/v1/client?x", Endpoint::Client),
        ("ws://[::1]:80/readyz", Endpoint::Ready),
        ("http://b", Endpoint::Other),
        ("http://b?/healthz", Endpoint::Other),
        ("/", Endpoint::Other),
        ("//v1/server", Endpoint::Other),
        ("/v1/server/", Endpoint::Other),
        ("/v1/./server", Endpoint::Other),
        ("/v1//server", Endpoint::Other),
        ("/V1/server", Endpoint::Other),
        ("/v1/serve%72", Endpoint::Other),
        ("/v1%2fserver", Endpoint::Other),
        ("/v1/server;a", Endpoint::Other),
        ("/http://b/v1/server", Endpoint::Other),
        ("*", Endpoint::Other),
        ("b:443", Endpoint::Other),
    ] {
        assert_eq!(request(&get(target, &[])).endpoint(), endpoint, "{target}");
    }
}

#[test]
fn health_endpoints_are_read_only() {
    for (method, verdict, is_head) in [
        ("GET", Ok(()), false),
        ("HEAD", Ok(()), true),
        ("POST", Err(Refusal::OnlyGetOrHead), false),
        ("head", Err(Refusal::OnlyGetOrHead), false),
        ("OPTIONS", Err(Refusal::OnlyGetOrHead), false),
    ] {
        let bytes = head(&[&format!("{method} /healthz HTTP/1.1"), "Host: a"]);
        assert_eq!(request(&bytes).read_only().map_err(|it| it.refusal), verdict, "{method}");
        assert_eq!(request(&bytes).is_head(), is_head, "{method}");
    }
}

#[test]
fn required_headers() {
    const AGENT: &str = "User-Agent: x";
    const ID: &str = "x-pyrycode-server: home-1";
    const VERSION: &str = "x-pyrycode-version: 1.0";
    const TOKEN: &str = "x-pyrycode-token: t";
    let id_of = |len| format!("x-pyrycode-server: {}", "i".repeat(len));

    let binary = |fields: &[&str]| {
        request(&get("/v1/server", fields))
            .identity()
            .map(|it| format!("{it:?}"))
            .map_err(|it| it.refusal)
    };
    let expected = r#"Binary { server_id: "home-1", version: "1.0" }"#;
    for fields in [
        &[AGENT, ID, VERSION][..],
        &[VERSION, "X-PYRYCODE-SERVER:\t home-1 ", "user-agent:x"],
        &[AGENT, AGENT, ID, VERSION, "x-pyrycode-version: 2"],
        &[AGENT, ID, VERSION, "x-pyrycode-device-name: d", "x-pyrycode-server-id: z"],
    ] {
        assert_eq!(binary(fields).as_deref(), Ok(expected), "{fields:?}");
    }
    assert!(binary(&[AGENT, &id_of(1), VERSION]).is_ok());
    assert!(binary(&[AGENT, &id_of(SERVER_ID_MAX), VERSION]).is_ok());
    assert!(binary(&[AGENT, "x-pyrycode-server: !,\"'~", VERSION]).is_ok());
    for fields in [
        &[][..],
        &[ID, VERSION],
        &[AGENT, VERSION],
        &[AGENT, ID],
        &[AGENT, ID, TOKEN],
        &["User-Agent: ", ID, VERSION],
        &[AGENT, "x-pyrycode-server:", VERSION],
        &[AGENT, ID, "x-pyrycode-version: \t"],
        &[AGENT, ID, "x-pyrycode-version:", VERSION],
        &[AGENT, ID, ID, VERSION],
        &[AGENT, ID, "X-Pyrycode-Server: home-2", VERSION],
        &[AGENT, ID, "X-Pyrycode-Server:", VERSION],
        &[AGENT, "x-pyrycode-server: home 1", VERSION],
        &[AGENT, "x-pyrycode-server: home\t1", VERSION],
        &[AGENT, "x-pyrycode-server: h\u{f6}me", VERSION],
        &[AGENT, &id_of(SERVER_ID_MAX + 1), VERSION],
    ] {
        assert_eq!(binary(fields), Err(Refusal::BadRequest), "{fields:?}");
    }

    let phone = |fields: &[&str]| {
        request(&get("/v1/client", fields))
            .identity()
            .map(|it| format!("{it:?}"))
            .map_err(|it| it.refusal)
    };
    let expected = r#"Phone { server_id: "home-1", device_name: None }"#;
    let named = r#"Phone { server_id: "home-1", device_name: Some("Ada's \"\u{fe0f}") }"#;
    for (fields, expected) in [
        (&[AGENT, ID, TOKEN][..], expected),
        (&[AGENT, ID, TOKEN, "x-pyrycode-device-name:"], expected),
        (&[AGENT, ID, TOKEN, "X-Pyrycode-Device-Name: Ada's \"\u{fe0f}"], named),
    ] {
        assert_eq!(phone(fields).as_deref(), Ok(expected), "{fields:?}");
    }
    for fields in [
        &[ID, TOKEN][..],
        &[AGENT, TOKEN],
        &[AGENT, ID],
        &[AGENT, ID, VERSION],
        &[AGENT, ID, "x-pyrycode-token:"],
        &["User-Agent:", ID, TOKEN],
        &[AGENT, ID, ID, TOKEN],
    ] {
        assert_eq!(phone(fields), Err(Refusal::BadRequest), "{fields:?}");
    }

    for target in ["/healthz", "/readyz", "/"] {
        let bytes = get(target, &[AGENT, ID, VERSION, TOKEN]);
        let fault = request(&bytes).identity().unwrap_err();
        assert_eq!(fault.refusal, Refusal::NotFound, "{target}");
    }
}

#[test]
fn logged_values_may_be_any_bytes() {
    let bytes = b"GET /v1/server HTTP/1.1\r\nHost: a\r\nUser-Agent: \xff\r\n\
        x-pyrycode-server: s\r\nx-pyrycode-version: v\xff1\r\n\r\n";
    let version = Cow::from("v\u{fffd}1");
    assert_eq!(request(bytes).identity(), Ok(Identity::Binary { server_id: "s", version }));
    let bytes = b"GET /v1/client HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\nx-pyrycode-server: s\r\n\
        x-pyrycode-token: \xff\r\nx-pyrycode-device-name: d\xff\r\n\r\n";
    let device_name = Some(Cow::from("d\u{fffd}"));
    assert_eq!(request(bytes).identity(), Ok(Identity::Phone { server_id: "s", device_name }));
}

#[test]
fn the_token_is_not_shown() {
    let bytes = a_phone();
    let request = request(&bytes);
    let shown = format!("{request:?} {:?} {:?}", request.identity(), parse(&bytes));
    assert!(shown.contains("home-1") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_websocket_handshake() {
    const UPGRADE: &str = "Upgrade: websocket";
    const CONNECTION: &str = "Connection: Upgrade";
    const VERSION: &str = "Sec-WebSocket-Version: 13";
    const KEY_FIELD: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let upgrade = |line: &str, fields: &[&str]| {
        let bytes = head(&[&[line, "Host: a"], fields].concat());
        request(&bytes).upgrade().map(str::to_owned).map_err(|fault| fault.refusal)
    };
    let line = "GET /v1/client HTTP/1.1";

    for fields in [
        &[UPGRADE, CONNECTION, VERSION, KEY_FIELD][..],
        &["upgrade: WebSocket", "connection:keep-alive,  UPGRADE\t", VERSION, KEY_FIELD],
        &["Upgrade: h2c, websocket", "Connection: close", CONNECTION, VERSION, KEY_FIELD],
        &["Upgrade: h2c", UPGRADE, "Connection: ,upgrade,", VERSION, KEY_FIELD],
        // Neither matched nor refused.
        &[
            UPGRADE,
            CONNECTION,
            VERSION,
            KEY_FIELD,
            "Origin: https://evil.example",
            "Sec-WebSocket-Protocol: chat",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Content-Length: 0",
        ],
    ] {
        assert_eq!(upgrade(line, fields).as_deref(), Ok(KEY), "{fields:?}");
    }

    for (line, fields, refusal) in [
        ("POST / HTTP/1.1", &[UPGRADE, CONNECTION, VERSION, KEY_FIELD][..], Refusal::OnlyGet),
        ("HEAD / HTTP/1.1", &[UPGRADE, CONNECTION, VERSION, KEY_FIELD], Refusal::OnlyGet),
        ("get / HTTP/1.1", &[], Refusal::OnlyGet),
        ("POST / HTTP/1.0", &[], Refusal::OnlyGet),
        ("GET / HTTP/1.0", &[UPGRADE, CONNECTION, VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &[], Refusal::UpgradeRequired),
        (line, &[CONNECTION, VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &[UPGRADE, VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &["Upgrade: h2c", CONNECTION, VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &["Upgrade: websockets", CONNECTION, VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &["Upgrade: a websocket", CONNECTION, VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &[UPGRADE, "Connection: close", VERSION, KEY_FIELD], Refusal::UpgradeRequired),
        (line, &[UPGRADE, "Connection: no-upgrade", VERSION], Refusal::UpgradeRequired),
        (line, &[UPGRADE, CONNECTION], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, KEY_FIELD], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, VERSION, VERSION, KEY_FIELD], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, "Sec-WebSocket-Version: 8"], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, "Sec-WebSocket-Version: 013"], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, "Sec-WebSocket-Version: 13, 8"], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, "Sec-WebSocket-Version:"], Refusal::WebSocketVersion),
        (line, &[UPGRADE, CONNECTION, VERSION], Refusal::BadRequest),
        (line, &[UPGRADE, CONNECTION, VERSION, KEY_FIELD, KEY_FIELD], Refusal::BadRequest),
    ] {
        assert_eq!(upgrade(line, fields), Err(refusal), "{line} {fields:?}");
    }

    for (key, is_good) in [
        (KEY, true),
        ("AAAAAAAAAAAAAAAAAAAAAA==", true),
        ("//////////////////////==", true),
        ("AAAAAAAAAA+AAAAAAAAAAA==", true),
        ("", false),
        ("==", false),
        // 15, 17 and 18 bytes.
        ("AAAAAAAAAAAAAAAAAAAA", false),
        ("AAAAAAAAAAAAAAAAAAAAAAA=", false),
        ("AAAAAAAAAAAAAAAAAAAAAAAA", false),
        // No padding, three padding characters, padding inside, the other alphabet, a space.
        ("AAAAAAAAAAAAAAAAAAAAAA", false),
        ("AAAAAAAAAAAAAAAAAAAAA===", false),
        ("AAAAAAAA=AAAAAAAAAAAAA==", false),
        ("AAAAAAAA-AAAAAAAAAAAA_==", false),
        ("AAAAAAAAAA AAAAAAAAAAA==", false),
        ("AAAAAAAAAAAAAAAAAAAA\u{e9}==", false),
        ("AAAAAAAAAAAAAAAAAAAAAA==, AAAAAAAAAAAAAAAAAAAAAA==", false),
    ] {
        let field = format!("Sec-WebSocket-Key: {key}");
        let expected = if is_good { Ok(key) } else { Err(Refusal::BadRequest) };
        let given = upgrade(line, &[UPGRADE, CONNECTION, VERSION, &field]);
        assert_eq!(given.as_deref().map_err(|&refusal| refusal), expected, "{key:?}");
    }
}

#[test]
fn forwarded_for_reads_from_the_nearest_hop() {
    for (fields, expected) in [
        (&[][..], &[][..]),
        (&["X-Forwarded-For: 1.1.1.1"], &["1.1.1.1"]),
        (&["X-Forwarded-For:"], &[""]),
        (&["X-Forwarded-For: a,b ,\tc"], &["c", "b", "a"]),
        (&["x-forwarded-for: a, b", "X: y", "X-FORWARDED-FOR: c,,d"], &["d", "", "c", "b", "a"]),
    ] {
        let bytes = get("/", fields);
        assert!(request(&bytes).forwarded_for().eq(expected.iter().copied()), "{fields:?}");
    }
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: \xff, b\r\n\r\n";
    assert_eq!(request(bytes).forwarded_for().collect::<Vec<_>>(), ["b", ""]);
}

/// A head from the tables with one to four random mutations.
fn mutated(seed: u64) -> Vec<u8> {
    const SPLICES: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b",",
        b"\0",
        b"\xff",
        b"#",
        b"?",
        b"[",
        b"]",
        b"%",
        b"\r\n ",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: a\r\n",
        b"X: y\r\n",
    ];
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut bytes = match rng.random_range(0..4) {
        0 => BAD[rng.random_range(0..BAD.len())].to_vec(),
        1 => GOOD[rng.random_range(0..GOOD.len())].to_vec(),
        _ => a_phone(),
    };
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len());
        let to = rng.random_range(at..bytes.len().min(at + 20));
        match rng.random_range(0..5) {
            0 => bytes[at] = rng.random(),
            1 => drop(bytes.remove(at)),
            2 => drop(bytes.drain(at..to)),
            3 => bytes.extend_from_within(at..to),
            _ => {
                let splice = SPLICES[rng.random_range(0..SPLICES.len())];
                drop(bytes.splice(at..at, splice.iter().copied()));
            }
        }
        if bytes.is_empty() {
            bytes.push(rng.random());
        }
    }
    bytes
}

/// An accepted head has no body or second request that a lax parser, which also accepts a
/// lone CR or LF as a line end, could find.
#[test]
fn no_mutation_smuggles_a_body_or_another_request() {
    let mut accepted = 0;
    for seed in 0..20_000 {
        let bytes = mutated(seed);
        let note = format!("seed {seed}: {}", bytes.escape_ascii());
        assert_prefixes_agree(&bytes, &note);
        let Ok(Head::Complete { request, len }) = parse(&bytes) else { continue };
        accepted += 1;
        let _ = (request.identity(), request.upgrade(), request.forwarded_for().count());

        let text = bytes[..len].strip_suffix(b"\r\n\r\n").expect(&note).to_ascii_lowercase();
        let lines = || text.split(|&b| b == b'\r' || b == b'\n');
        let pairs = text.windows(2).filter(|pair| pair == b"\r\n").count();
        assert_eq!(lines().count(), 1 + 2 * pairs, "a lone CR or LF, {note}");
        assert_eq!(request.fields.len(), pairs, "{note}");
        let named = |name: &str| lines().filter(|line| line.starts_with(name.as_bytes())).count();
        assert_eq!(named("transfer-encoding"), 0, "{note}");
        assert!(named("content-length:") <= 1 && named("host:") <= 1, "{note}");
        assert!(!lines().any(|line| line.starts_with(b" ") || line.starts_with(b"\t")), "{note}");
    }
    assert!(accepted > 2_000, "only {accepted} were accepted: the test proves little");
}
