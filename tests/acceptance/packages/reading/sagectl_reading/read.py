"""Reads texts out: read.py PORT NAME DIRECTORY AFTER. Without a text, or with an empty one, it cannot.

It begins when there is a file AFTER. A text "long" is taken in when there is a file `read` beside it.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

port, name, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
texts = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, {"names": sorted(texts)})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/load":
            text = Path(asked["path"], "text").read_text()
            if text == "illegible":
                self.answer(500, {"error": "nobody can read this"})
                return
            while text == "long" and not Path(asked["path"], "read").exists():
                time.sleep(0.01)
            texts[asked["name"]] = text
        elif self.path == "/unload":
            del texts[asked["name"]]
        self.answer(200, {"text": texts.get(asked["name"], "")})

    def answer(self, status, found):
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        print(*words, flush=True)


text = Path(directory, "text").read_text()
if not text:
    sys.exit("there is nothing to read")
texts[name] = text
while not Path(sys.argv[4]).exists():
    time.sleep(0.01)
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
