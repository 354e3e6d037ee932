"""Says that it is ready, then takes memory as soon as FILE is there.   hog.py FILE [--worker]

With --worker a child takes it; when that ends, so does the process itself, with code 3.
"""

from __future__ import annotations

import os
import socket
import sys
import time


def send(address: str, text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def grow() -> None:
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.005)
    held = []
    while True:
        held.append(bytearray(b"x" * (1 << 20)))


grower = os.getpid()
if "--worker" in sys.argv:
    grower = os.fork()
    if grower == 0:
        grow()
send(os.environ["MAIL"], f"grower {grower}")
send(os.environ["NOTIFY_SOCKET"], "READY=1")
if grower == os.getpid():
    grow()
os.waitpid(grower, 0)
print("a worker is gone", flush=True)
sys.exit(3)
