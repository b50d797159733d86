"""The relay as a process: signals, its log pipe, and what it costs at rest."""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

from harness import LATE, SOON, Relay, free_port, main, need_root, program, spawn, wait_until
from rawpeer import (
    TEXT, Honest, RawPeer, close_frame, envelope, frame, head, notice, pair, undated, upgrade,
)

UNAVAILABLE = (b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n"
               b"Retry-After: 10\r\n\r\n")
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
READY = b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n"
SHUT_DOWN = 10.0


def whole_answer(relay, request):
    with RawPeer(relay, request) as peer:
        return peer.read_to_end()


def switch_count(process):
    """How often the threads of a process have gone to sleep of their own accord."""
    count = 0
    for thread in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{thread}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        count += int(fields["voluntary_ctxt_switches"])
    return count


def wakes_within(process, seconds):
    # Nothing is waited for here: the time itself is what is measured.
    before = switch_count(process)
    time.sleep(seconds)
    return switch_count(process) - before


def has_gone_to_sleep(process):
    return wakes_within(process, 0.1) == 0


def an_idle_relay_never_wakes(relay):
    wait_until(lambda: has_gone_to_sleep(relay.process))
    assert wakes_within(relay.process, 2.0) == 0
    with upgrade(relay, "client", "nobody") as phone:
        assert phone.read_only_close() == (4404, "no server with that id")
    assert whole_answer(relay, HEALTH).startswith(b"HTTP/1.1 200 OK\r\n")
    wait_until(lambda: has_gone_to_sleep(relay.process))
    assert wakes_within(relay.process, 2.0) == 0, "and neither when its peers have gone"


