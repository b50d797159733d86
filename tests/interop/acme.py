"""Certificates from an authority that no one here wrote: Pebble, which is Let's Encrypt's
own for tests. It refuses a share of the nonces on purpose."""

import asyncio
import base64
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.request

import websockets

from acme_front import Front, http_date, problem
from harness import SOON, Relay, free_port, main, need_root, program, spawn, wait_until

DOMAIN = "relay.example.com"
# Pebble makes RSA keys when it starts, which takes its time on a busy machine.
START = 60


class Authority:
    """Pebble and a name server that leads every name here, ended on leaving."""

    def __init__(self, directory, validity=90 * 24 * 3600, nonces_refused=20, customers=None):
        self.directory = directory
        self.validity = validity
        self.nonces_refused = nonces_refused
        # Names of keys and keys, base64url; None: it is open to all.
        self.customers = customers
        self.port, self.management, self.dns, self.http, self.tls = (free_port() for _ in range(5))
        # Where it looks for challenges; on the TLS port nothing listens by default.
        self.validates_at = self.http
        self.validates_tls_at = 1
        self.certificate = os.path.join(directory, "authority.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-keyout", self.certificate + ".key", "-out", self.certificate, "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-addext", "basicConstraints=critical,CA:FALSE"],
            check=True, stderr=subprocess.DEVNULL)
        self.processes = []

    @property
    def cache(self):
        return os.path.join(self.directory, "certs")

    def accounts(self):
        """How many it has."""
        with open(os.path.join(self.directory, "pebble.log")) as log:
            return max(map(int, re.findall(r"There are now (\d+) accounts", log.read())), default=0)

    def issued(self):
        """How many certificates it has issued."""
        with open(os.path.join(self.directory, "pebble.log")) as log:
            return len(re.findall(r"Issued certificate serial", log.read()))

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
                "httpPort": self.validates_at, "tlsPort": self.validates_tls_at,
                "certificateValidityPeriod": self.validity,
                "externalAccountBindingRequired": self.customers is not None,
                "externalAccountMACKeys": self.customers or {},
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
        wait_until(self.is_up, START, "Pebble does not start")
        # It resolves by UDP, whose socket nobody sees accept; TCP is bound after it.
        wait_until(self.resolves, START, "the name server does not start")

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
    # A phone that left before is told of by a close notice.
    while "frame" not in (envelope := json.loads(await binary.recv())):
        pass
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
            # A handshake without a name gets the one certificate, as health checks by
            # address need it; another name is unknown (alert 112, RFC 6066 section 3).
            session(relay, blind(), None).close()
            try:
                session(relay, blind(), "other.example.com").close()
            except ssl.SSLError as error:
                assert "UNRECOGNIZED_NAME" in str(error).upper(), error
            else:
                raise AssertionError("a handshake for another name succeeds")

            # The authority's port answers health checks, too, and nothing else.
            for path, status in [("/", 404), ("/healthz", 200), ("/v1/server", 404),
                                 ("/.well-known/acme-challenge/", 404),
                                 ("/.well-known/acme-challenge/x", 404)]:
                plain = socket.create_connection(("127.0.0.1", authority.http), timeout=SOON)
                assert ask(plain, get(path, DOMAIN)).startswith(b"HTTP/1.1 %d " % status), path

        cache = os.path.join(authority.directory, "certs")
        assert os.stat(cache).st_mode & 0o777 == 0o700
        files = sorted(os.listdir(cache))
        assert files == ["acme_account+key", "pyrycode-relay.json", DOMAIN], files
        assert all(os.stat(os.path.join(cache, file)).st_mode & 0o777 == 0o600 for file in files)
        # With the authority down, and a cache that somebody has opened to all.
        authority.stop()
        os.chmod(cache, 0o755)
        with Relay(*authority.flags) as relay:
            assert serial(relay, context) == first
            assert not says(relay, "certificate_ordered")
        assert os.stat(cache).st_mode & 0o777 == 0o700


