"""The relay in a control group with a memory limit, as a container of 64 MB has it.

Beyond the limit the kernel kills the relay and with it every tunnel. Needs root and a
control group of its own, version 1 or 2 (else exit status 77).
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time

from harness import SOON, Relay, main, program, wait_until
from rawpeer import TEXT, envelope, frame, pair, upgrade

LIMIT = 64 * 1024 * 1024
# Of one frame; a phone that reads nothing is sent 8 MiB of them, so that 32 phones are
# sent four times the limit.
SIZE = 128 * 1024
FRAMES = 64
PHONES = 16


class Group:
    """A control group for one relay, removed on leaving."""

    def __init__(self):
        name = f"pyrycode-relay-test-{os.getpid()}-{time.monotonic_ns()}"
        if os.path.isdir("/sys/fs/cgroup/memory"):
            self.directory, self.files = f"/sys/fs/cgroup/memory/{name}", {
                "limit": "memory.limit_in_bytes", "most": "memory.max_usage_in_bytes"}
        else:
            self.directory, self.files = f"/sys/fs/cgroup/{name}", {
                "limit": "memory.max", "most": "memory.peak"}
        os.mkdir(self.directory)
        try:
            with open(self.path("limit"), "w") as file:
                file.write(str(LIMIT))
        except OSError:
            os.rmdir(self.directory)
            raise

    def path(self, name):
        return os.path.join(self.directory, self.files[name])

    def killed(self):
        """How many processes the kernel has killed for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(FileNotFoundError):
                with open(os.path.join(self.directory, name)) as file:
                    return int(re.search(r"oom_kill (\d+)", file.read())[1])
        raise AssertionError("the kernel does not tell")

    @contextlib.contextmanager
    def script(self):
        """A program that enters the group and becomes the relay."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as script:
            script.write(f'#!/bin/sh\necho $$ >{self.directory}/cgroup.procs\n'
                         f'exec {os.path.abspath(program())} "$@"\n')
        os.chmod(script.name, 0o755)
        try:
            yield script.name
        finally:
            os.unlink(script.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Its process has ended, and the kernel needs a moment to notice.
        def is_removed():
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)
                return True
        wait_until(is_removed)


def stuff(relay, server_id, closes):
    """A binary that sends more to its phones, which read nothing, than the limit allows."""
    binary = upgrade(relay, "server", server_id)
    phones = [upgrade(relay, "client", server_id) for _ in range(PHONES)]
    message = b'"' + b"x" * (SIZE - 2) + b'"'
    binary.socket.settimeout(SOON)
    # What the relay does to its own peers under pressure is not judged here.
    with contextlib.suppress(OSError):
        for _ in range(FRAMES):
            for phone in phones:
                binary.send(frame(TEXT, envelope(phone.request_id, message)))
    closes.append((binary, phones))


def the_default_budget_fits_the_limit():
    with Group() as group, group.script() as script, Relay(command=script) as relay:
        listening = next(line for line in relay.log if "msg=listening" in line)
        assert f"buffer_memory={LIMIT // 4}" in listening, listening
        held = []
        threads = [threading.Thread(target=stuff, args=(relay, f"home{n}", held), daemon=True)
                   for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
            assert not thread.is_alive(), "the binaries do not get on"
        assert relay.process.poll() is None, f"ended: {relay.process.returncode}"
        assert group.killed() == 0
        # There was pressure, and it still serves.
        wait_until(lambda: any("cause=backlog_full" in line or "cause=out_of_buffer_memory" in line
                               for line in list(relay.log)), 30, "no phone was too slow")
        binary, phone = pair(relay, "quiet")
        phone.send(frame(TEXT, b"1"))
        assert b'"frame":1' in binary.read_message()
        with open(group.path("most")) as most:
            print(f"memory_limit: at most {int(most.read()) >> 20} MiB of {LIMIT >> 20}", flush=True)
        for peer in (binary, phone, *(peer for one, more in held for peer in (one, *more))):
            peer.reset()


def a_budget_that_does_not_fit_is_warned_of():
    with Group() as group, group.script() as script:
        done = subprocess.run(
            [script, "--buffer-memory", str(LIMIT), "--check-config"],
            capture_output=True, text=True, timeout=SOON)
        assert done.returncode == 0, done
        assert str(LIMIT) in done.stderr and "memory limit" in done.stderr, done
        done = subprocess.run([script, "--check-config"], capture_output=True, text=True, timeout=SOON)
        assert done.returncode == 0 and done.stderr == "", done
        assert str(LIMIT // 4) in done.stdout, done


if __name__ == "__main__":
    try:
        with Group():
            pass
    except OSError as error:
        print(f"memory_limit: no control group can be made: {error}")
        sys.exit(77)
    main([the_default_budget_fits_the_limit, a_budget_that_does_not_fit_is_warned_of])
