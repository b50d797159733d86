"""The relay's TLS against clients that no one here wrote: OpenSSL, curl, Python's `ssl`
with `websockets`, Node's `ws`, Go's `crypto/tls`, and what sslscan has to say."""

import asyncio
import json
import os
import re
import socket
import ssl
import subprocess
import tempfile
import threading
import xml.etree.ElementTree

import websockets

from harness import SOON, Relay, main, need_root, program

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Pair:
    """A certificate for localhost that signs itself, and its key."""

    def __init__(self, kind=("ec", "-pkeyopt", "ec_paramgen_curve:P-256")):
        self.directory = tempfile.TemporaryDirectory()
        self.certificate, self.key = (
            os.path.join(self.directory.name, name) for name in ("chain.pem", "key.pem"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-keyout", self.key,
             "-out", self.certificate, "-days", "30", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost", "-addext",
             "basicConstraints=critical,CA:FALSE"],
            check=True, stderr=subprocess.DEVNULL)
        os.chmod(self.key, 0o600)

    @property
    def flags(self):
        return ["--tls-cert", self.certificate, "--tls-key", self.key]

    def context(self):
        return ssl.create_default_context(cafile=self.certificate)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.directory.cleanup()


def session(relay, context):
    stream = socket.create_connection(relay.address, timeout=SOON)
    return context.wrap_socket(stream, server_hostname="localhost", suppress_ragged_eofs=False)


def whole_answer(stream, remember=lambda session: None):
    """To the end, which is an error without close_notify."""
    with stream:
        stream.sendall(HEALTH)
        answer = b""
        while part := stream.recv(65536):
            answer += part
        remember(stream.session)
        return answer


def dial(relay, context, role, server_id="home"):
    return websockets.connect(
        f"wss://localhost:{relay.address[1]}/v1/{role}", host="127.0.0.1", ssl=context,
        server_hostname="localhost", proxy=None, max_size=2**20,
        additional_headers={"x-pyrycode-server": server_id, "x-pyrycode-version": "1",
                            "x-pyrycode-token": "t"})


async def exchange(binary, phone, frame):
    await phone.send(frame)
    envelope = await binary.recv()
    conn_id = json.loads(envelope)["conn_id"]
    assert envelope == f'{{"conn_id":"{conn_id}","frame":{frame}}}'
    await binary.send(envelope)
    assert await phone.recv() == frame


def websockets_and_ssl():
    with Pair() as pair, Relay(*pair.flags) as relay:
        async def peers():
            context = pair.context()
            async with dial(relay, context, "server") as binary:
                async with dial(relay, context, "client") as phone:
                    for frame in ["1", '{"a" : [2]}', json.dumps("x" * 250_000)]:
                        await exchange(binary, phone, frame)
                    assert phone.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
                    await phone.send("{")
                    await asyncio.wait_for(phone.wait_closed(), SOON)
                    assert phone.close_code == 1007
        asyncio.run(peers())


def both_versions_and_no_older_ones():
    with Pair(("rsa:2048",)) as pair, Relay(*pair.flags) as relay:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = pair.context()
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            stream = session(relay, context)
            assert stream.selected_alpn_protocol() == "http/1.1"
            first = stream.cipher()
            assert whole_answer(stream).startswith(b"HTTP/1.1 200 OK\r\n"), first
        for flag in ("-tls1", "-tls1_1"):
            client = openssl(relay, flag, "-cipher", "ALL:@SECLEVEL=0")
            assert client.returncode != 0 and b"BEGIN CERTIFICATE" not in client.stdout


def sessions_resume():
    with Pair() as pair, Relay(*pair.flags) as relay:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = pair.context()
            context.maximum_version = version
            sessions = []
            assert whole_answer(session(relay, context), sessions.append).startswith(b"HTTP/1.1 200 ")
            raw = socket.create_connection(relay.address, timeout=SOON)
            again = context.wrap_socket(raw, server_hostname="localhost", session=sessions[0],
                                        suppress_ragged_eofs=False)
            assert again.session_reused, version
            assert whole_answer(again).startswith(b"HTTP/1.1 200 ")


def openssl(relay, *flags, said=b""):
    return subprocess.run(
        ["openssl", "s_client", "-connect", relay.url, "-servername", "localhost", *flags],
        input=said, capture_output=True, timeout=SOON)


