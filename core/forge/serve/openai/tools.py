"""Tools that a client offers to a model: what a request says of them, what the chat template is shown, and what holds an answer
to a call. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Struct

from forge.client.guide import Guide
from forge.serve.openai.api_errors import Fault, refused, require_shallow
from forge.serve.openai.calls import Form, Reader, form_of

MOST = 128
"""Tools of one request, as many as OpenAI's API takes."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}}
_SHORT = 9
"""Characters of an id: Mistral's chat templates refuse another length when they are shown a call again."""


class Function(Struct, omit_defaults=True):
    """What a tool does, to the model."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Struct):
    """One that is offered."""

    type: str
    function: Function | None = None


class _Named(Struct):
    name: str


class Choice(Struct):
    """``tool_choice`` that names a function."""

    type: str
    function: _Named | None = None


class _Wanted(Struct):
    name: str
    arguments: str = ""


class Called(Struct):
    """A call as a conversation repeats it."""

    function: _Wanted | None = None
    id: str = ""
    type: str = "function"


class Calling(Struct, frozen=True):
    """How the calls of one answer are read: in which ``form``, of tools with these ``names``."""

    form: Form
    names: frozenset[str]
    fresh: Callable[[], str]
    parallel: bool
    named: str = ""

    @property
    def spelled(self) -> bool:
        """Whether special tokens have to stand in the text: Mistral's mark is one."""
        return self.form is Form.MISTRAL

    def reader(self) -> Reader:
        """One for each answer."""
        return Reader(self.form, self.names, self._id, parallel=self.parallel, named=self.named)

    def _id(self) -> str:
        return self.fresh()[:_SHORT] if self.form is Form.MISTRAL else f"call_{self.fresh()[:24]}"


class Tooling(Struct, frozen=True):
    """The ``tools`` of one request; ``required``: the answer has to call one, ``named``: this one."""

    tools: tuple[Function, ...]
    required: bool
    named: str
    parallel: bool

    @property
    def shown(self) -> tuple[Mapping[str, object], ...]:
        """As the chat template takes them: many a one fails where a description or parameters are missing."""
        usual = {"description": "", "parameters": _NO_PARAMETERS}
        return tuple({"type": "function", "function": {**usual, **msgspec.to_builtins(tool)}} for tool in self.tools)

    @property
    def guide(self) -> Guide | None:
        """What the answer is held to, as OpenAI's server of vLLM does it: the arguments of the one, or a list of calls."""
        if self.named:
            return Guide.json_schema(next(tool.parameters or _NO_PARAMETERS for tool in self.tools if tool.name == self.named))
        return Guide.json_schema(_listed(self.tools, self.parallel)) if self.required else None

    def calling(self, template: str, fresh: Callable[[], str]) -> Calling:
        """How answers are read; Fault where nothing says how the model writes calls. ``fresh`` makes texts of 32 hexadecimal
        digits."""
        names = frozenset(tool.name for tool in self.tools)
        if self.named:
            return Calling(Form.ARGUMENTS, names, fresh, self.parallel, self.named)
        form = Form.LIST if self.required else form_of(template)
        if form is None:
            said = (
                "the model's chat template asks for calls in no form that is read here (Hermes' and Qwen's, Llama's, Mistral's)"
            )
            raise refused(
                "tools", f"{said}; tool_choice required, or one tool by name, needs none where the model can be guided"
            )
        return Calling(form, names, fresh, self.parallel)


def tooling(tools: Sequence[Tool] | None, choice: str | Choice | None, parallel: bool | None) -> Tooling | None:
    """Of a request's fields; None where nothing may be called. Fault for what is none of the API's."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise refused("tool_choice", "it needs tools")
        return None
    functions = _functions(tools)
    named = _named(choice, functions) if isinstance(choice, Choice) else ""
    if isinstance(choice, str) and choice not in {"none", "auto", "required"}:
        raise refused("tool_choice", f"none, auto, required and one function by its name are offered, not {choice}")
    return None if choice == "none" else Tooling(functions, choice == "required", named, parallel is not False)


def require_known(template: str, *, tools: bool) -> None:
    """Fault where a chat template would show the model no ``tools``, or nothing of calls that a conversation repeats."""
    if not re.search(r"\btools\b" if tools else r"\btools\b|\btool_calls\b", template):
        param = "tools" if tools else "messages"
        raise refused(
            param, "the model's chat template knows no tools: it would not be shown them; take a model that was trained to call"
        )


def repeated(where: str, calls: Sequence[Called]) -> list[Mapping[str, object]]:
    """Calls of a conversation, as chat templates take them: with the arguments as an object."""
    return [_repeated(f"{where}.tool_calls.{place}", call) for place, call in enumerate(calls)]


def _repeated(where: str, call: Called) -> Mapping[str, object]:
    if call.function is None or call.type != "function":
        raise Fault(
            400, f"{where}: calls of functions are offered, not {call.type}", param="messages", code="unsupported_value"
        )
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        said = f"{where}: the arguments are no JSON object: {error}"
        raise Fault(400, said, param="messages", code="invalid_value") from error
    require_shallow(arguments, where, "messages")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _functions(tools: Sequence[Tool]) -> tuple[Function, ...]:
    if len(tools) > MOST:
        raise refused("tools", f"{len(tools)} tools; at most {MOST} are taken")
    found: dict[str, Function] = {}
    for place, tool in enumerate(tools):
        if tool.type != "function":
            raise refused("tools", f"tools.{place}: functions are offered, not {tool.type}")
        if tool.function is None:
            raise refused("tools", f"tools.{place}: it has no function")
        name = tool.function.name
        if not _NAME.fullmatch(name):
            raise refused("tools", f"tools.{place}: {name!r} is no name: letters, digits, _ and -, 64 at most")
        if name in found:
            raise refused("tools", f"tools.{place}: {name} is there twice")
        require_shallow(tool.function.parameters, f"tools.{place}", "tools")
        found[name] = tool.function
    return tuple(found.values())


def _named(choice: Choice, tools: Sequence[Function]) -> str:
    if choice.type != "function" or choice.function is None:
        raise refused("tool_choice", f"none, auto, required and one function by its name are offered, not {choice.type}")
    if choice.function.name not in {tool.name for tool in tools}:
        raise refused("tool_choice", f"{choice.function.name!r} is none of the tools")
    return choice.function.name


def _listed(tools: Sequence[Function], parallel: bool) -> Mapping[str, object]:
    """The schema of a list of calls. What a tool's schema refers to by "#/$defs" is found there at the top."""
    shared: dict[str, object] = {}
    kinds: list[object] = []
    for tool in tools:
        parameters = dict(tool.parameters or _NO_PARAMETERS)
        for word in ("$defs", "definitions"):
            given = parameters.pop(word, None)
            if not isinstance(given, dict):
                continue
            held = cast("dict[str, object]", shared.setdefault(word, {}))
            for name, schema in cast("dict[str, object]", given).items():
                if held.setdefault(name, schema) != schema:
                    raise refused("tools", f"{word}.{name} means one thing in a tool and another in {tool.name}")
        properties = {"name": {"type": "string", "enum": [tool.name]}, "arguments": parameters}
        kinds.append({"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False})
    least = {"type": "array", "minItems": 1, "items": {"anyOf": kinds}}
    return {**least, **({} if parallel else {"maxItems": 1}), **shared}
