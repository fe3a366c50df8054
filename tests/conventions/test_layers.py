import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

import pytest

from tests.conventions.tools import PACKAGES, ROOT, complain, named

CTYPES_IN: Final = ("agent/wetink_agent/uapi/", "agent/wetink_agent/resolver_loop.py", "protos/wetink/syscalls.py")
SQLITE_IN: Final = ("collector/wetink_collector/store/",)

ONLY_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "ctypes": CTYPES_IN,
    "_ctypes": CTYPES_IN,
    "cffi": CTYPES_IN,
    "sqlite3": SQLITE_IN,
    "_sqlite3": SQLITE_IN,
}
"""Modules that are kept in one place, and the place: what they do is nobody else's business."""


OPTIONAL: Final[Mapping[str, str]] = {
    "opentelemetry": "collector/wetink_collector/tracing.py",
    "matplotlib": "client/wetink_client/plot.py",
}
"""What an extra of its own installs, and the one module that does without where it is not there."""


@pytest.mark.parametrize("package", PACKAGES)
def test_package_knows_of_ours_only_itself_and_the_contract(package: str) -> None:
    """Agent, collector and client meet on the wire. What two of them need is in ``wetink``, which needs none."""
    foreign = PACKAGES.keys() - {package, "wetink"}

    complain(f"{where} imports {name}" for where, name in imports(package) if top(name) in foreign)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_leaves_system_and_store_to_their_modules(package: str) -> None:
    """Who reads a module that is not on the list need not think of memory layouts or of SQL."""
    complain(
        f"{where} imports {top(name)}, which is for {' and '.join(homes)}"
        for where, name in imports(package)
        if (homes := ONLY_IN.get(top(name))) and not where.startswith(homes)
    )


@pytest.mark.parametrize("extra", ["agent", "collector", "client"])
def test_package_runs_on_what_its_extra_installs(extra: str) -> None:
    """``wetink[agent]`` is enough for the agent, with every module of ``wetink`` that the agent imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"][extra]
    # grpcio-status brings googleapis-common-protos: its messages are what it is for.
    installed = {normal(requirement) for requirement in requirements} | {"googleapis-common-protos"}
    providers = packages_distributions()

    complain(
        f"{where} imports {top(name)}, which wetink[{extra}] does not install"
        for where, name in reached(f"wetink_{extra}")
        if not where.startswith(OPTIONAL.get(top(name), "no module"))
        and top(name) not in sys.stdlib_module_names | PACKAGES.keys()
        and installed.isdisjoint(normal(distribution) for distribution in providers.get(top(name), []))
    )


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Give what a package's modules import, at whatever depth in the code, each with where it stands."""
    modules = sorted(PACKAGES[package].rglob("*.py"))
    assert modules
    for module in modules:
        yield from module_imports(module)


def reached(package: str) -> Iterator[tuple[str, str]]:
    """Give what a package's modules import, and what the modules of ``wetink`` import that are reached from there."""
    waiting = sorted(PACKAGES[package].rglob("*.py"))
    seen = set(waiting)
    while waiting:
        for where, name in module_imports(waiting.pop()):
            yield where, name
            module = PACKAGES["wetink"].parent / f"{name.replace('.', '/')}.py"
            if module.is_file() and module not in seen:
                seen.add(module)
                waiting.append(module)


def module_imports(module: Path) -> Iterator[tuple[str, str]]:
    """Give what a module imports from outside its own folder, each with where it stands."""
    for node in ast.walk(ast.parse(module.read_bytes())):
        for name in imported_by(node):
            yield f"{named(module)}:{getattr(node, 'lineno', 0)}", name


def imported_by(node: ast.AST) -> list[str]:
    """Name what a node imports: ``from a import b`` may mean a module ``a.b``."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            return [f"{module}.{alias.name}" for alias in names] + [module]
        case ast.Call(
            func=ast.Attribute(attr="import_module" | "find_spec") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            return [module]
        case _:
            return []


def top(name: str) -> str:
    """Give the package that a module is in."""
    return name.split(".", maxsplit=1)[0]


def normal(requirement: str) -> str:
    """Give a distribution's normal name, without its version."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()
