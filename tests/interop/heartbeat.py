"""The heartbeat at its real pace: pinged every 30 s, dead 30 s after a ping that
was due (docs/PROTOCOL.md), and the other times that are too long for one after
another: grace, probe, message timeout. All scenarios run side by side, in
about 100 s.

Upper bounds leave room for a busy machine. Lower bounds are measured from
before the request was sent, so they are strict: nothing is ever early.
"""

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time

from harness import LATE, SOON, main, spawn, wait_until
from rawpeer import (
    CLOSE, CONTINUATION, PING, PONG, TEXT, Honest, close_frame, envelope, frame, notice, pair,
    upgrade,
)
from websockets_peers import dial, for_phone, next_message

INTERVAL = 30.0
PONG_TIMEOUT = 30.0
PROBE = 10.0
GRACE = 30.0
MESSAGE = 30.0
LINGER = 5.0
TICK = 0.1
SEEN_LATE = 0.5
# Long enough for three pings, whatever the phase of the first.
WATCHED = 95.0
# Longer than it takes to find a dead peer.
STOPPED = 70.0
DEAD = (1011, "heartbeat timeout")

NODE_PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node", "peers.cjs")


@contextlib.contextmanager
def every(seconds, action):
    """Does something again and again, until it can no more."""
    stop = threading.Event()

    def run():
        with contextlib.suppress(OSError):
            while not stop.wait(seconds):
                action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def on_time(since, at_least, seen):
    """Whether `seen` is `at_least` behind `since`, and not much later."""
    return since + at_least <= seen <= since + at_least + TICK + LATE


def dies(peer, on_ping=lambda payload: None, answered=0):
    """Watches a peer die: closed once, in time and never early. `answered`: how
    many of its pings it answers before it falls silent."""
    silent = answered * INTERVAL + PONG_TIMEOUT
    latest = peer.opened + INTERVAL + silent + TICK + LATE
    pinged = []
    while (found := peer.read_frame(max(latest - time.monotonic(), 0.001))).opcode != CLOSE:
        if found.opcode == PING:
            pinged.append(time.monotonic())
            on_ping(found.payload)
    seen = time.monotonic()
    assert found.close == DEAD, found
    assert seen <= latest, f"{seen - peer.opened} s after its upgrade"
    assert seen >= peer.dialled + silent, f"{seen - peer.dialled} s after its upgrade"
    # Less strict, as this ping may have been seen late, but for any phase.
    assert seen >= pinged[answered] + PONG_TIMEOUT - SEEN_LATE, f"{seen - pinged[answered]} s"
    return seen


def is_dropped(peer, since):
    """Behind the close comes the end, and the socket goes, answered or not."""
    peer.read_nothing()
    def is_gone():
        try:
            peer.send(b"\0")
        except OSError:
            return True
        return False
    within = since + LINGER + TICK + LATE - time.monotonic()
    wait_until(is_gone, within, "still there behind its linger", look_every=0.05)


def is_pinged_in_time(pinged, opened, until):
    """Every interval from a random phase within the first, and never else."""
    assert pinged and opened <= pinged[0] <= opened + INTERVAL + TICK + LATE, (opened, pinged)
    for earlier, later in zip(pinged, pinged[1:]):
        assert abs(later - earlier - INTERVAL) <= LATE, (opened, pinged)
    assert pinged[-1] >= until - INTERVAL - TICK - LATE, (until, pinged)


# Who lives


async def idle_peers_of_python_live(relay):
    opened = time.monotonic()
    peers = [await dial(relay, role) for role in ["server"] + ["client"] * 4]
    binary, phones = peers[0], peers[1:]
    hears = [asyncio.create_task(peer.recv()) for peer in peers]
    heard, _ = await asyncio.wait(
        hears, timeout=WATCHED, return_when=asyncio.FIRST_COMPLETED)
    assert not heard, f"an idle peer heard {heard}"
    now = time.monotonic()
    for task in hears:
        task.cancel()
    await asyncio.wait(hears)
    for peer in peers:
        is_pinged_in_time(peer.pinged, opened, now)
    for phone in phones:
        await phone.send("1")
        assert json.loads(await next_message(binary))["conn_id"] == phone.request_id
        await binary.send(for_phone(phone, "2"))
        assert await next_message(phone) == "2"


