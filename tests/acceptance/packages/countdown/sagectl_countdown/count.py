"""Counts: count.py PROGRESS_FILE STEPS HOLD FAIL_AT. Goes on after the step that the file tells of."""

import json
import os
import sys
import time

file, steps, hold, fail_at = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
done = 0
if os.path.exists(file):
    with open(file) as text:
        done = json.load(text)["done"] % steps
    print(f"going on after {done}", flush=True)
for number in range(done + 1, steps + 1):
    if number == fail_at:
        print("miscounted", flush=True)
        sys.exit(4)
    while number == steps and hold and not os.path.exists(hold):
        time.sleep(0.01)
    with open(f"{file}.new", "w") as text:
        json.dump({"done": number, "total": steps}, text)
    os.replace(f"{file}.new", file)
    print(f"counted {number}", flush=True)
