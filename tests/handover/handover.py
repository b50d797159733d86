"""Hand-overs to a next program, with traffic whose every byte is checked.

    handover.py RELAY [SCENARIO]...

A relay runs from a copy of the program in a directory of its own, which a scenario replaces
by the next version: the same program, or one that is broken in one way.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
sys.dont_write_bytecode = True

from google import Answer, Google
from harness import DIRECT, SOON, Relay, Skipped, freeze, main, program, wait_until
from push import Pushing, wait_sends
from rawpeer import CONTINUATION, PING, TEXT, RawPeer, close_frame, envelope, frame, head, pair
from tls import Pair

HERE = os.path.dirname(os.path.abspath(__file__))
# A rehearsal that is silent ends after this time.
REHEARSAL = 10.0


def copy(source, target):
    """By a process of its own: a child that another thread starts inherits no descriptor with
    which a program is written, so that it can be executed at once."""
    subprocess.run(["cp", source, target], check=True)


class Upgradable(Relay):
    """A relay whose program can be replaced."""

    def __init__(self, *flags, before="", **options):
        """Started by a shell, after the command `before`."""
        self.directory = tempfile.mkdtemp(prefix="relay-")
        self.path = os.path.join(self.directory, "pyrycode-relay")
        copy(program(), self.path)
        starter = os.path.join(self.directory, "start")
        with open(self.path + ".source", "wb") as file:
            # Not sh: dash cannot ignore SIGCHLD.
            file.write(f'#!/bin/bash\n{before}\nexec {self.path} "$@"\n'.encode())
        os.chmod(self.path + ".source", 0o755)
        copy(self.path + ".source", starter)
        super().__init__(*flags, command=starter, **options)

    def __exit__(self, *failure):
        try:
            super().__exit__(*failure)
        finally:
            shutil.rmtree(self.directory)

    def install(self, content=None):
        """The next program, put in place as a package manager does: by a rename."""
        beside, source = self.path + ".next", program()
        if content is not None:
            source = self.path + ".source"
            with open(source, "wb") as file:
                file.write(content)
            os.chmod(source, 0o755)
        copy(source, beside)
        os.rename(beside, self.path)

    def remove(self):
        os.unlink(self.path)

    def status(self):
        """The answer of the metrics listener."""
        with DIRECT.open(f"http://{self.metrics}/healthz", timeout=SOON) as answer:
            return json.load(answer)

    def handovers(self):
        return self.status()["handovers"]

    def metric(self, name):
        with DIRECT.open(f"http://{self.metrics}/metrics", timeout=SOON) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in {text}"
        return float(found[1])

    def upgrade(self):
        """What `pyrycode-relay upgrade` says, with its exit status."""
        done = subprocess.run(
            [program(), "upgrade", "--metrics-listen", self.metrics], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100)
        return done.returncode, done.stdout

    def upgraded(self):
        status, said = self.upgrade()
        assert status == 0, f"{said}\n{''.join(self.log[-8:])}"
        return said

    def refused(self, cause, *words):
        status, said = self.upgrade()
        assert status == 1 and f"refused ({cause})" in said, (status, said)
        for word in words:
            assert word in said, (word, said)
        return said

    def ask(self):
        self.process.send_signal(signal.SIGUSR2)

    def wait_status(self, condition, within=SOON):
        """Until the condition holds for what the metrics listener answers. A relay that was
        stopped or is busy may answer 503 once."""
        def holds():
            with contextlib.suppress(OSError):
                return condition(self.status())
        wait_until(holds, within, lambda: f"{self.status()} {''.join(self.log[-8:])}")

    def wait_done(self, count, within=SOON):
        self.wait_status(lambda status: status["handovers"]["done"] >= count, within)

    def lines(self, event):
        return [line for line in self.log if f" msg={event} " in line or line.endswith(f" msg={event}\n")]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            direct = file.read().split()
        found = []
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            with contextlib.suppress(OSError), \
                    open(f"/proc/{self.process.pid}/task/{task}/children") as file:
                found += file.read().split()
        return sorted(set(direct + found))


class TlsPeer(RawPeer):
    """The same through TLS."""

    def __init__(self, relay, context):
        super().__init__(relay)
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


def dial(relay, role, server_id="home", context=None):
    """A raw WebSocket, which knows its x-request-id."""
    peer = TlsPeer(relay, context) if context else RawPeer(relay)
    peer.send(head(role, server_id))
    answer = peer.read_head().decode()
    assert answer.startswith("HTTP/1.1 101 "), answer
    peer.request_id = re.search(r"\r\nx-request-id: (\S+)\r\n", answer)[1]
    return peer


class Traffic:
    """Messages both ways between a binary and its phones, each checked, until `stop`."""

    def __init__(self, relay, phones=3, server_id="home", context=None):
        self.binary = dial(relay, "server", server_id, context)
        self.phones = [dial(relay, "client", server_id, context) for _ in range(phones)]
        self.stopping = threading.Event()
        self.failures, self.exchanged, self.slowest = [], 0, 0.0
        self.threads = [threading.Thread(target=self._guarded, args=(self._echo,), daemon=True)]
        self.threads += [
            threading.Thread(target=self._guarded, args=(self._talk, number), daemon=True)
            for number in range(phones)]
        for thread in self.threads:
            thread.start()

    def _guarded(self, work, *arguments):
        try:
            work(*arguments)
        except BaseException as failure:
            if not self.stopping.is_set():
                self.failures.append(failure)

    def _echo(self):
        """The binary: every frame goes back to the phone that sent it."""
        while True:
            text = self.binary.read_message(within=60)
            found = re.fullmatch(rb'\{"conn_id":"([^"]+)","frame":(.*)\}', text, re.DOTALL)
            assert found, text[:200]
            self.binary.send(frame(TEXT, b'{"frame":' + found[2] + b',"conn_id":"' + found[1] + b'"}'))

    def _talk(self, number):
        """A phone: whole frames, frames in pieces with pings between, large ones, and pings."""
        phone, count = self.phones[number], 0
        while not self.stopping.is_set():
            count += 1
            size = 40_000 if count % 50 == 0 else count % 200
            message = json.dumps({"n": count, "of": number, "fill": "ä" * size}).encode()
            began = time.monotonic()
            if count % 3 == 0:
                half = len(message) // 2
                first, second = frame(TEXT, message[:half], fin=False), frame(CONTINUATION, message[half:])
                phone.send(first)
                phone.send(frame(PING, b"%d" % count))
                # Cut within the head of a frame, and within its payload.
                cut = 1 + count % (len(second) - 1)
                phone.send(second[:cut])
                phone.send(second[cut:])
                assert phone.read_pong(within=30) == b"%d" % count
            else:
                phone.send(frame(TEXT, message))
            assert phone.read_message(within=30) == message, f"phone {number}, message {count}"
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.exchanged += 1
            self.stopping.wait(0.002)

    def check(self):
        assert not self.failures, self.failures

    def goes_on(self):
        """Waits for an exchange of every phone that began after this call."""
        self.check()
        before = self.exchanged
        wait_until(lambda: self.failures or self.exchanged > before + 3 * len(self.phones), 30)
        self.check()

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self.stopping.set()
        for thread in self.threads[1:]:
            thread.join(30)
        # A thread that reads while its socket is closed may read from the next socket with the
        # same number: TLS took the first five bytes of an answer of another scenario.
        with contextlib.suppress(OSError):
            self.binary.socket.shutdown(socket.SHUT_RDWR)
        self.threads[0].join(30)
        for peer in (self.binary, *self.phones):
            peer.socket.close()
        if failure is None:
            self.check()


class Other:
    """A peer of another language and library, in a process of its own."""

    def __init__(self, relay, command, role, server_id):
        self.process = subprocess.Popen(
            [*command, relay.url, role, server_id], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        assert json.loads(self.process.stdout.readline()) == {"seen": "open"}

    def end(self):
        """What it counted; an error if anything was wrong."""
        said, _ = self.process.communicate(timeout=30)
        told = json.loads(said)
        assert "failed" not in told and self.process.returncode == 0, told
        return told

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


NODE = ["node", os.path.join(HERE, "peer.cjs")]
GO = [os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(sys.executable))), "go-handover")]


def script(text):
    return f"#!/bin/sh\n{text}\n".encode()


def own_format():
    said = subprocess.run([program(), "--check-config"], stdout=subprocess.PIPE, text=True, check=True)
    return re.search(r"^handover-format (\d+)$", said.stdout, re.MULTILINE)[1]


def nothing_is_noticed():
    with Upgradable() as relay, Traffic(relay) as traffic:
        pid = relay.process.pid
        traffic.goes_on()
        relay.install()
        said = relay.upgraded()
        assert re.match(r"upgraded from \S+ to \S+: \d+ connections, \d+ ms\n$", said), said
        traffic.goes_on()
        assert relay.status()["pid"] == pid and relay.handovers()["done"] == 1
        assert len(relay.lines("handover_done")) == 1, relay.log


def nothing_is_noticed_by_python_node_and_go():
    import asyncio
    from websockets.asyncio.client import connect

    async def python(relay, role, server_id, stopping):
        own = {"x-pyrycode-version": "1"} if role == "server" else {"x-pyrycode-token": "t"}
        count = 0
        async with connect(
                f"ws://{relay.url}/v1/{role}", proxy=None, max_size=None, ping_interval=0.2,
                ping_timeout=20, additional_headers={"x-pyrycode-server": server_id, **own}) as peer:
            while not stopping.is_set():
                if role == "server":
                    with contextlib.suppress(TimeoutError):
                        message = await asyncio.wait_for(peer.recv(), 0.5)
                        found = re.fullmatch(r'\{"conn_id":"([^"]+)","frame":(.*)\}', message, re.DOTALL)
                        if found:
                            await peer.send(f'{{"conn_id":"{found[1]}","frame":{found[2]}}}')
                    continue
                message = json.dumps({"n": count, "fill": "ö" * (count % 300 or 20_000)})
                await peer.send([message[:5], message[5:]] if count % 3 else message)
                assert await asyncio.wait_for(peer.recv(), 30) == message
                count += 1
                await asyncio.sleep(0.002)
        return count

    if not os.path.exists(GO[0]):
        raise Skipped(f"{GO[0]} is not there: tests/run peers builds it")
    with Upgradable() as relay, contextlib.ExitStack() as stack:
        stopping = threading.Event()
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(8))
        stack.callback(stopping.set)
        # Each as binary, each as phone, and never both ends of one library.
        ids = {"py": NODE, "node": GO, "go": None}
        for name, command in ids.items():
            if command:
                stack.enter_context(Other(relay, command, "server", name))
        pool.submit(asyncio.run, python(relay, "server", "go", stopping))
        wait_until(lambda: relay.health()["connected_binaries"] == 3)
        phone = pool.submit(asyncio.run, python(relay, "client", "py", stopping))
        phones = [stack.enter_context(Other(relay, NODE, "client", "node")),
                  stack.enter_context(Other(relay, GO, "client", "go"))]
        for _ in range(5):
            before = relay.metric('pyrycode_relay_frames_forwarded_total{direction="phone_to_binary"}')
            wait_until(lambda: relay.metric(
                'pyrycode_relay_frames_forwarded_total{direction="phone_to_binary"}') > before + 60)
            relay.upgraded()
        assert not phone.done(), phone.result()
        assert relay.health()["connected_phones"] == 3, relay.log
        for other in phones:
            told = other.end()
            assert told["exchanged"] > 50 and told["unanswered"] <= 1, told
        stopping.set()
        assert phone.result(30) > 50


def nothing_is_noticed_through_tls():
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with Pair() as pair, Upgradable(*pair.flags) as relay:
            context = pair.context()
            context.minimum_version = context.maximum_version = version
            with Traffic(relay, context=context) as traffic:
                for _ in range(3):
                    traffic.goes_on()
                    relay.upgraded()
                traffic.goes_on()
                # New connections have a handshake with the next program.
                with Traffic(relay, server_id="second", context=context) as second:
                    second.goes_on()


def a_new_certificate_is_served_after_it():
    with Pair() as old, Pair() as new, Upgradable(*old.flags) as relay:
        with Traffic(relay, context=old.context()) as traffic:
            shutil.copy(new.certificate, old.certificate)
            shutil.copy(new.key, old.key)
            relay.upgraded()
            with Traffic(relay, server_id="second", context=new.context()) as second:
                second.goes_on()
            traffic.goes_on()
            # And what the next program was told to watch, it watches.
            relay.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(relay.lines("certificate_served")) >= 3)


def a_handshake_that_does_not_end_is_dropped_and_told():
    with Pair() as pair, Upgradable(*pair.flags) as relay:
        with Traffic(relay, context=pair.context()) as traffic, RawPeer(relay) as half:
            # The beginning of a ClientHello.
            half.send(b"\x16\x03\x01\x02\x00\x01")
            wait_until(lambda: relay.descriptors() > 0)
            traffic.goes_on()
            said = relay.upgraded()
            assert "1 connections could not move" in said, said
            assert half.socket.recv(1) == b"", "closed"
            traffic.goes_on()


def every_broken_program_is_refused():
    version = own_format()
    ready = f"ready 9.9 format {version} dropped 0"
    with Upgradable() as relay, Traffic(relay) as traffic:
        pid = relay.process.pid
        open_before = None
        for content, cause, *words in [
            (None, "start", "No such file"),
            (b"\x7fELF, and nothing more", "start", "Exec format"),
            (b"", "start"),
            (script("exit 0"), "answer"),
            (script("echo why >&2; exit 1"), "exit", "exit status 1: why"),
            (script("echo unknown flag >&2; exit 2"), "exit", "exit status 2", "unknown flag"),
            (script("kill -9 $$"), "signal", "signal 9"),
            (script("kill -11 $$"), "signal", "signal 11"),
            (script(f"echo {ready}; exit 3"), "exit", "exit status 3"),
            (script("echo ready 9.9 format 999 dropped 0"), "answer", "format 999"),
            (script(f"cp $0 $0.x; mv $0.x $0; echo {ready}"), "changed"),
            (script(f"echo '#' >>$0; echo {ready}"), "changed"),
            (script(f"chmod 0 $0; echo {ready}"), "execute", "Permission denied"),
            (script(f"cat <&0 >/dev/null & echo {ready} more; exit 0"), "answer"),
            (script("exec cat /dev/zero"), "timeout", "10s"),
        ]:
            if content is None:
                relay.remove()
            else:
                relay.install(content)
            relay.refused(cause, *words)
            traffic.goes_on()
            assert relay.status()["pid"] == pid
            wait_until(lambda: not relay.children(), complaint="a child is left")
            open_now = relay.descriptors()
            open_before = open_before or open_now
            assert abs(open_now - open_before) <= 3, (open_before, open_now)
        # A write to a peer that is gone ends nothing, after an execution that failed.
        with dial(relay, "server", "other") as gone:
            gone.reset()
        traffic.goes_on()
        relay.install()
        relay.upgraded()
        traffic.goes_on()
        assert len(relay.lines("handover_refused")) == relay.handovers()["refused"] == 15
        assert relay.metric('pyrycode_relay_handovers_total{outcome="refused"}') == 15
        assert relay.metric('pyrycode_relay_handovers_total{outcome="done"}') == 1


def a_child_that_is_killed_changes_nothing():
    with Upgradable() as relay, Traffic(relay) as traffic:
        ends = {"done": 0, "refused": 0}
        for attempt in range(12):
            before = relay.handovers()
            relay.ask()
            deadline = time.monotonic() + 0.02 * attempt
            while time.monotonic() < deadline:
                pass
            for child in relay.children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            def has_ended():
                now = relay.handovers()
                return not now["running"] and now["done"] + now["refused"] > before["done"] + before["refused"]
            wait_until(has_ended)
            for end in ends:
                ends[end] += relay.handovers()[end] - before[end]
            traffic.goes_on()
        assert sum(ends.values()) == 12, ends


def a_relay_that_is_killed_leaves_nothing():
    for attempt in range(5):
        relay = Upgradable()
        try:
            peers = pair(relay)
            relay.ask()
            deadline = time.monotonic() + 0.02 * attempt
            while time.monotonic() < deadline:
                pass
            children = relay.children()
            relay.process.kill()
            relay.process.wait()
            wait_until(lambda: not any(is_running(child) for child in children))
            for peer in peers:
                with contextlib.suppress(ConnectionResetError):
                    assert peer.read_to_end() is not None
                peer.socket.close()
        finally:
            relay.process.kill()
            relay.reader.join()
            relay.process.stderr.close()
            shutil.rmtree(relay.directory)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat_file:
            return stat_file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def storms_of_signals_are_harmless():
    with Upgradable() as relay, Traffic(relay) as traffic:
        stopping = threading.Event()
        def storm():
            while not stopping.is_set():
                for number in (signal.SIGUSR2, signal.SIGHUP):
                    relay.process.send_signal(number)
                time.sleep(0.0005)
        thread = threading.Thread(target=storm, daemon=True)
        thread.start()
        try:
            relay.wait_done(5, 60)
            traffic.goes_on()
        finally:
            stopping.set()
            thread.join()
        wait_until(lambda: not relay.handovers()["running"], 20)
        traffic.goes_on()
        assert relay.lines("handover_refused"), "those that came meanwhile are told"


def a_shut_down_in_the_middle_of_it_is_a_shut_down():
    for attempt in range(8):
        with Upgradable() as relay:
            binary, phone = pair(relay)
            relay.ask()
            deadline = time.monotonic() + 0.015 * attempt
            while time.monotonic() < deadline:
                pass
            relay.signal(signal.SIGTERM)
            for peer in (binary, phone):
                assert peer.read_only_close() == (1001, "shutting down")
                peer.send(close_frame(1001))
                peer.half_close()
            assert relay.exit_status(SOON) == 0


def two_at_once_are_one():
    with Upgradable() as relay, Traffic(relay) as traffic:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            ends = [it.result() for it in [pool.submit(relay.upgrade) for _ in range(2)]]
        traffic.goes_on()
        assert 1 <= relay.handovers()["done"] <= 2
        for status, said in ends:
            assert status == 0 or "under way" in said, ends


def a_relay_that_drains_refuses():
    with Upgradable() as relay:
        peers = pair(relay)
        relay.signal()
        for peer in peers:
            assert peer.read_only_close() == (1001, "shutting down")
        relay.ask()
        wait_until(lambda: relay.lines("handover_refused"))
        assert "cause=draining" in relay.lines("handover_refused")[0]
        for peer in peers:
            peer.send(close_frame(1001))
            peer.half_close()
        assert relay.exit_status(SOON) == 0


def resident(relay):
    with open(f"/proc/{relay.process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def ten_in_a_row_leave_nothing_behind():
    with Upgradable() as relay:
        with Traffic(relay) as traffic:
            for _ in range(10):
                relay.upgraded()
                traffic.goes_on()
        # Without traffic, whose buffers come and go.
        peers = pair(relay)
        relay.upgraded()
        descriptors, memory = relay.descriptors(), resident(relay)
        for _ in range(10):
            relay.upgraded()
            # What an upgrade needs itself is given back; what it leaves behind stays.
            wait_until(
                lambda: resident(relay) <= 1.2 * memory, SOON,
                lambda: f"{resident(relay)} KB of memory, {memory} KB after the first")
            assert abs(relay.descriptors() - descriptors) <= 3, (relay.descriptors(), descriptors)
        assert relay.handovers()["done"] == 21
        wait_until(lambda: len(relay.lines("handover_done")) == 21)
        # The standard streams, and nothing of the way here.
        assert os.readlink(f"/proc/{relay.process.pid}/fd/0") == "/dev/null"
        for peer in peers:
            peer.socket.close()


def a_relay_that_is_stopped_in_it_goes_on():
    with Upgradable() as relay, Traffic(relay) as traffic:
        for delay in (0.0, 0.03, 0.06):
            before = relay.handovers()["done"]
            relay.ask()
            time.sleep(delay)
            freeze(relay.process)
            time.sleep(2)
            relay.resume()
            relay.wait_done(before + 1, 20)
            traffic.goes_on()


def a_stop_of_70_seconds_in_it_counts_against_nobody():
    """Longer than a heartbeat with its deadline."""
    with contextlib.ExitStack() as stack:
        stopped = []
        for delay in (0.0, 0.02, 0.04, 0.06):
            relay = stack.enter_context(Upgradable())
            peers = pair(relay)
            relay.ask()
            time.sleep(delay)
            freeze(relay.process)
            stopped.append((relay, *peers))
        time.sleep(70)
        for relay, _, _ in stopped:
            relay.resume()
        for relay, binary, phone in stopped:
            relay.wait_done(1, 20)
            phone.send(frame(TEXT, b'"still here"'))
            assert binary.read_message().endswith(b'"frame":"still here"}')
            for peer in (binary, phone):
                peer.socket.close()


class Tampered:
    """Tampers with calls of one kind by the loop of a relay, as strace does it (--inject)."""

    def __init__(self, relay, call, how):
        self.tracer = subprocess.Popen(
            ["strace", "-p", str(relay.process.pid), "-o", "/dev/null", "-e", f"trace={call}",
             "-e", f"inject={call}:{how}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # Its first line says that it is attached, or why not.
        said = self.tracer.stderr.readline()
        if "attached" not in said:
            self.__exit__()
            raise Skipped(f"strace cannot trace here: {said}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tracer.terminate()
        self.tracer.wait()
        self.tracer.stderr.close()


def failing(relay, call, error, count):
    """Lets the call with this number fail."""
    return Tampered(relay, call, f"error={error}:when={count}")


def what_happens_in_the_pause_is_seen_after_it():
    with Upgradable() as relay:
        binary = dial(relay, "server")
        last, gone, talking = [dial(relay, "client") for _ in range(3)]
        def stopped():
            with open(f"/proc/{relay.process.pid}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] == "t"
        with Tampered(relay, "execve", "delay_enter=1500000"), \
                concurrent.futures.ThreadPoolExecutor(1) as pool:
            relay.ask()
            # Other calls stop it for a moment only.
            wait_until(lambda: all(stopped() for _ in range(300)))
            last.send(frame(TEXT, b'"last"'))
            last.half_close()
            gone.reset()
            talking.send(frame(TEXT, b'"first half')[:-3])
            late = pool.submit(dial, relay, "client")
            assert relay.process.poll() is None and not relay.lines("handover_done")
            relay.wait_done(1)
            late = late.result()
        late.send(frame(TEXT, b'"late"'))
        seen = [json.loads(binary.read_message()) for _ in range(4)]
        frames = {it["frame"]: it["conn_id"] for it in seen if "frame" in it}
        notices = {it["conn_id"]: it["close_code"] for it in seen if "close_code" in it}
        assert sorted(frames) == ["last", "late"] and len(notices) == 2, seen
        assert frames["last"] in notices and set(notices.values()) == {1001}, seen
        for peer in (binary, last, talking, late):
            peer.socket.close()


def every_call_that_fails_is_refused():
    """Those that the loop makes until it is another program: their number, how each can fail,
    and the causes that are told."""
    with Upgradable() as relay, Traffic(relay) as traffic:
        relay.upgraded()
        traffic.goes_on()
        descriptors = relay.descriptors()
        for call, calls, errors, *causes in [
            ("statx", 2, ["EIO", "EACCES"], "start"),
            ("memfd_create", 2, ["ENOMEM", "EMFILE"], "pack"),
            ("socketpair", 5, ["EMFILE", "ENFILE"], "pack", "start"),
            ("sendmsg", 7, ["ETOOMANYREFS", "ENOBUFS", "EAGAIN"], "pack"),
            ("fcntl", 3, ["EMFILE"], "pack"),
            ("clone3", 1, ["EAGAIN"], "start"),
            ("execve", 1, ["E2BIG", "EACCES", "EIO", "ELOOP", "EMFILE", "ENFILE", "ENOENT",
                           "ENOEXEC", "ENOMEM", "ENOTDIR", "EPERM", "ETXTBSY"], "execute"),
        ]:
            for error in errors:
                for count in range(1, calls + 1):
                    with failing(relay, call, error, count):
                        status, said = relay.upgrade()
                    what = f"{call} {count} {error}: {said}"
                    assert status == 1 and any(f"refused ({it})" in said for it in causes), what
                    traffic.goes_on()
                    wait_until(lambda: not relay.children(), complaint="a child is left")
                    assert abs(relay.descriptors() - descriptors) <= 3, what
        relay.upgraded()
        traffic.goes_on()


def a_call_that_fails_in_the_next_program_does_not_end_it():
    """It costs one connection, or all, but not the listeners."""
    for call, count, dropped in [
        ("recvmsg", 2, 2), ("recvmsg", 3, 2), ("recvmsg", 4, 2), ("lseek", 1, 2),
        ("epoll_ctl", 1, 2), ("epoll_ctl", 4, 1), ("epoll_ctl", 5, 1), ("ftruncate", 1, 0),
    ]:
        with Upgradable() as relay:
            peers = pair(relay)
            with failing(relay, call, "ENOMEM", count):
                said = relay.upgraded()
            assert f": {2 - dropped} connections, " in said, (call, count, said)
            wait_until(lambda: relay.lines("handover_done"))
            assert len(relay.lines("handover_state_lost")) == (dropped == 2), relay.log
            for peer in pair(relay, "anew"):
                peer.socket.close()
            for peer in peers:
                peer.socket.close()


def scrapes_are_answered_late_and_counters_go_on():
    with Upgradable() as relay, Traffic(relay) as traffic:
        failures, rows, stopping = [], [], threading.Event()
        def scrape():
            while not stopping.is_set():
                try:
                    with DIRECT.open(f"http://{relay.metrics}/metrics", timeout=SOON) as answer:
                        rows.append(answer.read().decode())
                except Exception as failure:
                    failures.append(failure)
        # Of many at once the listener closes the oldest that is silent.
        threads = [threading.Thread(target=scrape, daemon=True)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            traffic.goes_on()
            relay.upgraded()
        stopping.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
    # As one scraper would have seen them.
    with Upgradable() as relay, Traffic(relay) as traffic:
        rows = []
        for _ in range(4):
            traffic.goes_on()
            rows.append(counters(relay))
            relay.upgraded()
            rows.append(counters(relay))
        for earlier, later in zip(rows, rows[1:]):
            for name, value in earlier.items():
                assert later[name] >= value, f"{name} went from {value} to {later[name]}"
        starts = {row["process_start_time_seconds"] for row in rows}
        assert len(starts) == 1, starts


def counters(relay):
    """Every counter, by name and labels."""
    with DIRECT.open(f"http://{relay.metrics}/metrics", timeout=SOON) as answer:
        text = answer.read().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    found = {}
    for name, labels, value in re.findall(r"^([a-z_]+)(\{.*\})? (\S+)$", text, re.MULTILINE):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if kinds.get(name) == "counter" or kinds.get(base) == "histogram" or name == "process_start_time_seconds":
            found[name + labels] = float(value)
    return found


def the_log_has_whole_lines():
    with Upgradable("--log-level", "debug") as relay, Traffic(relay) as traffic:
        for _ in range(5):
            for _ in range(50):
                with dial(relay, "client", "nothing"):
                    pass
            relay.upgraded()
        traffic.goes_on()
    for line in relay.log:
        assert re.match(r"time=\S+ level=\S+ msg=\S+", line) and line.endswith("\n"), line
        assert line.count("time=") == 1, line
    events = [re.search(r"msg=(handover_\w+)", line) for line in relay.log]
    events = [event[1] for event in events if event]
    assert events == ["handover_started", "handover_rehearsed", "handover_done"] * 5, events


def an_ignored_sigchld_prevents_no_upgrade():
    with Upgradable(before="trap '' CHLD") as relay, Traffic(relay) as traffic:
        for _ in range(2):
            relay.upgraded()
        traffic.goes_on()


def a_stuck_log_prevents_no_upgrade():
    """Its lines are lost, and counted."""
    with Upgradable("--log-level", "debug", reads_log=False) as relay, Traffic(relay) as traffic:
        pipe = f"/proc/self/fd/{relay.process.stderr.fileno()}"
        # To the last byte: no line fits.
        with open(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "wb", buffering=0) as filler:
            while filler.write(b" ") is not None:
                pass
        lost = "pyrycode_relay_log_lines_dropped_total"
        for _ in range(2):
            before = relay.metric(lost)
            with dial(relay, "client", "none") as phone:
                phone.read_only_close()
            relay.upgraded()
            assert relay.metric(lost) > before, "lost, and not counted"
        traffic.goes_on()


def new_connections_wait_for_it():
    """Dialled again and again, from before until after: none is refused."""
    with Upgradable() as relay, Traffic(relay) as traffic:
        stopping, failures, count = threading.Event(), [], [0]
        def dials():
            while not stopping.is_set():
                try:
                    with dial(relay, "client", "none") as phone:
                        count[0] += 1
                        assert phone.read_only_close()[0] == 4404
                except BaseException as failure:
                    failures.append(failure)
        threads = [threading.Thread(target=dials, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            relay.upgraded()
        stopping.set()
        for thread in threads:
            thread.join()
        assert not failures and count[0] > 20, (failures, count)
        traffic.goes_on()


def halves_are_completed_after_it():
    """A head, a PROXY header, a frame and a message, each cut before and completed after."""
    with Upgradable() as relay:
        binary = dial(relay, "server")
        cut = head("client", "home")
        message = b'"' + b"x" * 70_000 + b'"'
        sent = frame(TEXT, message)
        pieces = [*range(1, 14), 100, len(sent) - 1]
        phones = [dial(relay, "client") for _ in pieces]
        for phone, at in zip(phones, pieces):
            phone.send(sent[:at])
        with RawPeer(relay, cut[:25]) as half, RawPeer(relay) as silent:
            fragment = dial(relay, "client")
            # Within a character.
            fragment.send(frame(TEXT, '"ä"'.encode()[:2], fin=False))
            wait_until(lambda: relay.health()["connected_phones"] == len(pieces) + 1)
            for _ in range(2):
                relay.upgraded()
            for phone, at in zip(phones, pieces):
                phone.send(sent[at:])
                assert binary.read_message() == b'{"conn_id":"%s","frame":%s}' % (
                    phone.request_id.encode(), message)
                binary.send(frame(TEXT, envelope(phone.request_id, b"1")))
                assert phone.read_message() == b"1"
            fragment.send(frame(CONTINUATION, '"ä"'.encode()[2:]))
            assert binary.read_message().endswith('"frame":"ä"}'.encode())
            for peer, rest in ((half, cut[25:]), (silent, cut)):
                peer.send(rest)
                assert peer.read_head().startswith(b"HTTP/1.1 101 ")


def what_is_queued_is_delivered_after_it():
    """A phone that does not read, megabytes behind, across two hand-overs."""
    with Upgradable() as relay:
        binary, phone = dial(relay, "server"), dial(relay, "client")
        messages = [b'"%d%s"' % (number, b"y" * 100_000) for number in range(60)]
        for message in messages:
            binary.send(frame(TEXT, envelope(phone.request_id, message)))
        binary.send(frame(PING, b"behind"))
        assert binary.read_pong() == b"behind"
        for _ in range(2):
            relay.upgraded()
        for message in messages:
            assert phone.read_message() == message
        phone.send(frame(TEXT, b"1"))
        assert binary.read_message().endswith(b'"frame":1}')


def grace_and_limits_go_on():
    with Upgradable() as relay:
        binary, phone = dial(relay, "server"), dial(relay, "client")
        binary.reset()
        relay.wait_connected(0, 1)
        relay.upgraded()
        relay.wait_connected(0, 1)
        again = dial(relay, "server")
        assert phone.read_only_close() == (4404, "binary reclaimed server-id")
        relay.wait_connected(1, 0)
        again.socket.close()
    with Upgradable("--rate-limit-per-minute", "6", "--rate-limit-burst", "3") as relay:
        for _ in range(3):
            dial(relay, "client", "none").socket.close()
        relay.upgraded()
        with RawPeer(relay, head("client", "none")) as refused:
            assert refused.read_head().startswith(b"HTTP/1.1 429 "), "the limit was forgotten"


def a_proxy_header_cut_in_two_is_completed_after_it():
    with Upgradable("--proxy-protocol") as relay:
        before = relay.descriptors()
        header = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack(">BBH4s4sHH", 0x21, 0x11, 12, bytes([192, 0, 2, 7]), bytes(4), 1, 2)
        with RawPeer(relay, header[:9]) as peer:
            wait_until(lambda: relay.descriptors() > before)
            relay.upgraded()
            peer.send(header[9:] + head("client", "none"))
            assert peer.read_head().startswith(b"HTTP/1.1 101 ")


SWARM = os.path.join(os.path.dirname(program()), "examples", "swarm")


def as_many_as_the_machine_allows_notice_nothing():
    """Up to 19,500 connections, of which some talk, by the load tool; prints the figures."""
    if not os.path.exists(SWARM):
        raise Skipped(f"{SWARM} is not there: cargo build --release --example swarm")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(19_500, hard - 500) // 5 * 5
    with Upgradable() as relay:
        swarm = subprocess.Popen(
            [SWARM, f"--binaries={count // 5}", "--phones=4", "--seconds=20", "--messages=2000",
             f"--pid={relay.process.pid}", relay.url],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            relay.wait_status(lambda status: status["connected_phones"] == count // 5 * 4, 120)
            for _ in range(3):
                relay.upgraded()
            report, _ = swarm.communicate(timeout=120)
        finally:
            swarm.kill()
            swarm.wait()
        assert f"{count} of {count}" in re.search(r"^connections open at the end +(.*)$", report, re.M)[1], report
        sent, returned = map(int, re.search(r"^frames sent, returned +(\d+), (\d+)$", report, re.M).groups())
        assert returned >= sent - 60 and "\nlost                                 0\n" in report, report
        pauses = [re.search(r"pause_ms=(\d+)", line)[1] for line in relay.lines("handover_done")]
        trip = re.search(r"^their round trip +(.*)$", report, re.M)[1]
        print(f"handover: {count} connections: pauses of {', '.join(pauses)} ms; round trips: {trip}")


class UpgradablePushing(Pushing, Upgradable):
    """A relay that knows a Google, and whose program can be replaced."""


def a_push_call_is_waited_for_and_later_ones_are_made_after_it():
    with Google() as server, UpgradablePushing(server) as relay:
        go_on = threading.Event()
        def slow(connection):
            go_on.wait(SOON)
            Answer(200)(connection)
        server.on_send = slow
        relay.wake(1)
        wait_sends(server, 1)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            upgraded = pool.submit(relay.upgraded)
            wait_until(lambda: relay.handovers()["running"])
            relay.wake(2)
            assert relay.handovers() | {"running": True, "done": 0} == relay.handovers()
            assert len(server.sends) == 1, "a call began although none may"
            go_on.set()
            upgraded.result(30)
        wait_sends(server, 2)
        relay.wait_counted(sent=2)


def packed(state, listeners, **changes):
    """The socket that a program is started with, as another would pack it."""
    writing, reading = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("state")
    os.write(memory, state)
    manifest = {
        "version": "0.0.1", "format": 1, "descriptors": 0, "state": len(state),
        "listeners": [{"speaks": 0, "is_proxied": False}],
        "admin": {"started_ns": 1_000_000_000, "uptime_us": 5_000_000},
        "record": {"done": 7, "refused": 3, "log_lines_dropped": 5, "later": "unknown"},
    } | changes
    socket.send_fds(writing, [json.dumps(manifest).encode()], [it.fileno() for it in listeners])
    socket.send_fds(writing, [b"d"], [memory])
    os.close(memory)
    writing.close()
    return reading


def listeners_survive_an_unreadable_state():
    for state in (b"", b"no state of a relay", b"pyrelay\n\1\0\0\0" + bytes(8)):
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        # It waits in the backlog.
        early = socket.create_connection(listeners[0].getsockname(), timeout=SOON)
        flags = ["--insecure-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        with packed(state, listeners) as stdin, subprocess.Popen(
                [program(), "--handover=adopt", *flags], stdin=stdin, stderr=subprocess.PIPE) as relay:
            try:
                health, metrics = (it.getsockname() for it in listeners)
                for listener in listeners:
                    listener.close()
                with early:
                    early.sendall(b"GET /healthz HTTP/1.0\r\nHost: a\r\n\r\n")
                    assert early.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
                with DIRECT.open("http://%s:%d/healthz" % metrics, timeout=SOON) as answer:
                    status = json.load(answer)
                assert status["handovers"]["done"] == 8 and status["handovers"]["refused"] == 3
                assert status["uptime_seconds"] >= 5, status
                with DIRECT.open("http://%s:%d/metrics" % metrics, timeout=SOON) as answer:
                    text = answer.read().decode()
                assert "\nprocess_start_time_seconds 1\n" in text
                assert "\npyrycode_relay_log_lines_dropped_total 5\n" in text
            finally:
                relay.send_signal(signal.SIGTERM)
                _, said = relay.communicate(timeout=SOON)
        assert relay.returncode == 0 and b"msg=handover_state_lost" in said, said


def an_unreadable_state_is_refused_in_the_rehearsal():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for state, words in [
            (b"garbage", "not the state of a relay"),
            (b"pyrelay\n\x63\0\0\0" + bytes(8), "state format 99"),
            (b"pyrelay\n\1\0\0\0" + bytes(8), "damaged"),
        ]:
            with packed(state, [listener, listener]) as stdin:
                done = subprocess.run([program(), "--handover=rehearse", "--metrics-listen="], stdin=stdin,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stdout) == (1, "") and words in done.stderr, done
        done = subprocess.run([program(), "--handover=rehearse"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and "recvmsg" in done.stderr, done


def as_an_operator_sees_it():
    help_text = subprocess.run([program(), "upgrade", "--help"], stdout=subprocess.PIPE, text=True)
    assert help_text.returncode == 0 and "--pid" in help_text.stdout
    def upgrade(*flags):
        done = subprocess.run([program(), "upgrade", *flags], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60)
        return done.returncode, done.stdout
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = "127.0.0.1:%d" % closed.getsockname()[1]
    status, said = upgrade("--metrics-listen", address)
    assert status == 1 and "no relay answers" in said, said
    status, said = upgrade("--pid", "4194304")
    assert status == 1 and "process 4194304" in said, said
    # A program that SIGUSR2 would end is not sent it.
    with subprocess.Popen(["sleep", "60"]) as bystander:
        status, said = upgrade("--pid", str(bystander.pid))
        assert status == 3 and "restart it" in said, said
        assert bystander.poll() is None
        bystander.kill()
    assert upgrade("--unknown")[0] == 2
    with Upgradable() as relay, Traffic(relay) as traffic:
        # By its process: the metrics listener is on its command line, but port 0 is not it.
        status, said = upgrade("--pid", str(relay.process.pid))
        assert status == 0 and "log tells" in said, said
        relay.wait_done(1)
        traffic.goes_on()


if __name__ == "__main__":
    main([
        a_stop_of_70_seconds_in_it_counts_against_nobody,
        nothing_is_noticed,
        nothing_is_noticed_by_python_node_and_go,
        nothing_is_noticed_through_tls,
        a_new_certificate_is_served_after_it,
        a_handshake_that_does_not_end_is_dropped_and_told,
        every_broken_program_is_refused,
        a_child_that_is_killed_changes_nothing,
        a_relay_that_is_killed_leaves_nothing,
        storms_of_signals_are_harmless,
        a_shut_down_in_the_middle_of_it_is_a_shut_down,
        two_at_once_are_one,
        a_relay_that_drains_refuses,
        ten_in_a_row_leave_nothing_behind,
        a_relay_that_is_stopped_in_it_goes_on,
        what_happens_in_the_pause_is_seen_after_it,
        every_call_that_fails_is_refused,
        a_call_that_fails_in_the_next_program_does_not_end_it,
        scrapes_are_answered_late_and_counters_go_on,
        the_log_has_whole_lines,
        an_ignored_sigchld_prevents_no_upgrade,
        a_stuck_log_prevents_no_upgrade,
        new_connections_wait_for_it,
        halves_are_completed_after_it,
        what_is_queued_is_delivered_after_it,
        grace_and_limits_go_on,
        a_proxy_header_cut_in_two_is_completed_after_it,
        a_push_call_is_waited_for_and_later_ones_are_made_after_it,
        listeners_survive_an_unreadable_state,
        an_unreadable_state_is_refused_in_the_rehearsal,
        as_an_operator_sees_it,
        as_many_as_the_machine_allows_notice_nothing,
    ], at_once=4)
