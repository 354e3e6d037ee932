"""An HTTP server that does what a scenario needs, reports to $MAIL, and starts in a few milliseconds.

    server.py --port P [--ignore-term] [--orphan] [--load SECONDS [--silent]] [--serial] [--late FILE]
                       [--notify]

GET / answers with its pid. /health; /unready and /ready change what /health says. /hold answers only
after /release; /stream sends a piece every 20 ms until /release. /log/WORD writes a line, /notify/FIELD=VALUE
tells the supervisor, /exit/CODE ends the process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

WORDS = sys.argv[1:]
HEAD = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
healthy = True
released = threading.Event()


def mail(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["MAIL"])
        sock.send(text.encode())


def notify(text: str) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        sock.send(text.encode())


def value(option: str) -> str:
    return WORDS[WORDS.index(option) + 1]


def serve(sock: socket.socket) -> None:
    with sock:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = sock.recv(65536)
            if not piece:
                return
            request += piece
        try:
            answer(sock, request.split()[1].decode())
        except OSError:
            mail("client gone")


def answer(sock: socket.socket, path: str) -> None:
    global healthy
    status, body = b"200 OK", b"%d" % os.getpid()
    if path == "/health":
        status, body = (b"200 OK", b"ok") if healthy else (b"503 No", b"told to be unready")
    elif path in ("/ready", "/unready"):
        healthy = path == "/ready"
    elif path == "/hold":
        mail("holding")
        released.wait()
    elif path == "/release":
        released.set()
    elif path == "/stream":
        stream(sock)
        return
    elif path.startswith("/notify/"):
        notify(path[8:])
    elif path.startswith("/log/"):
        print(path[5:], flush=True)
    elif path.startswith("/exit/"):
        print("told to end", flush=True)
        os._exit(int(path[6:]))
    sock.sendall(HEAD % (status, len(body)) + body)


def stream(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    mail("streaming")
    until = time.monotonic() + float(os.environ.get("STREAM_SECONDS", "60"))
    while not released.is_set() and time.monotonic() < until:
        sock.sendall(b"token ")
        time.sleep(0.02)


def orphan() -> None:
    """Leave a process in a session of its own behind that no SIGTERM ends."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mail(f"orphan {os.getpid()}")
    while True:
        signal.pause()


def load() -> None:
    """Take as long as a model takes, with a log line now and then unless told to be silent."""
    until = time.monotonic() + float(value("--load"))
    part = 0
    while time.monotonic() < until:
        part += 1
        if "--silent" not in WORDS:
            print(f"loading part {part}", flush=True)
        time.sleep(0.05)


def on_term(number: int, frame: object) -> None:
    mail(f"SIGTERM {os.getpid()}")
    if "--ignore-term" not in WORDS:
        os._exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, on_term)
    print(f"server {os.getpid()} starts", flush=True)
    if "--orphan" in WORDS:
        orphan()
    if "--late" in WORDS:
        mail("loading")
        while not os.path.exists(value("--late")):
            time.sleep(0.01)
    if "--load" in WORDS:
        load()
    listener = socket.create_server(("127.0.0.1", int(value("--port"))), backlog=64)
    print(f"server {os.getpid()} listens", flush=True)
    if "--notify" in WORDS:
        notify("STATUS=serving\nREADY=1")
    while True:
        sock, _ = listener.accept()
        if "--serial" in WORDS:
            serve(sock)
        else:
            threading.Thread(target=serve, args=(sock,), daemon=True).start()


main()
