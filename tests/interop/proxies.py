"""The relay behind the proxies people have, with the configuration of deploy/.

Those very files are run, with ports and paths put in. `proxies.py RELAY idle` is
the scenario that takes its time: nobody says a word but the relay's pings.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from harness import DIRECT, SOON, Relay, free_port, main, spawn, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
SBIN = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

# Of the proxy; a little more than the 30 s between two pings.
IDLE = 35
# Longer than two of these.
QUIET = 75


def program(name):
    return shutil.which(name, path=SBIN)


class Proxy:
    """One of them in front of a relay that listens already."""

    # Flags of the relay behind it, as its file names them.
    flags = ("--trust-x-forwarded-for", "--trusted-proxies", "127.0.0.1")

    def __init__(self, relay, **changes):
        self.port = free_port()
        with contextlib.ExitStack() as stack:
            self.directory = stack.enter_context(tempfile.TemporaryDirectory())
            # For workers that run as another user.
            os.chmod(self.directory, 0o755)
            self.path = path = os.path.join(self.directory, os.path.basename(self.file))
            with open(os.path.join(HERE, "../../deploy", self.file)) as deployed:
                text = deployed.read()
            for pattern, by in self.places(relay).items() | changes.items():
                text, count = re.subn(pattern, by, text, flags=re.MULTILINE)
                assert count, f"nothing in {self.file} is {pattern}"
            with open(path, "w") as config:
                config.write(text)
            environment = os.environ | {"HOME": self.directory, "XDG_DATA_HOME": self.directory}
            with open(os.path.join(self.directory, "log"), "w") as log:
                self.process = spawn(self.command(path), env=environment, stdout=log, stderr=log)
            stack.callback(self._end)
            wait_until(self.is_up, complaint=self.log)
            self.stack = stack.pop_all()

    def _end(self):
        self.process.terminate()
        self.process.wait(SOON)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stack.__exit__(*failure)

    def log(self):
        with open(os.path.join(self.directory, "log")) as log:
            return log.read()

    def is_up(self):
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError):
            with DIRECT.open(f"http://127.0.0.1:{self.port}/readyz", timeout=SOON) as answer:
                return answer.status == 200

    def dial(self, role, source, **headers):
        own = {"x-pyrycode-version": "1"} if role == "server" else {"x-pyrycode-token": "t"}
        stream = socket.create_connection(
            ("127.0.0.1", self.port), timeout=SOON, source_address=(source, 0))
        return connect(
            f"ws://relay/v1/{role}", sock=stream, compression=None, open_timeout=SOON,
            ping_interval=None, additional_headers={"x-pyrycode-server": "home", **own, **headers},
        )


class HAProxy(Proxy):
    file = "haproxy/haproxy.cfg"
    flags = ("--proxy-protocol", "--trusted-proxies", "127.0.0.1")
    idle = "75s"

    def places(self, relay):
        return {r"bind :80$": f"bind 127.0.0.1:{self.port}", r"127\.0\.0\.1:8080": relay.url}

    def command(self, path):
        return [program("haproxy"), "-db", "-f", path]


class Nginx(Proxy):
    file = "nginx/nginx.conf"
    idle = "75s"

    def places(self, relay):
        return {
            r"listen 80;": f"listen 127.0.0.1:{self.port};",
            r"server 127\.0\.0\.1:8080;": f"server {relay.url};",
            r"/run/nginx\.pid": f"{self.directory}/pid",
            r"/var/log/nginx/error\.log": "stderr",
        }

    def command(self, path):
        return [program("nginx"), "-p", self.directory, "-e", "stderr", "-c", path, "-g", "daemon off;"]


class Caddy(Proxy):
    file = "caddy/Caddyfile"
    idle = None

    def places(self, relay):
        return {
            r"^:80 ": f":{self.port} ",
            r"reverse_proxy 127\.0\.0\.1:8080": f"reverse_proxy {relay.url}",
            r"127\.0\.0\.1:2019": f"127.0.0.1:{free_port()}",
        }

    def command(self, path):
        return [program("caddy"), "run", "--config", path, "--adapter", "caddyfile"]


def status(dial):
    try:
        with dial():
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def logged(relay, event, remote):
    words = {f"msg={event}", f"remote={remote}"}
    wait_until(
        lambda: any(words <= set(line.split()) for line in list(relay.log)),
        complaint=lambda: f"no {event} of {remote}: {relay.log}",
    )


def round_trip(binary, phone, text):
    phone.send(text)
    envelope = binary.recv(SOON)
    assert envelope.endswith(f',"frame":{text}}}'), envelope[:100]
    conn_id = json.loads(envelope)["conn_id"]
    binary.send(json.dumps({"conn_id": conn_id, "frame": [text]}))
    assert json.loads(phone.recv(SOON)) == [text]


def serves(proxy):
    with Relay(*proxy.flags, "--max-connections-per-ip", "2") as relay, proxy(relay) as front:
        # Whatever a client says of its address.
        lie = {"x-forwarded-for": "203.0.113.9"}
        with front.dial("server", "127.0.0.3", **lie) as binary:
            logged(relay, "server_claimed", "127.0.0.3")
            with front.dial("client", "127.0.0.4") as phone:
                logged(relay, "phone_registered", "127.0.0.4")
                for text in ('"a"', '"' + "b" * 200_000 + '"'):
                    round_trip(binary, phone, text)
                with front.dial("client", "127.0.0.4"):
                    assert status(lambda: front.dial("client", "127.0.0.4")) == 503
                    assert status(lambda: front.dial("client", "127.0.0.5")) == 101
                # A close comes through with its code and its reason.
                conn_id = re.search(r"msg=phone_registered .*conn_id=(\w+)", "".join(relay.log))[1]
                binary.send(json.dumps({"conn_id": conn_id, "close_code": 4321}))
                try:
                    phone.recv(SOON)
                except ConnectionClosed as closed:
                    assert closed.rcvd.code == 4321, closed
                else:
                    raise AssertionError("the phone was not closed")


def behind_haproxy():
    serves(HAProxy)


def behind_nginx():
    serves(Nginx)


def behind_caddy():
    serves(Caddy)


def children(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as names:
        return {int(pid) for pid in names.read().split()}


def is_cut_by_a_reload(proxy, number, bound):
    """A worker that was replaced keeps its tunnels for as long as the file says, which is
    a second here; then they are cut without a close, and the worker ends."""
    with Relay(*proxy.flags) as relay, proxy(relay, **bound) as front:
        with front.dial("server", "127.0.0.3") as binary:
            old = children(front.process)
            assert old
            # The master of HAProxy 2.6 forgets a signal that comes just after its start.
            def is_reloaded():
                front.process.send_signal(number)
                with contextlib.suppress(AssertionError):
                    return wait_until(lambda: children(front.process) - old, 1)
            wait_until(is_reloaded, complaint=front.log)
            try:
                raise AssertionError(f"it said {binary.recv(SOON)}")
            except ConnectionClosed as closed:
                assert closed.rcvd is None, closed
        wait_until(lambda: not children(front.process) & old, complaint=front.log)
        with front.dial("server", "127.0.0.3") as binary, front.dial("client", "127.0.0.4") as phone:
            round_trip(binary, phone, '"again"')


def an_old_worker_of_haproxy_ends():
    class Master(HAProxy):
        def command(self, path):
            return [program("haproxy"), "-W", "-f", path]
    is_cut_by_a_reload(Master, signal.SIGUSR2, {"hard-stop-after 1h": "hard-stop-after 1s"})


def an_old_worker_of_nginx_ends():
    is_cut_by_a_reload(Nginx, signal.SIGHUP, {"worker_shutdown_timeout 1h": "worker_shutdown_timeout 1s"})


def a_reload_of_caddy_tells_all_peers_to_leave():
    with Relay(*Caddy.flags) as relay, Caddy(relay) as front:
        with front.dial("server", "127.0.0.3") as binary, front.dial("client", "127.0.0.4") as phone:
            subprocess.run(
                [program("caddy"), "reload", "--force", "--config", front.path,
                 "--adapter", "caddyfile"],
                check=True, capture_output=True, timeout=SOON)
            for peer in (binary, phone):
                try:
                    raise AssertionError(f"it said {peer.recv(SOON)}")
                except ConnectionClosed as closed:
                    assert closed.rcvd.code == 1001, closed
        relay.wait_connected(0, 0, within=60)
        with front.dial("server", "127.0.0.3") as binary, front.dial("client", "127.0.0.4") as phone:
            round_trip(binary, phone, '"again"')


def stays(proxy):
    changes = {proxy.idle: f"{IDLE}s"} if proxy.idle else {}
    with Relay(*proxy.flags) as relay, proxy(relay, **changes) as front:
        with front.dial("server", "127.0.0.3") as binary, front.dial("client", "127.0.0.4") as phone:
            # Both answer pings while they wait.
            for peer, within in ((binary, QUIET), (phone, 0.1)):
                try:
                    raise AssertionError(f"it said something: {peer.recv(within)}")
                except TimeoutError:
                    pass
            round_trip(binary, phone, '"still there"')


def idle_behind_haproxy():
    stays(HAProxy)


def idle_behind_nginx():
    stays(Nginx)


def idle_behind_caddy():
    stays(Caddy)


def without_pings_it_is_cut():
    """Else the others would prove nothing: a time less than that between two pings."""
    def is_cut(proxy):
        with Relay(*proxy.flags) as relay, proxy(relay, **{proxy.idle: "1s"}) as front:
            started = time.monotonic()
            with front.dial("server", "127.0.0.3") as binary:
                try:
                    binary.recv(SOON)
                except ConnectionClosed as closed:
                    assert closed.rcvd is None, closed
                    return time.monotonic() - started
        raise AssertionError("it was not cut")
    assert is_cut(HAProxy) < SOON and is_cut(Nginx) < SOON


QUICK = [
    behind_haproxy, behind_nginx, behind_caddy, without_pings_it_is_cut,
    an_old_worker_of_haproxy_ends, an_old_worker_of_nginx_ends,
    a_reload_of_caddy_tells_all_peers_to_leave,
]
SLOW = [idle_behind_haproxy, idle_behind_nginx, idle_behind_caddy]

if __name__ == "__main__":
    import sys
    if sys.argv[2:] == ["idle"]:
        sys.argv.pop()
        main(SLOW)
    else:
        main(QUICK + (SLOW if sys.argv[2:] else []))
