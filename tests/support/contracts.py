"""The contract as other versions have it: classes of its own for its messages, and its services, to call and to serve.

``neighbouring()`` are those that this version has to work with: the released ones, from the images in
``protos/released``, and one that is not released yet and says more than this version knows, wherever it may.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from wetink.v1 import dirty_pb2, ingest_pb2, types_pb2

ROOT: Final = Path(__file__).resolve().parents[2]

VERSION: Final[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

IMAGES: Final[Mapping[str, Path]] = {path.stem: path for path in (ROOT / "protos/released").glob("*.binpb")}
"""The contract of each released version."""

LATER_NUMBER: Final = 1000
"""Of what a later version has more: a field of each message, and a value of each enum. Members of oneofs follow."""

LATER_FIELD: Final = "of_a_later_version"
LATER_TEXT: Final = "said by a later version"


def major_minor(version: str) -> tuple[int, int]:
    """Give what of a version says which others it works with."""
    found = re.match(r"(\d+)\.(\d+)", version)
    assert found, version
    return int(found[1]), int(found[2])


def neighbours() -> list[str]:
    """List the released versions with this major version that are at most one minor version away."""
    major, minor = major_minor(VERSION)
    return [
        version
        for version in sorted(IMAGES)
        if major_minor(version)[0] == major and abs(major_minor(version)[1] - minor) <= 1
    ]


_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Contract:
    """One version of the contract.

    ``contract.message("Hello")(host_id="host-1")`` makes one of its messages.
    """

    def __init__(self, version: str, files: Iterable[FileDescriptorProto]) -> None:
        """Take its files, those first that others import."""
        self.version = version
        self._pool = DescriptorPool()
        names = [self._pool.AddSerializedFile(file.SerializeToString()).name for file in files]
        self._classes: Mapping[str, type[Any]] = message_factory.GetMessageClassesForFiles(names, self._pool)

    def message(self, name: str) -> type[Any]:
        """Give the class of a message."""
        return self._classes[f"wetink.v1.{name}"]

    def stub(self, channel: grpc.Channel, service: str) -> SimpleNamespace:
        """Give the client's side of a service: its calls by their names."""
        return SimpleNamespace(**{method.name: self._call(channel, method) for method in self._methods(service)})

    def served(self, service: str, **behaviours: Callable[..., object]) -> grpc.GenericRpcHandler:
        """Give the server's side of a service, of which only some calls need be there."""
        methods = {method.name: method for method in self._methods(service)}
        handlers = {name: self._handler(methods[name], behaviour) for name, behaviour in behaviours.items()}
        return grpc.method_handlers_generic_handler(f"wetink.v1.{service}", handlers)

    def serialized(self, message: Message) -> bytes:
        """Give what of a message goes over the wire."""
        return message.SerializeToString()

    def unheard(self, _name: str) -> Iterator[Message]:
        """Give messages of a name that say only what nobody else knows; none where there is no such thing."""
        return iter(())

    def _methods(self, service: str) -> list[MethodDescriptor]:
        return list(self._pool.FindServiceByName(f"wetink.v1.{service}").methods)

    def _call(self, channel: grpc.Channel, method: MethodDescriptor) -> object:
        return getattr(channel, _kind(method))(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=self.serialized,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )

    def _handler(self, method: MethodDescriptor, behaviour: Callable[..., object]) -> _Handler:
        handler: _Handler = getattr(grpc, f"{_kind(method)}_rpc_method_handler")(
            behaviour,
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=self.serialized,
        )
        return handler


class LaterContract(Contract):
    """This version's contract with more in it. Every message says all of that, and some say nothing else."""

    def __init__(self) -> None:
        """Add to every message a field, to every enum a value, and to every oneof a member."""
        super().__init__("later", [_grown(module.DESCRIPTOR) for module in (types_pb2, dirty_pb2, ingest_pb2)])

    def serialized(self, message: Message) -> bytes:
        """Give the message with the later field in it and in all that it holds."""
        grown = type(message)()
        grown.CopyFrom(message)
        _say_more(grown)
        return grown.SerializeToString()

    def unheard(self, name: str) -> Iterator[Message]:
        """Give a message of the kind that came later, and one that is empty to whom it is said."""
        kind = self.message(name)
        yield kind(**{_member(kind.DESCRIPTOR.oneofs[0].name): LATER_TEXT})
        yield kind()


def released(version: str) -> Contract:
    """Give a released version's contract, from its image."""
    return Contract(version, FileDescriptorSet.FromString(IMAGES[version].read_bytes()).file)


def neighbouring() -> list[Contract]:
    """List the contracts that agents, collectors and readers of this version meet."""
    return [*map(released, neighbours()), LaterContract()]


def _kind(method: MethodDescriptor) -> str:
    """Give how gRPC calls what goes to and fro: ``stream_unary``."""
    return "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))


def _grown(module_file: FileDescriptor) -> FileDescriptorProto:
    """Give a file of the contract as a later version may have it."""
    file = FileDescriptorProto()
    module_file.CopyToProto(file)
    for message in file.message_type:
        _grow(message)
    for enum in file.enum_type:
        enum.value.add(name=f"{enum.name.upper()}_{LATER_FIELD.upper()}", number=LATER_NUMBER)
    return file


def _grow(message: DescriptorProto) -> None:
    text = {"type": FieldDescriptorProto.TYPE_STRING, "label": FieldDescriptorProto.LABEL_OPTIONAL}
    message.field.add(name=LATER_FIELD, number=LATER_NUMBER, **text)
    for index, oneof in enumerate(message.oneof_decl):
        message.field.add(name=_member(oneof.name), number=LATER_NUMBER + 1 + index, oneof_index=index, **text)


def _member(oneof: str) -> str:
    """Give the name of what a later version adds to a oneof."""
    return f"{oneof}_{LATER_FIELD}"


def _say_more(message: Message) -> None:
    """Set the later field in a message and in all that it holds. Maps of the contract hold no messages."""
    setattr(message, LATER_FIELD, LATER_TEXT)
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for held in value if field.is_repeated else [value]:
                _say_more(held)
