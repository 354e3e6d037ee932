"""Tells the supervisor its status without pause: babble.py SECONDS. Mails "babbled N", then stays."""

import os
import signal
import socket
import sys
import time

address = os.environ["NOTIFY_SOCKET"]
supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
supervisor.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
end, count = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    count += 1
    supervisor.send(b"STATUS=word %d %s" % (count, 100 * b"."))
mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
mail.connect(os.environ["MAIL"])
mail.send(b"babbled %d" % count)
signal.pause()
