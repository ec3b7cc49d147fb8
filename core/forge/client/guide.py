"""What an answer is held to while it is made: any JSON, JSON of a schema, or a regular expression."""

import json
from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from forge.errors import InferenceError


class GuideType(StrEnum):
    """Called as TensorRT-LLM calls them (its input ``guided_decoding_guide_type``, 0.19 and later)."""

    JSON = "json"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"


class Guide(Struct, frozen=True):
    """``text`` is the schema as JSON, or the expression; empty for any JSON. Whoever serves the model reads it, and says what
    it cannot make of it: dialects differ."""

    type: GuideType
    text: str = ""

    @classmethod
    def any_json(cls) -> "Guide":
        """An answer that is a JSON document."""
        return cls(GuideType.JSON)

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, object], where: str = "") -> "Guide":
        """An answer that is JSON of ``schema``; InferenceError where that is no JSON object. ``where`` names it to a person."""
        if isinstance(schema, Mapping):
            return cls(GuideType.JSON_SCHEMA, json.dumps(schema))
        try:
            found = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InferenceError(f"the JSON schema is no JSON: {error}", where=where, hint=_SHAPE) from error
        if not isinstance(found, dict):
            raise InferenceError(f"the JSON schema is {schema.strip()[:40]!r}, not an object", where=where, hint=_SHAPE)
        return cls(GuideType.JSON_SCHEMA, schema)

    @classmethod
    def regex(cls, expression: str) -> "Guide":
        """An answer that ``expression`` matches from end to end; InferenceError where it is empty."""
        if not expression:
            raise InferenceError("the regular expression is empty", hint="an answer that it matches would say nothing")
        return cls(GuideType.REGEX, expression)


_SHAPE = 'such as {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
