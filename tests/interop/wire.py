"""What goes over the wire once a WebSocket is open (RELAY.md 6), seen by a raw
peer: violations, close handshakes, pieces, half-closes and resets.
"""

import json

from harness import SOON, main
from rawpeer import (
    BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Honest, RawPeer, close_frame, envelope, frame, head,
    notice, pair, upgrade,
)

MESSAGE_MAX = 256 * 1024

VIOLATIONS = [
    # Name, bytes, code, reason where the contract names one.
    ("unmasked", frame(TEXT, b"1", masked=False), 1002, None),
    ("unmasked ping", frame(PING, masked=False), 1002, None),
    ("RSV1", frame(TEXT, b"1", rsv=4), 1002, None),
    ("RSV2", frame(TEXT, b"1", rsv=2), 1002, None),
    ("RSV3 of a ping", frame(PING, rsv=1), 1002, None),
    *((f"opcode {o:#x}", frame(o, b"1"), 1002, None) for o in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    ("ping in pieces", frame(PING, fin=False), 1002, None),
    ("close in pieces", frame(CLOSE, fin=False), 1002, None),
    ("ping of 126 bytes", frame(PING, b"x" * 126), 1002, None),
    ("close of 126 bytes", close_frame(1000, b"x" * 124), 1002, None),
    ("continuation of nothing", frame(CONTINUATION, b"1"), 1002, None),
    ("message within a message", frame(TEXT, b"[", fin=False) + frame(TEXT, b"1"), 1002, None),
    ("continuation of a finished one", frame(TEXT, b"1") + frame(CONTINUATION), 1002, None),
    ("length beyond 63 bits", frame(TEXT, declared=1 << 63), 1002, None),
    ("close of one byte", frame(CLOSE, b"\x03"), 1002, None),
    *((f"close code {code}", close_frame(code), 1002, None)
      for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)),
    ("close reason not UTF-8", close_frame(1000, b"\xff"), 1007, None),
    ("text not UTF-8", frame(TEXT, b'"\xff"'), 1007, None),
    ("surrogate in text", frame(TEXT, b'"\xed\xa0\x80"'), 1007, None),
    ("declared too big", frame(TEXT, declared=MESSAGE_MAX + 1), 1009, None),
    ("declared enormous", frame(BINARY, declared=(1 << 63) - 1), 1009, None),
    ("too big together",
     frame(BINARY, b"x", fin=False) + frame(CONTINUATION, declared=MESSAGE_MAX), 1009, None),
    ("one byte too big", frame(TEXT, b'"' + b"x" * (MESSAGE_MAX - 1) + b'"'), 1009, None),
]

NOT_JSON = [
    b"", b" ", b"{", b"tru", b"1 2", b"'a'", b"[1,]", b'{"a":1,}', b"01", b"+1", b".5", b"1.",
    b"NaN", b'"\n"', b'"\\x"', b"\xef\xbb\xbf1", b'"\\ud8"', b"\x00", b"{1:2}", b"[",
]

VERBATIM = [
    b"1", b"null", b"true", b'""', b"[]", b"{}", b"-0", b"1E400", b"1.50", b"123456789012345678901",
    b'{ "b" : 1 ,\t"a":\r\n[ 1 , 2 ] }', b'{"a":1,"a":2}', b'"\\u00e9\\/\\ud83d\\ude00"',
    '"é😀\u2028"'.encode(), b'"\\ud83d"', b'"\x7f"', b"[" * 128 + b"]" * 128,
    b'{"conn_id":"forged","frame":0,"close_code":4000}', b'"</script>"',
]


