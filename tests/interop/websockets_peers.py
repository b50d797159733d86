"""The relay and Python's `websockets`: the library as phone and as binary."""

import asyncio
import json
import time

from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Opcode

from harness import SOON, main

MESSAGE_MAX = 256 * 1024


class Peer(ClientConnection):
    """Keeps what a `websockets` connection hides: pings, and when they came."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.pinged = []

    def process_event(self, event):
        if getattr(event, "opcode", None) is Opcode.PING:
            self.pinged.append(time.monotonic())
        super().process_event(event)

    @property
    def request_id(self):
        return self.response.headers["x-request-id"]

    async def closed_with(self):
        """Code and reason of the relay's close frame; (None, "") if it was empty."""
        async with asyncio.timeout(SOON):
            await self.wait_closed()
        close = self.protocol.close_rcvd
        assert close, "it ended without a close frame"
        return None if close.code == 1005 else close.code, close.reason


async def dial(relay, role, server_id="home"):
    own = {"x-pyrycode-version": "1"} if role == "server" else {"x-pyrycode-token": "t"}
    peer = await connect(
        f"ws://{relay.url}/v1/{role}",
        additional_headers={"x-pyrycode-server": server_id, **own},
        # The relay's pings keep the connection, not ours.
        ping_interval=None, create_connection=Peer, proxy=None, max_size=None,
    )
    relay.at_end.append(peer.transport.abort)
    return peer


async def dial_pair(relay):
    return await dial(relay, "server"), await dial(relay, "client")


async def next_message(peer):
    async with asyncio.timeout(SOON):
        message = await peer.recv()
    assert isinstance(message, str), "the relay sends text only"
    return message


def for_phone(phone, frame, close_code=None):
    tail = "" if close_code is None else f',"close_code":{close_code}'
    return f'{{"conn_id":"{phone.request_id}","frame":{frame}{tail}}}'


def told(phone, code):
    """What the binary is told when this phone has ended."""
    return f'{{"conn_id":"{phone.request_id}","close_code":{code}}}'


async def until(condition):
    """Waits until `condition()` holds; looks without holding up the loop."""
    async with asyncio.timeout(SOON):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


async def in_grace(relay, phones):
    health = {"connected_binaries": 0, "connected_phones": phones}
    await until(lambda: health.items() <= relay.health().items())


async def text_and_binary_both_ways(relay):
    binary, phone = await dial_pair(relay)
    assert not binary.protocol.extensions and not phone.protocol.extensions
    assert binary.subprotocol is None
    for frame in ['{ "b" : [1.50, 1E2], "a":"é\\u00e9😀\u2028" }', "1", '"x"', "null", "[ ]"]:
        for sent in (frame, frame.encode()):
            await phone.send(sent)
            expected = f'{{"conn_id":"{phone.request_id}","frame":{frame}}}'
            assert await next_message(binary) == expected
            if frame != "null":
                envelope = for_phone(phone, frame)
                await binary.send(envelope if sent is frame else envelope.encode())
                assert await next_message(phone) == frame


async def phones_are_told_apart(relay):
    binary = await dial(relay, "server")
    phones = [await dial(relay, "client") for _ in range(16)]
    assert len({phone.request_id for phone in phones}) == 16
    for number, phone in enumerate(phones):
        await phone.send(str(number))
        received = json.loads(await next_message(binary))
        assert received == {"conn_id": phone.request_id, "frame": number}
    for number, phone in reversed(list(enumerate(phones))):
        await binary.send(for_phone(phone, number * 10))
    assert [await next_message(phone) for phone in phones] == [f"{n * 10}" for n in range(16)]


async def order_is_kept(relay):
    binary, phone = await dial_pair(relay)
    count = 2000

    async def send():
        for number in range(count):
            await phone.send(str(number))
            await binary.send(for_phone(phone, number))

    sending = asyncio.create_task(send())
    for number in range(count):
        assert json.loads(await next_message(binary))["frame"] == number
        assert await next_message(phone) == str(number)
    await sending


async def pings_are_answered(relay):
    for peer in await dial_pair(relay):
        for payload in ("", "ping", "x" * 125):
            async with asyncio.timeout(SOON):
                await (await peer.ping(payload))


async def the_largest_message(relay):
    binary, phone = await dial_pair(relay)
    frame = '"' + "x" * (MESSAGE_MAX - 2) + '"'
    await phone.send(frame)
    assert json.loads(await next_message(binary))["frame"] == frame[1:-1]
    envelope = for_phone(phone, '""')
    content = "y" * (MESSAGE_MAX - len(envelope))
    await binary.send(for_phone(phone, f'"{content}"'))
    assert await next_message(phone) == f'"{content}"'
    # And not one byte more, of either.
    await phone.send(frame[:-1] + 'x"')
    assert (await phone.closed_with())[0] == 1009
    await binary.send(for_phone(phone, f'"{content}y"'))
    assert (await binary.closed_with())[0] == 1009


async def messages_in_pieces(relay):
    binary, phone = await dial_pair(relay)
    frame = '["' + "é" * 30_000 + '"]'
    pieces = [frame[at : at + 1000] for at in range(0, len(frame), 1000)]
    await phone.send(pieces)
    assert await next_message(binary) == f'{{"conn_id":"{phone.request_id}","frame":{frame}}}'
    envelope = for_phone(phone, frame).encode()
    # Bytes may be cut within a character.
    await binary.send([envelope[at : at + 777] for at in range(0, len(envelope), 777)])
    assert await next_message(phone) == frame
    await phone.send(['"', *["x" * 65536] * 4, '"'])
    assert (await phone.closed_with())[0] == 1009


