"""Builds the compiled kernel: `build.py FILE` compiles it into FILE, or says in one line why there will be none.

`build.py --strict` compiles it for its warnings alone, where that can be done.

Needs a C compiler (CC names another one than `cc`) and the headers of the Python that runs this. The file that it makes
serves that Python and all later ones: it uses nothing but the stable ABI of 3.11.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FILE = "_kernel.abi3.so"
TAG = "cp311-abi3"
VARIABLE = "CHANNELINDEX_BUILD_KERNEL"
"""`off`: build none. `on`: fail where it cannot be built. Else it is built where that can be done."""

_FLAGS = ("-std=c11", "-fPIC", "-shared", "-fvisibility=hidden")
_WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-cast-function-type")
_HARDENED = ("-O2", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-Wl,-z,relro,-z,now,-z,noexecstack")
_SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
_TIMEOUT_S = 600
"""For a compiler that hangs. One that works takes three seconds, and a minute where much else is done."""


def without(reason: str) -> str:
    """Say in one line that there is no kernel, and why."""
    return f"channelindex is without its compiled kernel, and slower: {reason}"


def missing() -> str | None:
    """What is missing to build a kernel here, or None."""
    headers = Path(sysconfig.get_path("include"))
    if os.environ.get(VARIABLE) == "off":
        return f"{VARIABLE} = off"
    if shutil.which(_compiler()[0]) is None:
        return f"there is no C compiler {_compiler()[0]}"
    if not (headers / "Python.h").exists():
        return f"the headers of Python are not in {headers}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it needs a Python with the global interpreter lock"
    return None


def build(target: Path, *, strict: bool = False, sanitized: bool = False) -> str | None:
    """Compile the kernel into *target*; return why it could not be, in one line, or None.

    *strict* takes no warning; *sanitized* has every access and every calculation checked when it runs.
    """
    reason = missing()
    if reason is not None:
        return reason
    made = target.with_name(f"{target.name}.{os.getpid()}")
    flags = [*_FLAGS, *_WARNINGS, *(_SANITIZED if sanitized else _HARDENED), *(["-Werror"] if strict else [])]
    sources = map(str, sorted(FOLDER.glob("*.c")))
    command = [*_compiler(), *flags, f"-I{sysconfig.get_path('include')}", *sources, "-o", str(made)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]}: {error}"
    if done.returncode:
        made.unlink(missing_ok=True)
        lines = done.stderr.splitlines()
        return f"{command[0]}: {next((line for line in lines if 'error' in line), ' '.join(lines[:1]))}"
    made.replace(target)  # in one step: another process may have the old one loaded
    return None


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def main(*arguments: str) -> int:
    """Build; the exit code is 0 also without a kernel, unless one was asked for, or it is wrong."""
    files = [argument for argument in arguments if not argument.startswith("--")]
    is_strict = "--strict" in arguments
    with tempfile.TemporaryDirectory() as folder:
        target = Path(*files) if files else Path(folder) / FILE
        reason = build(target, strict=is_strict, sanitized="--sanitized" in arguments)
    if reason is None:
        return 0
    print(without(reason), file=sys.stderr)
    return 1 if (is_strict and not missing()) or os.environ.get(VARIABLE) == "on" else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
