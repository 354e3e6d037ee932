"""The command line as a whole process, and the control API."""

from __future__ import annotations

import socket
import statistics
import threading
import time

from tests.benchmarks.lab import BIN, Figures, eventually, run_timed, sized, spread
from tests.benchmarks.measures import seconds_to_run
from tests.benchmarks.supervisors import Sagectl, Supervisord

COUNT = 20


def test_status_beside_supervisorctl(sagectl: Sagectl, figures: Figures) -> None:
    with Supervisord() as peer:
        for one in (sagectl, peer):
            one.configure(COUNT)
            seconds_to_run(one, COUNT)
        sagectl.all_active(COUNT)
        eventually((peer.home / "socket").exists)
        ours = [str(BIN / "sagectl"), "status"], sagectl.environ
        theirs = [str(BIN / "supervisorctl"), "-c", str(peer.file), "status"], peer.environ
        run_timed(*ours), run_timed(*theirs)  # from here on the bytecode is compiled
        pairs = [(run_timed(*ours), run_timed(*theirs)) for _ in range(sized(60, 2))]
    for what, place in (("wall clock", 0), ("processor", 1)):
        a, b = [pair[0][place] for pair in pairs], [pair[1][place] for pair in pairs]
        ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
        text = f"{spread(a, digits=0)} against {statistics.median(b):.0f} ms, {ratio:.2f} of it"
        figures.add(f"sagectl status, {COUNT} engines, against supervisorctl: {what}", text, "no slower")


def test_requests_per_second(sagectl: Sagectl, figures: Figures) -> None:
    sagectl.configure(COUNT)
    seconds_to_run(sagectl, COUNT)
    sagectl.all_active(COUNT)
    path = str(sagectl.client.socket_path)
    for target, connections in (("engines/e0", 1), ("engines/e0", 8), ("engines", 1)):
        times, rate = _load(path, f"/v1/management/{target}", connections, sized(3000, 60))
        p99 = sorted(times)[len(times) * 99 // 100]
        text = f"{rate:.0f}/s, p50 {statistics.median(times):.2f} ms, p99 {p99:.2f} ms"
        what = f"GET {target}" + (f" of {COUNT}" if target == "engines" else "")
        figures.add(f"control API, {what}, {connections} connections", text)


def _load(path: str, target: str, connections: int, count: int) -> tuple[list[float], float]:
    """Milliseconds of each request on kept connections, and how many a second there were."""
    times: list[float] = []
    message = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    def client() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            for _ in range(count // connections):
                begin = time.perf_counter()
                sock.sendall(message)
                _answer(sock)
                times.append((time.perf_counter() - begin) * 1000)

    threads = [threading.Thread(target=client) for _ in range(connections)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, len(times) / (time.perf_counter() - begin)


def _answer(sock: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(262144)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    received = len(body)
    while received < length:
        received += len(sock.recv(262144))
