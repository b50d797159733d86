"""Push wake against an HTTPS server that plays Google, well and badly."""

import contextlib
import datetime
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from email.utils import formatdate

from cryptography.hazmat.primitives.asymmetric import ec

import google
from google import SECRET, Answer, Authority, Google, claims, complaint, pem, rsa_key
from harness import DIRECT, LATE, SOON, Relay, main, program, wait_until
from rawpeer import TEXT, Honest, envelope, frame, pair, upgrade

IN_FLIGHT, BURST, CALL = 32, 6, 10.0
VARIABLE = "PYRYCODE_RELAY_FCM_CREDENTIALS"
FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def device(number):
    return f"{SECRET}-device:{number}"


def fingerprint(token):
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def push_wake(token):
    return frame(TEXT, json.dumps({"push_wake": {"platform": "fcm", "token": token}}).encode())


class Pushing(Relay):
    """A relay that knows a Google, and is found to keep its secrets when it ends."""

    def __init__(self, server, *flags, account=None, authority=None):
        account = server.account() if account is None else account
        file = (authority or server.authority).file
        # Of the key, lines that no other text has.
        self.secrets = [SECRET, *json.loads(account)["private_key"].splitlines()[1:-1]]
        super().__init__(
            "--fcm-endpoint", server.url, "--fcm-ca", file, *flags,
            variables={VARIABLE: account, "PYRYCODE_RELAY_LOG": "trace"})
        self.binaries, self.resting = 0, self.threads
        with open(f"/proc/{self.process.pid}/cmdline") as cmdline:
            self.command = cmdline.read()

    def binary(self):
        """A binary of a server-id that has not asked for a wake before."""
        self.binaries += 1
        return upgrade(self, "server", f"home-{self.binaries}")

    def wake(self, *numbers):
        """Has a new binary ask for so many wakes."""
        binary = self.binary()
        for number in numbers:
            binary.send(push_wake(device(number)))
        return binary

    @property
    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def wait_idle(self):
        """Until no wake is in flight."""
        wait_until(lambda: self.threads == self.resting, complaint=lambda: f"{self.threads} threads")

    def events(self, name):
        """The fields of the lines of one event."""
        lines = [dict(FIELD.findall(line)) for line in self.log]
        return [line for line in lines if line.get("msg") == name]

    @property
    def failures(self):
        return self.events("push_wake_send_failed")

    @property
    def sent(self):
        return self.events("push_wake_sent")

    @property
    def dropped(self):
        lines = [dict(FIELD.findall(line)) for line in self.log]
        return [line["cause"] for line in lines if line.get("msg", "").startswith("binary_forwarder_")]

    def wait_failures(self, count, within=SOON):
        wait_until(lambda: len(self.failures) >= count, within,
                   lambda: f"not {count} failures: {self.failures}")
        return self.failures

    def scrape(self):
        with DIRECT.open(f"http://{self.metrics}/metrics", timeout=SOON) as answer:
            return answer.read().decode()

    def wait_counted(self, **outcomes):
        """Until so many wakes have ended so, and no others."""
        def counted():
            found = re.findall(r'push_wakes_total\{outcome="(\w+)"\} (\d+)', self.scrape())
            return {outcome: int(count) for outcome, count in found if count != "0"}
        wait_until(lambda: counted() == outcomes, complaint=lambda: f"{counted()}: {outcomes}")

    def __exit__(self, failure, *rest):
        scraped = "" if self.is_signalled else self.scrape()
        super().__exit__(failure, *rest)
        if not failure:
            for line in self.sent:
                well_told(line, {"fcm_message_id"})
        for text in (*self.log, self.command, scraped):
            for secret in self.secrets:
                assert secret not in text, f"a secret is told: {text}"


def well_told(line, optional=frozenset()):
    """Asserts that a wake's line has its fields and no others."""
    fields = {"time", "level", "msg", "server_id", "token_fp", "duration"}
    assert fields <= set(line) <= fields | optional, line
    assert re.fullmatch(r"home-\d+", line["server_id"]), line
    assert re.fullmatch(r"[0-9a-f]{8}", line["token_fp"]), line
    assert re.fullmatch(r"0s|(\d+m)?\d+(\.\d+)?(ns|µs|ms|s)", line["duration"]), line


