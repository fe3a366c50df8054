"""Builds what the agent has in C with the package, where there is a C compiler; without one, it does without."""

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = (
    Path("agent/wetink_agent/resolver_loop.c"),  # without it, Python does its work
    Path("agent/wetink_agent/offer_preload.c"),  # without it, `wetink-agent preload` says so
)


def library_of(source: Path) -> Path:
    """Give where the library of a source goes."""
    return source.with_name(f"_{source.stem}.so")


class CustomBuildHook(BuildHookInterface[Any]):
    """Runs before a wheel, or what an editable installation needs, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Compile, and say that the wheel is for this platform; leave it for any where nothing was compiled."""
        if self.target_name != "wheel":
            return  # the libraries of the working tree are in use, by an editable installation say
        compiler = shutil.which("cc")
        for source in SOURCES:
            library = Path(self.root, library_of(source))
            library.unlink(missing_ok=True)
            if compiler is None:
                continue
            command = [compiler, "-O2", "-fPIC", "-shared", "-o", library, Path(self.root, source)]
            if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603 - nobody gives it input
                continue
            build_data["artifacts"].append(library_of(source).as_posix())
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
