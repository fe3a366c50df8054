"""What a test needs from the machine, and what happens where it is missing.

A test names its needs with ``@pytest.mark.needs("kernel", "root")``; a fixture or a helper calls ``needs("redis")``.
A missing need skips the test, with a sentence that says what is missing and how to get it. Needs that are listed in
the environment variable ``WETINK_REQUIRE`` (separated by commas) fail the test instead: CI names all of them but
``soft-dirty``, ``docker`` and four programs that are targets among others (``postgres``, ``nginx``, ``java``,
``node``), so that nothing is left out there in silence. What needs the first two runs in ``make test-kernels`` and
``make test-deploy``, wherever CI itself may run.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest

REQUIRE: Final = "WETINK_REQUIRE"
"""The environment variable with the names of the needs that must be there."""


class UnknownNeed(ValueError):
    """A need that nobody has defined. The sentence names those that exist."""


def needs(*names: str) -> None:
    """Go on when everything named is there; otherwise skip the running test, or fail it where it is required.

    Raises:
        UnknownNeed: A name stands for no need.
    """
    for name in names:
        reason = missing(name)
        if reason is None:
            continue
        sentence = f"needs {name}: {reason}"
        if name in required():
            pytest.fail(f"{sentence} ({REQUIRE} says that it must be there)", pytrace=False)
        pytest.skip(sentence)


@cache
def missing(name: str) -> str | None:
    """Say what is missing for a need and how to get it, or give None when it is there. Each is probed once.

    Raises:
        UnknownNeed: The name stands for no need.
    """
    check(name)
    return PROBES[name]()


def required() -> frozenset[str]:
    """Give the needs that must be there.

    Raises:
        UnknownNeed: ``WETINK_REQUIRE`` has a name that stands for no need.
    """
    names = frozenset(filter(None, (name.strip() for name in os.environ.get(REQUIRE, "").split(","))))
    for name in names:
        check(name)
    return names


def check(name: str) -> None:
    """Accept the name of a need.

    Raises:
        UnknownNeed: It stands for none.
    """
    if name not in PROBES:
        message = f"{name!r} is no need: there are {', '.join(sorted(PROBES))} (tests/support/needs.py)"
        raise UnknownNeed(message)


def _no_kernel() -> str | None:
    try:
        from wetink_agent.probe import why_not_wp_async  # noqa: PLC0415 (only tests with this need may import the agent)
    except ModuleNotFoundError as error:
        return f"the agent's probe cannot be imported: {error}"
    return why_not_wp_async()


def _no_soft_dirty() -> str | None:
    try:
        from wetink_agent.soft_dirty import why_not_soft_dirty  # noqa: PLC0415 (as above)
    except ModuleNotFoundError as error:
        return f"the agent's soft-dirty backend cannot be imported: {error}"
    lacking = why_not_soft_dirty()
    return None if lacking is None else f"{lacking}; make test-kernels boots a kernel that has it"


def _no_root() -> str | None:
    if os.geteuid() == 0:
        return None
    return f"runs as user {os.geteuid()}; start the tests as root"


def _no_cc() -> str | None:
    if shutil.which("cc") is None:
        return "there is no C compiler `cc`; apt-get install gcc"
    source = "#include <stdlib.h>\n#include <linux/userfaultfd.h>\nint main(void) { return EXIT_SUCCESS; }\n"
    with tempfile.TemporaryDirectory() as directory:
        compiled = subprocess.run(
            ["cc", "-x", "c", "-", "-o", Path(directory) / "program"],
            input=source,
            capture_output=True,
            text=True,
            check=False,
        )
    if compiled.returncode == 0:
        return None
    return "`cc` cannot build a program with the kernel's headers; apt-get install gcc libc6-dev linux-libc-dev"


def _no_loop() -> str | None:
    try:
        from wetink_agent.resolver_loop import library  # noqa: PLC0415 (as above)
    except ModuleNotFoundError as error:
        return f"the agent's resolver cannot be imported: {error}"
    if library() is not None:
        return None
    return "the compiled loop of wp-sync was not built; apt-get install gcc libc6-dev linux-libc-dev, and sync again"


def _no_preload() -> str | None:
    try:
        from wetink_agent.preload import why_no_library  # noqa: PLC0415 (as above)
    except ModuleNotFoundError as error:
        return f"the agent's preload cannot be imported: {error}"
    return why_no_library()


def _no_cpp() -> str | None:
    return None if shutil.which("c++") else "there is no C++ compiler `c++`; apt-get install g++"


def _no_aarch64_headers() -> str | None:
    if Path("/usr/aarch64-linux-gnu/include/asm/sigcontext.h").exists():
        return None
    return "there are no kernel headers of aarch64; apt-get install linux-libc-dev-arm64-cross"


def _no_aarch64() -> str | None:
    absent = [name for name in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(name) is None]
    if not absent:
        return None
    return f"there is no {', '.join(absent)}; apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"


def _no_docker() -> str | None:
    absent = [name for name in ("dockerd", "docker", "docker-compose", "debootstrap") if shutil.which(name) is None]
    if not absent:
        return None
    return f"there is no {', '.join(absent)}; apt-get install docker.io docker-compose debootstrap cgroupfs-mount"


def _no_redis() -> str | None:
    absent = [name for name in ("redis-server", "redis-cli", "redis-benchmark") if shutil.which(name) is None]
    if not absent:
        return None
    return f"there is no {', '.join(absent)}; apt-get install redis-server redis-tools"


def _no_network() -> str | None:
    absent = [name for name in ("ip", "tc", "iptables") if shutil.which(name) is None]
    if absent:
        return f"there is no {', '.join(absent)}; apt-get install iproute2 iptables"
    name = f"wetink-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}; run as root, with CAP_SYS_ADMIN"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return None


def _no_systemd_analyze() -> str | None:
    return None if shutil.which("systemd-analyze") else "there is no systemd-analyze; apt-get install systemd"


def _no_promtool() -> str | None:
    return None if shutil.which("promtool") else "there is no promtool; apt-get install prometheus"


def _no_program(*names: str, package: str) -> str | None:
    absent = [name for name in names if shutil.which(name) is None]
    return f"there is no {', '.join(absent)}; apt-get install {package}" if absent else None


def _no_postgres() -> str | None:
    from tests.support.applications import postgres_programs  # noqa: PLC0415 (it is for tests with this need)

    if postgres_programs() is not None:
        return None
    return "there is no postgres with its pgbench; apt-get install postgresql"


def _no_java() -> str | None:
    lacking = _no_program("java", package="default-jdk-headless")
    if lacking is not None:
        return lacking
    modules = subprocess.run(["java", "--list-modules"], capture_output=True, text=True, check=False).stdout
    if "jdk.compiler" in modules:
        return None
    return "this java compiles nothing; apt-get install default-jdk-headless"


PROBES: Final[Mapping[str, Callable[[], str | None]]] = {
    "kernel": _no_kernel,  # UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN, asked of the running kernel
    "soft-dirty": _no_soft_dirty,  # CONFIG_MEM_SOFT_DIRTY, seen at a page of our own
    "root": _no_root,  # ptrace of others, their pagemap, pidfd_getfd
    "network": _no_network,  # network namespaces, iproute2 and iptables
    "cc": _no_cc,  # a C compiler, the C library's headers, the kernel's headers
    "loop": _no_loop,  # the agent's loop in C, built with the package
    "preload": _no_preload,  # the library under which programs offer their memory, built with the package
    "c++": _no_cpp,  # what else includes the agent's C header
    "aarch64-headers": _no_aarch64_headers,  # what the layouts of aarch64 are compared with
    "aarch64": _no_aarch64,  # what builds a program of aarch64, and what runs it here
    "promtool": _no_promtool,  # what tests the alert rules
    "systemd-analyze": _no_systemd_analyze,  # what checks the units
    "docker": _no_docker,  # an engine for the tests to start, and what makes its base image
    "redis": _no_redis,  # redis-server and its load generator
    "stress-ng": lambda: _no_program("stress-ng", package="stress-ng"),  # a program that does all to its memory
    "postgres": _no_postgres,  # a database of many processes, and its load generator
    "nginx": lambda: _no_program("nginx", "wrk", package="nginx-light wrk"),  # and its load generator
    "java": _no_java,  # a virtual machine that moves objects, and a compiler
    "node": lambda: _no_program("node", package="nodejs"),  # another
}
"""Each need by name. A probe says what is missing, or gives None."""