def told(failure, outcome, number=None, says=None):
    """Asserts what a failed wake's line says: all of its `err`, or the part that `says` is."""
    assert failure["level"] == "WARN", failure
    well_told(failure, {"err"})
    label, _, words = failure["err"].strip('"').partition(": ")
    assert label == outcome and words, failure
    if number is not None:
        assert failure["token_fp"] == fingerprint(device(number)), failure
    if says is not None:
        assert words == says, (says, failure)


def wait_sends(server, count, within=SOON):
    wait_until(lambda: len(server.sends) >= count, within,
               lambda: f"{len(server.sends)} of {count} sends")
    return server.sends


def the_requests_are_google_s():
    """For both forms of key; the second wake asks for no second token."""
    for form in (google.PKCS8, google.PKCS1):
        with Google() as server, Pushing(server, account=server.account(pem(google.KEY, form))) \
                as relay:
            relay.wake("first")
            (first,) = wait_sends(server, 1)
            (exchange,) = server.exchanges
            assert exchange.headers["content-type"] == "application/x-www-form-urlencoded"
            assert "authorization" not in exchange.headers
            header, said = claims(exchange.body)
            assert header == {"alg": "RS256", "typ": "JWT", "kid": google.KEY_ID}
            age = time.time() - said["iat"]
            assert 9 <= age < 10 + SOON, "allows for a clock that is behind ours"
            assert said == {
                "iss": google.EMAIL, "aud": server.url + google.TOKEN,
                "scope": "https://www.googleapis.com/auth/firebase.messaging",
                "iat": said["iat"], "exp": said["iat"] + 3600}
            assert first.path == f"/v1/projects/{google.PROJECT}/messages:send"
            assert first.headers["content-type"] == "application/json"
            assert first.headers["authorization"] == f"Bearer {SECRET}-access-1"
            assert first.body == (
                b'{"message":{"token":"%s","android":{"priority":"HIGH"}}}'
                % device("first").encode())
            told = {"host", "content-type", "content-length", "authorization", "user-agent",
                    "accept"}
            assert set(first.headers) <= told, first.headers
            relay.wake("second", "third")
            wait_sends(server, 3)
            assert len(server.exchanges) == 1
            assert not relay.failures


def a_token_without_key_id_and_a_base_with_a_path():
    with Google() as server:
        account = server.account(private_key_id=None)
        with Pushing(server, "--fcm-endpoint", server.url + "/base/", account=account) as relay:
            relay.wake(1)
            wait_until(lambda: server.of("/base" + google.SEND))
            header, _ = claims(server.exchanges[0].body)
            assert header == {"alg": "RS256", "typ": "JWT"}


def a_key_without_project_is_for_the_apps_own():
    with Google() as server:
        with Pushing(server, account=server.account(project_id=None)) as relay:
            relay.wake(1)
            wait_until(lambda: server.of("/v1/projects/pyrycode-mobile/messages:send"))
    # Without a token_uri Google's own would be asked, so that is only checked.
    with Google() as server:
        status, text = start(server.account(token_uri=None), "--fcm-ca", server.authority.file,
                             "--check-config")
        assert status == 0, text


def a_token_is_renewed_before_it_expires():
    with Google() as server, Pushing(server) as relay:
        server.lifetime = 2
        asked = {}

        def renewed():
            relay.wake(len(asked))
            asked[len(asked)] = time.monotonic()
            return len(server.exchanges) >= 2
        started = time.monotonic()
        wait_until(renewed, look_every=0.1)
        # Half of so short a life, and no token was ever used after its end.
        assert 0.9 <= time.monotonic() - started
        wait_sends(server, len(asked))
        bearers = {sent.headers["authorization"] for sent in server.sends}
        assert bearers == {f"Bearer {SECRET}-access-{n}" for n in (1, 2)}, bearers
        assert not relay.failures


def a_refused_token_is_replaced_once():
    with Google() as server, Pushing(server) as relay:
        def send(connection):
            is_first = connection.headers["authorization"].endswith("-1")
            (complaint(401, "UNAUTHENTICATED") if is_first else Answer(200))(connection)
        server.on_send = send
        relay.wake(1)
        sends = wait_sends(server, 2)
        assert [s.headers["authorization"][-1] for s in sends] == ["1", "2"]
        assert len({s.body for s in sends}) == 1
        relay.wake(2)
        wait_sends(server, 3)
        assert len(server.exchanges) == 2 and not relay.failures
        # Now none is good. One more is tried, and then none for a while.
        server.on_send = complaint(401, "UNAUTHENTICATED")
        relay.wake(3)
        (failure,) = relay.wait_failures(1)
        told(failure, "send_failed", 3, "FCM answered status 401 UNAUTHENTICATED")
        assert (len(server.sends), len(server.exchanges)) == (5, 3)
        relay.wake(4)
        told(relay.wait_failures(2)[1], "token_fetch_failed", 4,
             "no access token; the next request for one is delayed")
        assert (len(server.sends), len(server.exchanges)) == (5, 3)