def the_name_is_asked_for_as_clients_and_health_checks_do():
    """With the dot of the root, by address without a name, and by another name."""
    with Scene() as authority:
        authority.start()
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_served")
            port = relay.address[1]
            roots = os.path.join(authority.directory, "roots.pem")
            with open(roots, "w") as file:
                file.write(authority.fetch(authority.management, "roots/0"))

            def run(*command):
                return subprocess.run(command, capture_output=True, timeout=SOON, text=True,
                                      stdin=subprocess.DEVNULL)

            # curl takes the dot from the server name and leaves it in Host.
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            upgrade = [part for field in (
                "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key,
                "x-pyrycode-version: 1") for part in ("-H", field)]
            for number, host in enumerate([f"{DOMAIN}.", DOMAIN, DOMAIN.upper()]):
                done = run("curl", "--silent", "--http1.1", "--noproxy", "*", "--cacert", roots,
                           "--max-time", "2", "--output", "/dev/null", "--write-out", "%{http_code}",
                           "--resolve", f"{host}:{port}:127.0.0.1", *upgrade,
                           "-H", f"x-pyrycode-server: curl{number}", f"https://{host}:{port}/v1/server")
                assert done.stdout == "101", (host, done)
            # As kubelet asks: by address, so without a server name.
            done = run("curl", "--silent", "--insecure", "--noproxy", "*", f"https://127.0.0.1:{port}/healthz")
            assert json.loads(done.stdout)["status"] == "ok", done
            # Another name: alert 112 and not 49, and the log has it.
            at = f"127.0.0.1:{port}"
            done = run("openssl", "s_client", "-connect", at, "-servername", "other.example.com")
            assert "unrecognized name" in done.stderr and "number 112" in done.stderr, done
            wait_until(lambda: any(
                "msg=tls_failed" in line and "remote=127.0.0.1" in line
                and "server_name=other.example.com" in line for line in list(relay.log)))
            done = run("openssl", "s_client", "-connect", at, "-servername", DOMAIN, "-CAfile", roots)
            assert "Verify return code: 0" in done.stdout, done

            def probe(url, *flags):
                done = run(program(), "probe", "--json", "--health", "--ca", roots, *flags, url)
                return {step["name"]: step for step in json.loads(done.stdout)["steps"]}
            steps = probe(f"https://{DOMAIN}:1", "--connect", at)
            assert steps["health"]["outcome"] == "ok", steps
            assert steps["tls"]["server_name"] == DOMAIN, steps
            steps = probe("https://other.example.com", "--connect", at)
            assert "not other.example.com" in steps["tls"]["advice"], steps
            assert "--connect" in steps["tls"]["advice"], steps


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
            # tls-alpn-01 failed once, and http-01 was tried first the next time.
            assert says(relay, "challenge_failed") and not says(relay, "challenge_failed", 2)
        assert authority.accounts() == 1, "one account for both"


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
            assert "err=\"tls-alpn-01: " in line and "; http-01: " in line, line
            pause = int(line.split("retry_in_s=")[1].split()[0])
            assert 45 <= pause <= 75, line
            # Two seconds later nothing has been tried, without a doubt.
            quiet_until = time.monotonic() + 2
            wait_until(lambda: time.monotonic() > quiet_until)
            assert not says(relay, "certificate_ordered", 3)
            authority.stop()
            authority.validates_at = authority.http
            authority.start()
            relay.process.send_signal(signal.SIGHUP)
            wait_says(relay, "certificate_served")
            serial(relay, authority.trust())


def refusal(*flags):
    """What the relay says when it does not start."""
    ended = subprocess.run([program(), "--metrics-listen=", *flags], capture_output=True,
                           timeout=SOON, text=True)
    assert ended.returncode == 2, ended
    return ended.stderr


