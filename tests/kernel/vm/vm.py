"""Debian's kernels, booted under QEMU without KVM; a command runs inside, on this machine's own files.

``fetch`` downloads a kernel package with apt-get and unpacks it into a directory of ours: nothing is installed. ``run``
boots it with an initramfs of busybox, a few modules and a script. The script mounts this machine's root read-only (9p),
with memory over what must be written to (/tmp, /run, /dev, /proc, /sys), changes into it and runs the command there, as
root and with no network. So the Python, the compiler and the project inside are those outside, and nothing done inside
reaches them; the command's output comes through a directory of its own.

``make test-kernels`` runs the kernel tests so (``kernels.py`` has the list). It needs the packages of
``apt-packages.txt`` beside this file, some 500 MB in the directory for temporary files, and some minutes: the machine
is emulated, and ten to thirty times slower than this one.
"""

import lzma
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p")
"""What the initramfs brings, with all they depend on. What a kernel has built in is left out."""

MEMORY_MIB: Final = 3072
"""The writers take below 100 MiB each; the rest is for Python, the compiler and the files in memory."""

_SHARED: Final = "trans=virtio,version=9p2000.L,msize=512000"
_INIT: Final = r"""#!/bin/sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1
/bin/busybox mount -t proc proc /proc
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
/bin/busybox mount -t 9p -o ro,cache=loose,{shared} machine /machine
/bin/busybox mount -t proc proc /machine/proc
/bin/busybox mount -t sysfs sysfs /machine/sys
/bin/busybox mount -t devtmpfs devtmpfs /machine/dev
/bin/busybox mount -t cgroup2 cgroup2 /machine/sys/fs/cgroup
for directory in /tmp /run /var/tmp; do /bin/busybox mount -t tmpfs -o mode=1777 tmpfs "/machine$directory"; done
/bin/busybox mkdir -p /machine/dev/shm /machine/dev/pts /machine/run/answer
/bin/busybox mount -t tmpfs -o mode=1777 tmpfs /machine/dev/shm
/bin/busybox mount -t devpts devpts /machine/dev/pts
/bin/busybox mount -t 9p -o {shared} answer /machine/run/answer
/bin/busybox ip link set lo up
# A writer that touches one page in each 2 MiB of 64 GiB would otherwise have all of this machine's memory.
echo madvise >/machine/sys/kernel/mm/transparent_hugepage/enabled
/bin/busybox chroot /machine /bin/sh -c {command} >/machine/run/answer/output 2>&1 </machine/dev/null
echo $? >/machine/run/answer/code
/bin/busybox sync
/bin/busybox poweroff -f
"""


class VmError(Exception):
    """A kernel could not be had, did not boot, or its command came to no end in time."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    release: str
    image: Path
    modules: Path


@dataclass(frozen=True, slots=True)
class Result:
    """What a command inside ended with."""

    code: int
    output: str


def lacks() -> str | None:
    """Say what this machine lacks for booting a kernel and how to get it, or None where it lacks nothing."""
    absent = [name for name in ("apt-get", "busybox", "dpkg-deb", "qemu-system-x86_64") if shutil.which(name) is None]
    if not absent:
        return None
    listed = Path(__file__).with_name("apt-packages.txt").read_text(encoding="utf-8")
    packages = [line.split("#")[0].strip() for line in listed.splitlines()]
    return f"there is no {', '.join(absent)}; apt-get install {' '.join(filter(None, packages))}"


def fetch(package: str) -> Kernel | None:
    """Give the kernel that a Debian package stands for, downloaded and unpacked once; None where apt has no such.

    Args:
        package: Its name, or that of a package that depends on the newest kernel of a kind.

    Raises:
        VmError: apt has it, and it could not be downloaded or unpacked.
    """
    name = _newest(package)
    if name is None:
        return None
    directory = _directory() / name
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=_directory()) as scratch:
            _do(["apt-get", "download", name], cwd=scratch)
            (archive,) = Path(scratch).glob("*.deb")
            _do(["dpkg-deb", "--extract", archive.name, "unpacked"], cwd=scratch)
            (Path(scratch) / "unpacked").rename(directory)
    (image,) = (directory / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    return Kernel(release, image, directory / "lib" / "modules" / release)


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    deadline_seconds: float,
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Boot a kernel, run one command inside and power off.

    Args:
        kernel: From ``fetch``.
        command: As a person would type it here.
        deadline_seconds: How long all of it may take.
        directory: Where the command runs.
        environment: What it finds besides PATH, HOME and LANG.

    Raises:
        VmError: It was not done in time, or the machine ended before the command did. The text has the last lines of
            the kernel's messages and of the command.
    """
    variables = {"PATH": os.environ["PATH"], "HOME": "/run", "LANG": "C.UTF-8", **(environment or {})}
    exports = "; ".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    script = f"{exports}; cd {shlex.quote(str(directory))} && exec {shlex.join(command)}"
    with tempfile.TemporaryDirectory(dir=_directory()) as scratch:
        answer, console, initramfs = (Path(scratch) / name for name in ("answer", "console", "initramfs"))
        answer.mkdir()
        initramfs.write_bytes(_archive(_initramfs(kernel, script)))
        try:
            subprocess.run(
                _qemu(kernel, initramfs, answer, console),
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=deadline_seconds,
            )
            return Result(int((answer / "code").read_text()), _read(answer / "output"))
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError, FileNotFoundError) as error:
            message = (
                f"Linux {kernel.release} did not finish {shlex.join(command)}: {error}\n"
                f"{_tail(_read(console))}\n{_tail(_read(answer / 'output'))}"
            )
            raise VmError(message) from error


