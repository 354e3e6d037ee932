"""Writes numbered lines of 4 KiB as fast as it may: flood.py MEGABYTES_PER_SECOND SECONDS, then stays.

Mails "flooded LINES SECONDS" at the end, and "flooding LINES" after each 64 MiB.
"""

import os
import signal
import socket
import sys
import time

LINE, LINES = 4096, 16
rate, seconds = float(sys.argv[1]) * 1e6, float(sys.argv[2])
mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
mail.connect(os.environ["MAIL"])
dots = b"." * (LINE - len(b"line 000000000 \n"))
begin, number = time.monotonic(), 0
while (now := time.monotonic() - begin) < seconds:
    data = b"".join(b"line %09d %b\n" % (n, dots) for n in range(number, number + LINES))
    while data:
        data = data[os.write(1, data) :]
    number += LINES
    if number * LINE % (64 << 20) == 0:
        mail.send(b"flooding %d" % number)
    if (ahead := number * LINE / rate - now) > 0.001:
        time.sleep(ahead)
mail.send(b"flooded %d %f" % (number, time.monotonic() - begin))
signal.pause()
