"""`channelindex` as a process that adopts orphans; it begins with one, whose id goes into the file ORPHAN_PID_FILE."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    parent = os.fork()
    if parent == 0:
        orphan = os.fork()
        if orphan == 0:
            signal.pause()
        Path(os.environ["ORPHAN_PID_FILE"]).write_text(str(orphan), encoding="utf-8")
        os._exit(0)
    os.waitpid(parent, 0)
    from channelindex.__main__ import main

    sys.exit(main())
