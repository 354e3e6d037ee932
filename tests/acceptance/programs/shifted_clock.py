"""sagectld and its shims with a wall clock that is ahead of the machine's by the seconds in $CLOCK, a file.

The wall clock is the machine's and cannot be another for some processes; CLOCK_MONOTONIC is left alone.
"""

import os
import sys

SHIFT = f"""
import time
def shifted(real=time.time):
    with open({os.environ["CLOCK"]!r}) as file:
        return real() + float(file.read())
time.time = shifted
"""
exec(SHIFT)

from sagectl.daemon.main import main  # noqa: E402
from sagectl.system import start_zygote  # noqa: E402

start_zygote.BOOTSTRAP = SHIFT + start_zygote.BOOTSTRAP
sys.exit(main())
