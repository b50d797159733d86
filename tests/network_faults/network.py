"""Machines made of network namespaces, on one switch, and the links between.

The process that calls `build_switch` moves to a namespace of its own, with the
switch in it. Each `Cable` ends in a namespace of its own, entered thread by
thread. None has a name: nothing of it is visible outside, and the kernel
removes it with the last process and socket within.
"""

import contextlib
import ctypes
import itertools
import os
import subprocess

SWITCH = "10.77.0.1"
ADDRESSES = 16

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name, *arguments):
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _own_namespace():
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _batch(command, lines):
    """Runs the commands on the machine that the calling thread is on."""
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command} with {lines}: {done.stderr or done.stdout}"


def ip(*lines):
    _batch(["ip", "-batch", "-"], lines)


def drop_all_input(device):
    """Drops everything that arrives at the device, ARP included, without an error."""
    chain = "{ type filter hook ingress device %s priority 0; policy drop; }" % device
    _batch(["nft", "-f", "-"], [
        f"add table netdev cut_{device}", f"add chain netdev cut_{device} lost {chain}"])


def build_switch():
    """Moves this process, which must not have threads yet, to a machine that is a
    switch and has the address `SWITCH`."""
    _call("unshare", CLONE_NEWNET)
    ip(
        "link set lo up", "link add switch type bridge", "link set switch up",
        f"addr add {SWITCH}/{ADDRESSES} dev switch",
    )


class Cable:
    """A machine and its cable to the switch; made on the switch's machine."""

    _numbers = itertools.count(1)

    def __init__(self):
        number = next(self._numbers)
        self.port = f"port{number}"
        switch = _own_namespace()
        try:
            _call("unshare", CLONE_NEWNET)
            self.namespace = _own_namespace()
            _call("setns", switch, CLONE_NEWNET)
        finally:
            os.close(switch)
        ip(
            f"link add {self.port} type veth peer name eth0"
            f" netns /proc/{os.getpid()}/fd/{self.namespace}",
            f"link set {self.port} master switch up",
        )
        with self.far_end():
            ip(
                "link set lo up", "link set eth0 up",
                f"addr add 10.77.{1 + number // 250}.{1 + number % 250}/{ADDRESSES} dev eth0",
            )

    @contextlib.contextmanager
    def far_end(self):
        """Puts the calling thread on the machine at the end of the cable: where
        sockets and processes are that it creates."""
        near = _own_namespace()
        _call("setns", self.namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", near, CLONE_NEWNET)
            os.close(near)

    def unplug(self):
        """Cuts the link between both ends; the relay's own link stays up."""
        ip(f"link set {self.port} down")

    def plug_in(self):
        ip(f"link set {self.port} up")

    def drop_towards_peer(self):
        with self.far_end():
            drop_all_input("eth0")

    def drop_towards_relay(self):
        drop_all_input(self.port)
