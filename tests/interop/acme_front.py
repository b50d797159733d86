"""What stands between the relay and Pebble: a server that passes requests on, and adds
what Pebble does not do (renewal windows, RFC 9773) or does at random (Retry-After, slow
orders, refusals)."""

import base64
import email.utils
import http.client
import http.server
import json
import ssl
import threading
import time


def decoded(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) or "null")


class Front:
    """Passes requests on to `authority`; a scenario sets what is different."""

    def __init__(self, authority):
        self.authority = authority
        # (start, end) in seconds since 1970; None: there are no windows.
        self.window = None
        # Kinds of a request, and what was in it: ("new-order", {...}).
        self.requests = []
        # How long orders are said to be processing, with a date in Retry-After.
        self.slow_for = 0.0
        self.slow_until = 0.0
        # Replies to give instead, by a word in the path: (status, headers, body), once each.
        self.instead = {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.certificate, authority.certificate + ".key")
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_any(self):
                front.handle(self)

            do_GET = do_HEAD = do_POST = handle_any

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # A relay that ends in the midst of a call.
        self.server.handle_error = lambda *_: None
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"https://localhost:{self.port}/dir"

    def count(self, kind):
        return sum(it == kind for it, _ in self.requests)

    def payloads(self, kind):
        return [payload for it, payload in self.requests if it == kind]

    def handle(self, request):
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        path = request.path
        kind = path.strip("/").split("/")[0]
        payload = decoded(json.loads(body)["payload"]) if body else None
        if kind == "renewal-info":
            self.requests.append((kind, payload))
            start, end = self.window
            stamp = lambda at: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
            window = {"suggestedWindow": {"start": stamp(start), "end": stamp(end)}}
            return self.reply(request, 200, {"Retry-After": "21600"}, json.dumps(window).encode())
        for word in list(self.instead):
            if word == kind:
                self.requests.append((kind, payload))
                return self.reply(request, *self.instead.pop(word))
        status, headers, reply = self.passed_on(request, body)
        # Pebble refuses a share of the nonces on purpose.
        if b"badNonce" not in reply:
            self.requests.append((kind, payload))
        if kind == "dir" and self.window:
            directory = json.loads(reply)
            directory["renewalInfo"] = f"https://localhost:{self.port}/renewal-info"
            reply = json.dumps(directory).encode()
        if kind == "finalize-order":
            self.slow_until = time.time() + self.slow_for
        if kind in ("my-order", "finalize-order") and time.time() < self.slow_until:
            order = json.loads(reply)
            if order.get("status") in ("processing", "valid"):
                order = {**order, "status": "processing"}
                order.pop("certificate", None)
                headers = {**headers, "Retry-After": http_date(self.slow_until)}
                reply = json.dumps(order).encode()
        return self.reply(request, status, headers, reply)

    def passed_on(self, request, body):
        context = ssl.create_default_context(cafile=self.authority.certificate)
        connection = http.client.HTTPSConnection("localhost", self.authority.port, context=context,
                                                 timeout=10)
        # Pebble makes its URLs from the Host, so all requests come here.
        headers = {name: value for name, value in request.headers.items()
                   if name.lower() in ("content-type", "user-agent")}
        connection.request(request.command, request.path, body or None,
                           {**headers, "Host": request.headers["host"]})
        answer = connection.getresponse()
        reply = answer.read()
        kept = {name: value for name, value in answer.getheaders()
                if name.lower() in ("content-type", "location", "replay-nonce", "link", "retry-after")}
        connection.close()
        return answer.status, kept, reply

    def reply(self, request, status, headers, body):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(body)))
        request.send_header("connection", "close")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
        request.close_connection = True

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def problem(kind, status, **headers):
    body = json.dumps({"type": f"urn:ietf:params:acme:error:{kind}", "detail": "said the front"})
    return status, {"Content-Type": "application/problem+json", **headers}, body.encode()


def http_date(at):
    return email.utils.formatdate(at, usegmt=True)
