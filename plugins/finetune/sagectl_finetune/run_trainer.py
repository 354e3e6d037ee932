"""Start the trainer that lies beside this file, in an interpreter that need not have sagectl.

Run by its path. `sagectl_finetune` becomes a package without our `__init__`, so that its packages `trainer`
and `data` can be imported, and neither the daemon's site-packages nor `sagectl.plugin` are needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

PACKAGE = "sagectl_finetune"


def main() -> int:
    """Make the package importable and hand over."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    package = ModuleType(PACKAGE)
    package.__path__ = [str(here)]
    sys.modules[PACKAGE] = package
    return int(import_module(f"{PACKAGE}.trainer.main").main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