class NodePeer:
    """A process of its own with one idle `ws` client."""

    def __init__(self, relay, role, server_id="home"):
        self.process = spawn(
            ["node", NODE_PEER, "idle", relay.url, role, server_id], stdout=subprocess.PIPE)
        self.seen = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.seen.put((time.monotonic(), json.loads(line)))

    def expect(self, what, within):
        """When the next thing happened, which must be `what`, and what it was."""
        at, found = self.seen.get(timeout=within)
        assert found["seen"] == what, found
        return at, found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def idle_peers_of_node_live(relay):
    with NodePeer(relay, "server") as binary:
        binary_opened, _ = binary.expect("open", SOON)
        with NodePeer(relay, "client") as phone:
            phone_opened, _ = phone.expect("open", SOON)
            ends = time.monotonic() + WATCHED
            for peer, opened in ((binary, binary_opened), (phone, phone_opened)):
                seen = []
                with contextlib.suppress(queue.Empty):
                    while (left := ends - time.monotonic()) > 0 or not peer.seen.empty():
                        seen.append(peer.expect("ping", max(left, 0.001))[0])
                is_pinged_in_time(seen, opened, ends)
    relay.wait_connected(0, 0)


def a_peer_that_answers_slowly_lives(relay):
    """A pong 27 s late is on time."""
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    slow = [Honest(peer, delay=27.0) for peer in (binary, phone)]
    for peer in slow:
        peer.join(WATCHED if peer is slow[0] else 0)
        assert peer.is_alive(), f"closed: {peer.closed or peer.failure}"
        is_pinged_in_time(peer.pinged, peer.peer.dialled, time.monotonic())


def a_stopped_relay_kills_no_healthy_peer(relay):
    """What came in the meantime is read before anyone is judged."""
    binary, phone = pair(relay)
    more = [upgrade(relay, "client", "home") for _ in range(15)]
    # A second away, as on a bad mobile network: some pongs come while it is stopped.
    peers = [Honest(peer, delay=1.0) for peer in (binary, phone, *more)]
    binaries = [Honest(upgrade(relay, "server", f"s{number}"), delay=1.0) for number in range(20)]
    # Stopped while some pings are answered and others not yet sent.
    wait_until(lambda: sum(len(p.pinged) for p in peers + binaries) >= 4, INTERVAL, look_every=0.1)
    with NodePeer(relay, "server", "node") as node:
        node.expect("open", SOON)
        relay.stop()
        try:
            phone.send(frame(TEXT, b'"said while it slept"'))
            time.sleep(STOPPED)
        finally:
            relay.resume()
        woken = time.monotonic()
        wait_until(lambda: peers[0].messages, LATE, lambda: f"not delivered: {peers[0].closed}")
        # Whoever was to be killed would be by now: the next pings have come.
        def all_pinged_again():
            assert all(peer.is_alive() for peer in peers + binaries), [
                peer.closed or peer.failure for peer in peers + binaries]
            return all(peer.pinged[-1:] > [woken] for peer in peers + binaries)
        wait_until(all_pinged_again, INTERVAL + TICK + LATE, "not pinged again", look_every=0.1)
        while not node.seen.empty():
            node.expect("ping", SOON)
        assert relay.health()["connected_phones"] == 16
        assert relay.health()["connected_binaries"] == 22
    assert peers[0].messages[0].endswith(b'"frame":"said while it slept"}')


# Who dies


def a_silent_binary_dies(relay):
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    honest = Honest(phone)
    seen = dies(binary)
    # Its slot is free at once, long before its linger is over: a rival that had
    # to wait would not be read.
    rival = upgrade(relay, "server", "home", frame(PING, b"mine"))
    assert rival.read_pong(within=LATE) == b"mine"
    honest.join(SOON)
    assert honest.closed == (4404, "binary reclaimed server-id")
    is_dropped(binary, seen)


def a_silent_phone_dies(relay):
    honest = Honest(upgrade(relay, "server", "home"))
    phone = upgrade(relay, "client", "home")
    seen = dies(phone)
    relay.wait_connected(1, 0, within=LATE)
    # An answered close ends the linger.
    phone.send(close_frame(1011))
    phone.half_close()
    phone.read_nothing()
    assert time.monotonic() < seen + LATE and honest.is_alive()


def sending_is_no_sign_of_life(relay):
    honest = Honest(upgrade(relay, "server", "home"))
    phone = upgrade(relay, "client", "home")
    with every(1.0, lambda: phone.send(frame(TEXT, b'"tick"') + frame(PING, b"me too"))):
        dies(phone)
    assert len(honest.messages) >= 25 and honest.is_alive()


