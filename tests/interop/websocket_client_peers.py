"""The relay and Python's `websocket-client`: the library as phone and as binary.

It blocks and answers pings only while someone receives, so a thread per peer does.
"""

import json
import queue
import struct
import threading

from websocket import ABNF, WebSocket, WebSocketConnectionClosedException, create_connection

from harness import SOON, main

MESSAGE_MAX = 256 * 1024


def connect(relay, role, server_id="home"):
    own = "x-pyrycode-version: 1" if role == "server" else "x-pyrycode-token: t"
    socket: WebSocket = create_connection(
        f"ws://{relay.url}/v1/{role}", http_no_proxy=["*"], timeout=SOON,
        # It sends no user-agent of its own.
        header=["user-agent: websocket-client", f"x-pyrycode-server: {server_id}", own],
    )
    assert socket.subprotocol is None and "sec-websocket-extensions" not in socket.headers
    return socket


def code_and_reason(payload):
    """What a close frame says; (None, "") if it is empty."""
    return (struct.unpack(">H", payload[:2])[0], payload[2:].decode()) if payload else (None, "")


class Peer:
    """Receives in a thread of its own, until the relay ends the connection."""

    def __init__(self, relay, role, server_id="home"):
        self.socket = connect(relay, role, server_id)
        self.request_id = self.socket.headers["x-request-id"]
        self.send, self.ping = self.socket.send, self.socket.ping
        self.seen = {opcode: queue.Queue() for opcode in ABNF.OPCODES}
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        try:
            while True:
                opcode, payload = self.socket.recv_data(control_frame=True)
                self.seen[opcode].put(payload)
        except (WebSocketConnectionClosedException, OSError):
            self.socket.shutdown()

    def next(self, opcode=ABNF.OPCODE_TEXT):
        return self.seen[opcode].get(timeout=SOON).decode()

    def closed_with(self):
        return code_and_reason(self.seen[ABNF.OPCODE_CLOSE].get(timeout=SOON))

    def is_alive(self, payload="alive"):
        self.ping(payload)
        return self.next(ABNF.OPCODE_PONG) == payload

    def send_pieces(self, pieces, opcode):
        for at, piece in enumerate(pieces):
            fin = int(at == len(pieces) - 1)
            kind = ABNF.OPCODE_CONT if at else opcode
            self.socket.send_frame(ABNF.create_frame(piece, kind, fin))


def pair(relay):
    return Peer(relay, "server"), Peer(relay, "client")


def for_phone(phone, frame, close_code=None):
    tail = "" if close_code is None else f',"close_code":{close_code}'
    return f'{{"conn_id":"{phone.request_id}","frame":{frame}{tail}}}'


def cut(text, size):
    """Pieces of `size` bytes; they may end within a character."""
    data = text.encode()
    return [data[at : at + size] for at in range(0, len(data), size)]


def text_and_binary_both_ways(relay):
    binary, phone = pair(relay)
    for frame in ['{ "b" : [1.50, 1E2], "a":"é\\u00e9😀\u2028" }', "1", '"x"', "[ ]"]:
        for opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY):
            phone.send(frame.encode(), opcode)
            assert binary.next() == for_phone(phone, frame)
            binary.send(for_phone(phone, frame).encode(), opcode)
            assert phone.next() == frame


def order_is_kept(relay):
    binary, phone = pair(relay)
    for number in range(2000):
        phone.send(f"{number}")
        binary.send(for_phone(phone, number))
    for number in range(2000):
        assert json.loads(binary.next()) == {"conn_id": phone.request_id, "frame": number}
        assert phone.next() == f"{number}"


def pings_are_answered(relay):
    for peer in pair(relay):
        for payload in ("", "ping", "x" * 125):
            assert peer.is_alive(payload)


def the_largest_message(relay):
    binary, phone = pair(relay)
    frame = '"' + "x" * (MESSAGE_MAX - 2) + '"'
    phone.send(frame)
    assert binary.next() == for_phone(phone, frame)
    content = "y" * (MESSAGE_MAX - len(for_phone(phone, '""')))
    binary.send(for_phone(phone, f'"{content}"'))
    assert phone.next() == f'"{content}"'
    # And not one byte more, of either.
    phone.send(frame + " ")
    assert phone.closed_with()[0] == 1009
    binary.send(for_phone(phone, f'"{content}y"'))
    assert binary.closed_with()[0] == 1009


