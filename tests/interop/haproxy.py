"""The relay behind HAProxy, which names the clients with PROXY headers."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import socket
import tempfile

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from harness import SOON, Relay, main, spawn, wait_until
from rawpeer import RawPeer, head

# Not on everybody's PATH.
HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")

CONFIG = """
global
    stats socket {directory}/stats mode 600
defaults
    mode {mode}
    timeout connect 5s
    # Longer than the 30 s between two pings of the relay.
    timeout client 75s
    timeout server 75s
    timeout tunnel 75s
    unique-id-format %{{+X}}o%ci%cp%rt
frontend in
    bind fd@{v4}
    bind fd@{v6}
    {frontend}
    default_backend relays
backend relays
    option httpchk GET /readyz
    server relay {relay} check inter 100ms fastinter 100ms downinter 100ms rise 1 fall 1 {server}
"""


class Balancer:
    """HAProxy on ports of its own in front of a relay."""

    def __init__(self, relay, mode, server="send-proxy-v2", frontend=""):
        with contextlib.ExitStack() as stack:
            self.directory = stack.enter_context(tempfile.TemporaryDirectory())
            v4 = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            v6 = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
            self.address, self.address_v6 = v4.getsockname(), v6.getsockname()[:2]
            path = os.path.join(self.directory, "haproxy.cfg")
            with open(path, "w") as config:
                config.write(CONFIG.format(
                    directory=self.directory, mode=mode, server=server, frontend=frontend,
                    relay=relay.url, v4=v4.fileno(), v6=v6.fileno(),
                ))
            self.process = spawn([HAPROXY, "-q", "-db", "-f", path], pass_fds=[v4.fileno(), v6.fileno()])
            # HAProxy holds them now; the directory lives as long as it does.
            v4.close()
            v6.close()
            self.stack = stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(SOON)
        self.stack.close()

    def server(self):
        """What HAProxy says of the relay: UP or DOWN, and the last check."""
        with socket.socket(socket.AF_UNIX) as stats:
            try:
                stats.connect(os.path.join(self.directory, "stats"))
            except OSError:
                return None, None
            stats.sendall(b"show stat\n")
            text = stats.makefile().read()
        for row in csv.DictReader(io.StringIO(text.removeprefix("# "))):
            if row["svname"] == "relay":
                return row["status"], (row["check_status"], row["check_code"])
        return None, None

    def wait(self, status, check):
        """Waits for the verdict of a check that was made."""
        wait_until(lambda: self.server() == (status, check), complaint=lambda: self.server())

    def dial(self, role, server_id="home", source=None, address=None, **headers):
        """A WebSocket through HAProxy, from another address of this machine."""
        own = {"x-pyrycode-version": "1"} if role == "server" else {"x-pyrycode-token": "t"}
        stream = socket.create_connection(
            address or self.address, timeout=SOON, source_address=source and (source, 0)
        )
        return connect(
            f"ws://relay/v1/{role}", sock=stream, compression=None, open_timeout=SOON,
            additional_headers={"x-pyrycode-server": server_id, **own, **headers},
        )


def status(dial):
    try:
        with dial():
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def closed_with(websocket):
    try:
        websocket.recv(SOON)
    except ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason
    raise AssertionError("it said something first")


def logged(relay, event, remote):
    words = {f"msg={event}", f"remote={remote}"}
    wait_until(
        lambda: any(words <= set(line.split()) for line in list(relay.log)),
        complaint=lambda: f"no {event} of {remote}: {relay.log}",
    )


def serves_both(mode, server="send-proxy-v2"):
    with Relay("--proxy-protocol", "--max-connections-per-ip", "2") as relay:
        with Balancer(relay, mode, server) as balancer:
            # HAProxy's own check says LOCAL.
            balancer.wait("UP", ("L7OK", "200"))
            with (
                balancer.dial("server", source="127.0.0.3") as binary,
                balancer.dial("client", source="127.0.0.4") as phone,
                balancer.dial("client", address=balancer.address_v6) as other,
            ):
                logged(relay, "server_claimed", "127.0.0.3")
                logged(relay, "phone_registered", "127.0.0.4")
                logged(relay, "phone_registered", "::1")
                for websocket, text in [(phone, '"a"'), (other, '"' + "b" * 200_000 + '"')]:
                    websocket.send(text)
                    envelope = binary.recv(SOON)
                    assert envelope.endswith(f',"frame":{text}}}'), envelope[:100]
                    conn_id = json.loads(envelope)["conn_id"]
                    binary.send(json.dumps({"conn_id": conn_id, "frame": [text]}))
                    assert json.loads(websocket.recv(SOON)) == [text]
                # Two of a client, and each client has its own two.
                with balancer.dial("client", source="127.0.0.4"):
                    assert status(lambda: balancer.dial("client", source="127.0.0.4")) == 503
                    assert status(lambda: balancer.dial("client", source="127.0.0.5")) == 101
                with balancer.dial("client", "nobody", source="127.0.0.6") as lost:
                    assert closed_with(lost) == (4404, "no server with that id")


def in_tcp_mode_each_client_is_known_by_its_own_address():
    serves_both("tcp")


def in_http_mode_each_client_is_known_by_its_own_address():
    serves_both("http")


def tlvs_are_skipped():
    serves_both("tcp", "send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl,authority")


def each_client_has_its_own_rate_limit():
    flags = ("--proxy-protocol", "--rate-limit-per-minute", "1", "--rate-limit-burst", "3")
    with Relay(*flags) as relay, Balancer(relay, "http") as balancer:
        balancer.wait("UP", ("L7OK", "200"))
        for source in ("127.0.0.3", "127.0.0.4"):
            dialled = [status(lambda: balancer.dial("client", "none", source)) for _ in range(4)]
            assert dialled == [101, 101, 101, 429], (source, dialled)
        # Checks go on meanwhile, more often than any client may.
        assert balancer.server() == ("UP", ("L7OK", "200"))


def x_forwarded_for_is_read_behind_the_header():
    flags = ("--proxy-protocol", "--trust-x-forwarded-for")
    with Relay(*flags) as relay, Balancer(relay, "tcp") as balancer:
        balancer.wait("UP", ("L7OK", "200"))
        through = {"x-forwarded-for": "198.51.100.7, 203.0.113.9"}
        with balancer.dial("server", source="127.0.0.3", **through):
            logged(relay, "server_claimed", "203.0.113.9")


def a_full_relay_and_one_that_leaves_are_taken_out():
    with Relay("--proxy-protocol", "--max-connections", "1") as relay:
        with Balancer(relay, "http") as balancer:
            balancer.wait("UP", ("L7OK", "200"))
            with balancer.dial("server"):
                balancer.wait("DOWN", ("L7STS", "503"))
                assert status(lambda: balancer.dial("client")) == 503
            balancer.wait("UP", ("L7OK", "200"))
            with balancer.dial("server") as held:
                balancer.wait("DOWN", ("L7STS", "503"))
                relay.signal()
                assert closed_with(held) == (1001, "shutting down")
            assert relay.exit_status() == 0


def a_header_other_than_version_2_is_refused_without_a_byte():
    with Relay("--proxy-protocol") as relay:
        for server in ("send-proxy", ""):
            with Balancer(relay, "tcp", server) as balancer:
                wait_until(lambda: (balancer.server()[0] or "").startswith("DOWN"))
        with RawPeer(relay, head("client", "home")) as peer:
            with contextlib.suppress(ConnectionResetError):
                assert peer.read_to_end() == b""


def only_trusted_proxies_may_name_clients():
    with Relay("--proxy-protocol", "--trusted-proxies", "127.0.0.9") as relay:
        with Balancer(relay, "tcp", "send-proxy-v2 source 127.0.0.9") as balancer:
            balancer.wait("UP", ("L7OK", "200"))
            with balancer.dial("server", source="127.0.0.3"):
                logged(relay, "server_claimed", "127.0.0.3")
        with Balancer(relay, "tcp", "send-proxy-v2 source 127.0.0.8") as balancer:
            wait_until(lambda: (balancer.server()[0] or "").startswith("DOWN"))
        logged(relay, "proxy_header_refused", "127.0.0.8")


if __name__ == "__main__":
    main([
        in_tcp_mode_each_client_is_known_by_its_own_address,
        in_http_mode_each_client_is_known_by_its_own_address,
        tlvs_are_skipped,
        each_client_has_its_own_rate_limit,
        x_forwarded_for_is_read_behind_the_header,
        a_full_relay_and_one_that_leaves_are_taken_out,
        a_header_other_than_version_2_is_refused_without_a_byte,
        only_trusted_proxies_may_name_clients,
    ])
