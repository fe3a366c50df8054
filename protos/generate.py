"""Generate the Python modules of the contract beside their .proto files, or check that they are current.

``python protos/generate.py`` writes them; ``python protos/generate.py --check`` compares and exits with 1 when one
is stale. The generators are pinned in ``pyproject.toml``, so that equal sources give equal bytes everywhere.
``python protos/generate.py --release`` keeps the contract of a version that is released, for those that come after it.
"""

import argparse
import sys
import tempfile
import tomllib
from importlib import resources
from pathlib import Path
from typing import Final

from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent
PACKAGE: Final = "wetink/v1"
RELEASED: Final = ROOT / "released"
PROJECT: Final = ROOT.parent / "pyproject.toml"


def generate(into: Path) -> None:
    """Write the modules and their type stubs below a directory.

    Args:
        into: The directory that will hold ``wetink/v1``.

    Raises:
        RuntimeError: protoc refused; it has printed why.
    """
    _protoc(f"--python_out={into}", f"--mypy_out={into}", f"--grpc_python_out={into}", f"--mypy_grpc_out={into}")


def stale() -> list[str]:
    """List the generated modules that differ from what the sources give now, as paths below ``protos/``."""
    with tempfile.TemporaryDirectory() as directory:
        fresh_root = Path(directory)
        generate(fresh_root)
        fresh = {path.relative_to(fresh_root) for path in fresh_root.rglob("*.py*")}
        kept = {path.relative_to(ROOT) for path in (ROOT / PACKAGE).glob("*_pb2*.py*")}
        return sorted(
            str(path)
            for path in fresh | kept
            if path not in fresh or path not in kept or (fresh_root / path).read_bytes() != (ROOT / path).read_bytes()
        )


def release() -> int:
    """Keep the contract as it is now under the version of ``pyproject.toml``; the exit code is 1 where one is kept."""
    image = RELEASED / f"{tomllib.loads(PROJECT.read_text())['project']['version']}.binpb"
    if image.exists():
        print(  # noqa: T201
            f"protos/released/{image.name} is there, and what was released does not change: raise the version in "
            "pyproject.toml; or remove the file, if its version never was tagged",
            file=sys.stderr,
        )
        return 1
    RELEASED.mkdir(exist_ok=True)
    _protoc("--include_imports", f"--descriptor_set_out={image}")
    return 0


def main() -> int:
    """Run as a command; the exit code is 1 when ``--check`` finds a stale module, or ``--release`` refuses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="compare, write nothing")
    instead.add_argument("--release", action="store_true", help="write the image of the version that is to be tagged")
    options = parser.parse_args()
    if options.release:
        return release()
    if not options.check:
        generate(ROOT)
        return 0
    names = stale()
    for name in names:
        print(f"protos/{name} is stale: run `make proto`", file=sys.stderr)  # noqa: T201
    return 1 if names else 0


def _protoc(*outputs: str) -> None:
    """Compile every .proto file of the contract.

    Raises:
        RuntimeError: protoc refused; it has printed why.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).glob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    code = protoc.main(["protoc", f"--proto_path={ROOT}", f"--proto_path={well_known}", *outputs, *sources])
    if code:
        message = f"protoc exited with {code}"
        raise RuntimeError(message)


if __name__ == "__main__":
    sys.exit(main())
