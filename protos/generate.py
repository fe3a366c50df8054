"""Generate the Python modules of the contract beside their .proto files, or check that they are current.

``python protos/generate.py`` writes them; ``python protos/generate.py --check`` compares and exits with 1 when one
is stale. The generators are pinned in ``pyproject.toml``, so that equal sources give equal bytes everywhere.
"""

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent
PACKAGE: Final = "wetink/v1"


def generate(into: Path) -> None:
    """Write the modules and their type stubs below a directory.

    Args:
        into: The directory that will hold ``wetink/v1``.

    Raises:
        RuntimeError: protoc refused; it has printed why.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).glob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={well_known}",
            f"--python_out={into}",
            f"--mypy_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_grpc_out={into}",
            *sources,
        ]
    )
    if code:
        message = f"protoc exited with {code}"
        raise RuntimeError(message)


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


def main() -> int:
    """Run as a command; the exit code is 1 when ``--check`` finds a stale module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = stale()
    for name in names:
        print(f"protos/{name} is stale: run `make proto`", file=sys.stderr)  # noqa: T201
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
