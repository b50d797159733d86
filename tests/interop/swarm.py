"""The load tool, as its users run it: `swarm.py RELAY`, the tool beside it."""

import os
import re
import subprocess

from harness import Relay, main, program

TOOL = os.path.join(os.path.dirname(program()), "examples", "swarm")


def swarm(relay, *flags):
    done = subprocess.run(
        [TOOL, *flags, f"--pid={relay.process.pid}", relay.url],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150)
    return done.returncode, done.stdout


def row(report, name):
    return re.search(rf"^{name} +(.*)$", report, re.MULTILINE)[1]


def everybody_comes_stays_and_goes(relay):
    status, report = swarm(
        relay, "--binaries=20", "--seconds=3", "--messages=200", "--churn=20")
    assert status == 0, report
    assert row(report, "connections open at the end") == "100 of 100", report
    assert int(row(report, "upgrades")) > 140, report
    sent, returned = map(int, row(report, "frames sent, returned").split(", "))
    # A frame whose phone has hung up meanwhile is lost.
    assert 500 <= sent <= returned + 60, report
    assert re.search(r"^ +1000000 +1000064 ", report, re.MULTILINE), report


def silent_phones_are_ended(relay):
    status, report = swarm(relay, "--binaries=10", "--seconds=70", "--half-open=10")
    assert status == 0, report
    assert row(report, "silent, ended by the relay") == "10, 10", report


def a_refused_client_is_told_why():
    with Relay("--rate-limit-per-minute", "10") as relay:
        status, report = swarm(relay, "--binaries=10", "--phones=4", "--seconds=1")
    assert status == 1, report
    assert row(report, "refused") == "30", report
    assert "30 × HTTP/1.1 429 Too Many Requests" in report, report


if __name__ == "__main__":
    main([
        everybody_comes_stays_and_goes,
        silent_phones_are_ended,
        a_refused_client_is_told_why,
    ])