def a_token_refused_to_many_at_once_is_replaced_once():
    with Google() as server, Pushing(server) as relay:
        together = threading.Barrier(IN_FLIGHT)

        def send(connection):
            if connection.headers["authorization"].endswith("-1"):
                together.wait(SOON)
                return complaint(401, "UNAUTHENTICATED")(connection)
            Answer(200)(connection)
        server.on_send = send
        for number in range(IN_FLIGHT):
            relay.wake(number)
        wait_sends(server, 2 * IN_FLIGHT)
        assert len(server.exchanges) == 2, "all of them share the second"
        assert not relay.failures


def what_fcm_answers_is_what_is_told():
    def elsewhere(status, kind):
        """The code in a detail of this type, behind one that has it as a number."""
        details = [{"@type": "type.googleapis.com/google.rpc.Help", "errorCode": 5},
                   {"@type": kind, "errorCode": "UNREGISTERED"}]
        return Answer(status, {"error": {"status": "NOT_FOUND", "details": details}})
    fcm_error = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
    cases = [
        (complaint(404, "NOT_FOUND", "UNREGISTERED"), "unregistered", " NOT_FOUND UNREGISTERED"),
        (elsewhere(404, fcm_error), "unregistered", " NOT_FOUND UNREGISTERED"),
        (elsewhere(400, fcm_error), "unregistered", " NOT_FOUND UNREGISTERED"),
        (elsewhere(404, "type.googleapis.com/google.rpc.ErrorInfo"), "send_failed", " NOT_FOUND"),
        (complaint(404, "NOT_FOUND"), "send_failed", " NOT_FOUND"),
        (Answer(404, b"<html>not found</html>"), "send_failed", ""),
        (complaint(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"), "send_failed",
         " INVALID_ARGUMENT INVALID_ARGUMENT"),
        (complaint(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), "send_failed",
         " PERMISSION_DENIED SENDER_ID_MISMATCH"),
        (complaint(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR_2"), "send_failed",
         " UNAUTHENTICATED THIRD_PARTY_AUTH_ERROR_2"),
        (complaint(500, "INTERNAL", "INTERNAL"), "send_failed", " INTERNAL INTERNAL"),
        (Answer(503), "send_failed", ""),
        # What has not their shape is not repeated.
        (complaint(400, f"{SECRET} A", f"{SECRET}\nlevel=error"), "send_failed", ""),
        (Answer(500, b"\0" * 100), "send_failed", ""),
        (Answer(500, b"[" * 4000), "send_failed", ""),
    ]
    for number, (answer, outcome, words) in enumerate(cases):
        with Google() as server, Pushing(server) as relay:
            server.on_send = answer
            relay.wake(number)
            told(relay.wait_failures(1)[0], outcome, number, f"FCM answered status {answer.status}{words}")
            is_refused = answer.status == 401
            assert len(server.sends) == 1 + is_refused, "none is sent again"
            relay.wait_counted(**{outcome: 1})
            assert not relay.sent


def a_wake_that_is_sent_leaves_one_line():
    """It names FCM's message, if the name has the form of one."""
    good = "projects/p/messages/0:1500415314455276%31bd1c9631bd1c96_-"
    cases = [
        ({"name": good}, good), ({"name": "a" * 256}, "a" * 256), ({"name": "a" * 257}, None),
        ({"name": ""}, None), ({"name": 7}, None), ({"name": "a b"}, None), ({}, None), ([], None),
        ({"name": 'x"\nlevel=error msg=forged'}, None), (b"garbage", None), (b"", None),
    ]
    with Google() as server, Pushing(server) as relay:
        # The last one's name repeats a secret.
        cases.append(({"name": device(len(cases))}, None))
        for number, (body, name) in enumerate(cases):
            server.on_send = Answer(200, body)
            relay.wake(number)
            wait_until(lambda: len(relay.sent) == number + 1)
            line = relay.sent[number]
            assert line["level"] == "INFO", line
            assert line["server_id"] == f"home-{number + 1}", line
            assert line["token_fp"] == fingerprint(device(number)), line
            assert line.get("fcm_message_id") == name, line
        assert not relay.failures
        relay.wait_counted(sent=len(cases))


def a_pause_that_fcm_asks_for_is_kept_to():
    """In both forms of Retry-After, and for a minute where a 429 names none."""
    def later(seconds):
        return formatdate(time.time() + seconds, usegmt=True)
    cases = [
        (429, {}, 60, 60), (429, {"Retry-After": "120"}, 120, 120), (503, {"Retry-After": "7"}, 7, 7),
        (429, {"Retry-After": "soon"}, 60, 60), (500, {"Retry-After": later(3600)}, 3590, 3601),
        # Our clock is not asked where theirs is told.
        (503, {"Retry-After": "Sun, 06 Nov 1994 10:00:00 GMT",
               "Date": "Sun, 06 Nov 1994 09:50:00 GMT"}, 600, 600),
        (429, {"Retry-After": "99999999999999999999999"}, 2**64 - 1, 2**64 - 1),
    ]
    for status, headers, least, most in cases:
        with Google() as server, Pushing(server) as relay:
            server.on_send = Answer(status, b"", headers)
            relay.wake("refused")
            (failure,) = relay.wait_failures(1)
            found = re.search(
                rf"FCM answered status {status}; wakes pause for (\d+) s", failure["err"])
            assert found and least <= int(found[1]) <= most, failure
            server.on_send = Answer(200)
            relay.wake(*range(BURST))
            for dropped in relay.wait_failures(1 + BURST)[1:]:
                told(dropped, "dropped")
                assert re.search(r"FCM asked for a pause; \d+ s remain", dropped["err"])
            relay.wait_counted(send_failed=1, dropped=BURST)
            assert len(server.sends) == 1, "they were sent all the same"


def a_pause_ends():
    with Google() as server, Pushing(server) as relay:
        server.on_send = Answer(503, b"", {"Retry-After": "2"})
        started = time.monotonic()
        relay.wake("refused")
        relay.wait_failures(1)
        server.on_send = Answer(200)
        wakes = 0

        def sent_again():
            nonlocal wakes
            relay.wake(wakes)
            wakes += 1
            return len(server.sends) >= 2
        wait_until(sent_again, look_every=0.1)
        assert time.monotonic() - started >= 2.0
        wait_until(lambda: len(relay.sent) + len(relay.failures) == 1 + wakes)
        # No pause: zero seconds, a date that has passed, none at all on a 503.
        for headers in ({"Retry-After": "0"}, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, {}):
            server.on_send = Answer(503, b"", headers)
            sends = len(server.sends)
            relay.wake("refused", "once more")
            wait_sends(server, sends + 2)


def redirects_are_not_followed():
    with Google() as server, Pushing(server) as relay:
        for number, status in enumerate((301, 302, 303, 307, 308)):
            server.on_send = Answer(status, b"", {"Location": f"{server.url}/elsewhere"})
            relay.wake(number)
            told(relay.wait_failures(number + 1)[number], "send_failed", number,
                 f"FCM answered status {status}")
        assert {asked.path for asked in server.asked} == {google.TOKEN, google.SEND}
    with Google() as server, Pushing(server) as relay:
        server.on_token = Answer(302, b"", {"Location": f"{server.url}/elsewhere"})
        relay.wake("a")
        told(relay.wait_failures(1)[0], "token_fetch_failed", "a",
             "the token endpoint refused the request, status 302")
        assert [asked.path for asked in server.asked] == [google.TOKEN]


def a_token_endpoint_that_answers_nonsense():
    for answer in (
        Answer(200, b""), Answer(200, b"<html>"), Answer(200, {"access_token": SECRET}),
        Answer(200, {"access_token": f"{SECRET}\r\nx: y", "expires_in": 3600}),
        Answer(200, {"access_token": SECRET * 1000, "expires_in": 3600}),
        Answer(400, {"error": "invalid_grant", "error_description": SECRET}), Answer(500),
    ):
        with Google() as server, Pushing(server) as relay:
            server.on_token = answer
            relay.wake(1)
            is_refused = answer.status != 200
            words = "refused the request" if is_refused else "'s reply is malformed"
            told(relay.wait_failures(1)[0], "token_fetch_failed", 1,
                 f"the token endpoint{' ' * is_refused}{words}, status {answer.status}")
            assert not server.sends


def failed_exchanges_are_backed_off():
    with Google() as server, Pushing(server) as relay:
        server.on_token = Answer(500)
        started = time.monotonic()
        wakes = 0

        def third():
            nonlocal wakes
            relay.wake(wakes)
            wakes += 1
            return len(server.exchanges) >= 3
        wait_until(third, look_every=0.05)
        assert time.monotonic() - started >= 3.0, "1 s, then 2 s"
        assert len(server.exchanges) == 3
        failures = relay.wait_failures(wakes)
        assert len(failures) == wakes > 10
        for failure in failures:
            told(failure, "token_fetch_failed")


def one_exchange_however_many_wait():
    """It is slow; then it fails, or gives a token that all of them use."""
    for fails in (False, True):
        with Google() as server, Pushing(server) as relay:
            go_on = threading.Event()

            def slow(connection):
                go_on.wait(SOON)
                (Answer(500) if fails else server.grant)(connection)
            server.on_token = slow
            for number in range(IN_FLIGHT):
                relay.wake(number)
            wait_until(lambda: server.exchanges)
            # The house is full, so that all of them are known to wait.
            relay.wake("33rd")
            wait_until(lambda: relay.dropped == ["push_wake_limit"])
            go_on.set()
            if fails:
                for failure in relay.wait_failures(IN_FLIGHT):
                    told(failure, "token_fetch_failed")
                assert not server.sends
                relay.wait_counted(token_fetch_failed=IN_FLIGHT, dropped=1)
            else:
                assert len(wait_sends(server, IN_FLIGHT)) == IN_FLIGHT
                relay.wait_counted(sent=IN_FLIGHT, dropped=1)
            assert len(server.exchanges) == 1


def huge_answers_are_not_read():
    """Until the relay hangs up they are sent, so how much that was is seen."""
    def endless(status, line):
        def answer(connection):
            sent.append(0)
            connection.close_connection = True
            connection.wfile.write(f"HTTP/1.1 {status} X\r\n".encode() + line)
            with contextlib.suppress(OSError):
                while True:
                    connection.wfile.write(b"x" * 65536)
                    sent[-1] += 65536
        return answer
    sent = []
    heads = (b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n10000\r\n",
             b"\r\n", b"x-endless: ")
    with Google() as server, Pushing(server) as relay:
        for number, head in enumerate(heads):
            server.on_send = endless(500, head)
            relay.wake(number)
            failure = relay.wait_failures(number + 1)[number]
            told(failure, "send_failed", number,
                 "the reply is not HTTP" if head is heads[-1] else "FCM answered status 500")
        server.on_send = endless(200, heads[0])
        relay.wake("taken all the same")
        wait_until(lambda: len(sent) == 5)
        assert len(relay.failures) == 4
    with Google() as server, Pushing(server) as relay:
        server.on_token = endless(200, heads[0])
        relay.wake(1)
        told(relay.wait_failures(1)[0], "token_fetch_failed", 1,
             "the token endpoint's reply is malformed, status 200")
    # More than 4 KiB, for the kernel reads on; far from a gigabyte.
    assert len(sent) == 6 and max(sent) < 32 * 1024 * 1024, sent


def slow_answers_end_after_ten_seconds():
    """A byte now and then, in each place where one may be waited for."""
    def drip(first, byte):
        def answer(connection):
            connection.close_connection = True
            with contextlib.suppress(OSError):
                connection.wfile.write(first)
                while not server.over.wait(0.3):
                    connection.wfile.write(byte)
        return answer
    with Google() as server, Pushing(server) as relay:
        relay.wake("to have a token")
        wait_sends(server, 1)
        relay.wait_idle()
        for number, answer in enumerate((
            drip(b"HTTP/1.1 500 X\r\n", b"x"), drip(b"HTTP/1.1 500 X\r\nx: y\r\n\r\n", b"x"),
            server.hang,
        )):
            started = time.monotonic()
            server.on_send = answer
            relay.wake(number)
            failure = relay.wait_failures(number + 1, CALL + LATE)[number]
            took = time.monotonic() - started
            assert CALL - 1 < took < CALL + LATE, took
            told(failure, "send_failed", number)


@contextlib.contextmanager
def listener(serve):
    """A TCP listener on a free port; each connection is served on a thread."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=serve, args=[connection], daemon=True).start()
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        # Wakes the accept.
        server.shutdown(socket.SHUT_RDWR)


def endpoints_that_do_not_speak_tls():
    def reset(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    def garbage(connection):
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" * 100)

    def zeros(connection):
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(bytes(65536))

    def close(connection):
        connection.close()
    with Google() as server:
        for serve in (reset, garbage, zeros, close):
            with listener(serve) as port:
                endpoint = f"https://127.0.0.1:{port}"
                with Pushing(server, "--fcm-endpoint", endpoint) as relay:
                    relay.wake(1)
                    told(relay.wait_failures(1)[0], "send_failed", 1)
                account = server.account(token_uri=endpoint)
                with Pushing(server, account=account) as relay:
                    relay.wake(1)
                    told(relay.wait_failures(1)[0], "token_fetch_failed", 1)
        # Nobody listens there any more.
        with Pushing(server, "--fcm-endpoint", endpoint) as relay:
            relay.wake(1)
            told(relay.wait_failures(1)[0], "send_failed", 1, "connection refused")
        assert not server.sends


def endpoints_that_speak_no_http():
    def garbage(connection):
        connection.close_connection = True
        connection.wfile.write(b"\0garbage " + SECRET.encode() + b"\r\n\r\n")

    def cut_short(connection):
        connection.close_connection = True
        connection.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")

    def reset(connection):
        connection.close_connection = True
        connection.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.connection.close()
    with Google() as server, Pushing(server) as relay:
        for number, answer in enumerate((garbage, cut_short, reset)):
            server.on_send = answer
            relay.wake(number)
            told(relay.wait_failures(number + 1)[number], "send_failed", number)


def a_server_without_a_valid_certificate_is_sent_nothing():
    other = Authority("somebody else's")
    expired = google.AUTHORITY.context(life=-datetime.timedelta(days=1))
    misnamed = google.AUTHORITY.context(names=("example.org",))
    for arguments in ({"authority": other}, {"context": expired}, {"context": misnamed}):
        with Google(**arguments) as server, Pushing(server, authority=google.AUTHORITY) as relay:
            relay.wake(1)
            (failure,) = relay.wait_failures(1)
            told(failure, "token_fetch_failed", 1,
                 "the server's certificate is not trusted")
            assert not server.asked
    # Without the flag those that browsers trust are trusted, and not this one.
    with Google() as server:
        flags = ["--fcm-endpoint", server.url]
        with Relay(*flags, variables={VARIABLE: server.account()}) as relay:
            upgrade(relay, "server", "home").send(push_wake(device(1)))
            wait_until(lambda: any("is not trusted" in line for line in relay.log))
            assert not server.asked


def a_name_is_looked_up():
    with Google() as server:
        with Pushing(server, "--fcm-endpoint", f"https://localhost:{server.port}") as relay:
            relay.wake(1)
            wait_sends(server, 1)
            assert server.sends[0].headers["host"] == f"localhost:{server.port}"


def a_thousand_wakes_meet_the_limits():
    """All at once 32 pass. Of each server-id's ten, with room for all, six."""
    def settled(count):
        wait_until(lambda: len(server.sends) + len(relay.dropped) == count,
                   complaint=lambda: f"{len(server.sends)} + {len(relay.dropped)}")
    with Google() as server, Pushing(server) as relay:
        go_on = threading.Event()

        def slow(connection):
            go_on.wait(SOON)
            Answer(200)(connection)
        server.on_send = slow
        binaries = [relay.binary() for _ in range(100)]
        for number in range(10):
            for name, binary in enumerate(binaries):
                binary.send(push_wake(device(f"{name}/{number}")))
        settled(1000)
        assert (len(server.sends), server.most_at_once) == (IN_FLIGHT, IN_FLIGHT)
        go_on.set()
        relay.wait_idle()
        binaries = [relay.binary() for _ in range(100)]
        for name, binary in enumerate(binaries):
            for number in range(10):
                binary.send(push_wake(device(f"{name}/{number}")))
            settled(1010 + 10 * name)
        assert set(relay.dropped) == {"push_wake_limit"} and not relay.failures
        passed = [sent.device for sent in server.sends[IN_FLIGHT:]]
        assert sorted(passed) == sorted(
            device(f"{name}/{number}") for name in range(100) for number in range(BURST))
        relay.wait_counted(sent=IN_FLIGHT + 600, dropped=2000 - IN_FLIGHT - 600)


def hanging_calls_fill_the_house_and_stop_nobody():
    with Google() as server, Pushing(server) as relay:
        relay.wake("to have a token")
        wait_sends(server, 1)
        relay.wait_idle()
        server.on_send = server.hang
        binary, phone = pair(relay, "busy")

        def round_trip():
            began = time.monotonic()
            phone.send(frame(TEXT, b"1"))
            assert binary.read_message().endswith(b'"frame":1}')
            binary.send(frame(TEXT, envelope(phone.request_id, b"2")))
            assert phone.read_message() == b"2"
            return time.monotonic() - began
        started, trips = time.monotonic(), []
        for number in range(IN_FLIGHT):
            relay.wake(number)
            trips.append(round_trip())
        # Far from what a call takes, and from what this machine may be busy for.
        assert sorted(trips)[IN_FLIGHT // 2] < 0.2, f"the loop waits: {trips}"
        wait_sends(server, 1 + IN_FLIGHT)
        relay.wake("33rd")
        wait_until(lambda: relay.dropped == ["push_wake_limit"])
        trips = []
        while not relay.failures and time.monotonic() - started < CALL + LATE:
            trips.append(round_trip())
        assert len(trips) > 100, "it crawls"
        assert CALL - 1 < time.monotonic() - started
        for failure in relay.wait_failures(IN_FLIGHT):
            told(failure, "send_failed", says="timed out")
        # There is room again.
        server.on_send = Answer(200)
        relay.wake("34th")
        wait_sends(server, 2 + IN_FLIGHT)


def threads_end_with_their_calls():
    with Google() as server, Pushing(server) as relay:
        go_on = threading.Event()

        def slow(connection):
            go_on.wait(SOON)
            Answer(200)(connection)
        server.on_send = slow
        for number in range(IN_FLIGHT):
            relay.wake(number)
        wait_sends(server, IN_FLIGHT)
        assert relay.threads == relay.resting + IN_FLIGHT
        go_on.set()
        relay.wait_idle()


def a_shut_down_waits_for_no_call():
    took = []
    for hanging in (0, IN_FLIGHT):
        with Google() as server, Pushing(server) as relay:
            server.on_send = server.hang
            for number in range(hanging):
                Honest(relay.wake(number))
            wait_sends(server, hanging)
            Honest(relay.binary())
            relay.wait_connected(hanging + 1, 0)
            started = time.monotonic()
            relay.signal(signal.SIGTERM)
            assert relay.exit_status(LATE) == 0
            took.append(time.monotonic() - started)
            # Their lines are there all the same.
            for failure in relay.wait_failures(hanging):
                told(failure, "send_failed", says="the relay stopped before an answer arrived")
            assert len(relay.failures) == hanging
    print("  ended in {:.3f} s, with 32 hanging calls in {:.3f} s".format(*took))


def a_wake_that_is_malformed_or_has_an_address_is_none():
    with Google() as server, Pushing(server) as relay:
        binary = relay.binary()
        for wake in ('{}', '[]', '1', '{"platform":"fcm"}', '{"platform":"apns","token":"t"}',
                     '{"platform":"fcm","token":""}', '{"platform":"fcm","token":7}',
                     '{"platform":"fcm","token":"t","token":"t"}',
                     '{"platform":"fcm","token":"%s"}' % ("t" * 4097)):
            binary.send(frame(TEXT, b'{"push_wake":%s}' % wake.encode()))
        binary.send(frame(TEXT, b'{"conn_id":"x","frame":1,"push_wake":{"platform":"fcm"}}'))
        binary.send(frame(9, b"still here"))
        assert binary.read_pong() == b"still here"
        expected = ["push_wake_malformed"] * 9 + ["unknown_phone"]
        wait_until(lambda: relay.dropped == expected, complaint=lambda: relay.dropped)
        assert not server.asked
        binary.send(frame(TEXT, json.dumps(
            {"push_wake": {"token": device(1), "x": {}, "platform": "fcm"}, "y": 1}).encode()))
        wait_sends(server, 1)
        binary.send(push_wake('quotes " and \n and ü and \0'))
        assert wait_sends(server, 2)[1].device == 'quotes " and \n and ü and \0'


def without_credentials_a_wake_is_dropped():
    with Relay() as relay:
        binary = upgrade(relay, "server", "home")
        binary.send(push_wake(device(1)))
        binary.send(frame(9, b"still here"))
        assert binary.read_pong() == b"still here"
        wait_until(lambda: any("cause=push_wake_off" in line for line in relay.log))
        assert not any(SECRET in line for line in relay.log)


def bad_credentials_are_refused_and_not_told():
    with Google() as server:
        good = pem(google.KEY)
        body = "".join(good.splitlines()[1:-1])
        account = server.account
        small = pem(rsa_key(1024))
        curve = ec.generate_private_key(ec.SECP256R1())
        cases = [
            (account(pem(curve)), "private_key is not"),
            (account(pem(curve, google.PKCS1)), "private_key is not an RSA key"),
            (account(small), "private_key is not"), (account(SECRET), "private_key is not"),
            (account(body), "private_key is not"), (account(good[:800]), "private_key is not"),
            (account(good.replace("A", "B", 300)), "private_key is not"),
            (account(good.replace("PRIVATE", "PUBLIC")), "private_key is not"),
            (account(type="authorized_user"), "type must"), (account(project_id="a/b"), "project_id"),
            (account().replace("\\n", "\n"), "the JSON is invalid at the end of line 1"),
            (account().replace("\\n", "\\\\n"), "private_key: the backslashes"),
            (account().replace("\\n", "n"), "private_key: the backslashes"),
            (account().replace("\\n", " "), "private_key: its line breaks were replaced by spaces"),
            (f"'{account()}'", "begins with a quote"), ("\ufeff" + account(), "begins with a byte"),
            (account(token_uri="http://localhost/"), "token_uri"), (body, "is not the JSON"),
            ("", "is set but empty"),
        ]
        file = ["--fcm-ca", server.authority.file]
        fine = [("--check-config", 0)]
        for value, expected in cases:
            for flags in ([], ["--check-config"]):
                status, text = start(value, *file, *flags)
                assert status == 2 and f"{VARIABLE}: {expected}" in text, (status, text)
                assert len(text.splitlines()) <= 3, text
                for secret in (SECRET, *(body[i:i + 16] for i in range(0, len(body), 16))):
                    assert secret not in text, text
        status, text = start(account(), *file, fine[0][0])
        assert status == 0 and SECRET not in text, text
        assert f"fcm-ca {server.authority.file}\n" in text
        for path in ("/nonexistent", __file__, "/", server.authority.file + "\x01"):
            status, text = start(account(), "--fcm-ca", path, "--check-config")
            assert status == 2 and "--fcm-ca: " in text, text


def start(credentials, *flags):
    """Runs it to its end; status and all that it said."""
    ended = subprocess.run(
        [program(), "--insecure-listen", "127.0.0.1:0", *flags],
        env={VARIABLE: credentials}, timeout=SOON, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return ended.returncode, ended.stdout


if __name__ == "__main__":
    main([
        the_requests_are_google_s, a_token_without_key_id_and_a_base_with_a_path,
        a_key_without_project_is_for_the_apps_own,
        a_token_is_renewed_before_it_expires, a_refused_token_is_replaced_once,
        a_token_refused_to_many_at_once_is_replaced_once, what_fcm_answers_is_what_is_told,
        a_wake_that_is_sent_leaves_one_line, a_pause_that_fcm_asks_for_is_kept_to, a_pause_ends,
        redirects_are_not_followed, a_token_endpoint_that_answers_nonsense,
        failed_exchanges_are_backed_off, one_exchange_however_many_wait,
        huge_answers_are_not_read, slow_answers_end_after_ten_seconds,
        endpoints_that_do_not_speak_tls, endpoints_that_speak_no_http,
        a_server_without_a_valid_certificate_is_sent_nothing, a_name_is_looked_up,
        a_thousand_wakes_meet_the_limits, hanging_calls_fill_the_house_and_stop_nobody,
        threads_end_with_their_calls, a_shut_down_waits_for_no_call,
        a_wake_that_is_malformed_or_has_an_address_is_none,
        without_credentials_a_wake_is_dropped, bad_credentials_are_refused_and_not_told,
    ])
