"""Puts the compiled kernel into the wheel, or beside the sources of an editable installation, where it can be built."""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _builder(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_build", root / "kernel" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CustomBuildHook(BuildHookInterface[Any]):
    """Hatchling calls it around each wheel. Without a kernel the wheel is one for every machine."""

    _folder: str = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernel; see `BuildHookInterface`."""
        root = Path(self.root)
        builder = _builder(root)
        is_editable = version == "editable"
        self._folder = tempfile.mkdtemp(prefix="channelindex-kernel-")
        target = root / "channelindex" / builder.FILE if is_editable else Path(self._folder) / builder.FILE
        reason = builder.build(target)
        if reason is not None:
            if os.environ.get(builder.VARIABLE) == "on":
                raise RuntimeError(builder.without(reason))
            self.app.display_warning(builder.without(reason))
        elif not is_editable:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"{builder.TAG}-{platform}"
            build_data["force_include"][str(target)] = f"channelindex/{builder.FILE}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was built beside the wheel; see `BuildHookInterface`."""
        shutil.rmtree(self._folder, ignore_errors=True)
