"""Builds `decoder_alone.c` with sanitizers and gives it documents: `python -m tests.fuzz.alone COUNT SEED`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.kernel import seeds

FOLDER = Path(__file__).parent
KERNEL = FOLDER.parents[1] / "kernel"
FLAGS = "-std=c11 -O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"

FORMS = ((), ("-DWITHOUT_VECTORS",))
"""The scanner as this machine has it, and as others have it."""


def main(count: str, seed: str) -> int:
    """Build and run each form; the exit code of the first run that found something, or 0."""
    with tempfile.TemporaryDirectory() as folder:
        program, documents = Path(folder) / "decoder_alone", Path(folder) / "documents"
        sources = [
            FOLDER / "decoder_alone.c",
            *(KERNEL / f"{name}.c" for name in ("scan", "document", "entries", "checksum")),
        ]
        documents.write_bytes(b"".join(len(seed).to_bytes(4, "big") + seed for seed in seeds()))
        code = 0
        for form in FORMS:
            subprocess.run(["cc", *FLAGS.split(), *form, *map(str, sources), "-o", str(program)], check=True)
            code = code or subprocess.run([program, count, seed, documents], check=False).returncode
        return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
