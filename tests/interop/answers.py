"""What the relay answers over HTTP (docs/PROTOCOL.md), byte for byte."""

import re
import time

from harness import SOON, Relay, main, wait_until
from rawpeer import ACCEPT, KEY, RawPeer, head, pair, undated, upgrade

SERVER, CLIENT = head("server", "home"), head("client", "home")


def answer(status, *fields, connection="close"):
    lines = [f"HTTP/1.1 {status}", f"Connection: {connection}", "Content-Length: 0", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


BAD = answer("400 Bad Request")
VERSION = answer("400 Bad Request", "Sec-WebSocket-Version: 13")
NOT_FOUND = answer("404 Not Found")
ONLY_GET = answer("405 Method Not Allowed", "Allow: GET")
ONLY_GET_OR_HEAD = answer("405 Method Not Allowed", "Allow: GET, HEAD")
TIMEOUT = answer("408 Request Timeout")
UPGRADE = answer("426 Upgrade Required", "Upgrade: websocket", connection="Upgrade, close")
TOO_LARGE = answer("431 Request Header Fields Too Large")
UNAVAILABLE = answer("503 Service Unavailable", "Retry-After: 10")


def is_too_many(seen):
    """429, with how many seconds are left of the minute in which one attempt is refilled."""
    expected = re.escape(answer("429 Too Many Requests", "Retry-After: N")).replace(b"N", b"([0-9]+)")
    found = re.fullmatch(expected, seen)
    return found and 50 <= int(found[1]) <= 60


def without(request, name):
    lines = request.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(name + b":"))


def with_field(request, *fields):
    return request[:-2] + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def replaced(request, old, new):
    assert old in request
    return request.replace(old, new, 1)


def fill(request, size):
    """The request with one long field, so that its head has `size` bytes."""
    return with_field(request, b"x: " + b"a" * (size - len(request) - len(b"x: \r\n")))


