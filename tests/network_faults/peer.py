"""An honest peer as a process, to be stopped or cut off: answers pings, tells on
stdout what it saw, one JSON object a line, and sends the bytes that it is given
in hex, a line each, over a pipe.

    peer.py HOST PORT ROLE SERVER_ID PIPE
"""

import json
import os
import re
import sys
import threading
from types import SimpleNamespace

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))

from rawpeer import CLOSE, PING, PONG, frame, upgrade  # noqa: E402


def say(seen, **more):
    # Two threads do: a line in one call, which a pipe takes whole (pipe(7)).
    os.write(sys.stdout.fileno(), json.dumps({"seen": seen, **more}).encode() + b"\n")


def obey(peer, pipe):
    for line in pipe:
        try:
            peer.send(bytes.fromhex(line))
        except ConnectionResetError:
            # A socket reports its reset once: the reading thread will not learn of it.
            say("reset")
            os._exit(0)
        except OSError:
            pass  # The reading thread reports the end.
        say("sent")


def main(host, port, role, server_id, pipe):
    peer = upgrade(SimpleNamespace(address=(host, int(port))), role, server_id)
    say("open", conn_id=peer.request_id)
    threading.Thread(target=obey, args=[peer, os.fdopen(int(pipe))], daemon=True).start()
    while True:
        found = peer.read_frame(within=300)
        if found.opcode == PING:
            peer.send(frame(PONG, found.payload))
            say("ping")
        elif found.opcode == CLOSE:
            say("close", code=found.close[0], reason=found.close[1])
            peer.send(frame(CLOSE, found.payload))
            peer.half_close()
            peer.read_nothing()
            return say("end")
        elif b'","close_code":' in found.payload:
            pass  # A phone has ended, which these tests see in the log.
        else:
            # Messages of these tests begin with their number, in an envelope or not.
            say("message", number=int(re.search(rb'"#(\d+) ', found.payload)[1]))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ConnectionResetError, BrokenPipeError):
        # Broken pipe: the frames that came before the reset were still there to read.
        say("reset")
