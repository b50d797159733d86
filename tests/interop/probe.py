"""`probe` through what stands between clients and relays, at the real times."""

import contextlib
import datetime
import itertools
import json
import socket
import subprocess
import tempfile
import threading

from google import Authority
from haproxy import Balancer
from harness import Relay, free_port, main, need_root, program, spawn, wait_until

# Longer than any probe here takes.
PATIENCE = 150


def probe(url, *flags):
    """Its exit status, and its steps by name."""
    command = [program(), "probe", "--json", "--round-trips", "10", *flags, url]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.stderr == b"", done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0), report
    return done.returncode, {step["name"]: step for step in report["steps"]}


def fails_at(name, words, url, *flags):
    status, steps = probe(url, *flags)
    failed = [step for step in steps.values() if step["outcome"] == "failed"]
    assert status == 1 and [step["name"] for step in failed] == [name], steps
    said = failed[0]["found"] + failed[0].get("advice", "")
    assert words in said, said


@contextlib.contextmanager
def between(relay, context=None, passes=lambda chunk, relay_end: True):
    """A proxy that may speak TLS to its clients. Gives its port. Of what the relay
    sends on a probe's idle connection, its fourth, it passes on after the 101 what
    `passes(chunk, relay's end)` says; nor does it pass on an end after silence."""
    upgrades = itertools.count(1)

    def pipe(source, sink, is_from_relay):
        is_idle, is_passing = False, True
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                is_passing = not is_idle or passes(chunk, source)
                if is_passing:
                    sink.sendall(chunk)
                if is_from_relay and chunk.startswith(b"HTTP/1.1 101"):
                    is_idle = next(upgrades) == 4
        for end in (source, sink) if is_passing else ():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(client):
        with contextlib.suppress(OSError):
            if context:
                client = context.wrap_socket(client, server_side=True)
            upstream = socket.create_connection(relay.address)
            for arguments in [(client, upstream, False), (upstream, client, True)]:
                threading.Thread(target=pipe, args=arguments, daemon=True).start()

    def accept(listener):
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def tls_is_verified_and_the_days_to_expiry_are_reported(relay):
    authority = Authority("probed")
    for age, left, outcome in [(2, 100, "ok"), (85, 5, "warning"), (0, 6, "ok"), (5.5, .5, "warning"),
                               (0, 1, "ok"), (.9, .1, "warning"), (30, 15, "ok"), (40, 5, "warning")]:
        age, life = datetime.timedelta(days=age), datetime.timedelta(days=left, minutes=5)
        with between(relay, authority.context(age=age, life=life)) as port:
            for url in [f"https://localhost:{port}", f"wss://127.0.0.1:{port}/"]:
                status, steps = probe(url, "--ca", authority.file, "--health")
                assert status == 0, steps
                tls = steps["tls"]
                assert (tls["expires_in_days"], tls["outcome"]) == (int(left), outcome), tls
                name = "localhost" if "localhost" in url else None
                assert tls["server_name"] == name, tls
    with between(relay, authority.context()) as port:
        status, steps = probe(f"https://localhost:{port}", "--ca", authority.file)
        assert status == 0 and steps["leaving"]["outcome"] == "ok", steps


class BlackHole:
    """An address whose full backlog drops each dial, as a firewall does."""

    def __init__(self, address, port):
        self.listener = socket.socket(socket.AF_INET)
        self.listener.bind((address, port))
        self.listener.listen(0)
        self.waiting = []
        # As many as it takes until one does not come through.
        for _ in range(8):
            dialled = socket.socket(socket.AF_INET)
            dialled.settimeout(.3)
            self.waiting.append(dialled)
            try:
                dialled.connect((address, port))
            except TimeoutError:
                break
        else:
            raise AssertionError("its backlog does not fill")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for held in (*self.waiting, self.listener):
            held.close()


@contextlib.contextmanager
def named(name, *addresses):
    """The command that runs a program with a hosts file of its own, in which `name` has
    these addresses. Needs root."""
    with tempfile.NamedTemporaryFile("w") as hosts:
        hosts.writelines(f"{address} {name}\n" for address in addresses)
        hosts.flush()
        mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
        yield ["unshare", "--mount", "sh", "-c", mount, hosts.name]


