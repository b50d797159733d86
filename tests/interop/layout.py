"""The image that the Dockerfile makes, without a container engine.

`layout.py PROGRAM`, a static one. The last stage of the Dockerfile is read; its
files, and no others, are laid out, and its command runs there in a chroot, as its
user, which can write nowhere, with its environment and in a network of its own, whose
ports are free. Its health check is run as an engine would run it, for every way in
which the relay listens, and so is the health check of `deploy/fly/fly.toml`. Needs root
(else exit status 77).
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
import tomllib

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import DIRECT, SOON, Relay, main, spawn, wait_until
from tls import Pair

HERE = os.path.dirname(os.path.abspath(__file__))
DEPLOY = os.path.join(HERE, "../../deploy")
# Set where this runs in a network of its own.
ENCLOSED = "LAYOUT_ENCLOSED"
PROBE_URL = "PYRYCODE_RELAY_PROBE_URL"
CHROOT = shutil.which("chroot", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def last_stage():
    """Instructions of the stage that becomes the image, by their names."""
    with open(os.path.join(DEPLOY, "docker/Dockerfile")) as dockerfile:
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

    def enter(self, command, variables=()):
        variables = [*self.instructions.get("ENV", []), *variables]
        return ["env", "-i", *variables, CHROOT, f"--userspec={self.user}", self.root, *command]

    def health_check(self, *variables):
        """Runs it once: its exit status."""
        command = json.loads(self.only("HEALTHCHECK").partition("CMD ")[2])
        done = subprocess.run(self.enter(command, variables), capture_output=True, timeout=SOON)
        assert done.returncode in (0, 1), done
        return done.returncode

    def probe(self, *flags):
        """As an orchestrator runs a command in the container: its exit status."""
        command = [*json.loads(self.only("ENTRYPOINT")), "probe", "--health", *flags]
        return subprocess.run(self.enter(command), capture_output=True, timeout=SOON).returncode

    def run(self, flags, *variables):
        """Starts the relay as `docker run IMAGE FLAGS` does."""
        command = [*json.loads(self.only("ENTRYPOINT")), *flags]
        return spawn(self.enter(command, variables), stderr=subprocess.DEVNULL)

    def put(self, path, source):
        """A file that an engine would mount, readable by the user alone."""
        at = self.root + path
        os.makedirs(os.path.dirname(at), exist_ok=True)
        shutil.copy(source, at)
        os.chown(at, *map(int, self.user.split(":")))
        os.chmod(at, 0o400)

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


def health_follows_the_relay(image, flags, *variables, meanwhile=lambda: None):
    assert image.health_check(*variables) == 1, "healthy before it was started"
    relay = image.run(flags, *variables)
    def is_healthy():
        assert relay.poll() is None, f"{flags}: exit status {relay.returncode}"
        return image.health_check(*variables) == 0
    try:
        wait_until(is_healthy, complaint=f"{flags}: not healthy")
        meanwhile()
        relay.terminate()
        assert relay.wait(SOON + 2) == 0, flags
    finally:
        relay.kill()
        relay.wait()
    assert image.health_check(*variables) == 1, f"{flags}: healthy although it has ended"


def its_health_check_works_as_it_comes():
    health_follows_the_relay(IMAGE, json.loads(IMAGE.only("CMD")))


def its_health_check_works_behind_proxy_headers():
    flags = ["--insecure-listen", ":8080", "--proxy-protocol", "--trusted-proxies", "10.0.0.0/8"]
    health_follows_the_relay(IMAGE, flags)


def its_health_check_works_with_ones_own_certificate():
    image = Image(PROGRAM)
    with Pair() as pair:
        image.put("/tls/chain.pem", pair.certificate)
        image.put("/tls/key.pem", pair.key)
    files = ["--tls-cert", "/tls/chain.pem", "--tls-key", "/tls/key.pem"]
    health_follows_the_relay(image, [*files, "--https-listen", ":8443"])


def a_command_asks_every_way_to_listen_without_metrics():
    image = Image(PROGRAM)
    with Pair() as pair:
        image.put("/tls/chain.pem", pair.certificate)
        image.put("/tls/key.pem", pair.key)
    pem = ["--tls-cert", "/tls/chain.pem", "--tls-key", "/tls/key.pem"]
    by_name = ["--ca", "/tls/chain.pem", "--connect", "127.0.0.1:8443", "https://localhost"]
    for flags, command in [
        (["--insecure-listen", ":8080"], ["http://127.0.0.1:8080"]),
        (["--insecure-listen", ":8080", "--proxy-protocol"],
         ["--proxy-protocol", "http://127.0.0.1:8080"]),
        ([*pem, "--https-listen", ":8443"], by_name),
        ([*pem, "--https-listen", ":8443", "--https-proxy-protocol"], ["--proxy-protocol", *by_name]),
    ]:
        assert image.probe(*command) == 1, command
        relay = image.run([*flags, "--metrics-listen="])
        try:
            wait_until(lambda: image.probe(*command) == 0, complaint=f"{flags}: not healthy")
        finally:
            relay.kill()
            relay.wait()


def its_health_check_works_on_other_ports():
    flags = ["--insecure-listen", ":8081", "--metrics-listen", "127.0.0.1:9191"]
    health_follows_the_relay(IMAGE, flags, f"{PROBE_URL}=http://127.0.0.1:9191")
    # Without metrics the listener for peers is asked.
    flags = ["--insecure-listen", ":8081", "--metrics-listen="]
    health_follows_the_relay(IMAGE, flags, f"{PROBE_URL}=http://127.0.0.1:8081")


def fly_runs_it_and_reaches_its_health_check():
    with open(os.path.join(DEPLOY, "fly/fly.toml"), "rb") as file:
        fly = tomllib.load(file)
    assert fly["deploy"]["strategy"] == "rolling", fly["deploy"]
    challenges, tls = fly["services"]
    (check,) = challenges["http_checks"]
    assert check["grace_period"] == "30s", check
    ports = [(at["port"], service["internal_port"]) for service in (challenges, tls)
             for at in service["ports"]]
    assert ports == [(80, 8080), (443, 8443)], ports
    assert tls["ports"][0]["handlers"] == ["proxy_proto"], tls
    # Nothing is behind this directory: the relay must be healthy without a certificate.
    flags = [*shlex.split(fly["processes"]["app"]), "--acme-directory", "https://127.0.0.1:1/"]
    variables = [f"{name}={value}" for name, value in fly["env"].items()]
    image = Image(PROGRAM)
    # Fly mounts a volume with this mode at every start of the machine.
    (mount,) = fly["mounts"]
    os.chmod(image.root + mount["destination"], 0o755)

    def checker():
        url = f"http://127.0.0.1:{challenges['internal_port']}{check['path']}"
        with DIRECT.open(url, timeout=SOON) as answer:
            assert answer.status == 200, answer.status
            assert json.load(answer)["status"] == "ok"

    for _ in range(2):
        health_follows_the_relay(
            image, flags, "FLY_APP_NAME=relay", *variables, meanwhile=checker)


def enclose():
    """Runs this script in a network of its own, which has nothing but loopback."""
    if os.environ.get(ENCLOSED) is None:
        up = 'ip link set lo up && exec "$@"'
        command = ["unshare", "--net", "sh", "-c", up, "sh", sys.executable, *sys.argv]
        os.execvpe("unshare", command, os.environ | {ENCLOSED: "1"})


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("layout: chroot needs root")
        sys.exit(77)
    enclose()
    PROGRAM = sys.argv[1]
    IMAGE = Image(PROGRAM)
    sys.argv[1] = IMAGE.script()
    # One at a time: they use the ports that the image and Fly's file name.
    main([
        it_serves_as_its_user_from_a_root_with_nothing_else,
        its_health_check_works_as_it_comes,
        its_health_check_works_behind_proxy_headers,
        its_health_check_works_with_ones_own_certificate,
        its_health_check_works_on_other_ports,
        a_command_asks_every_way_to_listen_without_metrics,
        fly_runs_it_and_reaches_its_health_check,
    ], at_once=1)