def openssl_takes_the_chain_whatever_form_the_key_has():
    with Pair(("rsa:2048",)) as rsa, Pair() as ec:
        forms = [(rsa, None), (ec, None),
                 (rsa, ["openssl", "rsa", "-traditional"]), (ec, ["openssl", "ec"])]
        for pair, convert in forms:
            if convert:
                subprocess.run([*convert, "-in", pair.key, "-out", pair.key], check=True,
                               stderr=subprocess.DEVNULL)
                os.chmod(pair.key, 0o600)
                with open(pair.key) as file:
                    head = file.read()
                assert re.search("BEGIN (RSA|EC) PRIVATE KEY", head), head[:40]
            with Relay(*pair.flags) as relay:
                said = openssl(relay, "-CAfile", pair.certificate, "-verify_return_error",
                               "-ign_eof", "-quiet", said=HEALTH)
                assert said.stdout.startswith(b"HTTP/1.1 200 OK\r\n"), said
                # It knows how the stream ended.
                assert b"unexpected eof" not in said.stderr, said.stderr


def openssl_may_not_renegotiate():
    with Pair() as pair, Relay(*pair.flags) as relay:
        said = openssl(relay, "-tls1_2", "-CAfile", pair.certificate, said=b"R\n")
        assert b"no renegotiation" in said.stderr or b"RENEGOTIATING" in said.stdout, said
        assert said.returncode != 0, "it renegotiates"
        assert b"Compression: NONE" in said.stdout


def openssl_renews_its_keys():
    """s_client sends a KeyUpdate for k, and for K one that asks for an answer."""
    with Pair() as pair, Relay(*pair.flags) as relay:
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", relay.url, "-servername", "localhost", "-tls1_3",
             "-CAfile", pair.certificate, "-verify_return_error", "-msg"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
        killer = threading.Timer(SOON, client.kill)
        killer.start()
        said = b""

        def hear(pattern, count):
            nonlocal said
            while len(re.findall(pattern, said)) < count:
                part = client.stdout.read(65536)
                assert part, (pattern, count, said)
                said += part

        # A command is the first byte of what s_client reads at once, after the handshake.
        for sent, command in enumerate("kKKkkK", 1):
            client.stdin.write(command.encode() + b"\n")
            hear(rb"KEYUPDATE", sent)
        client.stdin.write(HEALTH)
        hear(rb"HTTP/1\.1 200 OK", 1)
        hear(rb"close_notify", 1)
        # s_client sends each with what it does next, and may merge two.
        for direction, most in ((rb">>>", 6), (rb"<<<", 3)):
            count = len(re.findall(direction + rb" TLS 1\.3, Handshake .*KeyUpdate", said))
            assert 1 <= count <= most, (direction, said)
        client.stdin.close()
        assert client.wait(SOON) == 0, said
        killer.cancel()


def curl_by_name_and_the_wrong_name():
    with Pair() as pair, Relay(*pair.flags) as relay:
        port = relay.address[1]
        def curl(host):
            return subprocess.run(
                ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", pair.certificate,
                 "--resolve", f"{host}:{port}:127.0.0.1", f"https://{host}:{port}/healthz"],
                capture_output=True, timeout=SOON)
        right = curl("localhost")
        assert right.returncode == 0 and json.loads(right.stdout)["status"] == "ok", right
        # 60: the certificate is for another name.
        assert curl("relay.example").returncode == 60


def node_ws():
    with Pair() as pair, Relay(*pair.flags) as relay:
        script = os.path.join(os.path.dirname(__file__), "node", "wss.cjs")
        subprocess.run(["node", script, str(relay.address[1]), pair.certificate], check=True,
                       timeout=3 * SOON)


def go_crypto_tls():
    here = os.path.dirname(os.path.abspath(__file__))
    with Pair() as pair, Relay(*pair.flags) as relay, tempfile.TemporaryDirectory() as directory:
        client = os.path.join(directory, "client")
        subprocess.run(
            ["go", "build", "-o", client, "main.go"], cwd=os.path.join(here, "go_tls"), check=True,
            env=os.environ | {"GO111MODULE": "off", "GOCACHE": os.path.join(directory, "cache"),
                              "GOFLAGS": ""})
        subprocess.run([client, relay.url, pair.certificate], check=True, timeout=SOON)


# Only AEAD with forward secrecy: what rustls with ring offers, in its order.
SUITES = {
    "TLSv1.3": ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"],
    "TLSv1.2": ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256",
                "ECDHE-RSA-CHACHA20-POLY1305"],
}


