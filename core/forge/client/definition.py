"""KServe's service definition with Triton's extensions, as .proto files: for clients that have none, such as Postman.

tritonclient carries it compiled; here it is written back as text, which a protobuf compiler turns into the very same.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import cast

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto as Field,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

SERVICE = "grpc_service.proto"
"""The file with the service itself; it imports the other."""
_MODULES = ("tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2")
_HEAD = """// KServe's inference protocol (v2) with Triton's extensions, as tritonclient {version} has it.
// Written by `forge proto`; the commented original: https://github.com/triton-inference-server/common/tree/main/protobuf
"""
_NAMED = (Field.TYPE_MESSAGE, Field.TYPE_ENUM)


def compiled() -> tuple[FileDescriptorProto, ...]:
    """The two files as tritonclient has them, the service's first."""
    found: list[FileDescriptorProto] = []
    for name in _MODULES:
        found.append(FileDescriptorProto())
        cast("FileDescriptor", import_module(name).DESCRIPTOR).CopyToProto(found[-1])
    return tuple(found)


@cache
def definition() -> Mapping[str, str]:
    """The files by name, the service's first."""
    held: dict[str, str] = {}
    for described in compiled():
        held[described.name] = _HEAD.format(version=version("tritonclient")) + "\n".join(_file(described)) + "\n"
    return held


def _file(described: FileDescriptorProto) -> Iterator[str]:
    """The lines of a proto3 file. Options and extensions, which these files do not use, are not written: none may be there."""
    if described.syntax != "proto3" or described.extension or described.options.ByteSize():
        raise ValueError(f"{described.name} has what is not known here")
    yield 'syntax = "proto3";'
    yield f"package {described.package};"
    yield from (f'import "{name}";' for name in described.dependency)
    for service in described.service:
        yield ""
        yield from _service(service, described.package)
    for enum in described.enum_type:
        yield ""
        yield from _enum(enum)
    for message in described.message_type:
        yield ""
        yield from _message(message, described.package)


def _service(service: ServiceDescriptorProto, package: str) -> Iterator[str]:
    yield f"service {service.name} {{"
    for method in service.method:
        asked = f"{'stream ' if method.client_streaming else ''}{_local(method.input_type, package)}"
        answered = f"{'stream ' if method.server_streaming else ''}{_local(method.output_type, package)}"
        yield f"  rpc {method.name}({asked}) returns ({answered}) {{}}"
    yield "}"


def _message(message: DescriptorProto, package: str) -> Iterator[str]:
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    yield f"message {message.name} {{"
    for enum in message.enum_type:
        yield from _indented(_enum(enum))
    for nested in message.nested_type:
        if nested.name not in maps:
            yield from _indented(_message(nested, package))
    begun: set[int] = set()
    for field in message.field:
        if not field.HasField("oneof_index") or field.proto3_optional:
            yield f"  {_field(field, maps, package)}"
        elif field.oneof_index not in begun:
            begun.add(field.oneof_index)
            yield f"  oneof {message.oneof_decl[field.oneof_index].name} {{"
            of_it = (each for each in message.field if each.HasField("oneof_index") and each.oneof_index == field.oneof_index)
            yield from (f"    {_field(each, maps, package)}" for each in of_it)
            yield "  }"
    yield "}"


def _field(field: Field, maps: Mapping[str, DescriptorProto], package: str) -> str:
    name = field.type_name.rpartition(".")[2]
    if field.type == Field.TYPE_MESSAGE and name in maps:
        key, value = maps[name].field
        kind = f"map<{_kind(key, package)}, {_kind(value, package)}>"
    else:
        label = "repeated " if field.label == Field.LABEL_REPEATED else "optional " if field.proto3_optional else ""
        kind = f"{label}{_kind(field, package)}"
    return f"{kind} {field.name} = {field.number};"


def _kind(field: Field, package: str) -> str:
    named = field.type in _NAMED
    return _local(field.type_name, package) if named else Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    yield from (f"  {value.name} = {value.number};" for value in enum.value)
    yield "}"


def _local(name: str, package: str) -> str:
    """A type as it is written in a file of the package."""
    return name.removeprefix(f".{package}.")


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
