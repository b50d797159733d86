"""What an operator has: metrics, alert rules, a dashboard and the status page,
each read by the program that it is made for."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "interop"))

from browser import Browser
from harness import DIRECT, SOON, main, program, spawn, wait_until
from rawpeer import TEXT, frame, pair, upgrade

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
DEPLOY = os.path.join(ROOT, "deploy")
# Pictures of the status page, for people to look at.
PICTURES = os.path.join(os.path.dirname(os.path.abspath(program())), "..", "operate")
# Only a relay that serves TLS has it.
ELSEWHERE = {
    f"pyrycode_relay_tls_certificate_{end}_timestamp_seconds" for end in ("expiry", "not_before")
}


def get(url):
    with DIRECT.open(url, timeout=SOON) as answer:
        return answer.read().decode()


def scrape(relay):
    """Every sample by its series."""
    lines = get(f"http://{relay.metrics}/metrics").splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {series: float(value) for series, value in samples}


def families(relay):
    """Every name that a query may use."""
    return {re.match(r"\w+", series)[0] for series in scrape(relay)}


def promtool(*arguments, **options):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def expressions():
    """Every query of the dashboard, as Prometheus gets it."""
    with open(os.path.join(DEPLOY, "grafana", "pyrycode-relay.json")) as file:
        dashboard = json.load(file)
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [variable["definition"].removeprefix("label_values(").removesuffix(", instance)")
              for variable in dashboard["templating"]["list"] if "definition" in variable]
    assert len(found) > 20
    return [expr.replace("$instance", ".*").replace("$__rate_interval", "1m") for expr in found]


def names(text):
    return set(re.findall(r"\b(?:pyrycode_relay|process)_\w+", text))


def promtool_finds_nothing_to_say_of_the_metrics(relay):
    for text in (get(f"http://{relay.metrics}/metrics"), busy(relay)):
        assert promtool("check", "metrics", input=text) == ""


def busy(relay):
    binary, phone = pair(relay)
    with binary, phone:
        phone.send(frame(TEXT, b"1"))
        binary.read_message()
        return get(f"http://{relay.metrics}/metrics")


def the_alert_rules_do_what_their_tests_say():
    directory = os.path.join(DEPLOY, "prometheus")
    promtool("check", "config", "prometheus.yml", cwd=directory)
    promtool("test", "rules", "alerts_test.yml", cwd=directory)
    with open(os.path.join(directory, "alerts.yml")) as rules, \
            open(os.path.join(directory, "alerts_test.yml")) as tests:
        alerts, tested = rules.read(), tests.read()
    for name in re.findall(r"alert: (\w+)", alerts):
        assert len(re.findall(rf"alertname: {name}\b", tested)) >= 2, f"{name}: once on, once off"


def every_query_names_a_metric_that_exists(relay):
    known = families(relay)
    with open(os.path.join(DEPLOY, "prometheus", "alerts.yml")) as rules:
        alerts = rules.read()
    for expr in expressions():
        assert names(expr) and names(expr) <= known, f"{expr}: {names(expr) - known}"
    assert names(alerts) - known == ELSEWHERE, names(alerts) - known


class Prometheus:
    """A Prometheus that scrapes one relay every second, with the alert rules."""

    def __init__(self, relay):
        self.directory = tempfile.mkdtemp(prefix="prometheus-")
        shutil.copy(os.path.join(DEPLOY, "prometheus", "alerts.yml"), self.directory)
        with open(os.path.join(DEPLOY, "prometheus", "prometheus.yml")) as file:
            config = file.read().replace("127.0.0.1:9091", relay.metrics).replace("15s", "1s")
        with open(os.path.join(self.directory, "prometheus.yml"), "w") as file:
            file.write(config)
        self.process = spawn(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
             "--web.listen-address=127.0.0.1:0", "--log.level=error"],
            cwd=self.directory,
        )
        self.port = wait_until(self.find_port)

    def find_port(self):
        """The port that the kernel gave it, which it does not tell."""
        assert self.process.poll() is None, "prometheus has ended"
        links = f"/proc/{self.process.pid}/fd"
        own = {os.readlink(os.path.join(links, fd)) for fd in os.listdir(links)}
        with open("/proc/net/tcp") as table:
            for line in list(table)[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                    return int(fields[1].split(":")[1], 16)

    def api(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        try:
            answer = json.loads(get(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"))
        except urllib.error.URLError:
            return None
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expr):
        data = self.api("query", query=expr)
        return float(data["result"][0]["value"][1]) if data and data["result"] else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def a_real_prometheus_reads_it(relay):
    binary, phone = pair(relay)
    with binary, phone, Prometheus(relay) as prometheus:
        for _ in range(7):
            phone.send(frame(TEXT, b"1"))
            binary.read_message()
        wait_until(lambda: prometheus.value("pyrycode_relay_connected_phones") == 1)
        frames = 'pyrycode_relay_frames_forwarded_total{direction="phone_to_binary"}'
        wait_until(lambda: prometheus.value(frames) == 7)
        assert prometheus.value('up{job="pyrycode-relay"}') == 1
        # A rate needs two scrapes.
        wait_until(lambda: prometheus.value("rate(process_cpu_seconds_total[1m])") is not None)
        for expr in expressions():
            data = prometheus.api("query", query=expr)
            assert data["result"] or expr.endswith("> 0"), expr

        def rules():
            groups = prometheus.api("rules")["groups"]
            found = [rule for group in groups for rule in group["rules"]]
            return found and all(rule["health"] == "ok" for rule in found) and found
        found = wait_until(rules)
        assert {rule["state"] for rule in found} == {"inactive"}, found

        # The loop stands still, and Prometheus has it that the relay is down.
        relay.stop()
        try:
            wait_until(lambda: prometheus.value('up{job="pyrycode-relay"}') == 0, 20)
        finally:
            relay.resume()
        wait_until(lambda: prometheus.value('up{job="pyrycode-relay"}') == 1, 20)


def digits(text):
    return int(re.sub(r"\D", "", text))


def assert_agrees(page, relay):
    """The numbers on the page are those of the metrics."""
    samples = scrape(relay)
    for name, series in [
        ("binaries", "pyrycode_relay_connected_binaries"),
        ("phones", "pyrycode_relay_connected_phones"),
        ("connections", "pyrycode_relay_connections"),
    ]:
        assert digits(page.text(name)) == samples[series], (name, page.text(name), series)
    for table, metric, label, columns in [
        ("causes", "closes_total", "cause", 'role="{}",cause="{}"'),
        ("upgrades", "ws_upgrade_attempts_total", "outcome", 'endpoint="{}",outcome="{}"'),
    ]:
        kinds = ["binary", "phone"] if label == "cause" else ["server", "client"]
        rows = page.evaluate(
            f"[...document.querySelectorAll('#{table} tbody tr')]"
            ".map((row) => [...row.cells].map((cell) => cell.textContent))")
        shown = {row[0].replace(" ", "_"): [digits(cell) for cell in row[1:]] for row in rows}
        every = {re.search(rf'{label}="(\w+)"', series)[1] for series in samples
                 if series.startswith(f"pyrycode_relay_{metric}{{")}
        counted = {name: [samples[f"pyrycode_relay_{metric}{{{columns.format(kind, name)}}}"]
                          for kind in kinds] for name in every}
        assert shown == {name: counts for name, counts in counted.items() if any(counts)}


def the_status_page_shows_what_is_there(relay):
    os.makedirs(PICTURES, exist_ok=True)
    peers = [upgrade(relay, "server", f"home{n}") for n in range(3)]
    peers += [upgrade(relay, "client", f"home{n % 3}") for n in range(1, 12)]
    for n in range(2):
        with upgrade(relay, "client", "nobody") as phone:
            assert phone.read_only_close()[0] == 4404
    peers[3].send(frame(TEXT, b"{"))
    with contextlib.ExitStack() as held, Browser() as browser:
        for peer in peers:
            held.enter_context(peer)
        pages = {
            (width, scheme): browser.open(f"http://{relay.metrics}/", width, scheme)
            for width in (360, 1200) for scheme in ("light", "dark")
        }
        for (width, scheme), page in pages.items():
            page.wait_for("document.getElementById('phones')?.textContent === '10'")
            assert page.text("state") == "Healthy", page.text("concerns")
            assert_agrees(page, relay)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            # No text is cut off or overlaps another.
            cut = page.evaluate(
                "[...document.querySelectorAll('section, td, th, p, h2, .scale span')]"
                ".filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')"
                ".map((e) => e.textContent)")
            assert cut == [], (width, cut)
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", ground))) < 64) == (scheme == "dark"), ground

        # It goes on by itself, on every page.
        with upgrade(relay, "client", "home0"):
            for page in pages.values():
                page.wait_for("document.getElementById('phones')?.textContent === '11'")
        page.wait_for("document.getElementById('phones')?.textContent === '10'")
        page.wait_for("document.querySelectorAll('#ends rect').length > 0")
        for (width, scheme), page in pages.items():
            page.screenshot(os.path.join(PICTURES, f"status-{width}-{scheme}.png"))

        # A loop that stands still is said, and so is that it goes on.
        relay.stop()
        try:
            page.wait_for("document.getElementById('state')?.textContent === 'No answer'", 15)
        finally:
            relay.resume()
        page.wait_for("document.getElementById('state')?.textContent !== 'No answer'", 15)
        for page in pages.values():
            assert page.happened("Runtime.exceptionThrown") == []
            asked = {event["request"]["url"] for event in page.happened("Network.requestWillBeSent")}
            asked = {url for url in asked if not url.startswith("data:")}
            own = {f"http://{relay.metrics}/{path}" for path in ("", "history", "metrics")}
            assert asked == own, asked


def history(relay):
    """The ages of what the relay remembers, in seconds, and all lines of one metric."""
    text = get(f"http://{relay.metrics}/history")
    ages = [int(age) / 1000 for age in re.findall(r"^# (\d+) ms ago$", text, re.MULTILINE)]
    return ages, re.findall(r"^pyrycode_relay_connected_phones (\d+)$", text, re.MULTILINE)


def a_page_that_is_opened_late_shows_what_was(relay):
    """Peers that came and went before the page was opened, in samples of 20 s."""
    relay.health()
    wait_until(lambda: len(history(relay)[0]) == 1)
    binary, phone = pair(relay)
    with binary, phone:
        wait_until(lambda: history(relay)[1] == ["0", "1"], 60, lambda: history(relay))
        for _ in range(100):
            phone.send(frame(TEXT, b"1"))
            binary.read_message()
    wait_until(lambda: history(relay)[1] == ["0", "1", "0"], 60, lambda: history(relay))
    ages, _ = history(relay)
    assert ages == sorted(ages, reverse=True) and len(ages) >= 3, ages
    apart = [before - after for before, after in zip(ages, ages[1:])]
    assert all(15 < gap < 30 for gap in apart), ages
    with Browser() as browser:
        page = browser.open(f"http://{relay.metrics}/")
        page.wait_for("document.getElementById('phones')?.textContent === '0'")
        # The peak of the line of phones, and the two ends, lie before the page was opened.
        page.wait_for("samples.length >= 5")
        levels = page.evaluate("samples.map((sample) => get(sample, 'connected_phones'))")
        assert levels[0] == 0 and max(levels) == 1 and levels[-1] == 0, levels
        moved = page.evaluate(
            "get(samples.at(-1), 'frames_forwarded_total{direction=\"phone_to_binary\"}')"
            " - get(samples[0], 'frames_forwarded_total{direction=\"phone_to_binary\"}')")
        assert moved == 100, moved
        page.wait_for("document.querySelectorAll('#ends rect').length > 0")
        assert page.happened("Runtime.exceptionThrown") == []


def a_page_elsewhere_is_told_nothing(relay):
    """Neither another site, nor one whose name has come to mean loopback."""
    port = relay.metrics.split(":")[1]
    with Browser() as browser:
        page = browser.open(f"http://{relay.url}/healthz")
        page.wait_for("document.body?.textContent.includes('ok')")
        page.evaluate(
            f"fetch('http://{relay.metrics}/metrics').then(() => window.told = 'all', (e) => window.told = String(e))")
        page.wait_for("window.told")
        assert "Failed to fetch" in page.evaluate("window.told")
        page.evaluate(
            "{ const script = document.createElement('script'); script.onload = () => window.ran = 'yes';"
            f" script.onerror = () => window.ran = 'no'; script.src = 'http://localhost:{port}/metrics';"
            " document.body.append(script); }")
        page.wait_for("window.ran")
        assert page.evaluate("window.ran") == "no"
        # Injected markup does not run.
        page = browser.open(f"http://{relay.metrics}/")
        page.wait_for("document.getElementById('phones')?.textContent === '0'")
        page.evaluate(
            "{ const script = document.createElement('script'); script.textContent = 'window.ran = true';"
            " document.body.append(script); }")
        assert page.evaluate("window.ran") is None


if __name__ == "__main__":
    main([
        promtool_finds_nothing_to_say_of_the_metrics,
        the_alert_rules_do_what_their_tests_say,
        every_query_names_a_metric_that_exists,
        a_real_prometheus_reads_it,
        the_status_page_shows_what_is_there,
        a_page_that_is_opened_late_shows_what_was,
        a_page_elsewhere_is_told_nothing,
    ], at_once=3)
