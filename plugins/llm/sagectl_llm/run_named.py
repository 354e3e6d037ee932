"""Run `transformers serve` for a model's directory under a name that is not the directory's.

Run by its path in an interpreter that need not have sagectl:

    python run_named.py DIRECTORY NAME serve NAME …

The server answers to the name of the directory as it was told. So `served/NAME` below the working directory
becomes a link to it, and the server runs in `served`.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

PLACE = "served"


def link(directory: Path, place: Path) -> None:
    """Make `place` a link to the directory, anew."""
    shutil.rmtree(PLACE, ignore_errors=True)
    place.parent.mkdir(parents=True)
    place.symlink_to(directory)


def main() -> None:
    """Link, and hand over."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    directory, name = sys.argv[1:3]
    link(Path(directory), Path(PLACE, name))
    os.chdir(PLACE)
    capped = here / "run_capped.py"
    sys.argv[:] = [str(capped), *sys.argv[3:]]
    runpy.run_path(str(capped), run_name="__main__")


if __name__ == "__main__":
    main()