def a_binary_that_sends_dies_too(relay):
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    honest = Honest(phone)
    tick = frame(TEXT, envelope(phone.request_id, b'"tick"'))
    with every(1.0, lambda: binary.send(tick)):
        dies(binary)
    assert len(honest.messages) >= 25


def being_sent_to_is_no_sign_of_life(relay):
    binary = upgrade(relay, "server", "home")
    honest = Honest(binary)
    phone = upgrade(relay, "client", "home")
    with every(1.0, lambda: binary.send(frame(TEXT, envelope(phone.request_id, b'"tick"')))):
        dies(phone)
    assert honest.is_alive()


def a_frozen_process_dies(relay):
    """Its kernel goes on acknowledging; only the pongs stop."""
    with NodePeer(relay, "server", "frozen") as binary, NodePeer(relay, "server", "home") as home:
        binary.expect("open", SOON)
        home.expect("open", SOON)
        with NodePeer(relay, "client", "home") as phone:
            phone.expect("open", SOON)
            frozen = time.monotonic()
            for peer in (binary, phone):
                peer.process.send_signal(signal.SIGSTOP)
            def are_dead():
                health = relay.health()
                return (health["connected_binaries"], health["connected_phones"]) == (1, 0)
            within = INTERVAL + PONG_TIMEOUT + TICK + LATE
            wait_until(are_dead, within, "not noticed", look_every=0.1)
            # A pong on its way when they froze was answered; the next ping was not.
            assert time.monotonic() >= frozen + PONG_TIMEOUT - TICK
            for peer in (binary, phone):
                peer.process.send_signal(signal.SIGCONT)
                while (found := peer.seen.get(timeout=SOON)[1])["seen"] == "ping":
                    pass
                assert found == {"seen": "close", "code": DEAD[0], "reason": DEAD[1]}


def pongs_nobody_asked_for_prove_nothing(relay):
    phone_of = Honest(upgrade(relay, "server", "home"))
    phone = upgrade(relay, "client", "home")
    unasked = [b"", b"\0", b"x" * 125, os.urandom(8), os.urandom(12), os.urandom(16)]
    with every(1.0, lambda: phone.send(b"".join(frame(PONG, payload) for payload in unasked))):
        dies(phone)
    assert phone_of.is_alive()


def a_forged_pong_proves_nothing(relay):
    """Whoever has seen one ping cannot answer the next before it is sent."""
    binary = upgrade(relay, "server", "home")

    def forge(payload):
        for at in range(len(payload)):
            for step in (1, 2, 255):
                forged = bytearray(payload)
                forged[at] = (forged[at] + step) % 256
                binary.send(frame(PONG, bytes(forged)))
        binary.send(frame(PONG, payload[:-1]) + frame(PONG, payload + b"\0"))

    dies(binary, forge)


def an_old_pong_again_proves_nothing(relay):
    binary = upgrade(relay, "server", "home")
    first = []

    def answer(payload):
        first.append(payload)
        binary.send(frame(PONG, first[0]) * 3)

    dies(binary, answer, answered=1)
    assert len(set(first)) >= 2, "pings must differ"


# Probes: more than one ping under way


def first_ping(binary):
    found = binary.read_frame(within=INTERVAL + TICK + LATE)
    assert found.opcode == PING
    return found.payload, time.monotonic()


def answering_the_latest_answers_all(relay):
    """RFC 6455, 5.5.3: who has several pings to answer may answer the last."""
    binary = upgrade(relay, "server", "home")
    _, pinged = first_ping(binary)
    rival = upgrade(relay, "server", "home")
    probe = binary.read_frame()
    assert probe.opcode == PING
    binary.send(frame(PONG, probe.payload))
    assert rival.read_only_close() == (4409, "server-id already claimed")
    honest = Honest(binary)
    honest.join(pinged + PONG_TIMEOUT + TICK + LATE - time.monotonic())
    assert honest.is_alive() and honest.pinged, honest.closed


def an_older_pong_does_not_answer_a_probe(relay):
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    honest = Honest(phone)
    older, _ = first_ping(binary)
    rival = upgrade(relay, "server", "home", frame(PING, b"mine"))
    assert binary.read_frame().opcode == PING
    binary.send(frame(PONG, older))
    assert binary.read_only_close(within=PROBE + SOON) == DEAD
    assert on_time(rival.dialled, PROBE, time.monotonic())
    assert rival.read_pong() == b"mine", "what it sent early is read now"
    honest.join(SOON)
    assert honest.closed == (4404, "binary reclaimed server-id")