def one_close_frame_for_every_violation(relay):
    binary = upgrade(relay, "server", "home")
    rows = [(role, *row) for role in ("client", "server") for row in VIOLATIONS]
    rows += [("client", f"not JSON: {text!r}", frame(opcode, text), 1007, "frame is not valid JSON")
             for text in NOT_JSON for opcode in (TEXT, BINARY)]
    rows += [("client", "binary not UTF-8", frame(BINARY, b'"\xff"'), 1007, "frame is not valid JSON")]
    wrong = []
    for number, (role, name, sent, code, reason) in enumerate(rows):
        # What the peer says after its fault, a close of its own included, changes nothing.
        after = frame(PING, b"?") + frame(3) + close_frame(1000)
        server_id = "home" if role == "client" else f"s{number}"
        try:
            with upgrade(relay, role, server_id) as peer:
                peer.send(sent + after)
                seen = peer.read_only_close()
            if seen[0] != code or reason not in (None, seen[1]):
                wrong.append(f"{role}, {name}: sent {sent[:60]!r}, seen {seen}, not {code} {reason}")
        except (OSError, AssertionError) as failure:
            wrong.append(f"{role}, {name}: sent {sent[:60]!r}: {failure!r}")
    assert not wrong, "\n".join(wrong)
    phone = upgrade(relay, "client", "home")
    binary.send(frame(TEXT, envelope(phone.request_id, b"1")))
    assert phone.read_message() == b"1", "faults of phones are not the binary's"


def a_close_is_echoed(relay):
    binary = upgrade(relay, "server", "home")
    codes = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999]
    for number, code in enumerate([None, *codes]):
        for role, server_id in (("client", "home"), ("server", f"s{number}")):
            for tail in (b"", frame(TEXT, b"1") + close_frame(4000)):
                with upgrade(relay, role, server_id) as peer:
                    peer.send(close_frame(code, b"" if code is None else b"bye") + tail)
                    assert peer.read_only_close()[0] == code, (role, code)
                relay.wait_connected(1, 0)
                if role == "client":
                    assert binary.read_message() == notice(peer, 1005 if code is None else code)
                # A slot in grace is free for whoever claims it.
    binary.send(frame(PING))
    assert binary.read_pong() == b""


def frames_arrive_byte_for_byte(relay):
    binary, phone = pair(relay)
    conn_id = phone.request_id.encode()
    for opcode in (TEXT, BINARY):
        for text in VERBATIM:
            phone.send(frame(opcode, text))
            assert binary.read_message() == b'{"conn_id":"%s","frame":%s}' % (conn_id, text), text
            # null is no frame; from a binary it means that there is none.
            if text != b"null":
                binary.send(frame(opcode, envelope(phone.request_id, b" \t\r\n" + text + b"\n ")))
                assert phone.read_message() == text, "white space around it is not part of it"
    # Any order and spelling of the keys, any other key.
    binary.send(frame(TEXT, b' { "x":1, "fr\\u0061me" : [ 1 ] ,"x":{}, "conn_id":"%s"} ' % conn_id))
    assert phone.read_message() == b"[ 1 ]"


def what_a_binary_gets_wrong_is_dropped(relay):
    binary, phone = pair(relay)
    other, stranger = pair(relay, "another")
    own, foreign = phone.request_id.encode(), stranger.request_id.encode()
    for sent in [
        b"", b"1", b"[]", b'"x"', b"{", b"not JSON", b"{}", b'{"frame":1}', b'{"conn_id":"%s"}' % own,
        b'{"conn_id":"","frame":1}', b'{"conn_id":null,"frame":1}', b'{"conn_id":1,"frame":1}',
        b'{"conn_id":"%s","frame":null}' % own, b'{"conn_id":"%s","frame":1,"frame":2}' % own,
        b'{"conn_id":"%s","conn_id":"%s","frame":1}' % (own, own),
        b'{"Conn_Id":"%s","frame":1}' % own, b'{"conn_id":"%s","Frame":1}' % own,
        b'{"conn_id":"%s","frame":1} 2' % own, b'["%s",1]' % own,
        b'{"conn_id":"%s","frame":1}' % foreign, b'{"conn_id":"%s","close_code":4000}' % foreign,
        b'{"conn_id":"nobody","frame":1}', b'{"conn_id":"%s","frame":tru}' % own,
        b'{"conn_id":"%s","frame":%s}' % (own, b"[" * 20_000 + b"]" * 20_000),
    ]:
        binary.send(frame(TEXT, sent))
    binary.send(frame(BINARY, b'{"conn_id":"%s","frame":"\xff"}' % own))
    binary.send(frame(TEXT, envelope(phone.request_id, b'"next"')))
    assert phone.read_message() == b'"next"'
    other.send(frame(TEXT, envelope(stranger.request_id, b'"next"')))
    assert stranger.read_message() == b'"next"'