def what_sslscan_says():
    with Pair(("rsa:2048",)) as pair, Relay(*pair.flags) as relay:
        scan = subprocess.run(
            ["sslscan", "--no-colour", "--sni-name=localhost", "--xml=-", relay.url],
            capture_output=True, timeout=60, check=True)
        test = xml.etree.ElementTree.fromstring(scan.stdout).find("ssltest")
        enabled = {f"{found.get('type').upper()}v{found.get('version')}"
                   for found in test.iter("protocol") if found.get("enabled") == "1"}
        assert enabled == {"TLSv1.2", "TLSv1.3"}, enabled
        suites = {version: [cipher.get("cipher") for cipher in test.iter("cipher")
                            if cipher.get("sslversion") == version] for version in SUITES}
        assert {version: sorted(found) for version, found in suites.items()} == {
            version: sorted(expected) for version, expected in SUITES.items()}, suites
        assert len(list(test.iter("cipher"))) == 6, "and no others"
        assert test.find("renegotiation").get("supported") == "0"
        # Absent where OpenSSL itself cannot compress, as Debian's.
        assert all(found.get("supported") == "0" for found in test.iter("compression"))
        assert all(found.get("vulnerable") == "0" for found in test.iter("heartbleed"))


def run_openssl(*command, **options):
    return subprocess.run(["openssl", *command], check=True, capture_output=True, **options).stdout


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o600)
    return path