class GoRelay:
    """The TLS of the Go relay: its library, and its cache."""

    program = None
    building = threading.Lock()

    def __init__(self, authority):
        with self.building:
            if not GoRelay.program:
                here = os.path.dirname(os.path.abspath(__file__))
                built = os.path.join(here, "..", "..", "target", "interop")
                program = os.path.join(built, "go-autocert")
                # Against Debian's library: GOPATH mode fetches nothing.
                subprocess.run(
                    ["go", "build", "-o", program, "main.go"], check=True,
                    cwd=os.path.join(here, "go_autocert"),
                    env=os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode",
                                      "GOFLAGS": "", "GOCACHE": os.path.join(built, "go-cache")})
                GoRelay.program = program
        self.process = subprocess.Popen(
            [GoRelay.program, authority.cache, DOMAIN, f"https://localhost:{authority.port}/dir",
             authority.certificate, f"127.0.0.1:{authority.tls}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def serial(self):
        line = self.process.stdout.readline()
        assert line.startswith("certificate "), line
        return line.split()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(SOON)
        self.process.stdout.close()


def a_cache_of_the_go_relay_is_taken_over_and_given_back():
    with Scene() as authority:
        authority.validates_tls_at = authority.tls
        authority.start()
        with GoRelay(authority) as go:
            issued = go.serial()
        assert sorted(os.listdir(authority.cache)) == ["acme_account+key", DOMAIN]
        flags = [*authority.flags, "--https-listen", f"127.0.0.1:{authority.tls}"]
        with Relay(*flags) as relay:
            # From the first second, without a request to the authority.
            assert int(serial(relay, authority.trust()), 16) == int(issued, 16)
            assert not says(relay, "certificate_ordered")
        # The next one is had with the same account.
        os.rename(os.path.join(authority.cache, DOMAIN), os.path.join(authority.directory, "old"))
        with Relay(*flags) as relay:
            wait_says(relay, "certificate_served")
            ours = serial(relay, authority.trust())
            assert int(ours, 16) != int(issued, 16)
            assert not says(relay, "challenge_failed")
        assert authority.accounts() == 1, "the account is the Go relay's"
        # And back: it serves what the relay fetched.
        with GoRelay(authority) as go:
            assert int(go.serial(), 16) == int(ours, 16)


def an_rsa_certificate_of_the_go_relay_is_served_if_there_is_no_other():
    with Scene() as authority:
        os.mkdir(authority.cache, 0o700)
        path = os.path.join(authority.cache, DOMAIN + "+rsa")
        key, chain = path + ".key", path + ".chain"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", chain,
             "-days", "90", "-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:{DOMAIN}"],
            check=True, stderr=subprocess.DEVNULL)
        with open(path, "w") as file:
            for part in (key, chain):
                with open(part) as it:
                    file.write(it.read())
                os.remove(part)
        with Relay(*authority.flags) as relay:
            with session(relay, blind()) as stream:
                leaf = ssl.DER_cert_to_PEM_cert(stream.getpeercert(True))
            with open(path) as file:
                assert leaf.strip() in file.read()


def the_tls_port_alone_is_enough():
    with Scene() as authority:
        authority.validates_tls_at, authority.validates_at = authority.tls, free_port()
        authority.start()
        with Relay(*authority.flags, "--https-listen", f"127.0.0.1:{authority.tls}",
                   "--log-level", "debug") as relay:
            wait_says(relay, "certificate_served")
            context = authority.trust()
            serial(relay, context)
            assert says(relay, "challenge_answered") and not says(relay, "challenge_failed")
            # Without a challenge its protocol is not spoken, and others are as before.
            challenger = blind()
            challenger.set_alpn_protocols(["acme-tls/1"])
            try:
                session(relay, challenger).close()
            except ssl.SSLError:
                pass
            else:
                raise AssertionError("a handshake for a challenge succeeds without one")


