"""Builds `decoder_alone.c` with sanitizers and gives it documents: `python -m tests.fuzz.alone COUNT SEED`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.kernel import seeds

FOLDER = Path(__file__).parent
KERNEL = FOLDER.parents[1] / "kernel"
FLAGS = "-std=c11 -O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"


def main(count: str, seed: str) -> int:
    """Build and run; the exit code of the run."""
    with tempfile.TemporaryDirectory() as folder:
        program, documents = Path(folder) / "decoder_alone", Path(folder) / "documents"
        sources = [
            FOLDER / "decoder_alone.c",
            *(KERNEL / f"{name}.c" for name in ("scan", "document", "entries", "checksum")),
        ]
        subprocess.run(["cc", *FLAGS.split(), *map(str, sources), "-o", str(program)], check=True)
        documents.write_bytes(b"".join(len(seed).to_bytes(4, "big") + seed for seed in seeds()))
        return subprocess.run([program, count, seed, documents], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