def check(*flags, before=(), **variables):
    """What --check-config makes of these flags: its exit status and what it complains of."""
    done = subprocess.run(
        [*before, program(), "--check-config", *flags], capture_output=True, timeout=SOON,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYRYCODE_")} | variables)
    return done.returncode, done.stderr.decode()


class Signed:
    """An authority, a certificate for localhost that it has signed, and its key."""

    def __init__(self, directory):
        at = lambda name: os.path.join(directory, name)
        key = ["-newkey", "rsa:2048", "-nodes"]
        run_openssl("req", "-x509", *key, "-keyout", at("ca.key"), "-out", at("ca.pem"),
                    "-days", "30", "-subj", "/CN=An authority")
        run_openssl("req", *key, "-keyout", at("key.pem"), "-out", at("leaf.csr"),
                    "-subj", "/CN=localhost")
        run_openssl("x509", "-req", "-in", at("leaf.csr"), "-CA", at("ca.pem"), "-CAkey", at("ca.key"),
                    "-CAcreateserial", "-days", "30", "-out", at("leaf.pem"), "-extfile",
                    write(at("extensions"), b"subjectAltName=DNS:localhost\n"))
        os.chmod(at("key.pem"), 0o600)
        self.at, self.key_path = at, at("key.pem")
        self.ca, self.leaf, self.key = (
            open(at(name), "rb").read() for name in ("ca.pem", "leaf.pem", "key.pem"))

    def check(self, chain, key=None):
        key_path = write(self.at("other.key"), key) if key is not None else self.key_path
        return check("--tls-cert", write(self.at("chain.pem"), chain), "--tls-key", key_path)


def files_that_openssl_makes():
    with tempfile.TemporaryDirectory() as directory:
        made = Signed(directory)
        ca, leaf, key, at = made.ca, made.leaf, made.key, made.at
        trusted = run_openssl("x509", "-in", at("ca.pem"), "-trustout")
        p12 = run_openssl("pkcs12", "-export", "-in", at("leaf.pem"), "-inkey", at("key.pem"),
                          "-passout", "pass:")
        utf16 = leaf.decode().encode("utf-16")
        bom = b"\xef\xbb\xbf"
        line = leaf.count(b"\n") + 1
        for chain in [leaf + ca, bom + leaf + bom + ca, (leaf + ca).replace(b"\n", b"\r\n"),
                      run_openssl("x509", "-in", at("leaf.pem"), "-text") + ca + key]:
            assert made.check(chain) == (0, ""), chain
        for chain, words in [
                (leaf + trusted, f"line {line}: TRUSTED CERTIFICATE is a format of OpenSSL's own"),
                (leaf.rstrip() + ca, f"line {line - 1}: two blocks are glued together"),
                (ca + leaf, "the leaf must come first; the key fits the 2nd certificate (line "),
                (leaf + ca[:200], f"line {line}: the block that begins here is cut off"),
                (run_openssl("x509", "-in", at("leaf.pem"), "-outform", "der"), "is DER, not PEM"),
                (p12, "is PKCS#12, not PEM"), (utf16, "is text in UTF-16"), (ca, "is not the key of")]:
            status, said = made.check(chain)
            assert status == 2 and words in said and said.count("\n") <= 3, (status, said)
        locked = run_openssl("pkey", "-aes256", "-passout", "pass:x", "-in", at("key.pem"))
        old = run_openssl("rsa", "-aes256", "-traditional", "-passout", "pass:x", "-in", at("key.pem"))
        der = run_openssl("pkey", "-outform", "der", "-in", at("key.pem"))
        for other, words in [(locked, "line 1: the key is encrypted"), (der, "is DER, not PEM"),
                             (old, "line 1: the key is encrypted"), (key + key, "more than one"),
                             (leaf, "no PRIVATE KEY block")]:
            status, said = made.check(leaf, other)
            assert status == 2 and words in said and said.count("\n") <= 3, (status, said)
        # The same reader is behind every file of authorities.
        authority = write(at("trusted.pem"), ca + trusted)
        words = "TRUSTED CERTIFICATE is a format of OpenSSL's own"
        status, said = check("--domain", "relay.example", "--cert-cache", at("cache"),
                             "--acme-ca", authority)
        assert status == 2 and words in said, said
        assert not os.path.exists(at("cache")), "a check never writes"
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = "https://127.0.0.1:{}".format(server.getsockname()[1])
            probe = subprocess.run([program(), "probe", "--ca", authority, url],
                                   capture_output=True, timeout=SOON)
        assert probe.returncode == 1 and words in (probe.stdout + probe.stderr).decode(), probe


def the_whole_chain_is_served():
    """Two files with a byte order mark, joined."""
    with tempfile.TemporaryDirectory() as directory:
        made = Signed(directory)
        bom = b"\xef\xbb\xbf"
        chain = write(made.at("chain.pem"), bom + made.leaf + bom + made.ca)
        with Relay("--tls-cert", chain, "--tls-key", made.key_path) as relay:
            said = openssl(relay, "-showcerts", "-CAfile", made.at("ca.pem"), "-verify_return_error")
            assert said.stdout.count(b"BEGIN CERTIFICATE") == 2, said
            assert b"Verify return code: 0 (ok)" in said.stdout, said


def keys_that_the_system_protects():
    """The layouts of Debian, Kubernetes, systemd and Docker, for a relay without privileges."""
    need_root("to become another user")
    user = 65534
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    with Pair() as pair:
        os.chmod(pair.directory.name, 0o755)

        def layout(owner, group, mode, before=drop, **variables):
            os.chown(pair.key, owner, group)
            os.chmod(pair.key, mode)
            return check(*pair.flags, before=before, **variables)

        for owner, group, mode in [(user, user, 0o600), (user, user, 0o400), (0, user, 0o640),
                                   (0, user, 0o440)]:
            assert layout(owner, group, mode) == (0, ""), (owner, group, oct(mode))
        for owner, group, mode, words in [
                (0, 0, 0o444, "others than root and its group may use this key (mode 0444)"),
                (0, user, 0o660, "chmod 640"), (user, user, 0o640, "chmod 600"),
                (1, user, 0o640, "uid 1 owns this key"), (0, 0, 0o600, "LoadCredential=")]:
            status, said = layout(owner, group, mode)
            assert status == 2 and words in said and said.count("\n") <= 3, (status, said)
        credentials = {"CREDENTIALS_DIRECTORY": pair.directory.name}
        assert layout(0, 0, 0o444, **credentials) == (0, "")
        assert layout(0, 0, 0o444, CREDENTIALS_DIRECTORY="/run/credentials/other")[0] == 2
        # In a namespace of its own, where the mount is read-only.
        mount = ["unshare", "--mount", "sh", "-c",
                 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
                 pair.directory.name]
        status, said = layout(0, 0, 0o444, before=[*mount, *drop])
        assert status == 0 and "warning: --tls-key" in said and "mode 0400" in said, (status, said)


if __name__ == "__main__":
    main([
        websockets_and_ssl, both_versions_and_no_older_ones, sessions_resume,
        openssl_takes_the_chain_whatever_form_the_key_has, openssl_may_not_renegotiate,
        openssl_renews_its_keys, curl_by_name_and_the_wrong_name, node_ws, go_crypto_tls, what_sslscan_says, files_that_openssl_makes,
        the_whole_chain_is_served, keys_that_the_system_protects,
    ], at_once=4)