async def a_close_is_echoed(relay):
    holder = await dial(relay, "server", "home")
    for code, reason in [(1000, ""), (1001, "away"), (3000, ""), (4999, "bye")]:
        for role, server_id in (("client", "home"), ("server", f"own-{code}")):
            peer = await dial(relay, role, server_id)
            await peer.close(code, reason)
            assert (await peer.closed_with())[0] == code
    for role, server_id in (("client", "home"), ("server", "own")):
        peer = await dial(relay, role, server_id)
        peer.protocol.send_close()
        peer.send_data()
        assert await peer.closed_with() == (None, "")
    await (await holder.ping())


async def a_binary_closes_a_phone(relay):
    binary = await dial(relay, "server")
    for asked, sent in [(1000, 1000), (4001, 4001), (1014, 1014), (1005, 1011), (7, 1011)]:
        phone = await dial(relay, "client")
        await binary.send(for_phone(phone, '"last"', asked))
        assert await next_message(phone) == '"last"'
        assert await phone.closed_with() == (sent, "")
        phone = await dial(relay, "client")
        await binary.send(f'{{"close_code":{asked},"conn_id":"{phone.request_id}"}}')
        assert await phone.closed_with() == (sent, "")
    await (await binary.ping())


async def a_binary_is_told_how_each_phone_ends(relay):
    binary = await dial(relay, "server")

    async def leave(code, reason=""):
        await phone.close(code, reason)

    async def leave_without_a_code():
        phone.protocol.send_close()
        phone.send_data()

    async def vanish():
        phone.transport.abort()

    async def hang_up():
        phone.transport.write_eof()

    for end, code in [
        (lambda: leave(1000, "bye"), 1000), (lambda: leave(1001), 1001),
        (lambda: leave(4321), 4321), (leave_without_a_code, 1005), (vanish, 1001),
        (hang_up, 1001), (lambda: phone.send("{"), 1007),
        (lambda: phone.send('"' + "x" * MESSAGE_MAX + '"'), 1009),
    ]:
        phone = await dial(relay, "client")
        await phone.send('"last"')
        await end()
        assert json.loads(await next_message(binary))["frame"] == "last"
        assert await next_message(binary) == told(phone, code)
    # It is not told what it asked for itself.
    phone = await dial(relay, "client")
    await binary.send(for_phone(phone, "1", 4001))
    assert await next_message(phone) == "1"
    assert await phone.closed_with() == (4001, "")
    after = await dial(relay, "client")
    await after.send("2")
    assert json.loads(await next_message(binary)) == {"conn_id": after.request_id, "frame": 2}


async def no_server_with_that_id(relay):
    phone = await dial(relay, "client", "nobody")
    assert await phone.closed_with() == (4404, "no server with that id")


async def too_many_phones(relay):
    binary = await dial(relay, "server")
    phones = [await dial(relay, "client") for _ in range(16)]
    one_more = await dial(relay, "client")
    assert await one_more.closed_with() == (4429, "too many phones for server-id")
    await phones[3].close()
    assert await next_message(binary) == told(phones[3], 1000)
    again = await dial(relay, "client")
    await again.send("17")
    assert json.loads(await next_message(binary))["frame"] == 17


async def not_json(relay):
    _binary, phone = await dial_pair(relay)
    await phone.send("{")
    assert await phone.closed_with() == (1007, "frame is not valid JSON")


async def a_living_incumbent_keeps_its_slot(relay):
    binary, phone = await dial_pair(relay)
    rivals = await asyncio.gather(*(dial(relay, "server") for _ in range(3)))
    for rival in rivals:
        assert await rival.closed_with() == (4409, "server-id already claimed")
    assert binary.pinged, "the incumbent was not asked"
    await phone.send("1")
    assert json.loads(await next_message(binary))["frame"] == 1


async def a_claim_in_grace_takes_the_slot(relay):
    binary, phone = await dial_pair(relay)
    await binary.close()
    await in_grace(relay, phones=1)
    late = await dial(relay, "client")
    binary = await dial(relay, "server")
    for old in (phone, late):
        assert await old.closed_with() == (4404, "binary reclaimed server-id")
    phone = await dial(relay, "client")
    await phone.send("1")
    assert json.loads(await next_message(binary))["conn_id"] == phone.request_id


async def a_frame_in_grace(relay):
    binary, phone = await dial_pair(relay)
    wrong = await dial(relay, "client")
    await binary.close()
    await in_grace(relay, phones=2)
    await wrong.send("{")
    assert await wrong.closed_with() == (1007, "frame is not valid JSON")
    await phone.send("{}")
    assert await phone.closed_with() == (4404, "binary disconnected")


async def the_relay_shuts_down(relay):
    peers = await dial_pair(relay)
    relay.signal()
    for peer in peers:
        assert await peer.closed_with() == (1001, "shutting down")
    assert await asyncio.to_thread(relay.exit_status, SOON) == 0


async def a_peer_that_vanishes(relay):
    """A transport torn down without a close frame frees its place."""
    binary, phone = await dial_pair(relay)
    phone.transport.abort()
    await until(lambda: relay.health()["connected_phones"] == 0)
    binary.transport.abort()
    await in_grace(relay, phones=0)


if __name__ == "__main__":
    main([
        text_and_binary_both_ways, phones_are_told_apart, order_is_kept, pings_are_answered,
        the_largest_message, messages_in_pieces, a_close_is_echoed, a_binary_closes_a_phone,
        a_binary_is_told_how_each_phone_ends, no_server_with_that_id, too_many_phones, not_json, a_living_incumbent_keeps_its_slot,
        a_claim_in_grace_takes_the_slot, a_frame_in_grace, the_relay_shuts_down,
        a_peer_that_vanishes,
    ])
