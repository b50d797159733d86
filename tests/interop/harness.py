"""A relay process to talk to, and a runner for scenarios.

A scenario is a function, plain or async, that takes a fresh `Relay`, talks to
it over real sockets and asserts. Scenarios share nothing, so `main` runs them
side by side. Nothing here sleeps in the hope that something has happened:
`wait_until` watches a condition and has a deadline.
"""

import asyncio
import collections
import concurrent.futures
import inspect
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request

# How much later than promised something may be seen on a busy machine.
LATE = 2.0
# Longer than anything takes that is to happen at once.
SOON = 10.0

# No proxy, whatever the environment says.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# Whatever was started and is not known to have ended.
_children = []


def spawn(command, **options):
    """A child process that does not outlive this one's end by a signal."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    _children.append(child)
    return child


# Below the range from which the kernel chooses, so that nobody gets one by chance before
# it is used, and none twice.
_ports = iter(random.sample(range(20000, 32000), 12000))


def free_port():
    """For programs that can't be told 0."""
    for port in _ports:
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return port
        except OSError:
            continue
    raise AssertionError("no port is free")


def _on_signal(number, _frame):
    # Scenarios run in threads, which nothing else would interrupt.
    for child in _children:
        child.kill()
    os._exit(128 + number)


def freeze(process):
    """Stops a process where it stands; its kernel goes on acknowledging."""
    process.send_signal(signal.SIGSTOP)
    def is_stopped():
        with open(f"/proc/{process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"
    wait_until(is_stopped)


class Relay:
    """A relay process of one's own on a port of its own, ended on leaving."""

    def __init__(self, *flags, reads_log=True, variables=None, command=None):
        is_tls = "--domain" in flags or "--tls-cert" in flags
        listener = "--https-listen" if is_tls else "--insecure-listen"
        command = [command or program(), listener, "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        if "--rate-limit-per-minute" not in flags:
            command += ["--rate-limit-per-minute", "0"]
        self.process = spawn(
            [*command, *flags],
            stderr=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYRYCODE_")}
            | (variables or {}),
        )
        self.is_signalled = False
        self.log = []
        # What an async scenario leaves open, to be called before its loop ends.
        self.at_end = []
        self.address = self._listening()
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        if reads_log:
            self.reader.start()

    def _next_line(self):
        # One byte at a time: what follows stays in the pipe for whoever reads on.
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.process.stderr.fileno(), 1)
            assert byte, f"the relay ended at once, saying {[*self.log, line]}"
            line += byte
        return line.decode()

    def _listening(self):
        while True:
            line = self._next_line()
            self.log.append(line)
            listen = r"\bmsg=listening\b.* listen=(\S+):(\d+) metrics_listen=(\S+)"
            if found := re.search(listen, line):
                self.metrics = found[3]
                return found[1], int(found[2])

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line.decode())

    @property
    def url(self):
        return "{}:{}".format(*self.address)

    def health(self):
        with DIRECT.open(f"http://{self.url}/healthz", timeout=SOON) as answer:
            return json.load(answer)

    def wait_connected(self, binaries, phones, within=SOON):
        """Waits until so many peers hold a place."""
        def settled():
            health = self.health()
            return (health["connected_binaries"], health["connected_phones"]) == (binaries, phones)
        wait_until(settled, within, lambda: f"not {binaries}+{phones} connected: {self.health()}")

    def signal(self, number=signal.SIGTERM):
        """Asks it to end; a second time it would end at once."""
        self.is_signalled = True
        self.process.send_signal(number)

    def stop(self):
        """Stops it where it stands, as a suspended machine would."""
        freeze(self.process)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def exit_status(self, within=12.0):
        return self.process.wait(within)

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        try:
            if not self.is_signalled:
                self.signal()
            status = self.exit_status()
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        finally:
            if self.reader.ident:
                self.reader.join()
            self.process.stderr.close()
        if failure is None:
            assert status == 0, f"exit status {status} after SIGTERM: {''.join(self.log[-5:])}"


class Skipped(Exception):
    """A scenario that this machine or user cannot run, and why."""


def need_root(purpose):
    """Skips the scenario, counted and printed, if this process is not root."""
    if os.geteuid() != 0:
        raise Skipped(f"needs root {purpose}")


def program():
    """The relay under test: the first argument of the script."""
    return sys.argv[1]


def wait_until(condition, within=SOON, complaint="it did not happen", look_every=0.01):
    """Waits until `condition()` is true and returns what it gave."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(complaint() if callable(complaint) else complaint)
        time.sleep(look_every)
    return result


async def _finish(scenario, relay):
    try:
        async with asyncio.timeout(150):
            await scenario
    finally:
        for close in relay.at_end:
            close()


def _run(scenario):
    started = time.monotonic()
    try:
        if "relay" not in inspect.signature(scenario).parameters:
            scenario()
        else:
            with Relay() as relay:
                result = scenario(relay)
                if inspect.iscoroutine(result):
                    asyncio.run(_finish(result, relay))
        outcome, detail = "ok", None
    except Skipped as skipped:
        outcome, detail = "SKIPPED", skipped
    except BaseException:
        outcome, detail = "FAILED", traceback.format_exc()
    return scenario, time.monotonic() - started, outcome, detail


def main(scenarios, at_once=8):
    """Runs the scenarios of a script, or those named behind the program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    suite = os.path.basename(sys.argv[0]).removesuffix(".py")
    chosen = [s for s in scenarios if not sys.argv[2:] or s.__name__ in sys.argv[2:]]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for done in concurrent.futures.as_completed([pool.submit(_run, s) for s in chosen]):
            scenario, seconds, outcome, detail = done.result()
            print(f"{suite} {scenario.__name__} … {outcome} ({seconds:.1f} s)", flush=True)
            if detail:
                print(detail, flush=True)
            counts[outcome] += 1
    skipped = f", {counts['SKIPPED']} SKIPPED" if counts["SKIPPED"] else ""
    print(f"{suite}: {counts['ok']} passed, {counts['FAILED']} failed{skipped}", flush=True)
    sys.exit(1 if counts["FAILED"] or not chosen else 0)