def unread(pipe):
    """Bytes that wait in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]


def a_stuck_log_delays_nobody():
    """Nobody reads stderr; the pipe fills up; lines are lost, and nothing else."""
    with Relay("--max-connections", "1000", reads_log=False) as relay:
        pipe = relay.process.stderr.fileno()
        capacity = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
        binary, phone = pair(relay)

        def exchange():
            phone.send(frame(TEXT, b"1"))
            assert binary.read_message().endswith(b'"frame":1}')
            binary.send(frame(TEXT, envelope(phone.request_id, b"2")))
            assert phone.read_message() == b"2"

        def chatter(times):
            for _ in range(times):
                with upgrade(relay, "client", "nobody") as stranger:
                    assert stranger.read_only_close()[0] == 4404

        def is_full():
            chatter(1)
            return unread(pipe) > capacity - 1024
        wait_until(is_full, complaint="the pipe does not fill up")
        # Far more lines than any queue in front of the pipe would hold for long.
        started = time.monotonic()
        chatter(2000)
        assert unread(pipe) <= capacity
        exchange()
        assert relay.health()["connected_phones"] == 1
        assert time.monotonic() - started < 2 * SOON, "it crawls"
        # It also ends, the pipe still full.
        relay.signal()
        for peer in (binary, phone):
            assert peer.read_only_close() == (1001, "shutting down")
            peer.send(close_frame(1001))
            peer.half_close()
        assert relay.exit_status(SOON) == 0


def sigterm_and_sigint_drain():
    for number in (signal.SIGTERM, signal.SIGINT):
        with Relay() as relay:
            binary, phone = pair(relay)
            with RawPeer(relay, head("client", "home")[:-1]) as half, RawPeer(relay) as silent:
                assert whole_answer(relay, READY).startswith(b"HTTP/1.1 200 OK\r\n")
                relay.signal(number)
                assert binary.read_only_close() == (1001, "shutting down")
                assert phone.read_only_close() == (1001, "shutting down")
                # Neither has answered: the relay waits, answers health, refuses the rest.
                health = whole_answer(relay, HEALTH)
                assert health.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), health
                assert b'{"status":"draining",' in health
                assert whole_answer(relay, READY).startswith(b"HTTP/1.1 503 ")
                assert undated(whole_answer(relay, head("client", "home"))) == UNAVAILABLE
                half.send(b"\n")
                assert undated(half.read_to_end()) == UNAVAILABLE, "an upgrade in flight"
                assert relay.process.poll() is None
                for peer in (binary, phone):
                    peer.send(close_frame(1001))
                for peer in (binary, phone, half, silent):
                    peer.half_close()
                assert relay.exit_status(LATE) == 0, "exits when all have answered"


def a_shut_down_ends_whatever_peers_do():
    with Relay() as relay:
        peers = pair(relay)
        relay.signal()
        started = time.monotonic()
        assert relay.exit_status(SHUT_DOWN + LATE) == 0
        assert time.monotonic() <= started + SHUT_DOWN + LATE
        for peer in peers:
            assert peer.read_only_close() == (1001, "shutting down")


def a_closing_peer_receives_no_second_close(relay):
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    phone.send(frame(TEXT, b"{"))
    relay.wait_connected(1, 0)
    relay.signal()
    assert phone.read_only_close() == (1007, "frame is not valid JSON")
    assert binary.read_message() == notice(phone, 1007)
    assert binary.read_only_close() == (1001, "shutting down")


def what_was_queued_comes_before_the_shut_down(relay):
    binary = upgrade(relay, "server", "home")
    phone = upgrade(relay, "client", "home")
    message = b'"' + b"x" * 100_000 + b'"'
    binary.send(frame(TEXT, envelope(phone.request_id, message)) * 20 + frame(9, b"sent"))
    assert binary.read_pong() == b"sent"
    relay.signal()
    for _ in range(20):
        assert phone.read_message() == message
    assert phone.read_only_close() == (1001, "shutting down")


def a_second_signal_ends_at_once():
    # Not `with`, which expects status 0.
    relay = Relay()
    try:
        binary = upgrade(relay, "server", "home")
        relay.signal()
        assert binary.read_only_close() == (1001, "shutting down")
        relay.signal()
        assert relay.exit_status(LATE) == 1
    finally:
        relay.process.kill()
        relay.process.wait()
        relay.reader.join()
        relay.process.stderr.close()


def a_terminal_that_is_closed_ends_it():
    """Not what nohup started, nor what is told to ignore it."""
    def start(*before):
        port = free_port()
        ours, its = os.openpty()
        command = [*before, program(), "--insecure-listen", f"127.0.0.1:{port}", "--metrics-listen="]
        process = spawn_at_terminal(command, its)
        os.close(its)
        def listens():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=SOON).close()
                return True
        wait_until(listens)
        return process, port, ours

    process, port, terminal = start()
    os.close(terminal)
    assert process.wait(SHUT_DOWN + 2) == 0
    # Its port is free for the next one.
    socket.create_server(("127.0.0.1", port)).close()

    process, port, terminal = start("nohup")
    os.close(terminal)
    try:
        assert wakes_within(process, 1.0) >= 0 and process.poll() is None, "nohup has no effect"
        socket.create_connection(("127.0.0.1", port), timeout=SOON).close()
    finally:
        process.kill()
        process.wait()


def spawn_at_terminal(command, terminal):
    """A process whose terminal this is, as a shell starts it in the foreground."""
    # Whatever started the tests may ignore SIGHUP, as nohup does.
    takes_it = ("import fcntl, os, signal, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); "
                "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
                "os.dup2(1, 0); os.execvp(sys.argv[1], sys.argv[1:])")
    return spawn([sys.executable, "-c", takes_it, *command], stdout=terminal, stderr=terminal,
                 start_new_session=True)


def no_log_line_can_be_forged(relay):
    """No peer writes a line, a token or a payload into the log."""
    binary = upgrade(relay, "server", "home")
    Honest(binary)
    forged = 'x" level=ERROR msg=forged'
    request = head("client", "home").replace(
        b"x-pyrycode-token: t", b"x-pyrycode-token: hush-hush\r\nx-pyrycode-device-name: "
        + forged.encode())
    with RawPeer(relay, request) as phone:
        assert phone.read_head().startswith(b"HTTP/1.1 101 ")
        phone.send(frame(TEXT, b'"secret-payload"') + frame(TEXT, b"{secret-payload"))
        assert phone.read_only_close()[0] == 1007
    relay.signal()
    assert relay.exit_status() == 0
    relay.reader.join()
    log = "".join(relay.log)
    assert "phone_registered" in log
    assert "hush-hush" not in log and "secret-payload" not in log
    for line in relay.log:
        assert line.startswith("time=") and line.endswith("\n") and " level=ERROR" not in (
            line.replace('x\\" level=ERROR', "")), line


def exit_codes_hold_whatever_the_streams_are():
    """As shells and disks have it: a reader that leaves, a full disk, no stream at all."""
    def status(line):
        script = f'{line}; echo "${{PIPESTATUS[0]}}" >&3'
        read, write = os.pipe()
        subprocess.run(["bash", "-c", f"exec 3>&{write}; {script}", program()], pass_fds=[write],
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=SOON)
        os.close(write)
        with open(read) as pipe:
            return int(pipe.read())
    for flags in ("--help", "--version", "--check-config", "probe --help"):
        for line, expected in [("| true", 0), (">/dev/full", 1), (">&- 2>&-", 0),
                               (">/dev/full 2>/dev/full", 1)]:
            assert status(f'"$0" {flags} {line}') == expected, (flags, line)
    for line in ("", ">/dev/full 2>/dev/full", ">&- 2>&-", "2>&1 | true"):
        assert status(f'"$0" --nope {line}') == 2, line


def production_takes_one_capability_only():
    need_root("to become another user")
    def check(capability):
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if capability:
            drop += [f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
        return subprocess.run([*drop, program(), "--check-config"], capture_output=True,
                              timeout=SOON, env={"PYRYCODE_RELAY_PRODUCTION": "1"})
    for capability in (None, "net_bind_service"):
        assert check(capability).returncode == 0, check(capability)
    refused = check("net_raw")
    assert refused.returncode == 2 and b"CAP_NET_RAW; drop all but" in refused.stderr, refused


if __name__ == "__main__":
    main([
        an_idle_relay_never_wakes, a_stuck_log_delays_nobody, sigterm_and_sigint_drain,
        a_shut_down_ends_whatever_peers_do, a_closing_peer_receives_no_second_close,
        what_was_queued_comes_before_the_shut_down, a_second_signal_ends_at_once,
        a_terminal_that_is_closed_ends_it, no_log_line_can_be_forged,
        exit_codes_hold_whatever_the_streams_are, production_takes_one_capability_only,
    ])
