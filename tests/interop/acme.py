"""Certificates from an authority that no one here wrote: Pebble, which is Let's Encrypt's
own for tests. It refuses a share of the nonces on purpose."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request

import websockets

from harness import SOON, Relay, free_port, main, spawn, wait_until

DOMAIN = "relay.example.com"


class Authority:
    """Pebble and a name server that leads every name here, ended on leaving."""

    def __init__(self, directory, validity=90 * 24 * 3600, nonces_refused=20):
        self.directory = directory
        self.validity = validity
        self.nonces_refused = nonces_refused
        self.port, self.management, self.dns, self.http = (free_port() for _ in range(4))
        self.validates_at = self.http
        self.certificate = os.path.join(directory, "authority.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", self.certificate + ".key", "-out", self.certificate, "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-addext", "basicConstraints=critical,CA:FALSE"],
            check=True, stderr=subprocess.DEVNULL)
        self.processes = []

    @property
    def flags(self):
        return ["--domain", DOMAIN, "--http-listen", f"127.0.0.1:{self.http}",
                "--cert-cache", os.path.join(self.directory, "certs"), "--acme-ca", self.certificate,
                "--acme-directory", f"https://localhost:{self.port}/dir"]

    def start(self):
        config = os.path.join(self.directory, "pebble.json")
        with open(config, "w") as file:
            json.dump({"pebble": {
                "listenAddress": f"127.0.0.1:{self.port}",
                "managementListenAddress": f"127.0.0.1:{self.management}",
                "certificate": self.certificate, "privateKey": self.certificate + ".key",
                "httpPort": self.validates_at, "tlsPort": 1,
                "certificateValidityPeriod": self.validity,
            }}, file)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes.append(spawn(
            ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
             "-dns01", f"127.0.0.1:{self.dns}", "-http01", "", "-https01", "", "-tlsalpn01", "",
             "-management", f"127.0.0.1:{free_port()}"], **quiet))
        self.log = open(os.path.join(self.directory, "pebble.log"), "ab")
        environment = dict(os.environ, PEBBLE_VA_NOSLEEP="1",
                           PEBBLE_WFE_NONCEREJECT=str(self.nonces_refused))
        self.processes.append(spawn(
            ["pebble", "-config", config, "-dnsserver", f"127.0.0.1:{self.dns}"],
            env=environment, stdout=self.log, stderr=self.log))
        wait_until(self.is_up, complaint="Pebble does not start")
        # It resolves by UDP, whose socket nobody sees accept; TCP is bound after it.
        wait_until(self.resolves, complaint="the name server does not start")

    def is_up(self):
        try:
            self.fetch(self.port, "dir")
            return True
        except OSError:
            return False

    def resolves(self):
        try:
            socket.create_connection(("127.0.0.1", self.dns), timeout=SOON).close()
            return True
        except OSError:
            return False

    def fetch(self, port, path):
        context = ssl.create_default_context(cafile=self.certificate)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        with opener.open(f"https://localhost:{port}/{path}", timeout=SOON) as reply:
            return reply.read().decode()

    def trust(self):
        """Trusts what it issues, and nothing else; asks for TLS that says what for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.fetch(self.management, "roots/0"))
        return context

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Scene:
    """An authority in a directory of its own."""

    def __init__(self, **options):
        self.options = options

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.authority = Authority(self.directory.name, **self.options)
        return self.authority

    def __exit__(self, *_):
        self.authority.stop()
        self.directory.cleanup()


def says(relay, word, times=1):
    return sum(f"msg={word} " in line or line.endswith(f"msg={word}\n") for line in relay.log) >= times


def wait_says(relay, word, times=1, within=30):
    wait_until(lambda: says(relay, word, times), within,
               lambda: f"no {word}: " + "".join(relay.log[-6:]))


def session(relay, context, name=DOMAIN):
    stream = socket.create_connection(relay.address, timeout=SOON)
    try:
        return context.wrap_socket(stream, server_hostname=name)
    except BaseException:
        stream.close()
        raise


def serial(relay, context):
    with session(relay, context) as stream:
        return stream.getpeercert()["serialNumber"]


