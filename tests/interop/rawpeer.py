"""A peer made of a socket and bytes, for what no library would send or show.

Knows RFC 6455 frames just well enough to write and read them itself, and
answers nothing on its own, pings included.
"""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from harness import SOON

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

# The example of RFC 6455, 1.3.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = bytes.fromhex("37fa213d")


def undated(answer):
    """The answer without its one Date (RFC 9110, 6.6.1), which must be of this moment."""
    start, found, rest = answer.partition(b"\r\nDate: ")
    assert found, f"no Date: {answer[:300]!r}"
    date, _, rest = rest.partition(b"\r\n")
    imf_fixdate = rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    assert re.fullmatch(imf_fixdate, date), date
    assert abs(parsedate_to_datetime(date.decode()).timestamp() - time.time()) < 5, date
    assert b"\r\nDate:" not in rest, answer
    return start + b"\r\n" + rest


def head(role, server_id, key=KEY):
    """A request head as a well-behaved peer writes it."""
    own = "x-pyrycode-version: 1.2.3" if role == "server" else "x-pyrycode-token: t"
    return (
        f"GET /v1/{role} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"user-agent: raw\r\nx-pyrycode-server: {server_id}\r\n{own}\r\n\r\n"
    ).encode()


def frame(opcode, payload=b"", fin=True, rsv=0, masked=True, declared=None, width=None):
    """A frame; `declared` lies about its length, `width` is that field's (0, 2, 8)."""
    length = len(payload) if declared is None else declared
    if width is None:
        width = 0 if length < 126 else 2 if length < 65536 else 8
    first = fin << 7 | rsv << 4 | opcode
    short = {0: length, 2: 126, 8: 127}[width]
    extended = {0: b"", 2: struct.pack(">H", length & 0xFFFF), 8: struct.pack(">Q", length)}[width]
    if masked:
        # XOR of whole numbers: 256 KiB at once instead of byte by byte.
        pad = (MASK * (len(payload) // 4 + 1))[: len(payload)]
        number = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
        payload = MASK + number.to_bytes(len(payload), "big")
    return bytes([first, masked << 7 | short]) + extended + payload


def close_frame(code=None, reason=b""):
    return frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)


def envelope(conn_id, message, close_code=None):
    """What a binary sends for a phone; `message` goes in verbatim."""
    tail = b"" if close_code is None else b',"close_code":%d' % close_code
    return b'{"conn_id":%s,"frame":%s%s}' % (json.dumps(conn_id).encode(), message, tail)


def notice(phone, code):
    """What the binary is told when this phone has ended."""
    return b'{"conn_id":"%s","close_code":%d}' % (phone.request_id.encode(), code)


@dataclass
class Frame:
    fin: bool
    rsv: int
    opcode: int
    payload: bytes

    @property
    def close(self):
        """Code and reason of a close frame; (None, "") of an empty one."""
        assert self.opcode == CLOSE, f"no close frame: {self}"
        if not self.payload:
            return None, ""
        return struct.unpack(">H", self.payload[:2])[0], self.payload[2:].decode()


class RawPeer:
    """A TCP connection to the relay."""

    def __init__(self, relay, first=b""):
        self.socket = socket.create_connection(relay.address, timeout=SOON)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffered = bytearray()
        self.send(first)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        """Closes with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _more(self):
        data = self.socket.recv(65536)
        self.buffered += data
        return bool(data)

    def take(self, count):
        while len(self.buffered) < count:
            assert self._more(), f"ended behind {bytes(self.buffered)!r}, {count} bytes expected"
        taken = bytes(self.buffered[:count])
        del self.buffered[:count]
        return taken

    def read_head(self):
        while b"\r\n\r\n" not in self.buffered:
            assert self._more(), f"ended within the head: {bytes(self.buffered)!r}"
        return self.take(self.buffered.index(b"\r\n\r\n") + 4)

    def read_frame(self, within=SOON):
        self.socket.settimeout(within)
        first, second = self.take(2)
        assert not second & 0x80, "the relay masks its frames"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self.take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self.take(8))
        return Frame(bool(first & 0x80), first >> 4 & 7, first & 0xF, self.take(length))

    def read_answer(self, within=SOON):
        """The next frame that is no ping; pings are answered."""
        while (found := self.read_frame(within)).opcode == PING:
            self.send(frame(PONG, found.payload))
        return found

    def read_pong(self, within=SOON):
        found = self.read_answer(within)
        assert found.opcode == PONG, found
        return found.payload

    def read_message(self, within=SOON):
        """The next frame that is no ping; it must be a text message in one piece."""
        found = self.read_answer(within)
        assert (found.fin, found.rsv, found.opcode) == (True, 0, TEXT), found
        return found.payload

    def read_to_end(self, within=SOON):
        """All bytes until the relay ends the connection, which must not be a reset."""
        self.socket.settimeout(within)
        while self._more():
            pass
        return self.take(len(self.buffered))

    def read_only_close(self, within=SOON):
        """The close that must be all that is left on the wire, pings before it apart."""
        while (found := self.read_frame(within)).opcode == PING:
            pass
        self.read_nothing(within)
        return found.close

    def read_nothing(self, within=SOON):
        rest = self.read_to_end(within)
        assert rest == b"", f"not the end yet: {rest!r}"


def upgrade(relay, role, server_id, early=b""):
    """A raw WebSocket; it knows its x-request-id, and between when it was opened."""
    dialled = time.monotonic()
    peer = RawPeer(relay, head(role, server_id) + early)
    answer = peer.read_head().decode()
    assert answer.startswith("HTTP/1.1 101 "), answer
    fields = dict(line.split(": ", 1) for line in answer.split("\r\n")[1:-2])
    peer.request_id = fields["x-request-id"]
    peer.dialled, peer.opened = dialled, time.monotonic()
    return peer


def pair(relay, server_id="home"):
    """A binary and a phone of one server-id."""
    binary = upgrade(relay, "server", server_id)
    return binary, upgrade(relay, "client", server_id)


class Honest(threading.Thread):
    """Answers the pings, `delay` seconds late, and at last the close; keeps the rest."""

    def __init__(self, peer, delay=0.0):
        super().__init__(daemon=True)
        self.peer, self.delay = peer, delay
        self.pinged, self.messages, self.closed, self.failure = [], [], None, None
        self.start()

    def run(self):
        try:
            while self.closed is None:
                found = self.peer.read_frame(within=150)
                if found.opcode == PING:
                    self.pinged.append(time.monotonic())
                    if self.delay:
                        timer = threading.Timer(self.delay, self._pong, [found.payload])
                        timer.daemon = True
                        timer.start()
                    else:
                        self._pong(found.payload)
                elif found.opcode == CLOSE:
                    self.closed = found.close
                    self.peer.send(frame(CLOSE, found.payload))
                    self.peer.half_close()
                else:
                    self.messages.append(found.payload)
        except (OSError, AssertionError) as failure:
            self.failure = failure

    def _pong(self, payload):
        with contextlib.suppress(OSError):
            self.peer.send(frame(PONG, payload))