class ProxyV2:
    """A TCP proxy that names the client in a PROXY header, version 2."""

    def __init__(self, port, to):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.to = to
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            out = socket.create_connection(("127.0.0.1", self.to), timeout=SOON)
            out.sendall(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
                        + socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1")
                        + (4321).to_bytes(2, "big") + (443).to_bytes(2, "big"))
            for source, sink in ((stream, out), (out, stream)):
                threading.Thread(target=self.carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def carry(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def the_tls_port_is_enough_behind_a_proxy_that_names_clients():
    with Scene() as authority:
        authority.validates_tls_at, authority.validates_at = free_port(), free_port()
        authority.start()
        ProxyV2(authority.validates_tls_at, authority.tls)
        with Relay(*authority.flags, "--https-listen", f"127.0.0.1:{authority.tls}",
                   "--https-proxy-protocol") as relay:
            wait_says(relay, "certificate_served")
            assert not says(relay, "challenge_failed")


def an_authority_for_customers_gets_the_account_bound():
    key = base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
    with Scene(customers={"customer-7": key}) as authority:
        authority.start()
        with Relay(*authority.flags) as relay:
            wait_says(relay, "certificate_refused")
            assert "--acme-eab-kid" in "".join(relay.log)
        hmac = os.path.join(authority.directory, "hmac")
        with open(hmac, "w") as file:
            file.write(key + "\n")
        os.chmod(hmac, 0o600)
        flags = [*authority.flags, "--acme-eab-kid", "customer-7", "--acme-eab-hmac-file", hmac]
        with Relay(*flags) as relay:
            wait_says(relay, "certificate_served")
            serial(relay, authority.trust())
            assert key not in "".join(relay.log)
        os.chmod(hmac, 0o644)
        said = refusal(*flags)
        assert "others than" in said and f"chmod 600 {hmac}" in said, said
        os.chmod(hmac, 0o600)
        with open(hmac, "w") as file:
            file.write("HMAC key: " + key)
        said = refusal(*flags)
        assert "--acme-eab-hmac-file: " in said and key not in said, said


class FrontScene(Scene):
    """An authority with a front, which the relay is led to."""

    def __enter__(self):
        authority = super().__enter__()
        authority.start()
        self.front = Front(authority)
        return authority, self.front, [*authority.flags, "--acme-directory", self.front.url]

    def __exit__(self, *_):
        self.front.stop()
        super().__exit__()


def a_certificate_is_renewed_when_the_authority_wants_it_to_be():
    day = 24 * 3600
    with FrontScene() as (authority, front, flags):
        front.window = (time.time() + 59 * day, time.time() + 60 * day)
        with Relay(*flags) as relay:
            wait_says(relay, "certificate_served")
            first = serial(relay, authority.trust())
            wait_until(lambda: front.count("renewal-info"))
            assert front.payloads("order-plz")[-1].get("replaces") is None
            # It is revoked; the operator need not wait for the next question.
            front.window = (time.time() - 2 * day, time.time() - day)
            relay.process.send_signal(signal.SIGHUP)
            wait_says(relay, "certificate_served", 2)
            assert serial(relay, authority.trust()) != first
            assert re.fullmatch(r"[\w-]+\.[\w-]+", front.payloads("order-plz")[-1]["replaces"])
            # The new one has such a window, too: it is not renewed again and again.
            # Asked for the first, by the signal, and for the second.
            wait_until(lambda: front.count("renewal-info") >= 3)
            assert not says(relay, "certificate_ordered", 4)
        # One that the authority takes for replaced is ordered without saying so.
        before = front.count("order-plz")
        front.instead["order-plz"] = problem("alreadyReplaced", 409)
        with Relay(*flags) as relay:
            wait_says(relay, "certificate_served", 2)
            sent = ["replaces" in order for order in front.payloads("order-plz")[before:]]
            assert sent == [True, False], sent


def an_authority_is_asked_again_when_it_says_in_either_form():
    for retry_after in ("10800", http_date(time.time() + 10800)):
        with FrontScene() as (_, front, flags):
            front.instead["order-plz"] = problem("rateLimited", 429, **{"Retry-After": retry_after})
            with Relay(*flags) as relay:
                wait_says(relay, "certificate_refused")
                line = next(line for line in relay.log if "msg=certificate_refused" in line)
                assert 10700 <= int(line.split("retry_in_s=")[1].split()[0]) <= 10800, line


def an_order_that_takes_its_time_is_waited_for_and_kept():
    with FrontScene() as (authority, front, flags):
        front.slow_for = 8
        # In the midst of it, the authority has an outage.
        with Relay(*flags) as relay:
            wait_until(lambda: front.count("finalize-order"), 30)
            front.instead["my-order"] = (503, {"Retry-After": "2"}, b"down")
            wait_says(relay, "certificate_served", within=60)
            assert says(relay, "certificate_refused")
            # One that tls-alpn-01 failed for, and one that was finalized once.
            assert front.count("order-plz") == 2 and front.count("finalize-order") == 1
            assert front.count("my-order") < 12, front.requests
            serial(relay, authority.trust())


@contextlib.contextmanager
def upgraded_while_ordering(slow_for):
    """A relay that is asked to upgrade while its order is processed, for so many seconds."""
    with FrontScene() as (authority, front, flags):
        front.slow_for = slow_for
        with Relay(*flags) as relay:
            wait_until(lambda: front.count("finalize-order"), 30)
            relay.process.send_signal(signal.SIGUSR2)
            yield relay
            serial(relay, authority.trust())
            assert authority.issued() == 1, "what was ordered is ordered once"


def an_upgrade_waits_for_an_order():
    with upgraded_while_ordering(6) as relay:
        wait_says(relay, "handover_done")
        events = re.findall(r"msg=(handover_\w+|certificate_served)", "".join(relay.log))
        assert events[:3] == ["handover_started", "certificate_served", "handover_rehearsed"], events


def an_upgrade_is_refused_while_an_order_takes_too_long():
    with upgraded_while_ordering(75) as relay:
        wait_says(relay, "handover_refused", within=70)
        refused = [line for line in relay.log if "msg=handover_refused" in line]
        assert "cause=certificate_order" in refused[0], refused
        # It was ordered on meanwhile, and nothing stands in the way of another upgrade.
        wait_says(relay, "certificate_served", within=60)
        relay.process.send_signal(signal.SIGUSR2)
        wait_says(relay, "handover_done")


@contextlib.contextmanager
def prepared(*commands):
    """A program that runs `commands` in mounts of its own and becomes the relay."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as script:
        steps = " && ".join([*commands, f'exec {os.path.abspath(program())} "$@"'])
        script.write(f"#!/bin/sh\nexec unshare --mount sh -c {shlex.quote(steps)} sh \"$@\"\n")
    os.chmod(script.name, 0o755)
    try:
        yield script.name
    finally:
        os.unlink(script.name)


def a_cache_that_cannot_be_written_costs_no_certificate():
    """An authority gives a few certificates a week: none is ordered that is not kept."""
    need_root("to mount")
    with Scene() as authority:
        authority.start()
        cache, flags = authority.cache, authority.flags
        with Relay(*flags) as relay:
            wait_says(relay, "certificate_served")
            first = serial(relay, authority.trust())
        read_only = [f"mount --bind {cache} {cache}", f"mount -o remount,bind,ro {cache}"]
        # With the account and nothing else in it, and no room.
        full = [f"cp {cache}/acme* {authority.directory}", f"mount -t tmpfs -o size=16k,mode=700 none {cache}",
                f"cp {authority.directory}/acme* {cache}",
                f"(cat /dev/zero >{cache}/fill 2>/dev/null || true)"]

        def run(command, *more):
            return subprocess.run([command, *flags, *more], capture_output=True, text=True, timeout=SOON)
        with prepared(*read_only) as command:
            # What is there is served, with a warning that names the path.
            with Relay(*flags, command=command) as relay:
                assert serial(relay, authority.trust()) == first
                wait_says(relay, "cert_cache_not_writable")
                assert any("cert_cache_not_writable" in line and cache in line for line in relay.log)
                assert not says(relay, "certificate_ordered")
            checked = run(command, "--check-config")
            assert checked.returncode == 0 and cache in checked.stderr, checked
            os.unlink(os.path.join(cache, DOMAIN))
            issued = authority.issued()
            for more in ([], ["--check-config"]):
                refused = run(command, *more)
                assert refused.returncode == 2 and cache in refused.stderr, refused
                assert "Read-only file system" in refused.stderr, refused
        with prepared(*full) as command:
            for more in ([], ["--check-config"]):
                refused = run(command, *more)
                assert refused.returncode == 2 and cache in refused.stderr, refused
                assert "No space left" in refused.stderr, refused
        assert authority.issued() == issued == 1, "a certificate was ordered that was not kept"


def a_cache_that_is_of_no_use_is_refused_with_its_path_and_left_alone():
    with Scene() as authority:
        flags = authority.flags
        cache = authority.cache
        os.mkdir(cache)
        for mode in (0o755, 0o1777, 0o2775):
            os.chmod(cache, mode)
            for more in ([], ["--check-config"]):
                said = refusal(*flags, *more)
                assert f"--cert-cache: {cache}: others than its owner" in said, said
                assert f"chmod 700 {cache}" in said, said
                assert os.stat(cache).st_mode & 0o7777 == mode
        os.rmdir(cache)
        checked = subprocess.run([program(), *flags, "--check-config"], capture_output=True,
                                 timeout=SOON, text=True)
        assert checked.returncode == 0, checked
        assert not os.path.exists(cache), "a check makes nothing"
        with open(cache, "w"):
            pass
        assert f"{cache}: is not a directory" in refusal(*flags)


if __name__ == "__main__":
    main([
        a_first_certificate_is_fetched_and_served_and_a_restart_needs_nobody,
        the_name_is_asked_for_as_clients_and_health_checks_do,
        a_certificate_is_renewed_under_live_websockets,
        an_authority_that_is_down_at_first_is_asked_again,
        an_expired_certificate_is_served_while_another_is_fetched,
        an_authority_that_refuses_is_left_alone_for_a_while_until_told,
        a_cache_of_the_go_relay_is_taken_over_and_given_back,
        an_rsa_certificate_of_the_go_relay_is_served_if_there_is_no_other,
        the_tls_port_alone_is_enough,
        the_tls_port_is_enough_behind_a_proxy_that_names_clients,
        an_authority_for_customers_gets_the_account_bound,
        a_certificate_is_renewed_when_the_authority_wants_it_to_be,
        an_authority_is_asked_again_when_it_says_in_either_form,
        an_order_that_takes_its_time_is_waited_for_and_kept,
        an_upgrade_waits_for_an_order,
        an_upgrade_is_refused_while_an_order_takes_too_long,
        a_cache_that_cannot_be_written_costs_no_certificate,
        a_cache_that_is_of_no_use_is_refused_with_its_path_and_left_alone,
    ])