def non_minimal_lengths_are_tolerated(relay):
    binary, phone = pair(relay)
    for width in (2, 8):
        phone.send(frame(TEXT, b"[1]", width=width) + frame(PING, b"p", width=width))
        assert binary.read_message().endswith(b'"frame":[1]}')
        assert phone.read_pong() == b"p"


def pieces_with_control_frames_between(relay):
    binary, phone = pair(relay)
    phone.send(frame(TEXT, b'"\xc3', fin=False) + frame(PING, b"1"))
    assert phone.read_pong() == b"1"
    # A character and an escape may be cut; a piece may be empty.
    phone.send(frame(CONTINUATION, b"\xa9\\u00", fin=False) + frame(PONG, b"unasked"))
    phone.send(frame(CONTINUATION, fin=False) + frame(CONTINUATION, b'e9"'))
    assert binary.read_message().endswith('"frame":"é\\u00e9"}'.encode())


def single_bytes(relay):
    with RawPeer(relay) as binary, RawPeer(relay) as phone:
        def drip(peer, data):
            for byte in data:
                peer.send(bytes([byte]))
        drip(binary, head("server", "home"))
        binary.read_head()
        drip(phone, head("client", "home"))
        phone.read_head()
        drip(phone, frame(TEXT, b'{"a":', fin=False) + frame(PING, b"p") + frame(0, b"[1,2]}"))
        assert phone.read_pong() == b"p"
        received = json.loads(binary.read_message())
        assert received["frame"] == {"a": [1, 2]}
        drip(binary, frame(TEXT, envelope(received["conn_id"], b'"back"')))
        assert phone.read_message() == b'"back"'
        drip(phone, close_frame(4321))
        assert phone.read_only_close()[0] == 4321


def bytes_behind_the_head_are_the_first_frames(relay):
    early = frame(TEXT, b"1") + frame(PING, b"p") + frame(TEXT, b"2")[:-1]
    binary = upgrade(relay, "server", "home", frame(PING, b"early"))
    assert binary.read_pong() == b"early"
    phone = upgrade(relay, "client", "home", early)
    assert phone.read_pong() == b"p"
    phone.send(frame(TEXT, b"2")[-1:])
    assert [json.loads(binary.read_message())["frame"] for _ in range(2)] == [1, 2]


def close_code(relay):
    binary = upgrade(relay, "server", "home")
    for asked, sent in [
        (1000, 1000), (1003, 1003), (1007, 1007), (1014, 1014), (3000, 3000), (4999, 4999),
        (1, 1011), (999, 1011), (1004, 1011), (1005, 1011), (1006, 1011), (1015, 1011),
        (2999, 1011), (5000, 1011), (65535, 1011),
    ]:
        for message in (b'"last"', b"null"):
            with upgrade(relay, "client", "home") as phone:
                binary.send(frame(TEXT, envelope(phone.request_id, message, asked)))
                if message != b"null":
                    assert phone.read_message() == message
                assert phone.read_only_close() == (sent, ""), (asked, message)
    with upgrade(relay, "client", "home") as phone:
        # 0 means none; no number of a phone's is beyond 65535, whole and plain.
        binary.send(frame(TEXT, envelope(phone.request_id, b"0", 0)))
        for bad in (b"65536", b"-1", b"4000.0", b"4e3", b'"4000"'):
            binary.send(frame(TEXT, b'{"conn_id":"%s","frame":1,"close_code":%s}'
                              % (phone.request_id.encode(), bad)))
        binary.send(frame(TEXT, envelope(phone.request_id, b"2", 4000)))
        assert [phone.read_message(), phone.read_message()] == [b"0", b"2"]
        assert phone.read_only_close() == (4000, "")


