"""Chromium without a window, spoken to over its DevTools protocol."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "interop"))

import websocket

from harness import SOON, spawn, wait_until


class Browser:
    """A browser process with its own profile; ends with the context."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        # Root cannot use the sandbox; a container's /dev/shm may be small; and the
        # browser must contact no other server.
        self.process = spawn(
            [
                "chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--disable-background-networking",
                "--disable-component-update", "--no-first-run", "--no-proxy-server",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
                "--remote-debugging-port=0", f"--user-data-dir={self.profile}", "about:blank",
            ],
            stderr=subprocess.PIPE,
        )
        for line in self.process.stderr:
            if found := re.search(rb"DevTools listening on (ws://\S+)", line):
                break
        else:
            raise AssertionError("chromium has ended at once")
        self.socket = websocket.create_connection(
            found[1].decode(), timeout=SOON, suppress_origin=True, http_no_proxy=["*"])
        self.number = 0
        self.events = []

    def call(self, method, session=None, **parameters):
        """One command and its result; what happens meanwhile is kept in `events`."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        self.socket.send(json.dumps(command))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def open(self, url, width=1200, scheme="light"):
        return Page(self, url, width, scheme)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    """One tab."""

    def __init__(self, browser, url, width, scheme):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Network.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def happened(self, method):
        """The parameters of every event of this kind so far."""
        self.evaluate("0")
        return [event["params"] for event in self.browser.events
                if event.get("sessionId") == self.session and event["method"] == method]

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def text(self, name):
        return self.evaluate(f"document.getElementById({name!r})?.textContent ?? ''")

    def wait_for(self, expression, within=SOON):
        return wait_until(lambda: self.evaluate(expression), within, f"never: {expression}",
                          look_every=0.05)

    def screenshot(self, path):
        """The whole page, as tall as it is."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True,
                            clip={**size, "scale": 1})
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture["data"]))
