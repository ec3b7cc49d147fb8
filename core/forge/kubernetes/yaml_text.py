"""Objects as the YAML that people read and `kubectl apply -f` takes."""

from collections.abc import Sequence

import yaml

from forge.kubernetes.pod import Object


class _Plain(yaml.SafeDumper):
    """Lists stand under their key, and what has several lines is a block; the same part again is written again."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the library's
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - the library's
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style)  # pyright: ignore[reportUnknownMemberType]


_Plain.add_representer(str, _text)


def text(objects: Sequence[Object]) -> str:
    """One document an object."""
    return yaml.dump_all(  # pyright: ignore[reportUnknownMemberType]
        objects, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True, explicit_start=True
    )
