"""An engine that holds memory of simulated GPUs, and does with it what it is asked over HTTP.

    gpu.py --port P --device-module PATH [--hold MIB] [--load SECONDS | --until FILE] [--fail-once FILE]

It holds MIB on each GPU that it sees before it listens. GET / answers with its pid. /hold/GPU/MIB takes
more, 507 where there is no more; /free gives all of that back; /fork/GPU/MIB takes it in a child, with whose
pid it answers; /env/NAME answers with a variable, /exit/CODE ends it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

WORDS = sys.argv[1:]
MIB = 1 << 20


def value(option: str, default: str = "") -> str:
    return WORDS[WORDS.index(option) + 1] if option in WORDS else default


device = runpy.run_path(value("--device-module"))
holds = int(value("--hold", "0"))
kept = []


def hold(gpu: int, mib: int) -> None:
    kept.append(device["allocate"](gpu, mib * MIB))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        try:
            answer = self.answer(*self.path.strip("/").split("/"))
        except (MemoryError, RuntimeError) as error:
            self.reply(507, str(error))
        else:
            self.reply(200, answer)

    def answer(self, verb: str = "", *words: str) -> str:
        if verb == "hold":
            hold(int(words[0]), int(words[1]))
        elif verb == "free":
            while kept:
                device["free"](kept.pop())
        elif verb == "fork":
            return self.fork(int(words[0]), int(words[1]))
        elif verb == "env":
            return os.environ.get(words[0], "")
        elif verb == "exit":
            os._exit(int(words[0]))
        return str(os.getpid())

    def fork(self, gpu: int, mib: int) -> str:
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            hold(gpu, mib)
            os.write(told, b"x")
            while True:
                signal.pause()
        os.read(ready, 1)
        return str(child)

    def reply(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    marker = value("--fail-once")
    for gpu in range(len(device["visible"]()) if holds else 0):
        hold(gpu, holds)
    until = time.monotonic() + float(value("--load", "0"))
    if marker and not Path(marker).exists():
        Path(marker).touch()
        while not Path(marker + ".go").exists():
            time.sleep(0.02)
        print("Error in memory profiling. Initial free memory", flush=True)
        sys.exit(1)
    go = value("--until")
    while time.monotonic() < until or (go and not Path(go).exists()):
        print("loading", flush=True)
        time.sleep(0.05)
    HTTPServer(("127.0.0.1", int(value("--port"))), Handler).serve_forever()


main()