def a_slow_answer_to_a_probe_keeps_the_slot(relay):
    honest = Honest(upgrade(relay, "server", "home"), delay=8.0)
    rivals = [upgrade(relay, "server", "home") for _ in range(3)]
    for rival in rivals:
        assert rival.read_only_close(within=PROBE) == (4409, "server-id already claimed")
        assert time.monotonic() >= rivals[0].dialled + 8.0
    assert honest.is_alive()


def a_silent_incumbent_is_displaced(relay):
    """By the first claimant that still waits."""
    binary = upgrade(relay, "server", "home")
    # The first two hang up, one behind data that the relay does not read.
    with upgrade(relay, "server", "home", frame(TEXT, b"{}")):
        pass
    upgrade(relay, "server", "home", frame(TEXT, b"{}") * 1000).reset()
    third = upgrade(relay, "server", "home", frame(PING, b"third"))
    fourth = upgrade(relay, "server", "home")
    assert third.read_pong(within=PROBE + SOON) == b"third"
    assert time.monotonic() <= binary.opened + PROBE + 2 * LATE
    assert fourth.read_only_close() == (4409, "server-id already claimed")
    while (found := binary.read_frame()).opcode == PING:
        pass
    assert found.close == DEAD
    # Its own end, later, touches nobody.
    binary.reset()
    with upgrade(relay, "client", "home") as phone:
        phone.send(frame(TEXT, b"1"))
        assert third.read_message().endswith(b'"frame":1}')


def a_leaving_incumbent_makes_room_at_once(relay):
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    first = upgrade(relay, "server", "home", frame(PING, b"first"))
    second = upgrade(relay, "server", "home")
    binary.send(close_frame(1000))
    assert first.read_pong(within=LATE) == b"first"
    assert second.read_only_close(within=LATE) == (4409, "server-id already claimed")
    assert phone.read_only_close(within=LATE) == (4404, "binary reclaimed server-id")


# Other long times


def grace_ends(relay):
    binary = upgrade(relay, "server", "home")
    early = Honest(upgrade(relay, "client", "home"))
    left = time.monotonic()
    binary.reset()
    relay.wait_connected(0, 1)
    late = Honest(upgrade(relay, "client", "home"))
    for phone in (early, late):
        phone.join(GRACE + SOON)
        assert phone.closed == (1000, ""), phone.closed
        assert on_time(left, GRACE, time.monotonic())
    with upgrade(relay, "client", "home") as phone:
        assert phone.read_only_close() == (4404, "no server with that id")


def a_message_takes_too_long(relay):
    """From its first byte to its end, however many bytes come in between."""
    honest = Honest(upgrade(relay, "server", "home"))
    phone = upgrade(relay, "client", "home")
    pieces = upgrade(relay, "client", "home")
    started = time.monotonic()
    phone.send(frame(TEXT, b'"', declared=1000))
    pieces.send(frame(TEXT, b'"', fin=False))
    drip = (lambda: phone.send(b"x")), (lambda: pieces.send(frame(CONTINUATION, b"x", fin=False)))
    with every(1.0, drip[0]), every(1.0, drip[1]):
        for peer in (phone, pieces):
            while (found := peer.read_frame(within=MESSAGE + SOON)).opcode == PING:
                pass
            assert found.close == (1008, "message timeout")
            assert on_time(started, MESSAGE, time.monotonic())
    assert honest.is_alive()
    told = sorted(notice(peer, 1008) for peer in (phone, pieces))
    wait_until(lambda: sorted(honest.messages) == told, complaint=lambda: honest.messages)


if __name__ == "__main__":
    SCENARIOS = [
        idle_peers_of_python_live, idle_peers_of_node_live, a_peer_that_answers_slowly_lives,
        a_stopped_relay_kills_no_healthy_peer, a_silent_binary_dies, a_silent_phone_dies,
        sending_is_no_sign_of_life, a_binary_that_sends_dies_too,
        being_sent_to_is_no_sign_of_life, a_frozen_process_dies,
        pongs_nobody_asked_for_prove_nothing, a_forged_pong_proves_nothing,
        an_old_pong_again_proves_nothing, answering_the_latest_answers_all,
        an_older_pong_does_not_answer_a_probe, a_slow_answer_to_a_probe_keeps_the_slot,
        a_silent_incumbent_is_displaced, a_leaving_incumbent_makes_room_at_once, grace_ends,
        a_message_takes_too_long,
    ]
    main(SCENARIOS, at_once=len(SCENARIOS))