def crossing_closes_are_one_close(relay):
    binary = upgrade(relay, "server", "home")
    for _ in range(50):
        with upgrade(relay, "client", "home") as phone:
            binary.send(frame(TEXT, envelope(phone.request_id, b"null", 4001)))
            phone.send(close_frame(4002))
            assert phone.read_only_close()[0] in (4001, 4002)


def a_message_before_the_end_is_delivered(relay):
    binary = upgrade(relay, "server", "home")
    with upgrade(relay, "client", "home") as phone:
        phone.send(frame(TEXT, b'"last words"'))
        phone.half_close()
        assert binary.read_message().endswith(b'"frame":"last words"}')
        assert binary.read_message() == notice(phone, 1001)
        relay.wait_connected(1, 0)
    with upgrade(relay, "client", "home") as phone:
        phone.send(frame(TEXT, b'"last words"') + close_frame(1000))
        phone.half_close()
        assert binary.read_message().endswith(b'"frame":"last words"}')
        assert phone.read_only_close() == (1000, "")
        assert binary.read_message() == notice(phone, 1000)
        relay.wait_connected(1, 0)
    # Within a frame nothing was said.
    with upgrade(relay, "client", "home") as phone:
        phone.send(frame(TEXT, b'"half"')[:-1])
        phone.half_close()
        assert binary.read_message() == notice(phone, 1001)
        relay.wait_connected(1, 0)
    with upgrade(relay, "client", "home") as phone:
        phone.send(frame(TEXT, b"1"))
        assert binary.read_message().endswith(b'"frame":1}'), "and not the half before it"


def a_reset_frees_the_place(relay):
    binary, phone = pair(relay)
    phone.send(frame(TEXT, b"1")[:-1])
    phone.reset()
    relay.wait_connected(1, 0)
    binary.reset()
    relay.wait_connected(0, 0)


def a_reset_does_not_destroy_a_close(relay):
    """The relay drains what its peer still sends, so that the close can be read."""
    binary = upgrade(relay, "server", "home")
    flood = frame(TEXT, b'"' + b"x" * 100_000 + b'"') * 20
    for first, expected in [
        (frame(TEXT, b"no JSON"), (1007, "frame is not valid JSON")),
        (frame(TEXT, declared=1 << 40), (1009, None)),
        (frame(3), (1002, None)),
    ]:
        with upgrade(relay, "client", "home") as phone:
            phone.send(first + flood)
            code, reason = phone.read_only_close()
            assert code == expected[0] and expected[1] in (None, reason)
    with upgrade(relay, "client", "nowhere", flood) as phone:
        assert phone.read_only_close() == (4404, "no server with that id")
    with upgrade(relay, "server", "home", flood) as rival:
        # The rival waits for the verdict of the probe; the incumbent answers it.
        Honest(binary)
        assert rival.read_only_close() == (4409, "server-id already claimed")


def draining_is_bounded(relay):
    """Who never stops sending behind a close is dropped."""
    with upgrade(relay, "client", "nowhere") as phone:
        phone.socket.settimeout(SOON)
        sent = 0
        try:
            while sent < 256 << 20:
                phone.send(b"\0" * 65536)
                sent += 65536
        except (ConnectionResetError, BrokenPipeError):
            return
        raise AssertionError(f"{sent} bytes taken behind a close")


if __name__ == "__main__":
    main([
        one_close_frame_for_every_violation, a_close_is_echoed, frames_arrive_byte_for_byte,
        what_a_binary_gets_wrong_is_dropped, non_minimal_lengths_are_tolerated, pieces_with_control_frames_between, single_bytes,
        bytes_behind_the_head_are_the_first_frames, close_code, crossing_closes_are_one_close,
        a_message_before_the_end_is_delivered, a_reset_frees_the_place,
        a_reset_does_not_destroy_a_close, draining_is_bounded,
    ])
