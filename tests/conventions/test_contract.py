import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from grpc_tools import protoc

from tests.conventions.tools import ROOT, complain, judge, named
from tests.support.contracts import IMAGES, VERSION, major_minor, neighbours

Element = TypeVar("Element")


def test_buf_has_no_complaint() -> None:
    """The contract keeps the STANDARD rules of buf."""
    judge("buf", "lint")


def test_buf_would_lay_out_no_file_otherwise() -> None:
    """There is one layout, and nobody chooses it."""
    judge("buf", "format", "--diff", "--exit-code")


def test_the_generated_code_is_current() -> None:
    """The modules beside the .proto files are what the pinned generators make of them."""
    judge("python", "protos/generate.py", "--check")


@pytest.mark.parametrize("version", neighbours())
def test_nothing_breaks_for_a_version_that_this_one_works_with(version: str) -> None:
    """What agents, collectors and readers of the minor version before and of this one rely on is as it was."""
    judge("buf", "breaking", "--against", named(IMAGES[version]))


def test_the_contract_of_every_release_is_kept() -> None:
    """Also the newest one that is not ahead of this version: without it there would be nothing to compare with."""
    released = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert neighbours()
    assert all(major_minor(version) <= major_minor(VERSION) for version in IMAGES)
    complain(f"protos/released has no {version}.binpb" for version in released if version not in IMAGES)


def test_everything_in_the_contract_is_documented(tmp_path: Path) -> None:
    """Every message, field, enum, value, service and rpc has its meaning right above it."""
    contract = described(tmp_path / "contract.binpb")

    assert contract
    complain(f"{file.name}: {name}" for file in contract for name in undocumented(file))


def described(path: Path) -> list[FileDescriptorProto]:
    """Compile our .proto files with their comments. The file is protoc's way to hand out the result."""
    protos = ROOT / "protos"
    sources = sorted(file.relative_to(protos).as_posix() for file in protos.rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = [f"--proto_path={protos}", f"--proto_path={well_known}", "--include_source_info"]
    assert protoc.main(["protoc", *arguments, f"--descriptor_set_out={path}", *sources]) == 0
    return list(FileDescriptorSet.FromString(path.read_bytes()).file)


def undocumented(file: FileDescriptorProto) -> Iterator[str]:
    """Name what has no comment right above it. A comment belongs to a path of field numbers and indices."""
    documented = {tuple(at.path) for at in file.source_code_info.location if at.leading_comments.strip()}
    for path, name in elements(file):
        if path not in documented:
            yield name


def elements(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Give the path and the name of everything in a file that a reader may meet."""
    yield (FileDescriptorProto.SYNTAX_FIELD_NUMBER,), "the file itself, above `syntax`"
    for path, message in numbered((), file, "message_type", file.message_type):
        yield from message_elements(path, message, message.name)
    for path, enum in numbered((), file, "enum_type", file.enum_type):
        yield from enum_elements(path, enum, enum.name)
    for path, service in numbered((), file, "service", file.service):
        yield path, service.name
        for method_path, method in numbered(path, service, "method", service.method):
            yield method_path, f"{service.name}.{method.name}"


def message_elements(
    path: tuple[int, ...], message: DescriptorProto, name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Give a message and what is in it. The entries of maps are protoc's own."""
    if message.options.map_entry:
        return
    yield path, name
    for field_path, field in numbered(path, message, "field", message.field):
        yield field_path, f"{name}.{field.name}"
    for enum_path, enum in numbered(path, message, "enum_type", message.enum_type):
        yield from enum_elements(enum_path, enum, f"{name}.{enum.name}")
    for nested_path, nested in numbered(path, message, "nested_type", message.nested_type):
        yield from message_elements(nested_path, nested, f"{name}.{nested.name}")


def enum_elements(path: tuple[int, ...], enum: EnumDescriptorProto, name: str) -> Iterator[tuple[tuple[int, ...], str]]:
    """Give an enum and its values."""
    yield path, name
    for value_path, value in numbered(path, enum, "value", enum.value):
        yield value_path, value.name


def numbered(
    path: tuple[int, ...], parent: Message, field: str, items: Iterable[Element]
) -> Iterator[tuple[tuple[int, ...], Element]]:
    """Give the items of a repeated field with their paths."""
    number = parent.DESCRIPTOR.fields_by_name[field].number
    for index, item in enumerate(items):
        yield (*path, number, index), item
