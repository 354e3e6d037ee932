"""Run `transformers` with a limit on the memory that torch takes of each GPU.

Run by its path in an interpreter that need not have sagectl; SAGECTL_GPU_MEMORY_FRACTION is the share:

    python run_capped.py serve MODEL …
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

VARIABLE = "SAGECTL_GPU_MEMORY_FRACTION"


def main() -> None:
    """Set the limit and hand over."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    share = os.environ.get(VARIABLE)
    if share is not None:
        import torch

        for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            torch.cuda.set_per_process_memory_fraction(float(share), device)
            sys.stderr.write(f"torch may take {float(share):.2%} of GPU {device}, as sagectl reserved\n")
    runpy.run_module("transformers.cli.transformers", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
