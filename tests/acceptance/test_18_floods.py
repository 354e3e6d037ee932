"""Scenario 18: engines that write more than anybody can read, and daemons that do not look."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sagectl.client import Client
from sagectl.errors import SagectlError
from tests.acceptance.harness import Daemon, free_port, get, kill
from tests.acceptance.listening import PATIENCE

LINE = 4096
MISSED = re.compile(rb"\[sagectl: (\d+) bytes of log were rotated away before they could be shown\]")
FILES = '[daemon]\nlog_max_size = "4MiB"\nlog_keep = 4\n'


def flood(daemon: Daemon, rate: int, seconds: float) -> None:
    """Configure an engine that writes `rate` MB/s, beside an HTTP engine that is probed often."""
    probe = '{ http = "/health", interval = 0.2, timeout = 2, failures = 3 }'
    daemon.configure(
        FILES
        + daemon.engine("flood", "flood.py", str(rate), str(seconds))
        + daemon.web_engine("web", free_port(), probe=probe)
    )


def flooded(daemon: Daemon) -> tuple[int, float]:
    """Wait for the flood's end: its lines, and MB/s."""
    lines, seconds = daemon.mailbox.expect("flooded").split()
    return int(lines), int(lines) * LINE / 1e6 / float(seconds)


class Reader:
    """Follows the flood's log and counts, without keeping it. pause: seconds after each piece."""

    def __init__(self, client: Client, pause: float = 0.0) -> None:
        self.lines = self.missed = 0
        self.first: int | None = None
        self.last = -1
        self.wrong: list[bytes] = []
        self._reached = threading.Condition()
        pieces = client.logs("flood", follow=True)
        threading.Thread(target=self._read, args=(pieces, pause), daemon=True).start()

    def _read(self, pieces: Iterator[bytes], pause: float) -> None:
        rest = b""
        try:
            for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                with self._reached:
                    for line in lines:
                        self._take(line)
                    self._reached.notify()
                time.sleep(pause)
        except SagectlError:
            pass  # the daemon's end

    def _take(self, line: bytes) -> None:
        missed = MISSED.fullmatch(line)
        if missed:
            self.missed += int(missed[1])
            self.last += int(missed[1]) // LINE
            return
        number = int(line[5:14]) if line.startswith(b"line ") else -1
        self.first = number if self.first is None else self.first
        if len(line) != LINE - 1 or (self.lines and number != self.last + 1):
            self.wrong.append(b"%d after %d: %b" % (len(line), self.last, line[:60]))
        self.lines += 1
        self.last = number

    def expect(self, last: int) -> None:
        """Return when this line was read."""
        with self._reached:
            assert self._reached.wait_for(lambda: self.last >= last, 2 * PATIENCE), self.last


