"""The program: the command `channelindex`, which is `python -m channelindex`.

Its parts are the packages `workers`, `coordinator` and `devbucket`, and an application may well have packages so named.
So the wheel has them in the private folder `_node` of this package, out of everybody's way, and the program alone puts
that folder first on its path. In the source tree they lie beside this package.
"""

import sys
from importlib import import_module
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "_node"


def add_parts() -> None:
    """Make the parts of the program importable, before any packages of the same names."""
    sys.path.insert(0, str(_INSTALLED if _INSTALLED.is_dir() else _HERE.parent))


def main() -> int:
    """Run the command that the process's arguments ask for; its exit code."""
    add_parts()
    program = import_module("workers.cli")  # by name: nothing of the library itself depends on the program
    code: int = program.main()
    return code


if __name__ == "__main__":
    sys.exit(main())
