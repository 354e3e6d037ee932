"""Writes numbered lines: chatter.py COUNT BATCH PAUSE. Mails "wrote N" after each tenth, then stays."""

import os
import signal
import socket
import sys
import time

count, batch, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
mail.connect(os.environ["MAIL"])
for first in range(0, count, batch):
    lines = (
        f"line {number:07d} {'.' * (number % 90)}\n" for number in range(first, min(first + batch, count))
    )
    data = "".join(lines).encode()
    while data:
        data = data[os.write(1, data) :]
    if first * 10 // count != (first + batch) * 10 // count:
        mail.send(b"wrote %d" % min(first + batch, count))
    time.sleep(pause)
signal.pause()
