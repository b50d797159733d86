"""The image that the Dockerfile makes, without a container engine.

`layout.py PROGRAM`, a static one. The last stage of the Dockerfile is read; its
files, and no others, are laid out, and its command runs there in a chroot, as its
user, which can write nowhere. Needs root (else exit status 77).
"""

import atexit
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import SOON, Relay, main

HERE = os.path.dirname(os.path.abspath(__file__))
CHROOT = shutil.which("chroot", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def last_stage():
    """Instructions of the stage that becomes the image, by their names."""
    with open(os.path.join(HERE, "../../deploy/docker/Dockerfile")) as dockerfile:
        text = re.sub(r"^#.*\n", "", dockerfile.read(), flags=re.MULTILINE).replace("\\\n", " ")
    stage = re.split(r"^FROM ", text, flags=re.MULTILINE)[-1].splitlines()
    assert stage[0] == "scratch", stage[0]
    instructions = {}
    for line in filter(None, stage[1:]):
        name, rest = line.split(" ", 1)
        instructions.setdefault(name, []).append(rest)
    return instructions


def lay_out(program, instructions):
    """The file system of the image; nothing but the program is known to it."""
    root = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, root)
    for line in instructions["COPY"]:
        source, target = line.split()[-2:]
        path = root + target
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if source.endswith("/pyrycode-relay"):
            shutil.copy(program, path)
            os.chmod(path, 0o755)
        else:
            os.mkdir(path, 0o700)
            owner = re.search(r"--chown=(\d+):(\d+)", line)
            os.chown(path, int(owner[1]), int(owner[2]))
    # What an engine adds to every image, as far as a static glibc asks for it.
    os.mkdir(f"{root}/dev")
    for name, minor in (("null", 3), ("random", 8), ("urandom", 9)):
        os.mknod(f"{root}/dev/{name}", 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        os.chmod(f"{root}/dev/{name}", 0o666)
    for directory, _, _ in os.walk(root):
        if os.stat(directory).st_uid == 0:
            os.chmod(directory, 0o555)
    return root


class Image:
    def __init__(self, program):
        self.instructions = last_stage()
        self.root = lay_out(program, self.instructions)
        self.user = self.only("USER")

    def only(self, name):
        (rest,) = self.instructions[name]
        return rest

    def enter(self, command):
        return ["env", "-i", CHROOT, f"--userspec={self.user}", self.root, *command]

    def script(self):
        """A program that runs the image's command and takes flags after that."""
        handle, path = tempfile.mkstemp(suffix=".sh")
        atexit.register(os.unlink, path)
        command = json.loads(self.only("ENTRYPOINT")) + json.loads(self.only("CMD"))
        with open(handle, "w") as script:
            script.write(f'#!/bin/sh\nexec {shlex.join(self.enter(command))} "$@"\n')
        os.chmod(path, 0o755)
        return path


def dial(relay, role):
    own = {"x-pyrycode-version": "1"} if role == "server" else {"x-pyrycode-token": "t"}
    return connect(
        f"ws://{relay.url}/v1/{role}", compression=None, open_timeout=SOON, proxy=None,
        additional_headers={"x-pyrycode-server": "home", **own},
    )


def it_serves_as_its_user_from_a_root_with_nothing_else(relay):
    with open(f"/proc/{relay.process.pid}/status") as status:
        text = status.read()
    assert re.search(r"^Uid:\t65532\t65532\t65532\t65532$", text, re.MULTILINE), text
    assert re.search(r"^Gid:\t65532\t65532\t65532\t65532$", text, re.MULTILINE), text
    assert os.readlink(f"/proc/{relay.process.pid}/root") == IMAGE.root
    files = [os.path.join(at, name) for at, _, names in os.walk(IMAGE.root) for name in names]
    files = [path for path in files if not path.startswith(f"{IMAGE.root}/dev/")]
    assert files == [f"{IMAGE.root}/pyrycode-relay"], files
    with dial(relay, "server") as binary, dial(relay, "client") as phone:
        phone.send('"up"')
        conn_id = json.loads(binary.recv(SOON))["conn_id"]
        binary.send(json.dumps({"conn_id": conn_id, "frame": "down"}))
        assert phone.recv(SOON) == '"down"'
        relay.signal()
        for peer in (binary, phone):
            try:
                raise AssertionError(f"it said {peer.recv(SOON)}")
            except ConnectionClosed as closed:
                assert closed.rcvd.code == 1001, closed
    assert relay.exit_status() == 0


def its_health_check_knows_health_from_death(relay):
    command = json.loads(IMAGE.only("HEALTHCHECK").partition("CMD ")[2])
    here = [word.replace("127.0.0.1:8080", relay.url) for word in command]
    assert here != command, command
    healthy = subprocess.run(IMAGE.enter(here), capture_output=True, text=True, timeout=SOON)
    assert healthy.returncode == 0, healthy
    relay.signal()
    assert relay.exit_status() == 0
    dead = subprocess.run(IMAGE.enter(here), capture_output=True, text=True, timeout=SOON)
    assert dead.returncode != 0, dead


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("layout: chroot needs root")
        sys.exit(77)
    IMAGE = Image(sys.argv[1])
    sys.argv[1] = IMAGE.script()
    main([
        it_serves_as_its_user_from_a_root_with_nothing_else,
        its_health_check_knows_health_from_death,
    ])
