"""Start the server that lies beside this file, in an interpreter that need not have sagectl.

Run by its path. It loads the directory `server` as a package of its own name, so that neither our other
modules nor the daemon's site-packages come onto the engine's import path.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = "sagectl_embedding_server"


def main() -> int:
    """Load the package and hand over."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    directory = here / "server"
    spec = spec_from_file_location(
        PACKAGE, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    return int(import_module(f"{PACKAGE}.main").main())


if __name__ == "__main__":
    sys.exit(main())