def blind():
    """A client that accepts any certificate, and so sees an expired one too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(stream, request):
    with stream:
        stream.sendall(request)
        answer = b""
        while part := stream.recv(65536):
            answer += part
        return answer


def get(path, host):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def dial(relay, context, role, **headers):
    headers = {"x-pyrycode-server": "home", "x-pyrycode-version": "1", "x-pyrycode-token": "t",
               **headers}
    return websockets.connect(
        f"wss://{DOMAIN}:{relay.address[1]}/v1/{role}", host="127.0.0.1", ssl=context,
        server_hostname=DOMAIN, additional_headers=headers, proxy=None)


async def exchange(binary, phone):
    await phone.send('{"up":1}')
    envelope = json.loads(await binary.recv())
    assert envelope["frame"] == {"up": 1}
    await binary.send(json.dumps({"conn_id": envelope["conn_id"], "frame": [2]}))
    assert await phone.recv() == "[2]"


def a_first_certificate_is_fetched_and_served_and_a_restart_needs_nobody():
    with Scene(nonces_refused=50) as authority:
        authority.start()
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_served")
            served = time.monotonic()
            context = authority.trust()
            first = serial(relay, context)
            assert time.monotonic() - served < 1.0

            async def peers():
                async with dial(relay, context, "server") as binary:
                    async with dial(relay, context, "client") as phone:
                        await exchange(binary, phone)
            asyncio.run(peers())

            # Host and server name are the domain or nothing.
            head = ("GET /v1/server HTTP/1.1\r\nHost: {}\r\nUser-Agent: t\r\nUpgrade: websocket\r\n"
                    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nx-pyrycode-server: home\r\n"
                    "x-pyrycode-version: 1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            for host, status in [("other.example.com", b"421"), (DOMAIN.upper() + ":8443", b"101")]:
                with session(relay, context) as stream:
                    stream.sendall(head.format(host).encode())
                    assert stream.recv(65536).startswith(b"HTTP/1.1 " + status), host
            for name in ["other.example.com", None]:
                try:
                    session(relay, blind(), name).close()
                except ssl.SSLError:
                    continue
                raise AssertionError(f"a handshake for {name} succeeds")

            # The authority's port has nothing for anybody else.
            for path in ["/", "/healthz", "/v1/server", "/.well-known/acme-challenge/",
                         "/.well-known/acme-challenge/x"]:
                plain = socket.create_connection(("127.0.0.1", authority.http), timeout=SOON)
                assert ask(plain, get(path, DOMAIN)).startswith(b"HTTP/1.1 404 "), path

        cache = os.path.join(authority.directory, "certs")
        assert os.stat(cache).st_mode & 0o777 == 0o700
        files = sorted(os.listdir(cache))
        assert len(files) == 2, files
        assert all(os.stat(os.path.join(cache, file)).st_mode & 0o777 == 0o600 for file in files)
        # With the authority down, and a cache that somebody has opened to all.
        authority.stop()
        os.chmod(cache, 0o755)
        with Relay(*authority.flags) as relay:
            assert serial(relay, context) == first
            assert not says(relay, "certificate_ordered")
        assert os.stat(cache).st_mode & 0o777 == 0o700


def a_certificate_is_renewed_under_live_websockets():
    with Scene(validity=24) as authority:
        authority.start()
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_served")
            context = authority.trust()
            first = serial(relay, context)

            async def peers():
                async with dial(relay, context, "server") as binary:
                    async with dial(relay, context, "client") as phone:
                        while not says(relay, "certificate_served", 2):
                            await exchange(binary, phone)
                            await asyncio.sleep(0.1)
                        await exchange(binary, phone)
                        assert serial(relay, authority.trust()) != first
                        async with dial(relay, authority.trust(), "client") as newcomer:
                            await exchange(binary, newcomer)
                        await exchange(binary, phone)
            asyncio.run(asyncio.wait_for(peers(), 60))
            # It was not asked for more often than a third of the lifetime calls for.
            assert not says(relay, "certificate_served", 3)
        account = [name for name in os.listdir(os.path.join(authority.directory, "certs"))
                   if name.startswith("account")]
        assert len(account) == 1, "one account for both"


def an_authority_that_is_down_at_first_is_asked_again():
    with Scene() as authority:
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_refused")
            try:
                session(relay, blind()).close()
            except ssl.SSLError:
                pass
            else:
                raise AssertionError("a handshake without a certificate succeeds")
            authority.start()
            wait_says(relay, "certificate_served")
            serial(relay, authority.trust())


def an_expired_certificate_is_served_while_another_is_fetched():
    with Scene(validity=4) as authority:
        authority.start()
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_served")
        authority.stop()
        expired = time.time() + 4
        wait_until(lambda: time.time() > expired, complaint="time stands still")
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_served")
            assert "expires_in_days=-1" in "".join(relay.log)
            session(relay, blind()).close()
            wait_says(relay, "certificate_refused")
            authority.validity = 3600
            authority.start()
            wait_says(relay, "certificate_served", 2)
            serial(relay, authority.trust())


def an_authority_that_refuses_is_left_alone_for_a_while_until_told():
    with Scene() as authority:
        # It looks for the challenge where nobody answers.
        authority.validates_at = free_port()
        authority.start()
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_refused")
            line = next(line for line in relay.log if "msg=certificate_refused" in line)
            assert "err=\"connection" in line or "err=\"unauthorized" in line, line
            pause = int(line.split("retry_in_s=")[1].split()[0])
            assert 45 <= pause <= 75, line
            # Two seconds later nothing has been tried, without a doubt.
            quiet_until = time.monotonic() + 2
            wait_until(lambda: time.monotonic() > quiet_until)
            assert not says(relay, "certificate_ordered", 2)
            authority.stop()
            authority.validates_at = authority.http
            authority.start()
            relay.process.send_signal(signal.SIGHUP)
            wait_says(relay, "certificate_served")
            serial(relay, authority.trust())


if __name__ == "__main__":
    main([
        a_first_certificate_is_fetched_and_served_and_a_restart_needs_nobody,
        a_certificate_is_renewed_under_live_websockets,
        an_authority_that_is_down_at_first_is_asked_again,
        an_expired_certificate_is_served_while_another_is_fetched,
        an_authority_that_refuses_is_left_alone_for_a_while_until_told,
    ])
