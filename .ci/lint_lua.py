"""Lints each Lua script as it is sent to Redis, with what it includes. Without luacheck it says so; on CI it fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from channelindex.redis.scripts import Scripts  # noqa: E402  it is the repository's that is linted

FOLDERS = ("channelindex/stores/redis", "coordinator/lua")
GLOBALS = ("redis", "KEYS", "ARGV", "struct", "cjson", "cmsgpack", "bit")
INCLUDE = re.compile(r"^-- include (\w+)\.lua$", re.MULTILINE)


def main() -> int:
    """Return 1 if luacheck found something."""
    if shutil.which("luacheck") is None:
        print("Lua is not linted: there is no luacheck (Debian: apt-get install lua-check)")
        return 1 if os.environ.get("CI") else 0
    command = [
        "luacheck",
        "--quiet",
        "--no-color",
        "--no-config",
        "--std=lua51",
        "--no-max-line-length",
        "--read-globals",
        *GLOBALS,
    ]
    n_scripts = n_bad = 0
    for folder in FOLDERS:
        scripts = Scripts(ROOT / folder)
        text_by_name = {path.stem: path.read_text() for path in sorted((ROOT / folder).glob("*.lua"))}
        included = {name for text in text_by_name.values() for name in INCLUDE.findall(text)}
        for name in text_by_name.keys() - included:  # those are seen where they are included
            given = [*command, "--filename", f"{folder}/{name}.lua", "--", "-"]
            done = subprocess.run(given, input=scripts[name].source, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stdout, done.stderr)
            n_scripts, n_bad = n_scripts + 1, n_bad + (done.returncode != 0)
    print(f"Lua: {n_scripts} scripts, {n_bad} with something to fix")
    return 1 if n_bad or not n_scripts else 0


if __name__ == "__main__":
    sys.exit(main())
