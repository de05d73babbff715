"""The reference of docs/api.md, from the protos: their services, messages, and the comments beside each field.

``make api-docs`` writes it; a test fails where the page says anything else.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

import adcascade.events.service
import pipeline.service
import ranking.service
import retrieval.service
from benchmarks.documents import put_between

PAGE = Path("docs/api.md")
PROTOS = Path("protos")
MARK = "contract"
# In the order in which a caller meets them.
_FILES = ("recommend", "retrieval", "ranking", "events", "types")
_SCOPES: Mapping[str, Mapping[str, str]] = {
    "RecommendService": pipeline.service.SCOPES,
    "RetrievalService": retrieval.service.SCOPES,
    "RankingService": ranking.service.SCOPES,
    "EventService": adcascade.events.service.SCOPES,
}
# Numbers of fields in descriptor.proto, of which the paths of comments are made.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _METHOD, _VALUE = 2, 2, 2
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


@dataclass(frozen=True)
class _Source:
    """A proto file with what is written beside its parts."""

    file: FileDescriptorProto
    comments: Mapping[tuple[int, ...], str]

    def said(self, *path: int) -> str:
        return self.comments.get(path, "")


def contract_markdown(protos: Path) -> str:
    """All services with their methods, then all messages and enums, as tables.

    Args:
        protos: Folder that holds ``adcascade/v1/*.proto``.
    """
    sources = [_source(file) for file in _described(protos)]
    services = [_service(source, number, one) for source in sources for number, one in enumerate(source.file.service)]
    return "\n\n".join([*services, "### Messages", *(part for source in sources for part in _types(source))])


def _described(protos: Path) -> list[FileDescriptorProto]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contract"
        names = [f"adcascade/v1/{name}.proto" for name in _FILES]
        flags = ["-I", str(protos), "--include_source_info", f"--descriptor_set_out={out}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *names], check=True)
        files = {file.name: file for file in FileDescriptorSet.FromString(out.read_bytes()).file}
    return [files[name] for name in names]


def _source(file: FileDescriptorProto) -> _Source:
    comments = {
        tuple(one.path): " ".join(f"{one.leading_comments} {one.trailing_comments}".split())
        for one in file.source_code_info.location
    }
    return _Source(file, comments)


def _service(source: _Source, number: int, service: ServiceDescriptorProto) -> str:
    lines = []
    for place, method in enumerate(service.method):
        takes, gives = _link(method.input_type), _link(method.output_type)
        scope = f"`{_SCOPES[service.name][method.name]}`"
        lines.append((f"`{method.name}`", takes, gives, scope, source.said(_SERVICE, number, _METHOD, place)))
    name = f"{source.file.package}.{service.name}"
    return f"### {service.name}\n\n`{name}`\n\n{_table(('method', 'takes', 'gives', 'scope', ''), lines)}"


def _types(source: _Source) -> Iterator[str]:
    for number, message in enumerate(source.file.message_type):
        yield _message(source, number, message)
    for number, enum in enumerate(source.file.enum_type):
        yield _enum(source, number, enum)


def _message(source: _Source, number: int, message: DescriptorProto) -> str:
    maps = {one.name: one for one in message.nested_type if one.options.map_entry}
    lines = []
    for place, field in enumerate(message.field):
        said = source.said(_MESSAGE, number, _FIELD, place)
        if field.HasField("oneof_index") and not field.proto3_optional:
            said = f"One of `{message.oneof_decl[field.oneof_index].name}`. {said}"
        lines.append((f"`{field.name}`", str(field.number), _type(field, maps), said))
    table = _table(("field", "number", "type", ""), lines) if lines else "No fields."
    return "\n\n".join(filter(None, (f"#### {message.name}", source.said(_MESSAGE, number), table)))


def _enum(source: _Source, number: int, enum: EnumDescriptorProto) -> str:
    lines = [
        (f"`{value.name}`", str(value.number), source.said(_ENUM, number, _VALUE, place))
        for place, value in enumerate(enum.value)
    ]
    table = _table(("value", "number", ""), lines)
    return "\n\n".join(filter(None, (f"#### {enum.name}", source.said(_ENUM, number), table)))


def _type(field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
    named = field.type_name.rpartition(".")[2]
    if named in maps:
        key, value = maps[named].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    kind = _link(field.type_name) if field.type_name else _SCALARS[field.type]
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _link(type_name: str) -> str:
    package, _, name = type_name.rpartition(".")
    return f"[{name}](#{name.lower()})" if package.startswith(".adcascade") else f"`{type_name.lstrip('.')}`"


def _table(columns: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    cells = [columns, ("---",) * len(columns), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)


if __name__ == "__main__":
    if not put_between(PAGE, MARK, contract_markdown(PROTOS)):
        raise SystemExit(f"{PAGE} has no place for the reference: <!-- {MARK}: begin --> and <!-- {MARK}: end -->")
