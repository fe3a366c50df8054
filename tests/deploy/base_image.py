"""Makes the image that the others are built on, where no registry can be asked: Debian 12 with its python3.

By hand: ``python -m tests.deploy.base_image TAG`` as root, for the engine that ``DOCKER_HOST`` names.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.deploy.engine import CommandFailed, run

SUITE: Final = "bookworm"
PACKAGES: Final = ("ca-certificates", "python3", "python3-venv")
DEBOOTSTRAP_SECONDS_MAX: Final = 600.0

CERTIFICATES: Final = Path("etc/ssl/certs/ca-certificates.crt")


def import_base_image(tag: str, environment: Mapping[str, str]) -> None:
    """Install Debian into a directory, and make an image of it.

    Raises:
        CommandFailed: debootstrap or the import failed.
    """
    with tempfile.TemporaryDirectory(prefix="wetink-base-") as directory:
        root = Path(directory, "root")
        run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)],
            deadline_seconds=DEBOOTSTRAP_SECONDS_MAX,
        )
        _finish(root)
        # Each program's own words for a failure are seen: of tar's at least that there was one.
        with subprocess.Popen(
            ["tar", "--create", "--numeric-owner", f"--directory={root}", "."], stdout=subprocess.PIPE
        ) as tar:
            done = subprocess.run(
                ["docker", "import", "-", tag], stdin=tar.stdout, env=environment, capture_output=True, check=False
            )
        if done.returncode or tar.returncode:
            message = f"docker import: {done.stderr.decode()}"
            raise CommandFailed(message)


def _finish(root: Path) -> None:
    """Leave out what apt keeps, and trust what this machine trusts: there may be a proxy with a certificate."""
    for cache in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
        cache.unlink()
    trusted = Path("/", CERTIFICATES)
    if trusted.exists():
        shutil.copyfile(trusted, root / CERTIFICATES)


if __name__ == "__main__":
    import_base_image(sys.argv[1], os.environ)
