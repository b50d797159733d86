"""Several relays behind HAProxy, as deploy/haproxy/haproxy-sharded.cfg has them.

That very file is run, with ports, paths and the list of servers put in. Homes and
phones dial through HAProxy, dial again when they are cut off, as clients should,
and keep count of what they were told. `sharding.py RELAY figures` compares, and wants
the machine to itself.
"""

import asyncio
import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from harness import DIRECT, SOON, Relay, free_port, main, program, spawn, wait_until

HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
HERE = os.path.dirname(os.path.abspath(__file__))
DEPLOYED = os.path.join(HERE, "../../deploy/haproxy/haproxy-sharded.cfg")

# Of whatever has to do with health checks, on a busy machine.
SETTLED = 20.0


def replace(text, pattern, by):
    text, count = re.subn(pattern, lambda _: by, text, flags=re.MULTILINE)
    assert count, f"nothing in the file is {pattern}"
    return text


def binaries(relay):
    with DIRECT.open(f"http://{relay.metrics}/metrics", timeout=SOON) as answer:
        text = answer.read().decode()
    return int(re.search(r"^pyrycode_relay_connected_binaries (\d+)$", text, re.MULTILINE)[1])


class Shards:
    """Relays behind HAProxy in master-worker mode."""

    def __init__(self, count, *flags):
        self.flags = ("--proxy-protocol", "--trusted-proxies", "127.0.0.1", *flags)
        with contextlib.ExitStack() as stack:
            self.relays = [self._start(stack) for _ in range(count)]
            self.directory = stack.enter_context(tempfile.TemporaryDirectory())
            self.front = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1000))
            self.peers_port = free_port()
            self.path = os.path.join(self.directory, "haproxy.cfg")
            self._write()
            self.balancer = spawn(
                [HAPROXY, "-q", "-W", "-f", self.path], pass_fds=[self.front.fileno()]
            )
            stack.callback(self._end_balancer)
            self.stack = stack.pop_all()
        self.wait_for({f"relay{n + 1}": "UP" for n in range(count)})

    def _start(self, stack, *more):
        return stack.enter_context(Relay(*self.flags, *more))

    def _end_balancer(self):
        self.balancer.terminate()
        self.balancer.wait(SOON)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stack.__exit__(*failure)

    def _write(self):
        with open(DEPLOYED) as deployed:
            text = deployed.read()
        text = replace(text, r"/run/haproxy/admin\.sock", f"{self.directory}/admin.sock")
        text = replace(text, r"^    bind :80$", f"    bind fd@{self.front.fileno()}")
        text = replace(text, r"127\.0\.0\.1:10000", f"127.0.0.1:{self.peers_port}")
        text = replace(text, r"^    server relay1 .*\n    server relay2 .*\n", "".join(
            f"    server relay{number} {relay.url}\n"
            for number, relay in enumerate(self.relays, 1)
        ))
        with open(self.path, "w") as config:
            config.write(text)

    def ask(self, command):
        """What the newest of HAProxy's workers answers."""
        with socket.socket(socket.AF_UNIX) as stats:
            try:
                stats.settimeout(SOON)
                stats.connect(f"{self.directory}/admin.sock")
                stats.sendall(command.encode() + b"\n")
                return stats.makefile().read()
            except OSError:
                return ""

    def statuses(self):
        rows = csv.DictReader(io.StringIO(self.ask("show stat").removeprefix("# ")))
        # While a check has not come to its end yet, "UP 1/2".
        return {row["svname"]: row["status"] for row in rows if row["check_status"]}

    def wait_for(self, statuses):
        def are_so():
            seen = self.statuses()
            return all(seen.get(name) == status for name, status in statuses.items())
        wait_until(are_so, SETTLED, lambda: f"{statuses} wanted, {self.statuses()} seen")

    def pid(self):
        return next(iter(re.findall(r"^Pid: (\d+)$", self.ask("show info"), re.MULTILINE)), None)

    def wait_synchronised(self):
        """A worker hands its table on only once it has one itself, or has given up asking
        for it, which takes five seconds if nobody was there before it."""
        def is_so():
            flags = re.search(r" flags=(0x[0-9a-f]+)", self.ask("show peers reload"))
            return flags and int(flags[1], 16) & 3 == 3
        wait_until(is_so, SETTLED, lambda: self.ask("show peers reload"))

    def reload(self):
        """As `systemctl reload haproxy` does it."""
        self.wait_synchronised()
        before = self.pid()
        self._write()
        self.balancer.send_signal(signal.SIGUSR2)
        wait_until(lambda: self.pid() not in (None, before), SETTLED, "no new worker")
        self.wait_for({f"relay{n}": "UP" for n in range(1, len(self.relays) + 1)})

    def add(self):
        self.relays.append(self._start(self.stack))
        self.reload()

    def kill(self, number):
        relay = self.relays[number]
        relay.process.kill()
        relay.process.wait()
        # For its end it is as if it had been asked to.
        relay.is_signalled, relay.exit_status = True, lambda: 0
        return relay

    def revive(self, number):
        address = self.relays[number].url
        self.relays[number] = self._start(self.stack, "--insecure-listen", address)
        self.wait_for({f"relay{number + 1}": "UP"})

    def binaries(self):
        return [binaries(relay) for relay in self.relays]

    def dial(self, role, server_id):
        own = {"x-pyrycode-version": "1"} if role == "server" else {"x-pyrycode-token": "t"}
        return connect(
            "ws://127.0.0.1:%d/v1/%s" % (self.front.getsockname()[1], role),
            additional_headers={"x-pyrycode-server": server_id, **own},
            compression=None, open_timeout=SOON, ping_interval=None, proxy=None,
        )


