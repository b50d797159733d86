"""What 32 hanging calls cost everybody else: figures, beside a relay with none.

Both relays run at the same time with the same peers, so that a busy machine is
busy for both, and what counts is one against the other.
"""

import selectors
import threading
import time

from google import Answer, Google
from harness import main
from push import IN_FLIGHT, Pushing, device, push_wake, wait_sends
from rawpeer import PING, PONG, TEXT, envelope, frame, pair

PEERS, INTERVAL = 100, 30.0
# In which every peer is pinged twice, whatever its phase.
LONG = 2 * INTERVAL + 4


class Pinged(threading.Thread):
    """Answers the pings of many peers, and knows when they came."""

    def __init__(self, peers):
        super().__init__(daemon=True)
        self.peers, self.over = peers, threading.Event()
        self.times = {peer: [] for peer in peers}
        self.start()

    def run(self):
        began = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for peer in self.peers:
                selector.register(peer.socket, selectors.EVENT_READ, peer)
            while not self.over.is_set():
                for key, _ in selector.select(0.5):
                    peer, now = key.data, time.monotonic()
                    found = peer.read_frame()
                    assert found.opcode == PING, found
                    # What had come before anybody looked has no time.
                    if now - began > 1.0:
                        self.times[peer].append(now)
                    peer.send(frame(PONG, found.payload))

    def stop(self):
        self.over.set()
        self.join()

    def lateness(self):
        """How far from 30 s after the one before a ping came."""
        times = self.times.values()
        return [abs(b - a - INTERVAL) for seen in times for a, b in zip(seen, seen[1:])]


def round_trip(binary, phone):
    began = time.monotonic()
    phone.send(frame(TEXT, b"1"))
    binary.read_message()
    binary.send(frame(TEXT, envelope(phone.request_id, b"2")))
    phone.read_message()
    return time.monotonic() - began


def keep_hanging(peers, server, over, at_once):
    """Asks for wakes, more than may hang, and looks how many do."""
    while not over.wait(0.1):
        peer = peers.pop(0)
        peer.send(push_wake(device("hanging")))
        peers.append(peer)
        at_once.append(server.at_once)


def row(what, values, unit):
    ordered = sorted(values)
    shown = [ordered[int((len(ordered) - 1) * rank)] * unit[1] for rank in (0.5, 0.99, 1.0)]
    print(f"  {what:<38} median {shown[0]:.2f}, p99 {shown[1]:.2f}, max {shown[2]:.2f} {unit[0]}"
          f" of {len(ordered)}", flush=True)
    return ordered[len(ordered) // 2]


def hanging_calls_cost_the_others_nothing():
    with Google() as server, Pushing(server) as hanging, Pushing(server) as quiet:
        hanging.wake("to have a token")
        wait_sends(server, 1)
        hanging.wait_idle()
        server.on_send = server.hang
        peers = [[relay.binary() for _ in range(PEERS)] for relay in (hanging, quiet)]
        pairs = [pair(relay, "busy") for relay in (hanging, quiet)]
        over, at_once = threading.Event(), []
        asking = threading.Thread(
            target=keep_hanging, args=[list(peers[0]), server, over, at_once], daemon=True)
        asking.start()
        wait_sends(server, 1 + IN_FLIGHT)
        pinged = [Pinged(side) for side in peers]
        trips = [[], []]
        began = time.monotonic()
        at_once.clear()
        while time.monotonic() - began < LONG:
            # Whoever is first finds the caches cold.
            for side in (0, 1) if len(trips[0]) % 2 else (1, 0):
                trips[side].append(round_trip(*pairs[side]))
            time.sleep(0.01)
        over.set()
        asking.join()
        for side in pinged:
            side.stop()
        server.on_send = Answer(200)
        row("calls hanging, seen ten times a second", at_once, ("", 1))
        millis, micros = ("ms", 1e3), ("µs", 1e6)
        late = [row(f"pings, {name}: off by", side.lateness(), millis)
                for name, side in zip(("32 calls hanging", "no call"), pinged)]
        trip = [row(f"round trips, {name}", side, micros)
                for name, side in zip(("32 calls hanging", "no call"), trips)]
        print(f"  with hanging calls against without: pings {late[0] / late[1]:.2f}, "
              f"round trips {trip[0] / trip[1]:.2f}")
        assert all(len(side.lateness()) >= PEERS for side in pinged), "each is pinged on"


if __name__ == "__main__":
    main([hanging_calls_cost_the_others_nothing])
