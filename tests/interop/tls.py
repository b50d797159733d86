"""The relay's TLS against clients that no one here wrote: OpenSSL, curl, Python's `ssl`
with `websockets`, Node's `ws`, and what sslscan has to say."""

import asyncio
import json
import os
import re
import socket
import ssl
import subprocess
import tempfile
import xml.etree.ElementTree

import websockets

from harness import SOON, Relay, main

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


if __name__ == "__main__":
    main([
        websockets_and_ssl, both_versions_and_no_older_ones, sessions_resume,
        openssl_takes_the_chain_whatever_form_the_key_has, openssl_may_not_renegotiate,
        curl_by_name_and_the_wrong_name, node_ws, what_sslscan_says,
    ], at_once=4)