REFUSED = [
    # Syntax, and no body: 400.
    ("line feed only", SERVER.replace(b"\r\n", b"\n"), BAD),
    ("one bare line feed", replaced(SERVER, b"\r\nHost", b"\nHost"), BAD),
    ("folded field", replaced(SERVER, b"raw\r\n", b"raw\r\n folded\r\n"), BAD),
    ("space before the colon", replaced(SERVER, b"Host:", b"Host :"), BAD),
    ("no Host", without(SERVER, b"host"), BAD),
    ("two Hosts", with_field(SERVER, b"Host: other"), BAD),
    ("field without a name", with_field(SERVER, b": value"), BAD),
    ("NUL in a value", with_field(SERVER, b"x: a\0b"), BAD),
    ("no version", replaced(SERVER, b" HTTP/1.1", b""), BAD),
    ("TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", BAD),
    ("a body", with_field(SERVER, b"Content-Length: 5") + b"hello", BAD),
    ("a chunked body", with_field(SERVER, b"Transfer-Encoding: chunked") + b"0\r\n\r\n", BAD),
    ("identity encoding", with_field(SERVER, b"Transfer-Encoding: identity"), BAD),
    ("length that is no number", with_field(SERVER, b"Content-Length: x"), BAD),
    ("two lengths", with_field(SERVER, b"Content-Length: 0", b"Content-Length: 7"), BAD),
    # Required fields: 400.
    ("binary without server-id", without(SERVER, b"x-pyrycode-server"), BAD),
    ("phone without server-id", without(CLIENT, b"x-pyrycode-server"), BAD),
    ("binary without user-agent", without(SERVER, b"user-agent"), BAD),
    ("phone without user-agent", without(CLIENT, b"user-agent"), BAD),
    ("binary without version", without(SERVER, b"x-pyrycode-version"), BAD),
    ("phone without token", without(CLIENT, b"x-pyrycode-token"), BAD),
    ("empty token", replaced(CLIENT, b"token: t", b"token: "), BAD),
    ("empty server-id", replaced(SERVER, b"server: home", b"server: "), BAD),
    ("server-id of 129 bytes", replaced(SERVER, b"server: home", b"server: " + b"s" * 129), BAD),
    ("server-id with a space", replaced(SERVER, b"server: home", b"server: ho me"), BAD),
    ("server-id beyond ASCII", replaced(SERVER, b"home", "höme".encode()), BAD),
    ("two server-ids", with_field(SERVER, b"X-Pyrycode-Server: home"), BAD),
    # Required fields come before the handshake.
    ("plain GET without fields", b"GET /v1/server HTTP/1.1\r\nHost: relay\r\n\r\n", BAD),
    # The handshake.
    ("POST", replaced(SERVER, b"GET", b"POST"), ONLY_GET),
    ("HEAD", replaced(CLIENT, b"GET", b"HEAD"), ONLY_GET),
    ("no Upgrade", without(SERVER, b"upgrade"), UPGRADE),
    ("another protocol", replaced(SERVER, b"websocket", b"h2c"), UPGRADE),
    ("Connection: close", replaced(CLIENT, b"Connection: Upgrade", b"Connection: close"), UPGRADE),
    ("HTTP/1.0", replaced(SERVER, b"HTTP/1.1", b"HTTP/1.0"), UPGRADE),
    ("version 8", replaced(SERVER, b"Version: 13", b"Version: 8"), VERSION),
    ("no WebSocket version", without(SERVER, b"sec-websocket-version"), VERSION),
    ("key of 15 bytes", replaced(SERVER, KEY.encode(), b"dGhlIHNhbXBsZSBub25j"), BAD),
    ("key that is no Base64", replaced(SERVER, KEY.encode(), b"!" * 24), BAD),
    ("no key", without(SERVER, b"sec-websocket-key"), BAD),
    # Size.
    ("head of 8193 bytes", fill(SERVER, 8193), TOO_LARGE),
    ("head without end", b"GET /v1/server HTTP/1.1\r\nx: " + b"a" * 20_000, TOO_LARGE),
    ("request line without end", b"GET /" + b"a" * 9_000, TOO_LARGE),
    ("65 fields", with_field(SERVER, *[b"x: y"] * (65 - 8)), TOO_LARGE),
    # Paths.
    ("the root", b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", NOT_FOUND),
    ("a longer path", replaced(SERVER, b"/v1/server", b"/v1/servers"), NOT_FOUND),
    ("a trailing slash", replaced(SERVER, b"/v1/server", b"/v1/server/"), NOT_FOUND),
    ("metrics", b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n", NOT_FOUND),
    ("POST to health", b"POST /healthz HTTP/1.1\r\nHost: relay\r\n\r\n", ONLY_GET_OR_HEAD),
    ("DELETE readiness", b"DELETE /readyz HTTP/1.1\r\nHost: relay\r\n\r\n", ONLY_GET_OR_HEAD),
]

ACCEPTED = [
    ("as usual", SERVER),
    ("query", replaced(SERVER, b"/v1/server", b"/v1/server?a=b")),
    ("absolute form", replaced(SERVER, b"/v1/server", b"http://relay/v1/server?a")),
    ("Content-Length: 0", with_field(SERVER, b"Content-Length: 0")),
    ("other case", replaced(replaced(SERVER, b"websocket", b"WebSocket"), b"Host", b"hOST")),
    ("list of options", replaced(SERVER, b"Connection: Up", b"Connection: keep-alive, Up")),
    ("Origin, protocol, extension", with_field(
        SERVER, b"Origin: https://example.org", b"Sec-WebSocket-Protocol: chat",
        b"Sec-WebSocket-Extensions: permessage-deflate")),
    ("head of 8192 bytes", fill(SERVER, 8192)),
    ("64 fields", with_field(SERVER, *[b"x: y"] * (64 - 8))),
    ("server-id of 128 bytes", replaced(SERVER, b"server: home", b"server: " + b"~" * 128)),
]


def whole_answer(relay, request):
    with RawPeer(relay, request) as peer:
        return undated(peer.read_to_end())


def refusals(relay):
    assert SERVER.count(b"\r\n") - 2 == 8, "the rows count on eight fields"
    wrong = []
    for name, request, expected in REFUSED:
        seen = whole_answer(relay, request)
        if seen != expected:
            wrong.append(f"{name}: sent {request[:300]!r}\n  seen {seen!r}\n  not  {expected!r}")
    assert not wrong, "\n".join(wrong)


def upgrades():
    expected = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {ACCEPT}\r\nx-request-id: ([!-~]{{1,40}})\r\n\r\n"
    ).replace("+", r"\+")
    seen = set()
    for name, request in ACCEPTED:
        # A relay each: the claims would conflict.
        with Relay() as relay, RawPeer(relay, request) as peer:
            found = re.fullmatch(expected, undated(peer.read_head()).decode())
            assert found, name
            seen.add(found[1])
    assert len(seen) == len(ACCEPTED), "request ids repeat"


def request_id_is_what_the_log_says(relay):
    binary, phone = pair(relay)
    wait_until(lambda: any(f"binary_conn_id={binary.request_id}" in line for line in relay.log))
    wait_until(lambda: any(f" conn_id={phone.request_id}" in line for line in relay.log))


def a_silent_connection_gets_408(relay):
    started = time.monotonic()
    with RawPeer(relay) as peer:
        assert undated(peer.read_to_end()) == TIMEOUT
    assert 5.0 <= time.monotonic() - started <= 7.0


def a_dripped_head_gets_408(relay):
    started = time.monotonic()
    with RawPeer(relay) as peer:
        peer.socket.settimeout(0.05)
        for byte in SERVER * 2:
            peer.send(bytes([byte]))
            try:
                if not peer._more():
                    break
            except TimeoutError:
                pass
            if peer.buffered:
                break
        peer.socket.settimeout(SOON)
        assert undated(peer.read_to_end()) == TIMEOUT
    assert 5.0 <= time.monotonic() - started <= 7.0


def rate_limit():
    with Relay("--rate-limit-per-minute", "1", "--rate-limit-burst", "3") as relay:
        # Every attempt counts, one that a later gate refuses too.
        assert whole_answer(relay, without(SERVER, b"user-agent")) == BAD
        # One that an earlier gate refuses, and one elsewhere, does not.
        assert whole_answer(relay, without(SERVER, b"host")) == BAD
        assert whole_answer(relay, b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n") == NOT_FOUND
        with upgrade(relay, "server", "home"), upgrade(relay, "client", "home"):
            assert is_too_many(whole_answer(relay, SERVER))
            assert is_too_many(whole_answer(relay, without(SERVER, b"user-agent")))
            assert relay.health()["connected_phones"] == 1, "health is not rate-limited"


def a_forged_address_is_believed_of_named_proxies_only():
    """A client on the same network as the relay names another address with each attempt."""
    def forge(relay, number):
        field = b"x-forwarded-for: 203.0.113.%d" % number
        return whole_answer(relay, with_field(without(CLIENT, b"x-pyrycode-token"), field))
    limit = ["--rate-limit-per-minute", "1", "--rate-limit-burst", "3", "--trust-x-forwarded-for"]
    with Relay(*limit, "--trusted-proxies", "192.0.2.1") as relay:
        seen = [forge(relay, number) for number in range(6)]
        assert seen[:3] == [BAD] * 3 and all(map(is_too_many, seen[3:])), seen
        assert not any("203.0.113" in line for line in relay.log), relay.log
        assert not any("private_ranges_trusted" in line for line in relay.log), relay.log
    # Without the flag every source in a private range is believed, and a warning says so.
    with Relay(*limit) as relay:
        assert [forge(relay, number) for number in range(6)] == [BAD] * 6
        wait_until(lambda: any("msg=private_ranges_trusted" in line for line in list(relay.log)))


def connection_cap():
    ready = b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n"
    with Relay("--max-connections", "2") as relay:
        assert whole_answer(relay, ready).startswith(b"HTTP/1.1 200 OK\r\n")
        binary, phone = pair(relay)
        assert whole_answer(relay, SERVER) == UNAVAILABLE
        assert whole_answer(relay, CLIENT) == UNAVAILABLE
        assert whole_answer(relay, ready).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert whole_answer(relay, without(CLIENT, b"user-agent")) == UNAVAILABLE, "cap before fields"
        phone.reset()
        relay.wait_connected(1, 0)
        with binary, upgrade(relay, "client", "home"):
            assert whole_answer(relay, CLIENT) == UNAVAILABLE


def connection_cap_per_address():
    with Relay("--max-connections-per-ip", "1") as relay, upgrade(relay, "server", "home"):
        assert whole_answer(relay, CLIENT) == UNAVAILABLE


def health(relay):
    peers = pair(relay)
    with RawPeer(relay, b"GET /healthz?x HTTP/1.1\r\nHost: relay\r\n\r\n") as peer:
        fields, body = undated(peer.read_head()).decode(), peer.read_to_end()
    assert re.fullmatch(
        rb'{"status":"ok","version":"[0-9.]+","connected_binaries":1,"connected_phones":1,'
        rb'"uptime_seconds":[0-9]+}', body), body
    assert fields == (
        f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\n\r\n")
    assert whole_answer(relay, b"HEAD /healthz HTTP/1.1\r\nHost: relay\r\n\r\n") == fields.encode()
    for peer in peers:
        peer.reset()
    relay.wait_connected(0, 0)


def a_second_request_is_never_parsed(relay):
    probe = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
    assert whole_answer(relay, b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n" + probe) == NOT_FOUND
    assert whole_answer(relay, probe + probe).count(b"HTTP/1.1") == 1


def a_refusal_survives_what_the_client_still_sends(relay):
    body = with_field(replaced(SERVER, b"GET", b"POST"), b"Content-Length: 2097152")
    with RawPeer(relay, body) as peer:
        peer.send(b"x" * 2_097_152)
        assert undated(peer.read_to_end()) == BAD


def a_head_in_single_bytes(relay):
    with RawPeer(relay) as peer:
        for byte in SERVER:
            peer.send(bytes([byte]))
        assert peer.read_head().startswith(b"HTTP/1.1 101 ")


def a_client_that_has_sent_its_last_byte_is_answered(relay):
    for request, expected in [
        (b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", NOT_FOUND),
    ]:
        with RawPeer(relay, request) as peer:
            peer.half_close()
            assert undated(peer.read_to_end()).startswith(expected)
    with RawPeer(relay, SERVER[:40]) as peer:
        peer.half_close()
        assert peer.read_to_end() == b"", "half a head has no answer"


if __name__ == "__main__":
    main([
        refusals, upgrades, request_id_is_what_the_log_says, a_silent_connection_gets_408,
        a_dripped_head_gets_408, rate_limit, a_forged_address_is_believed_of_named_proxies_only,
        connection_cap, connection_cap_per_address, health, a_second_request_is_never_parsed,
        a_refusal_survives_what_the_client_still_sends, a_head_in_single_bytes,
        a_client_that_has_sent_its_last_byte_is_answered,
    ])