def latencies(client: Client, seconds: float) -> list[float]:
    """How long requests took, one after the other for so many seconds; sorted."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.perf_counter()
        client.engine("web")
        found.append(time.perf_counter() - begin)
        time.sleep(0.002)
    return sorted(found)


@pytest.mark.parametrize("followed", [False, True])
def test_a_flood_of_log_lines_delays_nobody_else(daemon: Daemon, followed: bool) -> None:
    """Scenario 18.1: an engine writes 200 MB/s for four seconds; a client asks the control API all the time,
    and with `followed` another one reads the whole log as it comes.

    Result: the API answers within milliseconds (p99 is printed); another engine's probes do not fail; the
    engine that floods is as fast as the machine lets it be, and ends with every line in order.
    """
    flood(daemon, 200, 4)
    daemon.start()
    daemon.until_ready("web", "flood")
    reader = Reader(daemon.client) if followed else None
    taken = latencies(daemon.client, 3.5)
    lines, speed = flooded(daemon)
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(f"{speed:.0f} MB/s, {len(taken)} requests: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    assert p99 < 0.25
    assert speed > 20
    if reader is not None:
        reader.expect(lines - 1)
        assert reader.wrong == []
        assert reader.first is not None
        assert reader.lines + reader.missed // LINE == lines - reader.first
    tail = b"".join(daemon.client.logs("flood", tail=500))
    assert [int(line[5:14]) for line in tail.splitlines()] == list(range(lines - 500, lines))
    for name in ("web", "flood"):
        engine = daemon.show(name)
        assert (engine["state"], engine["restart_count"]) == ("active", 0)
    kinds = {event["kind"] for event in daemon.client.events(tail=999)}
    assert not kinds & {"unready", "unhealthy", "log-trouble"}


def test_a_reader_that_is_too_slow_is_told_what_it_missed(daemon: Daemon) -> None:
    """Scenario 18.2: an engine writes 100 MB/s for three seconds, and only 20 MiB of log are kept; a client
    of `logs -f` takes a piece each 5 ms.

    Result: whole lines in order, and where files were gone before their turn a line with the exact size.
    """
    flood(daemon, 100, 3)
    daemon.start()
    daemon.until_ready("flood")
    daemon.mailbox.expect("flooding")
    reader = Reader(daemon.client, pause=0.005)
    lines, _ = flooded(daemon)
    reader.expect(lines - 1)
    assert reader.wrong == []
    assert reader.missed > 0
    assert reader.first is not None
    assert reader.lines + reader.missed // LINE == lines - reader.first


def stopped(daemon: Daemon) -> Callable[[], object]:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    pid = daemon.process.pid
    return lambda: os.kill(pid, signal.SIGCONT)


def dead(daemon: Daemon) -> Callable[[], object]:
    daemon.kill()
    return daemon.start


@pytest.mark.parametrize("away", [stopped, dead])
def test_a_daemon_that_does_not_look_changes_nothing_for_engines(
    daemon: Daemon, away: Callable[[Daemon], Callable[[], object]]
) -> None:
    """Scenario 18.3: an engine writes 50 MB/s, another answers requests and tells the supervisor its status
    some thousand times; the daemon gets SIGSTOP (or SIGKILL) for seconds. A third one dies meanwhile.

    Result: the flood goes on at its rate, requests are answered at once, the status never blocks. Then the
    daemon goes on (or another one starts): all the same processes, and the dead one runs again.
    """
    flood(daemon, 50, 6)
    port = daemon.web_engine("mortal", free_port())
    daemon.configure(port, "engines.d/mortal.toml")
    daemon.start()
    before = {e["name"]: e for e in daemon.until_ready("web", "flood", "mortal")}
    web = before["web"]["port"] or 0
    daemon.mailbox.expect("flooding")
    back = away(daemon)
    kill(before["mortal"]["pid"] or 0)
    slowest = 0.0
    end = time.monotonic() + 3
    asked = 0
    while time.monotonic() < end:
        begin = time.monotonic()
        get(web, "/notify/STATUS=" + 500 * "x")
        slowest = max(slowest, time.monotonic() - begin)
        asked += 1
    assert asked > 200
    assert slowest < 1.0
    for _ in range(2):  # 64 MiB are little more than a second of it
        daemon.mailbox.expect("flooding")
    back()
    lines, speed = flooded(daemon)
    assert speed > 20
    daemon.until("mortal", lambda e: e["substate"] == "ready" and e["pid"] != before["mortal"]["pid"])
    assert daemon.show("mortal")["restart_count"] == 1
    for name in ("web", "flood"):
        engine = daemon.show(name)
        assert (engine["pid"], engine["restart_count"]) == (before[name]["pid"], 0)
        assert daemon.tree(name) == [engine["pid"]]
    tail = b"".join(daemon.client.logs("flood", tail=500))
    assert [int(line[5:14]) for line in tail.splitlines()] == list(range(lines - 500, lines))


def test_a_flood_of_notifications_delays_nobody_else(daemon: Daemon) -> None:
    """Scenario 18.4: an engine tells its status by sd_notify without pause for three seconds, some ten
    thousand times a second.

    Result: the API answers as ever, another engine's probes do not fail, and in the end the last word holds.
    """
    daemon.configure(daemon.engine("babble", "babble.py", "3") + daemon.web_engine("web", free_port()))
    daemon.start()
    daemon.until_ready("web", "babble")
    taken = latencies(daemon.client, 2.5)
    count = daemon.mailbox.expect("babbled")
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    print(f"{count} words, {len(taken)} requests: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    assert p99 < 0.25
    wait_for(lambda: daemon.show("babble")["reason"].startswith(f"word {count} "), daemon)
    for name in ("web", "babble"):
        engine = daemon.show(name)
        assert (engine["state"], engine["restart_count"]) == ("active", 0)


def wait_for(holds: Callable[[], bool], daemon: Daemon) -> None:
    """A status is no event: it can only be looked at."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, daemon.client.engines()
        time.sleep(0.01)
