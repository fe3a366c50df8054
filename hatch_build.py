"""Builds the agent's loop in C with the package, where there is a C compiler; without one, Python does its work."""

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("agent/wetink_agent/resolver_loop.c")
LIBRARY = SOURCE.with_name("_resolver_loop.so")


class CustomBuildHook(BuildHookInterface[Any]):
    """Runs before a wheel, or what an editable installation needs, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Compile, and say that the wheel is for this platform; leave it for any where nothing was compiled."""
        library = Path(self.root, LIBRARY)
        library.unlink(missing_ok=True)
        compiler = shutil.which("cc")
        if self.target_name != "wheel" or compiler is None:
            return
        command = [compiler, "-O2", "-fPIC", "-shared", "-o", library, Path(self.root, SOURCE)]
        if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603 - nobody gives it input
            return
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
