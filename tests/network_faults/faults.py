"""Dead peers found over real links, at the real times (docs/PROTOCOL.md).

Every way to die, in every state, as phone and as binary, all at once on one
relay: each peer is released in time, for the right cause, and its place is free
at once; live peers on the relay are not affected. A second relay is stopped for
70 s and closes no live peer.

An idle peer dies right behind a pong, which is the worst case: one interval and
one pong timeout, 60 s, until it is detected.
"""

import contextlib
import functools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))

from harness import LATE, SOON, Relay, freeze, main, program, spawn, wait_until  # noqa: E402
from network import SWITCH, Cable, build_switch  # noqa: E402
from rawpeer import PING, TEXT, Honest, envelope, frame, upgrade  # noqa: E402

INTERVAL = 30.0
PONG_TIMEOUT = 30.0
MESSAGE = 30.0
WRITE = 10.0
LINGER = 5.0
# The bound: 60 s and a tick, plus a margin for the observation.
FOUND = INTERVAL + PONG_TIMEOUT + 1.0
# How long the relay is stopped: longer than the detection of a dead peer takes.
STOPPED = 70.0
# A cut short enough for TCP to retransmit the lost segments in time.
OUTAGE = 12.0
PHONES_MAX = 16
FLOOD, MESSAGE_LENGTH = 32, 64 * 1024
# The number of a message that no peer may receive.
STALE = 999


class Watched(Relay):
    """A relay that is reached over the switch, with its parsed log."""

    def __init__(self):
        # By conn_id: when it was released, and why.
        self.released = {}
        super().__init__("--insecure-listen", f"{SWITCH}:0")

    def _read_log(self):
        for line in self.process.stderr:
            seen = time.monotonic()
            self.log.append(line.decode())
            if found := re.search(
                r" msg=(?:server_released|phone_unregistered) .*conn_id=(\S+) cause=(\S+)",
                self.log[-1],
            ):
                self.released[found[1]] = seen, found[2]

    def wait_released(self, conn_id, within):
        return wait_until(
            lambda: self.released.get(conn_id), within, f"not released within {within:.1f} s")


