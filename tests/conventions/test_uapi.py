import ctypes
import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

import wetink.syscalls
import wetink_agent.uapi
from tests.conventions.tools import complain

MODULES: Final = [
    importlib.import_module(f"wetink_agent.uapi.{module.name}")
    for module in pkgutil.iter_modules(wetink_agent.uapi.__path__)
    if not module.name.endswith("_aarch64")
]
"""Those of this machine; of aarch64 tests/conventions/test_aarch64.py sees to it."""

COMMON: Final = ["stddef.h", "stdio.h", "sys/syscall.h"]

GROWING: Final = {"perf_event_attr"}
"""Structures that say their own size, and are longer in newer headers."""

FIRST_BIT: Final = """
#define first_bit(type, field) ({ \\
    union { type value; unsigned char bytes[sizeof(type)]; } both = { .bytes = { 0 } }; \\
    int bit = 0; \\
    both.value.field = 1; \\
    while (!(both.bytes[bit / 8] >> bit % 8 & 1)) bit++; \\
    bit; })
"""

pytestmark = pytest.mark.needs("cc")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_uapi_is_what_the_c_headers_say(module: ModuleType, tmp_path: Path) -> None:
    """Every number, size and offset is equal to the compiler's, and what C does not know does not compile."""
    ours = facts(module)

    assert ours
    differences(ours, compiled(headers(module), ours, tmp_path))


def test_system_calls_have_the_numbers_of_the_c_headers(tmp_path: Path) -> None:
    """``_NR_X`` of our module is ``__NR_X``."""
    ours = {
        f"__NR_{name.removeprefix('_NR_').lower()}": value
        for name, value in vars(wetink.syscalls).items()
        if name.startswith("_NR_")
    }

    assert ours
    differences(ours, compiled([], ours, tmp_path))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_uapi_holds_numbers_and_layouts_only(module: ModuleType) -> None:
    """No behaviour, and nothing of ours that C could not confirm."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    made_here = {name: value for name, value in public.items() if getattr(ctypes, name, None) is not value}

    complain(
        f"{module.__name__}.{name} is neither an integer nor a structure"
        for name, value in made_here.items()
        if not isinstance(value, int) and not is_layout(value) and value not in {ctypes, Final}
    )


def facts(module: ModuleType) -> dict[str, int]:
    """Give every number that a module claims, under the C expression that should have it."""
    numbers = {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}
    return numbers | {
        expression: number
        for value in vars(module).values()
        if is_layout(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_")
        for expression, number in layout(value)
    }


def is_layout(value: object) -> bool:
    """Whether a value is a structure or union of ctypes."""
    return isinstance(value, type) and issubclass(value, ctypes.Structure | ctypes.Union)


def layout(kind: Any) -> Iterator[tuple[str, int]]:  # noqa: ANN401 (ctypes gives its classes no common public type)
    """Give the size of a structure, and where each of its fields is."""
    name = f"{'union' if issubclass(kind, ctypes.Union) else 'struct'} {kind.__name__}"
    if kind.__name__ not in GROWING:
        yield f"sizeof({name})", ctypes.sizeof(kind)
    for field in bit_fields(kind):
        yield f"first_bit({name}, {field})", first_bit(kind, field)
    for path, offset, size in fields(kind):
        yield f"offsetof({name}, {path})", offset
        yield f"sizeof((({name} *)0)->{path})", size


def fields(kind: Any) -> Iterator[tuple[str, int, int]]:  # noqa: ANN401 (as above)
    """Give path, offset and size of each field, and of the fields inside it."""
    for field, of, *bits in kind._fields_:
        if bits:
            continue
        offset = getattr(kind, field).offset
        yield field, offset, ctypes.sizeof(of)
        if is_layout(of):
            for path, inner, size in fields(of):
                yield f"{field}.{path}", offset + inner, size


def bit_fields(kind: Any) -> list[str]:  # noqa: ANN401 (as above)
    """Name the fields that are counted in bits: they have no offset in C."""
    return [field for field, _, *bits in kind._fields_ if bits]


def first_bit(kind: Any, field: str) -> int:  # noqa: ANN401 (as above)
    """Give the place of the lowest bit of a field."""
    value = kind()
    setattr(value, field, 1)
    return (int.from_bytes(bytes(value), "little") & -int.from_bytes(bytes(value), "little")).bit_length() - 1


def headers(module: ModuleType) -> list[str]:
    """Give the headers that a module says it mirrors: they stand in its docstring."""
    named = re.findall(r"``(?:include/uapi/)?([\w/.-]+\.h)``", module.__doc__ or "")
    assert named, f"the docstring of {module.__name__} names no header"
    return named


def compiled(includes: list[str], expressions: Mapping[str, int], directory: Path) -> dict[str, int]:
    """Ask the C compiler for the value of each expression."""
    lines = [f"#include <{header}>" for header in [*COMMON, *includes]]
    lines += ['#include "uapi_newer.h"', FIRST_BIT, "int main(void) {"]
    lines += [f'  printf("%lld\\t%s\\n", (long long)({text}), "{text}");' for text in expressions]
    lines += ["  return 0;", "}", ""]
    source, program = directory / "facts.c", directory / "facts"
    source.write_text("\n".join(lines))
    made = subprocess.run(
        ["cc", "-Wall", "-Werror", f"-I{Path(__file__).parent}", source, "-o", program],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.fail(made.stderr, pytrace=False)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {text: int(number) for number, text in (line.split("\t") for line in printed.splitlines())}


def differences(ours: Mapping[str, int], theirs: Mapping[str, int]) -> None:
    """Fail with every claim that C does not confirm."""
    complain(
        f"{text} is {theirs[text]:#x} in C, {number:#x} in Python"
        for text, number in ours.items()
        if theirs[text] != number
    )