def _qemu(kernel: Kernel, initramfs: Path, answer: Path, console: Path) -> list[str]:
    return [
        "qemu-system-x86_64",
        *("-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "2", "-m", f"{MEMORY_MIB}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{console}", "-kernel", str(kernel.image), "-initrd", str(initramfs)),
        # A panic ends it: the machine resets, and -no-reboot makes an end of that.
        *("-append", "console=ttyS0 panic=-1 quiet mitigations=off"),
        *("-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"),
        *("-fsdev", f"local,id=answer,path={answer},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=answer,mount_tag=answer"),
    ]


def _initramfs(kernel: Kernel, script: str) -> Iterator[tuple[str, int, bytes]]:
    """List the files of an initramfs: name, mode, content."""
    for name in ("bin", "proc", "machine", "modules", "dev"):
        yield name, 0o040755, b""
    busybox = shutil.which("busybox")
    assert busybox is not None
    yield "bin/busybox", 0o100755, Path(busybox).read_bytes()
    yield "bin/sh", 0o120777, b"busybox"
    yield "init", 0o100755, _INIT.format(shared=_SHARED, command=shlex.quote(script)).encode()
    modules = _modules(kernel, MODULES)
    for name, content in modules.items():
        yield f"modules/{name}", 0o100644, content
    yield "modules/order", 0o100644, "".join(f"{name}\n" for name in modules).encode()


def _modules(kernel: Kernel, names: Iterable[str]) -> dict[str, bytes]:
    """Read modules and what they depend on, in the order in which they can be loaded."""
    files = {_module_name(path): path for path in kernel.modules.rglob("*.ko*")}
    found: dict[str, bytes] = {}
    for name in names:
        if name not in files or name in found:
            continue
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        # The package has no modules.dep, which is made on installation; each module names what it needs itself.
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        found |= _modules(kernel, depends[1].decode().split(",") if depends else ())
        found[name] = content
    return found


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _archive(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Make a cpio archive of the kind that the kernel unpacks.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst, "newc".
    """
    parts = []
    for inode, (name, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def _newest(package: str) -> str | None:
    """Give the package that holds the kernel which a package stands for."""
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", package], check=False, capture_output=True, text=True
    )
    if shown.returncode != 0:
        return None
    depends = re.search(r"^Depends: .*\b(linux-image-[0-9]\S+)", shown.stdout, re.MULTILINE)
    return depends[1] if depends else package


def _do(command: list[str], *, cwd: str) -> None:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        message = f"{shlex.join(command)} failed:\n{_tail(done.stderr)}"
        raise VmError(message)


def _directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"wetink-kernels-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        message = f"{directory} belongs to somebody else"
        raise VmError(message)
    return directory


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-40:])
