"""The process that forks programs for `tests.support.starting`: it has imported all commands once, and runs none.

A request comes with four files: standard input, output, errors, and where to report the process id and the exit code.
The forked process returns from `serve` to the top of this module, so that the interpreter ends it as it ends a program.
"""

import gc
import io
import json
import os
import runpy
import select
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from workers.cli import COMMANDS

_REQUEST_BYTES = 1 << 20
_PREPARED = (*(f"workers.cli.{command}" for command in COMMANDS), "workers.node.start", "workers.serving.service")


def serve(link: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the process that was forked for it; None once nobody asks."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # by the descriptor of a process: its id, where to report its end
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != link.fileno():
                poll.unregister(descriptor)
                _report_end(descriptor, *children.pop(descriptor))
                continue
            data, files, _, _ = socket.recv_fds(link, _REQUEST_BYTES, 4)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                for process, (_, reports) in children.items():
                    os.close(process)
                    os.close(reports)
                link.close()
                os.close(files.pop())
                return {**json.loads(data), "files": files}
            *standard, reports = files
            for file in standard:
                os.close(file)
            os.write(reports, pid.to_bytes(4))
            process = os.pidfd_open(pid)
            children[process] = (pid, reports)
            poll.register(process, select.POLLIN)


def _report_end(process: int, pid: int, reports: int) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(reports, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(reports)
    os.close(process)


def become(request: dict[str, Any]) -> None:
    """Make this process what the interpreter would be that *request* starts."""
    if request["own_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    files = {
        "in": _reader(),
        "out": _writer(1, sys.stdout.errors, unbuffered),
        "err": _writer(2, sys.stderr.errors, unbuffered),
    }
    for name, stream in files.items():
        setattr(sys, f"std{name}", stream)
        setattr(sys, f"__std{name}__", stream)
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["command"][3:]


def _reader() -> io.TextIOWrapper:
    return open(0, encoding="utf-8", closefd=False)


def _writer(file: int, errors: str | None, unbuffered: bool) -> io.TextIOWrapper:
    raw = open(file, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115 it stays open
    line_buffering = file == 2 or os.isatty(file)
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=line_buffering, write_through=unbuffered)


def prepare() -> None:
    """Import what programs need."""
    for module in _PREPARED:
        import_module(module)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "what was imported has threads, which a fork would leave behind"
    gc.freeze()  # or each program that ends would take all of it apart


if __name__ == "__main__":
    prepare()
    asked = serve(socket.socket(fileno=os.dup(0)))
    if asked is not None:
        become(asked)
        runpy.run_module("channelindex", run_name="__main__", alter_sys=True)