class Victim:
    """A peer process at the end of its own cable."""

    def __init__(self, relay, cable, role, server_id):
        self.cable, self.name = cable, server_id
        commands, self.commands = os.pipe()
        with cable.far_end():
            self.process = spawn(
                [sys.executable, "-B", os.path.join(HERE, "peer.py"),
                 *map(str, relay.address), role, server_id, str(commands)],
                stdout=subprocess.PIPE, pass_fds=[commands])
        os.close(commands)
        self.seen = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.conn_id = self.expect("open")["conn_id"]

    def _read(self):
        for line in self.process.stdout:
            self.seen.put(json.loads(line))

    def expect(self, what, within=SOON):
        """Its next event; skips pings and messages before it."""
        found = self.seen.get(timeout=within)
        while found["seen"] in ("ping", "message") and found["seen"] != what:
            found = self.seen.get(timeout=within)
        assert found["seen"] == what, found
        return found

    def send(self, data):
        os.write(self.commands, data.hex().encode() + b"\n")
        self.expect("sent")

    def stop(self):
        """Stops the process; its kernel still acknowledges."""
        freeze(self.process)

    def finds_its_end(self, expected):
        """Continues the process, which then receives all that it missed, in order, then
        that close, then the end."""
        self.process.send_signal(signal.SIGCONT)
        numbers = []
        while (found := self.seen.get(timeout=SOON))["seen"] in ("ping", "message"):
            if found["seen"] == "message":
                numbers.append(found["number"])
        assert numbers == list(range(len(numbers))), numbers
        assert (found["seen"], found.get("code"), found.get("reason")) == ("close", *expected), found
        self.expect("end")

    def comes_back(self, said):
        """Its cable mended it says that, again and again, until it hears its end."""
        self.cable.plug_in()
        def is_over():
            with contextlib.suppress(BrokenPipeError):
                os.write(self.commands, said.hex().encode() + b"\n")
            while not self.seen.empty():
                if self.seen.get()["seen"] in ("end", "reset"):
                    return True
            return False
        wait_until(is_over, LINGER + SOON, "it does not learn that it is over", look_every=0.5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        os.close(self.commands)


def honest(relay, role, server_id, **options):
    """A live peer, on a cable that is not cut."""
    with UNCUT.far_end():
        peer = upgrade(relay, role, server_id)
    # Scenarios send while it answers pings: frame by frame.
    lock, send = threading.Lock(), peer.send
    def send_whole(data):
        with lock:
            send(data)
    peer.send = send_whole
    return Honest(peer, **options)


def numbered(number, length=MESSAGE_LENGTH):
    return b'"#%d %s"' % (number, b"x" * length)


def send_to(sender, conn_id, number, length=MESSAGE_LENGTH):
    """Sends to the phone with that conn_id; without one to the binary."""
    message = numbered(number, length)
    sender.peer.send(frame(TEXT, envelope(conn_id, message) if conn_id else message))


def wait_message(peer, number, within=LATE):
    wait_until(
        lambda: any(b'"#%d ' % number in message for message in peer.messages), within,
        lambda: f"message {number} did not arrive: {peer.closed or peer.failure}")


def is_unheard(number, peer):
    assert not any(b'"#%d ' % number in message for message in peer.messages), peer.messages


def exchange(binary, phone, number):
    """A message in each direction, which must arrive soon."""
    send_to(phone, None, number, length=1)
    wait_message(binary, number)
    send_to(binary, phone.peer.request_id, number, length=1)
    wait_message(phone, number)


# Causes of death, and the states in which peers die


FAULTS = {
    # Nothing passes; nothing reaches the peer; nothing comes from it; it does not run.
    "unplugged": lambda victim: victim.cable.unplug(),
    "deaf": lambda victim: victim.cable.drop_towards_peer(),
    "mute": lambda victim: victim.cable.drop_towards_relay(),
    "stopped": Victim.stop,
}


class Idle:
    name = "idle"
    found = INTERVAL + PONG_TIMEOUT - LATE, FOUND
    cause, close = "heartbeat_timeout", (1011, "heartbeat timeout")

    def before(self, victim):
        victim.expect("ping", INTERVAL + SOON)

    def after(self, _sender, _to):
        pass


class Queued(Idle):
    """A message in flight: the kernel retransmits it, and reports no error."""

    name = "queued"

    def after(self, sender, to):
        send_to(sender, to, 0, length=4000)


class Backlogged:
    """A backlog larger than the kernels' buffers, cut within a frame."""

    name = "backlogged"
    found = WRITE, FOUND
    cause, close = "write_timeout", (1011, "write timeout")

    def before(self, _victim):
        pass

    def after(self, sender, to):
        def flood():
            # A binary that does not drain stops its phones, so this may block.
            with contextlib.suppress(OSError):
                for number in range(FLOOD):
                    send_to(sender, to, number)
        threading.Thread(target=flood, daemon=True).start()


class MidMessage:
    """The peer has sent a part of a message."""

    name = "mid_message"
    found = MESSAGE - 1.0, MESSAGE + 1.0
    cause, close = "message_timeout", (1008, "message timeout")

    def before(self, victim):
        victim.send(frame(TEXT, b'"half', declared=1000))

    def after(self, _sender, _to):
        pass


STATES = Idle(), Queued(), Backlogged(), MidMessage()


def die(relay, victim, fault, state, sender, to):
    """Cuts the cable and waits for the release; returns when it was seen."""
    state.before(victim)
    began = time.monotonic()
    FAULTS[fault](victim)
    cut = time.monotonic()
    state.after(sender, to)
    earliest, latest = state.found
    released, cause = relay.wait_released(victim.conn_id, cut + latest + SOON - time.monotonic())
    print(f"network_faults {victim.name}: {cause} {released - cut:.2f} s behind the cut", flush=True)
    assert cause == state.cause and began + earliest <= released <= cut + latest
    return released


def a_phone_dies(relay, cable, fault, state):
    server_id = f"phone_{fault}_{state.name}"
    binary = honest(relay, "server", server_id)
    siblings = [honest(relay, "client", server_id) for _ in range(PHONES_MAX - 1)]
    with Victim(relay, cable, "client", server_id) as victim:
        full = honest(relay, "client", server_id)
        full.join(SOON)
        assert full.closed == (4429, "too many phones for server-id"), full.closed
        released = die(relay, victim, fault, state, binary, victim.conn_id)
        # Its place is free at once, though its socket lingers.
        newcomer = honest(relay, "client", server_id)
        exchange(binary, newcomer, 1000)
        assert time.monotonic() < released + LATE
        if fault == "stopped":
            victim.finds_its_end(state.close)
        if fault == "unplugged":
            victim.comes_back(frame(TEXT, numbered(STALE, 1)))
    is_unheard(STALE, binary)
    for number, sibling in enumerate(siblings, 1001):
        assert sibling.is_alive(), f"a sibling was closed: {sibling.closed or sibling.failure}"
        exchange(binary, sibling, number)


def a_binary_dies(relay, cable, fault, state):
    server_id = f"binary_{fault}_{state.name}"
    with Victim(relay, cable, "server", server_id) as victim:
        phones = [honest(relay, "client", server_id) for _ in range(2)]
        released = die(relay, victim, fault, state, phones[0], None)
        # A claim that had to wait for a probe would not be answered.
        with UNCUT.far_end():
            rival = upgrade(relay, "server", server_id, frame(PING, b"mine"))
        assert rival.read_pong(within=LATE) == b"mine"
        assert time.monotonic() < released + LATE
        again = Honest(rival), honest(relay, "client", server_id)
        if fault == "stopped":
            victim.finds_its_end(state.close)
        if fault == "unplugged":
            stale = envelope(again[1].peer.request_id, numbered(STALE, 1))
            victim.comes_back(frame(TEXT, stale))
    for phone in phones:
        phone.join(SOON)
        reasons = ["binary reclaimed server-id"]
        if phone is phones[0] and isinstance(state, Backlogged):
            # What it could not send before came while the binary was away.
            reasons.append("binary disconnected")
        assert phone.closed in [(4404, reason) for reason in reasons], phone.closed
    # The end of the dead peer's socket affects no other peer.
    exchange(*again, 1000)
    is_unheard(STALE, again[1])


def live_peers_are_not_affected(relay):
    """A live pair, while all the others die."""
    binary, phone = honest(relay, "server", "bystander"), honest(relay, "client", "bystander")
    ends = time.monotonic() + INTERVAL + FOUND + SOON
    number = 0
    while time.monotonic() < ends:
        exchange(binary, phone, number)
        number += 1
        phone.join(0.2)
    assert binary.pinged and phone.pinged


def a_stopped_relay(cable):
    """Closes no live peer, and detects the peers that died meanwhile."""
    with Watched() as relay, Victim(relay, cable, "server", "dies") as victim:
        binary = honest(relay, "server", "home", delay=1.0)
        phones = [honest(relay, "client", "home", delay=1.0) for _ in range(PHONES_MAX)]
        binaries = [honest(relay, "server", f"s{number}", delay=1.0) for number in range(20)]
        living = [binary, *phones, *binaries]
        # Some pings are answered, others are not yet, most are still to come.
        wait_until(lambda: sum(len(peer.pinged) for peer in living) >= 4, INTERVAL)
        relay.stop()
        try:
            cable.unplug()
            send_to(phones[0], None, 0, length=1)
            time.sleep(STOPPED)
        finally:
            relay.resume()
        woken = time.monotonic()
        wait_message(binary, 0)
        def are_pinged_again():
            assert all(peer.is_alive() for peer in living), [
                peer.closed or peer.failure for peer in living]
            return all(peer.pinged[-1:] > [woken] for peer in living)
        wait_until(are_pinged_again, INTERVAL + LATE, "not pinged again", look_every=0.1)
        released, cause = relay.wait_released(victim.conn_id, FOUND)
        assert cause == "heartbeat_timeout" and released <= woken + FOUND, cause
        assert list(relay.released) == [victim.conn_id], relay.released
        for number, phone in enumerate(phones, 1):
            exchange(binary, phone, number)


def a_short_outage_has_no_effect(relay, cable, role):
    """A cable that is cut briefly around a ping has no effect."""
    server_id = f"{role}_outage"
    others_role = "client" if role == "server" else "server"
    with contextlib.ExitStack() as stack:
        if role == "client":
            other = honest(relay, others_role, server_id)
        victim = stack.enter_context(Victim(relay, cable, role, server_id))
        if role == "server":
            other = honest(relay, others_role, server_id)
        phones_id = victim.conn_id if role == "client" else other.peer.request_id
        victim.expect("ping", INTERVAL + SOON)
        pinged = time.monotonic()
        time.sleep(pinged + INTERVAL - OUTAGE / 2 - time.monotonic())
        cable.unplug()
        for number in range(3):
            send_to(other, victim.conn_id if role == "client" else None, number, length=1)
            message = numbered(number, 1)
            victim.send(frame(TEXT, message if role == "client" else envelope(phones_id, message)))
        time.sleep(pinged + INTERVAL + OUTAGE / 2 - time.monotonic())
        cable.plug_in()
        for number in range(3):
            wait_message(other, number, within=INTERVAL)
            assert victim.expect("message", INTERVAL)["number"] == number
        # The ping that was late, and instead of a close the one after it.
        for _ in range(2):
            victim.expect("ping", pinged + 2 * INTERVAL + LATE - time.monotonic())
        assert len(other.messages) == 3 and other.is_alive(), other.messages
        assert victim.conn_id not in relay.released


def scenarios(relay):
    def scenario(name, function, *arguments):
        bound = functools.partial(function, *arguments)
        bound.__name__ = name
        return bound

    # The longest first.
    yield scenario("relay_stopped", a_stopped_relay, Cable())
    yield scenario("bystanders", live_peers_are_not_affected, relay)
    for role, dies in {"phone": a_phone_dies, "binary": a_binary_dies}.items():
        for state in STATES:
            for fault in FAULTS:
                yield scenario(
                    f"{role}_{fault}_{state.name}", dies, relay, Cable(), fault, state)
    yield scenario("phone_outage", a_short_outage_has_no_effect, relay, Cable(), "client")
    yield scenario("binary_outage", a_short_outage_has_no_effect, relay, Cable(), "server")


if __name__ == "__main__":
    assert os.access(program(), os.X_OK), "the first argument is the relay"
    build_switch()
    UNCUT = Cable()
    with Watched() as RELAY:
        chosen = list(scenarios(RELAY))
        main(chosen, at_once=len(chosen))
