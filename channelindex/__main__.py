"""The program: the command `channelindex`, which is `python -m channelindex`.

Its parts are the packages `workers`, `coordinator` and `devbucket`, and an application may well have packages so named.
So the wheel has them in the private folder `_node` of this package, out of everybody's way, and the program alone puts
that folder first on its path. In the source tree they lie beside this package.
"""

import gc
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "_node"


def add_parts() -> None:
    """Make the parts of the program importable, before any packages of the same names."""
    sys.path.insert(0, str(_INSTALLED if _INSTALLED.is_dir() else _HERE.parent))


def _heed_sigterm() -> None:
    """Have SIGTERM end process 1 of a container too, from now on until the command has a handler of its own.

    The kernel ignores a signal for process 1 that it has no handler for, so a pod that is stopped while it still
    starts would be killed after its grace period.
    """
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> int:
    """Run the command that the process's arguments ask for; its exit code."""
    _heed_sigterm()
    add_parts()
    program = import_module("workers.cli")  # by name: nothing of the library itself depends on the program
    code: int = program.main()
    gc.freeze()  # what ends now need not be searched for garbage first, a third of the time of a short command
    return code


if __name__ == "__main__":
    sys.exit(main())