class Peer:
    """Dials, and dials again after a while when it is refused or cut off."""

    role = None

    def __init__(self, shards, server_id):
        self.shards, self.server_id = shards, server_id
        self.websocket = None
        # Status codes of refusals and codes of closes, in their order.
        self.told = []
        self.is_there = asyncio.Event()
        self.task = asyncio.create_task(self._live())

    async def _live(self):
        while True:
            try:
                async with self.shards.dial(self.role, self.server_id) as self.websocket:
                    await self._on_open()
                    async for message in self.websocket:
                        await self._on_message(message)
                self.told.append(self.websocket.close_code)
            except ConnectionClosed as closed:
                self.told.append(closed.rcvd.code if closed.rcvd else 1006)
            except InvalidHandshake as refused:
                self.told.append(getattr(getattr(refused, "response", None), "status_code", 0))
            except (OSError, EOFError):
                self.told.append(0)
            self.is_there.clear()
            await asyncio.sleep(random.uniform(0.05, 0.4))

    async def end(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Home(Peer):
    """A binary that sends every frame back."""

    role = "server"

    async def _on_open(self):
        self.is_there.set()

    async def _on_message(self, message):
        await self.websocket.send(message)


class Phone(Peer):
    """A phone that is there once its own frame has come back."""

    role = "client"

    async def _on_open(self):
        await self.websocket.send(f'"{self.server_id}"')

    async def _on_message(self, message):
        assert message == f'"{self.server_id}"', message
        self.is_there.set()


async def all_there(peers, within=SETTLED):
    async def there():
        for peer in peers:
            await peer.is_there.wait()
    try:
        async with asyncio.timeout(within):
            await there()
    except TimeoutError:
        missing = {p.server_id: p.told[-5:] for p in peers if not p.is_there.is_set()}
        raise AssertionError(f"not there: {len(missing)}, {dict(list(missing.items())[:5])}") from None


async def end(peers):
    await asyncio.gather(*(peer.end() for peer in peers))


async def crowd(shards, kind, server_ids):
    """Peers that are there, not all dialling at once."""
    peers, server_ids = [], list(server_ids)
    for start in range(0, len(server_ids), 125):
        some = [kind(shards, server_id) for server_id in server_ids[start:start + 125]]
        await all_there(some)
        peers += some
    return peers


def names(count, prefix="home"):
    return [f"{prefix}-{number}" for number in range(count)]


async def off(function, *arguments):
    """Runs what waits for processes while the peers go on."""
    return await asyncio.to_thread(function, *arguments)


async def finds_all(shards, per_batch, batches):
    for batch in range(batches):
        server_ids = names(per_batch, f"batch{batch}")
        homes = await crowd(shards, Home, server_ids)
        phones = await crowd(shards, Phone, server_ids)
        shares = await off(shards.binaries)
        assert sum(shares) == per_batch, shares
        # A share of a consistent hash differs, but none is idle.
        assert min(shares) > per_batch / len(shares) / 4, shares
        assert not any(peer.told for peer in homes + phones)
        await end(phones + homes)


def every_phone_finds_its_binary_with_two_relays():
    with Shards(2) as shards:
        asyncio.run(finds_all(shards, 250, 4))


def every_phone_finds_its_binary_with_four_relays():
    with Shards(4) as shards:
        asyncio.run(finds_all(shards, 250, 4))


async def new_phones(shards, server_ids):
    """A phone more for each finds its binary at the first attempt."""
    phones = await crowd(shards, Phone, server_ids)
    told = {phone.server_id: phone.told for phone in phones if phone.told}
    await end(phones)
    assert not told, f"new phones of live tunnels were told {told}"


async def _added(shards):
    live = names(200)
    homes, phones = await crowd(shards, Home, live), await crowd(shards, Phone, live)

    async def dial_on():
        while True:
            await new_phones(shards, random.sample(live, 10))
    load = asyncio.create_task(dial_on())
    before = await off(shards.binaries)
    await off(shards.add)
    await new_phones(shards, live)
    fresh = names(200, "fresh")
    homes += await crowd(shards, Home, fresh)
    phones += await crowd(shards, Phone, fresh)
    shares = await off(shards.binaries)
    assert shares[2] > 20, f"the added one has nothing to do: {before}, then {shares}"
    # The hash alone would now send a third of the first to where their binary is not.
    for _ in range(2):
        await off(shards.reload)
        await new_phones(shards, live + fresh)
    assert not load.done(), load.exception()
    load.cancel()
    told = [peer.told for peer in homes + phones if peer.told]
    assert not told, f"tunnels were cut: {told}"
    await end(phones + homes)


def one_is_added_and_haproxy_reloaded_under_load():
    with Shards(2) as shards:
        asyncio.run(_added(shards))


async def _drained(shards):
    live = names(200)
    homes, phones = await crowd(shards, Home, live), await crowd(shards, Phone, live)
    share = (await off(shards.binaries))[0]
    started = time.monotonic()
    shards.relays[0].signal()
    status = await off(shards.relays[0].exit_status)
    took = time.monotonic() - started
    assert status == 0 and took < 10, (status, took)
    await all_there(homes + phones)
    moved = [peer for peer in homes + phones if peer.told]
    assert len(moved) == 2 * share, (len(moved), share)
    assert all(peer.told[0] == 1001 for peer in moved), [peer.told for peer in moved]
    # Homes that are faster than the next health check hear 503, and come again.
    lost = [peer.told for peer in moved if 4404 in peer.told]
    print(f"a drain of {share} tunnels in {took:.1f} s: {len(lost)} phones came too soon", flush=True)
    assert len(lost) <= share / 10, lost
    assert sum([binaries(relay) for relay in shards.relays[1:]]) == len(live)
    await new_phones(shards, live)
    await end(phones + homes)


def one_is_drained_and_its_tunnels_move():
    with Shards(3, "--drain-seconds", "3") as shards:
        asyncio.run(_drained(shards))


async def _killed(shards):
    live = names(200)
    homes, phones = await crowd(shards, Home, live), await crowd(shards, Phone, live)
    share = (await off(shards.binaries))[0]
    await off(shards.kill, 0)
    # Both ends are told by the end of their connections, whoever comes first.
    def are_told():
        return sum(bool(peer.told) for peer in homes + phones) == 2 * share
    await off(wait_until, are_told)
    await all_there(homes + phones)
    await new_phones(shards, live)
    await off(shards.revive, 0)
    assert (await off(shards.binaries))[0] == 0
    told = [len(peer.told) for peer in homes + phones]
    await new_phones(shards, live)
    homes += await crowd(shards, Home, names(100, "fresh"))
    assert (await off(shards.binaries))[0] > 5, "the one that came back has nothing to do"
    assert told == [len(peer.told) for peer in homes[:len(live)] + phones]
    await end(phones + homes)


def one_is_killed_and_comes_back():
    with Shards(3) as shards:
        asyncio.run(_killed(shards))


async def _full(shards):
    homes = await crowd(shards, Home, ["first"])
    holder = (await off(shards.binaries)).index(1)
    phones = await crowd(shards, Phone, ["first"] * 3)
    # That was its fourth; it is full, and is not asked for new ids any more.
    await off(shards.wait_for, {f"relay{holder + 1}": "NOLB"})
    homes += await crowd(shards, Home, names(4))
    assert not any(peer.told for peer in homes + phones)
    late = Phone(shards, "first")
    await off(wait_until, lambda: late.told)
    await end(phones[:1])
    await all_there([late])
    assert set(late.told) == {503}, late.told
    await end([late, *phones[1:], *homes])


def a_full_one_keeps_its_own_and_gets_no_new_ones():
    with Shards(2, "--max-connections", "4") as shards:
        asyncio.run(_full(shards))


def returned(shards, seconds=5):
    """Frames that came back in a second from as many as may be sent."""
    tool = os.path.join(os.path.dirname(program()), "examples", "swarm")
    done = subprocess.run(
        [tool, "--binaries=60", "--phones=1", f"--seconds={seconds}", "--messages=100000",
         "127.0.0.1:%d" % shards.front.getsockname()[1]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    sent = re.search(r"^frames sent, returned +(\d+), (\d+)$", done.stdout, re.MULTILINE)
    assert sent, done.stdout
    return int(sent[2]) / seconds


async def _room(shards, per_relay):
    # Some ids fall to a relay that has just become full, and come again elsewhere.
    count = per_relay * len(shards.relays)
    homes = [Home(shards, name) for name in names(2 * count)]
    await off(wait_until, lambda: sum(shards.binaries()) == count, SETTLED)
    await end(homes)
    return count


def four_against_one():
    """Printed and not judged: the proxy and the load tool use the same cores."""
    frames, room = {}, {}
    for count in (1, 4):
        with Shards(count) as shards:
            frames[count] = returned(shards)
        with Shards(count, "--max-connections", "10") as shards:
            room[count] = asyncio.run(_room(shards, 10))
    cores = os.cpu_count()
    print(
        f"four relays against one behind one HAProxy, {cores} cores for all of them: "
        f"{frames[4]:.0f} frames a second against {frames[1]:.0f}, "
        f"{frames[4] / frames[1]:.2f} times; connections {room[4]} against {room[1]}, "
        f"{room[4] / room[1]:.2f} times", flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == ["figures"]:
        sys.argv.pop()
        main([four_against_one])
    main([
        every_phone_finds_its_binary_with_two_relays,
        every_phone_finds_its_binary_with_four_relays,
        one_is_added_and_haproxy_reloaded_under_load,
        one_is_drained_and_its_tunnels_move,
        one_is_killed_and_comes_back,
        a_full_one_keeps_its_own_and_gets_no_new_ones,
    ], at_once=2)