def every_address_of_a_name_is_asked():
    need_root("for a hosts file of its own")
    port = free_port()
    relay = spawn([program(), "--insecure-listen", f"127.0.0.2:{port}", "--metrics-listen="],
                  stderr=subprocess.DEVNULL)

    def addresses(*all_of_it, flags=()):
        with named("relay.test", *all_of_it) as prefix:
            command = [*prefix, program(), "probe", "--json", "--timeout", "2", *flags,
                       "--round-trips", "1", f"http://relay.test:{port}"]
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        report = json.loads(done.stdout)
        assert done.returncode == 0 and report["ok"], report
        steps = [step for step in report["steps"] if step["name"] == "address"]
        return {step["address"]: step for step in steps}

    try:
        wait_until(lambda: probe(f"http://127.0.0.2:{port}", "--health")[0] == 0)
        assert addresses("127.0.0.2") == {}
        # Refused, a black hole, and another program, before and behind the one that answers.
        with BlackHole("127.0.0.3", port), socket.create_server(("127.0.0.5", port)) as other:
            threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
            seen = addresses("127.0.0.4", "127.0.0.2", "127.0.0.3", "127.0.0.5")
        assert set(seen) == {f"127.0.0.{n}:{port}" for n in (3, 4, 5)}, seen
        for address, words in [("127.0.0.3", "no response"), ("127.0.0.4", "refused"),
                               ("127.0.0.5", "reset")]:
            step = seen[f"{address}:{port}"]
            assert step["outcome"] == "warning", step
            assert words in step["found"] or "closed" in step["found"], step
            assert "remove the A record" in step["advice"], step
        # Two that are well.
        second = spawn([program(), "--insecure-listen", f"127.0.0.6:{port}", "--metrics-listen="],
                       stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: probe(f"http://127.0.0.6:{port}", "--health")[0] == 0)
            seen = addresses("127.0.0.2", "127.0.0.6")
        finally:
            second.kill()
            second.wait()
        assert [step["outcome"] for step in seen.values()] == ["ok"], seen
    finally:
        relay.kill()
        relay.wait()


def a_name_beyond_ascii_is_to_be_written_in_punycode():
    done = subprocess.run([program(), "probe", "https://bücher.example"], capture_output=True)
    assert done.returncode == 2 and b"xn--bcher-kva.example" in done.stderr, done


def certificates_that_clients_refuse_are_explained(relay):
    authority = Authority("probed")
    expired = authority.context(life=datetime.timedelta(days=-1))
    with between(relay, expired) as port:
        fails_at("tls", "has expired", f"https://localhost:{port}", "--ca", authority.file)
    with between(relay, authority.context(names=("elsewhere",))) as port:
        fails_at("tls", "for another name", f"https://localhost:{port}", "--ca", authority.file)
    with between(relay, authority.context()) as port:
        fails_at("tls", "--ca FILE", f"https://localhost:{port}")
        fails_at("tls", "--ca FILE", f"https://localhost:{port}", "--ca", Authority("other").file)
        # Plain HTTP to a TLS port.
        fails_at("health", "try https", f"http://localhost:{port}", "--health")


def through_haproxy_it_passes():
    with Relay("--proxy-protocol") as relay, Balancer(relay, "http") as balancer:
        balancer.wait("UP", ("L7OK", "200"))
        status, steps = probe("http://{}:{}".format(*balancer.address))
        assert status == 0 and {step["outcome"] for step in steps.values()} == {"ok"}, steps
    # Without HAProxy, the relay waits for a PROXY header.
    with Relay("--proxy-protocol") as relay:
        fails_at("health", "probe with --proxy-protocol", f"http://{relay.url}", "--health")
        status, steps = probe(f"http://{relay.url}", "--proxy-protocol")
        assert status == 0 and {step["outcome"] for step in steps.values()} == {"ok"}, steps
        # As a load balancer's own check: LOCAL, which asks for its health only.
        status, steps = probe(f"http://{relay.url}", "--proxy-protocol", "--health")
        assert status == 0, steps
    # A header from a source that is not trusted.
    with Relay("--proxy-protocol", "--trusted-proxies", "192.0.2.1") as relay:
        fails_at("health", "--trusted-proxies", f"http://{relay.url}", "--proxy-protocol", "--health")


def an_idle_timeout_of_haproxy_is_measured():
    with Relay("--proxy-protocol") as relay:
        # The line of the server is the last of the backend, so this is, too.
        with Balancer(relay, "http", "send-proxy-v2\n    timeout tunnel 4s") as balancer:
            balancer.wait("UP", ("L7OK", "200"))
            url = "http://{}:{}".format(*balancer.address)
            fails_at("watch", "closed after 4.", url, "--watch", "45")


def pings_are_seen_at_their_real_intervals(relay):
    status, steps = probe(f"http://{relay.url}", "--watch", "63")
    watch = steps["watch"]
    assert status == 0 and watch["pings"] >= 2, steps
    assert 29_000 <= watch["longest_silence_ms"] <= 31_000, watch


def a_half_open_connection_is_reported(relay):
    with between(relay, passes=lambda *_: False) as port:
        fails_at("watch", "half-open", f"http://127.0.0.1:{port}", "--watch", "60",
                 "--timeout", "2")


def a_proxy_that_swallows_pings_is_reported(relay):
    def passes(chunk, relay_end):
        # A ping is alone in its segment. It is answered here, with a mask of zeros.
        if chunk[0] != 0x89:
            return True
        relay_end.sendall(bytes([0x8A, 0x80 | chunk[1], 0, 0, 0, 0]) + chunk[2:])
        return False
    with between(relay, passes=passes) as port:
        fails_at("watch", "though the connection is open", f"http://127.0.0.1:{port}",
                 "--watch", "60")


if __name__ == "__main__":
    main([
        pings_are_seen_at_their_real_intervals,
        a_half_open_connection_is_reported,
        a_proxy_that_swallows_pings_is_reported,
        an_idle_timeout_of_haproxy_is_measured,
        every_address_of_a_name_is_asked,
        a_name_beyond_ascii_is_to_be_written_in_punycode,
        tls_is_verified_and_the_days_to_expiry_are_reported,
        certificates_that_clients_refuse_are_explained,
        through_haproxy_it_passes,
    ])
