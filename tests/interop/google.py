"""Google's two endpoints, played by an HTTPS server of one's own.

Owns the certificates, the service account and what was asked. What is answered
is the scenario's: an `Answer`, or a function that has the connection to itself.

Every secret in here, in whatever form it may travel, contains `SECRET`, but the
private key, whose lines are secrets, too.
"""

import contextlib
import datetime
import ipaddress
import json
import ssl
import tempfile
import threading
import urllib.parse
from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

SECRET = "hunter2"
PROJECT, EMAIL, KEY_ID = f"{SECRET}-project", f"{SECRET}@example.org", f"{SECRET}-key"
SEND = f"/v1/projects/{PROJECT}/messages:send"
TOKEN = "/token"
LIFETIME = 3599

PKCS8 = serialization.PrivateFormat.PKCS8
PKCS1 = serialization.PrivateFormat.TraditionalOpenSSL

# Removed when the process ends.
_directory = tempfile.TemporaryDirectory()


def pem(key, form=PKCS8):
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(encoding, form, none).decode()


def rsa_key(bits=2048):
    return rsa.generate_private_key(65537, bits)


class Authority:
    """A certificate authority; `file` is its certificate."""

    def __init__(self, name):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._builder(self.name, self.key, datetime.timedelta(days=1)).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = own.sign(self.key, hashes.SHA256())
        self.file = self._write(self._pem(self.certificate))

    def _builder(self, name, key, life, age=datetime.timedelta(days=2)):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - age).not_valid_after(now + life)
        )

    @staticmethod
    def _pem(certificate):
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    @staticmethod
    def _write(text):
        with tempfile.NamedTemporaryFile("w", dir=_directory.name, delete=False) as file:
            file.write(text)
        return file.name

    def context(self, names=("localhost", "127.0.0.1"), life=datetime.timedelta(days=1),
                age=datetime.timedelta(days=2)):
        """TLS for a server of these names."""
        key = ec.generate_private_key(ec.SECP256R1())

        def general(name):
            if name[0].isdigit():
                return x509.IPAddress(ipaddress.ip_address(name))
            return x509.DNSName(name)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = self._builder(subject, key, life, age).add_extension(
            x509.SubjectAlternativeName([general(name) for name in names]), critical=False,
        ).sign(self.key, hashes.SHA256())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._write(self._pem(certificate) + pem(key)))
        return context


@dataclass
class Answer:
    status: int
    body: object = b""
    headers: dict = field(default_factory=dict)

    def __call__(self, connection):
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        if "Date" in self.headers:
            # Without the one that the library adds.
            connection.send_response_only(self.status)
        else:
            connection.send_response(self.status)
        for name, value in {"Content-Length": str(len(body)), **self.headers}.items():
            connection.send_header(name, value)
        connection.end_headers()
        connection.wfile.write(body)


def complaint(status, name, code=None):
    """An error as FCM words it."""
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}]
    message = f"{SECRET}: what the server says"
    error = {"code": status, "message": message, "status": name, "details": details}
    return Answer(status, {"error": error if code else error | {"details": []}})


@dataclass
class Asked:
    path: str
    headers: dict
    body: bytes

    @property
    def device(self):
        return json.loads(self.body)["message"]["token"]


class Google(ThreadingHTTPServer):
    """Both endpoints on one port; a context manager."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, authority=None, context=None):
        self.authority = authority or AUTHORITY
        self.context = context or self.authority.context()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = self.server_address[1]
        self.asked, self.at_once, self.most_at_once = [], 0, 0
        self.lock = threading.Lock()
        # Set at the end: whoever hangs until then hangs for ever.
        self.over = threading.Event()
        self.lifetime = LIFETIME
        self.on_token, self.on_send = self.grant, Answer(200, {"name": "projects/p/messages/1"})
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def get_request(self):
        connection, peer = super().get_request()
        # The handshake is for the thread of the connection, not for this one.
        return self.context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, *_):
        """A peer that refuses us, or goes away, is what scenarios are about."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.shutdown()
        self.server_close()
        self.thread.join()

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def account(self, key=None, **changes):
        """The JSON of a service account's key, with fields that nobody reads."""
        account = {
            "type": "service_account", "project_id": PROJECT, "private_key_id": KEY_ID,
            "private_key": pem(KEY) if key is None else key, "client_email": EMAIL,
            "client_id": "1", "auth_uri": "https://localhost/auth",
            "token_uri": self.url + TOKEN, "universe_domain": "googleapis.com",
        }
        return json.dumps({k: v for k, v in (account | changes).items() if v is not None})

    def of(self, path):
        with self.lock:
            return [asked for asked in self.asked if asked.path == path]

    @property
    def exchanges(self):
        return self.of(TOKEN)

    @property
    def sends(self):
        return self.of(SEND)

    def grant(self, connection):
        number = len(self.exchanges)
        Answer(200, {
            "access_token": f"{SECRET}-access-{number}", "expires_in": self.lifetime,
            "token_type": "Bearer",
        })(connection)

    def hang(self, connection):
        """Says nothing until the relay hangs up."""
        connection.close_connection = True
        connection.connection.settimeout(0.2)
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                connection.connection.recv(1)
                return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        google = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with google.lock:
            google.asked.append(Asked(self.path, dict(self.headers.items()), body))
            google.at_once += 1
            google.most_at_once = max(google.most_at_once, google.at_once)
        try:
            (google.on_token if self.path == TOKEN else google.on_send)(self)
        finally:
            with google.lock:
                google.at_once -= 1

    def log_message(self, *_):
        pass


def claims(form, key=None):
    """Header and claims of the assertion in a form, whose signature must be the key's."""
    fields = urllib.parse.parse_qs(form.decode(), strict_parsing=True)
    assert set(fields) == {"grant_type", "assertion"}, fields.keys()
    assert fields["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    signed, _, signature = fields["assertion"][0].rpartition(".")

    def decode(part):
        assert "=" not in part
        return urlsafe_b64decode(part + "=" * (-len(part) % 4))
    (key or KEY).public_key().verify(
        decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return [json.loads(decode(part)) for part in signed.split(".")]


AUTHORITY = Authority("the test's own")
KEY = rsa_key()