def messages_in_pieces(relay):
    binary, phone = pair(relay)
    frame = '["' + "é" * 30_000 + '"]'
    phone.send_pieces(cut(frame, 999), ABNF.OPCODE_TEXT)
    assert binary.next() == for_phone(phone, frame)
    binary.send_pieces(cut(for_phone(phone, frame), 777), ABNF.OPCODE_BINARY)
    assert phone.next() == frame
    # Even the last piece may be empty.
    phone.send_pieces([b"[", b"", b"1]", b""], ABNF.OPCODE_TEXT)
    assert binary.next() == for_phone(phone, "[1]")
    phone.send_pieces(cut('"' + "x" * MESSAGE_MAX + '"', 65_536), ABNF.OPCODE_TEXT)
    assert phone.closed_with()[0] == 1009


def a_close_is_echoed(relay):
    holder = Peer(relay, "server")
    for code, reason in [(1000, b""), (1001, b"away"), (3000, b""), (4999, b"bye")]:
        for role, server_id in (("client", "home"), ("server", f"own-{code}")):
            socket = connect(relay, role, server_id)
            socket.close(code, reason, SOON)
            assert socket.close_frame, "it ended without a close frame"
            assert code_and_reason(socket.close_frame.data)[0] == code
    assert holder.is_alive()


def a_binary_closes_a_phone(relay):
    binary = Peer(relay, "server")
    for asked, sent in [(1000, 1000), (4001, 4001), (1014, 1014), (1005, 1011), (7, 1011)]:
        phone = Peer(relay, "client")
        binary.send(for_phone(phone, '"last"', asked))
        assert phone.next() == '"last"'
        assert phone.closed_with() == (sent, "")
    assert binary.is_alive()


def no_server_with_that_id(relay):
    assert Peer(relay, "client", "nobody").closed_with() == (4404, "no server with that id")


def too_many_phones(relay):
    binary = Peer(relay, "server")
    phones = [connect(relay, "client") for _ in range(16)]
    one_more = Peer(relay, "client")
    assert one_more.closed_with() == (4429, "too many phones for server-id")
    phones[3].close(timeout=SOON)
    left = phones[3].headers["x-request-id"]
    assert json.loads(binary.next()) == {"conn_id": left, "close_code": 1000}
    again = Peer(relay, "client")
    again.send("17")
    assert binary.next() == for_phone(again, "17")
    for phone in phones:
        phone.shutdown()


def not_json(relay):
    _binary, phone = pair(relay)
    phone.send("{")
    assert phone.closed_with() == (1007, "frame is not valid JSON")


def a_living_incumbent_keeps_its_slot(relay):
    binary, phone = pair(relay)
    for rival in [Peer(relay, "server") for _ in range(3)]:
        assert rival.closed_with() == (4409, "server-id already claimed")
    assert not binary.seen[ABNF.OPCODE_PING].empty(), "the incumbent was not asked"
    phone.send("1")
    assert binary.next() == for_phone(phone, "1")


def a_claim_in_grace_takes_the_slot(relay):
    binary, phone = pair(relay)
    binary.socket.abort()
    relay.wait_connected(binaries=0, phones=1)
    late = Peer(relay, "client")
    _binary = Peer(relay, "server")
    for old in (phone, late):
        assert old.closed_with() == (4404, "binary reclaimed server-id")


def a_frame_in_grace(relay):
    binary, phone = pair(relay)
    binary.socket.send_close()
    relay.wait_connected(binaries=0, phones=1)
    phone.send("{}")
    assert phone.closed_with() == (4404, "binary disconnected")


def the_relay_shuts_down(relay):
    peers = pair(relay)
    relay.signal()
    for peer in peers:
        assert peer.closed_with() == (1001, "shutting down")
    assert relay.exit_status(SOON) == 0


def a_peer_that_vanishes(relay):
    binary, phone = pair(relay)
    phone.socket.abort()
    relay.wait_connected(binaries=1, phones=0)
    binary.socket.abort()
    relay.wait_connected(binaries=0, phones=0)


if __name__ == "__main__":
    main([
        text_and_binary_both_ways, order_is_kept, pings_are_answered, the_largest_message,
        messages_in_pieces, a_close_is_echoed, a_binary_closes_a_phone, no_server_with_that_id,
        too_many_phones, not_json, a_living_incumbent_keeps_its_slot,
        a_claim_in_grace_takes_the_slot, a_frame_in_grace, the_relay_shuts_down,
        a_peer_that_vanishes,
    ])
