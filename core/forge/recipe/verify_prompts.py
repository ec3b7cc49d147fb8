"""What a verification asks: the prompts that forge ships, or a file's."""

import msgspec
from blake3 import blake3
from msgspec import Struct

from forge.errors import ForgeError
from forge.files import texts


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation; the roles are the chat template's: mostly system, user and assistant."""

    role: str
    content: str


class Prompt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One thing to ask: ``text`` as it is, or ``messages`` in the model's own chat template."""

    name: str
    text: str = ""
    messages: tuple[Message, ...] = ()


def shipped() -> tuple[Prompt, ...]:
    """Short, long, multilingual, emoji, code, chat-templated."""
    text = texts.part("forge.recipe", "prompts.jsonl")
    return parse(text, "prompts.jsonl")


def parse(text: str, where: str) -> tuple[Prompt, ...]:
    """The prompts of a file: a JSON object on each line where its name ends in ``.jsonl``, else a plain prompt on each line."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if where.endswith((".jsonl", ".json")):
        found = tuple(_read(line, f"{where}:{number}") for number, line in lines)
    else:
        found = tuple(Prompt(name=f"line {number}", text=line) for number, line in lines)
    names = [prompt.name for prompt in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ForgeError(f"two prompts are called {twice!r}", where=where, hint="a verdict names its prompt: give each its own")
    if not found:
        raise ForgeError("there are no prompts in it", where=where, hint="a prompt on each line, or JSONL: docs/verify.md")
    return found


def written(prompts: tuple[Prompt, ...]) -> str:
    """The same prompts always give the same JSONL."""
    return "".join(msgspec.json.encode(prompt).decode() + "\n" for prompt in prompts)


def digest(prompts: tuple[Prompt, ...]) -> str:
    """What tells one set of prompts from another."""
    return blake3(written(prompts).encode()).hexdigest()[:16]


def _read(line: str, where: str) -> Prompt:
    hint = 'a line is {"name": "...", "text": "..."} or {"name": "...", "messages": [{"role": "user", "content": "..."}]}'
    prompt = texts.parsed(lambda: msgspec.json.decode(line, type=Prompt), ForgeError, "this prompt", where, hint=hint)
    if bool(prompt.text) == bool(prompt.messages):
        raise ForgeError("a prompt has either text or messages", where=where)
    return prompt
