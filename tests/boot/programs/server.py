"""An engine for the boot tests: server.py PORT NOTES

GET / answers with its pid, GET /slow?SECONDS after so long. What happens to it is noted in the file NOTES, a
word a line: started, answered, SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

PORT, NOTES = int(sys.argv[1]), sys.argv[2]


def note(word: str) -> None:
    with open(NOTES, "a") as file:
        file.write(word + "\n")


def on_term(number: int, frame: object) -> None:
    note("SIGTERM")
    os._exit(0)


def serve(sock: socket.socket) -> None:
    with sock:
        target = sock.recv(65536).split()[1].decode()
        if target.startswith("/slow?"):
            time.sleep(float(target[6:]))
            note("answered")
        body = b"%d" % os.getpid()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        sock.sendall(head + body)


signal.signal(signal.SIGTERM, on_term)
note("started")
listener = socket.create_server(("127.0.0.1", PORT), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
