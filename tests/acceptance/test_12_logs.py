"""Scenario 12: no line of a log is lost by rotations, nor by the death of those who carry it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.acceptance.harness import Daemon, kill
from tests.acceptance.listening import FollowedLog

LINE = re.compile(rb"^line (\d{7}) (\.*)$", re.MULTILINE)
READ = 64 * 1024
"""Bytes that a shim reads at once, and takes with it when it dies just then."""


def chatter(daemon: Daemon, count: int, batch: int, pause: float) -> None:
    """Configure an engine that writes numbered lines, with the smallest log files, of which all are kept."""
    engine = daemon.engine("chatter", "chatter.py", str(count), str(batch), str(pause))
    daemon.configure(f'[daemon]\nlog_max_size = "64KiB"\nlog_keep = 1000\n{engine}')


def numbers(text: bytes) -> list[int]:
    """The numbers of the lines; every line must be whole."""
    found = [(int(match[1]), len(match[2])) for match in LINE.finditer(text)]
    assert all(length == number % 90 for number, length in found)
    assert len(found) == text.count(b"\n"), "a line is torn"
    return [number for number, _ in found]


def on_disk(daemon: Daemon) -> bytes:
    """The log's files, oldest first."""
    files = [path for path in (daemon.home / "log").iterdir() if re.search(r"\.log(\.\d+)?$", path.name)]

    def age(path: Path) -> int:
        return int(path.suffix[1:]) if path.suffix != ".log" else 0

    return b"".join(path.read_bytes() for path in sorted(files, key=age, reverse=True))


def test_logs_f_loses_nothing_while_the_log_rotates(daemon: Daemon) -> None:
    """Scenario 12.1: an engine writes 40,000 lines, some 2 MiB, as fast as it can into files of 64 KiB, while
    `logs -f` follows; `logs` and `logs -n` are asked for afterwards.

    Result: the follower, `logs` and the files have every line once, in order; a file ends with a newline.
    """
    count = 40_000
    chatter(daemon, count, 500, 0.001)
    daemon.start()
    followed = FollowedLog(daemon.client, "chatter")
    followed.expect(b"line %07d" % (count - 1))
    daemon.mailbox.expect(f"wrote {count}")
    followed.expect(b"line %07d %s\n" % (count - 1, b"." * ((count - 1) % 90)))
    assert numbers(followed.text) == list(range(count))
    assert numbers(on_disk(daemon)) == list(range(count))
    files = [path for path in (daemon.home / "log").iterdir() if path.name.startswith("chatter.log")]
    assert len(files) > 20
    whole = b"".join(daemon.client.logs("chatter"))
    assert numbers(whole) == list(range(count))
    last = daemon.cli("logs", "chatter", "-n", "1500")  # more than one file holds
    assert numbers(last.stdout.encode()) == list(range(count - 1500, count))


def test_the_log_goes_on_while_there_is_no_daemon(daemon: Daemon) -> None:
    """Scenario 12.2: an engine writes without pause; the daemon gets SIGKILL twice meanwhile.

    Result: the files have every line once; the engine never had to wait for a daemon.
    """
    count = 30_000
    chatter(daemon, count, 100, 0.002)
    daemon.start()
    for part in (3, 6):
        daemon.mailbox.expect(f"wrote {count * part // 10}")
        daemon.kill()
        daemon.mailbox.expect(f"wrote {count * (part + 1) // 10}")  # written while there is none
        daemon.start()
    daemon.mailbox.expect(f"wrote {count}")
    FollowedLog(daemon.client, "chatter").expect(b"line %07d" % (count - 1))
    assert numbers(on_disk(daemon)) == list(range(count))
    assert daemon.show("chatter")["restart_count"] == 0


def test_a_killed_shim_loses_no_more_than_what_it_had_in_hand(daemon: Daemon) -> None:
    """Scenario 12.3: an engine writes without pause while its shim gets SIGKILL, twice; `logs -f` follows.

    Result: the engine blocks until the new shim reads, and ends normally; lines stay in order and none
    comes twice. At most the one read that a shim had in hand is missing for each, and a follower has what
    the files have.
    """
    count = 30_000
    chatter(daemon, count, 100, 0.002)
    daemon.start()
    followed = FollowedLog(daemon.client, "chatter")
    for part in (3, 6):
        daemon.mailbox.expect(f"wrote {count * part // 10}")
        kill(daemon.shim("chatter"))
        daemon.expect_event("shim-replaced", "chatter")
    daemon.mailbox.expect(f"wrote {count}")
    followed.expect(b"line %07d %s\n" % (count - 1, b"." * ((count - 1) % 90)))
    text = on_disk(daemon)
    found = [int(match[1]) for match in LINE.finditer(text)]
    assert found == sorted(set(found)), "a line came twice, or out of order"
    assert found[-1] == count - 1
    written = sum(len("line 0000000 \n") + number % 90 for number in range(count))
    assert written - len(text) <= 2 * READ
    assert followed.text == text
    assert daemon.show("chatter")["restart_count"] == 0


def test_a_log_with_few_files_keeps_the_newest(daemon: Daemon) -> None:
    """Scenario 12.4: log_keep is 2; an engine writes thirty times what a file holds.

    Result: three files; `logs` shows a gapless end of what was written.
    """
    count = 40_000
    chatter(daemon, count, 500, 0.001)
    file = daemon.etc / "sagectl.toml"
    file.write_text(file.read_text().replace("log_keep = 1000", "log_keep = 2"))
    daemon.start()
    daemon.mailbox.expect(f"wrote {count}")
    followed = FollowedLog(daemon.client, "chatter")
    followed.expect(b"line %07d %s\n" % (count - 1, b"." * ((count - 1) % 90)))
    names = sorted(p.name for p in (daemon.home / "log").iterdir() if re.search(r"\.log(\.\d+)?$", p.name))
    assert names == ["chatter.log", "chatter.log.1", "chatter.log.2"]
    found = numbers(on_disk(daemon))
    assert found == list(range(found[0], count))
