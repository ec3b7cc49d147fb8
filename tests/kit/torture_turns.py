"""What a campaign of kills may do: each verb, with what has to be there before it can be killed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from standin import checkpoints

NAMES = ("one", "two", "three")
REFUSED = (0, 5, 6, 7, 8, 9, 10, 11)
"""Exit codes that a command may have after others were killed: it worked, or it said why not. 1 is a traceback's."""
LONG = checkpoints.Shape(positions=4096)
Words = tuple[str, ...]
RECIPE = """
name = "{name}"
family = "llama"
[source]
path = "{checkpoint}"
[runtime]
kind = "twin"
[serve]
stream = true
[sampling]
max_tokens = 12
top_k = 1
[build]
max_input_len = 128
max_seq_len = {length}
max_batch_size = 2
"""


@dataclass(frozen=True)
class Turn:
    """A command to be killed, and the models of a repository that it may change."""

    verb: str
    words: Words
    repository: Path | None = None
    touched: frozenset[str] = frozenset()


class Bench(Protocol):
    """What a turn is prepared on."""

    folder: Path
    random: Random
    ports: tuple[int, ...]
    listed: dict[Path, dict[str, str]]

    @property
    def repository(self) -> Path: ...
    @property
    def plain(self) -> Path: ...
    @property
    def served(self) -> bool: ...
    def run(self, words: Words, verb: str = "") -> tuple[int, str]: ...
    def fault(self, what: str) -> None: ...


def lay(recipe: Path, length: int = 256, checkpoint: str = "checkpoint") -> None:
    """A recipe of the twin; its pins, which were of the former one, are gone."""
    recipe.write_text(RECIPE.format(name=recipe.stem, length=length, checkpoint=checkpoint), encoding="utf-8")
    recipe.with_suffix(".lock").unlink(missing_ok=True)


def turn(bench: Bench, verb: str) -> Turn:
    """The next command of that verb, with all before it done."""
    return _VERBS[verb](bench)


def _do(bench: Bench, *words: str) -> None:
    """A command that prepares another: it works, at the latest once a server is stopped whose forge died as it started."""
    code, text = bench.run(words)
    if code in REFUSED[1:]:
        bench.run(("stop", *_where(bench)))
        code, text = bench.run(words)
    if code:
        bench.fault(f"`forge {' '.join(words)}` says {code}: {text[-1500:]}")


def _where(bench: Bench) -> tuple[str, str]:
    return "--repository", str(bench.repository)


def _recipe(bench: Bench) -> str:
    """One that changes what it asks for now and then, sometimes with other weights."""
    name = bench.random.choice(NAMES)
    checkpoint = "checkpoint"
    if bench.random.random() < 0.3:
        checkpoint = f"checkpoint-{bench.random.randrange(10**6)}"
        checkpoints.llama(bench.folder / checkpoint, LONG, seed=bench.random.randrange(10**6))
    lay(bench.folder / f"{name}.toml", bench.random.randrange(200, 4000), checkpoint)
    return name


def _build(bench: Bench) -> Turn:
    """What is not held yet."""
    return Turn("build", ("build", f"{_recipe(bench)}.toml", "--prefixed", *_where(bench)), bench.repository)


def _publish(bench: Bench) -> Turn:
    """What is held and not in the repository."""
    name, where = bench.random.choice(NAMES), _where(bench)
    if name not in bench.listed[bench.repository]:
        _do(bench, "build", f"{name}.toml", "--prefixed", *where)
    _do(bench, "remove", name, *where)
    return Turn("publish", ("build", f"{name}.toml", "--prefixed", *where), bench.repository, frozenset({name}))


def _add(bench: Bench) -> Turn:
    return Turn("add", ("add", f"{_recipe(bench)}.toml", "--rename-plain", *_where(bench)), bench.repository)


def _remove(bench: Bench) -> Turn:
    name, where = bench.random.choice(NAMES), _where(bench)
    if name not in bench.listed[bench.repository]:
        _do(bench, "build", f"{name}.toml", "--prefixed", *where)
    return Turn("remove", ("remove", name, *where), bench.repository, frozenset({name}))


def _rename(bench: Bench) -> Turn:
    """A model with plain names makes room."""
    where = ("--repository", str(bench.plain))
    if list(bench.listed.get(bench.plain, {}).values()) != [""]:
        for name in bench.listed.get(bench.plain, {}):
            _do(bench, "remove", name, *where)
        _do(bench, "build", f"{NAMES[0]}.toml", *where)
    bench.listed[bench.plain] = {NAMES[0]: ""}
    return Turn("rename", ("add", f"{NAMES[1]}.toml", "--rename-plain", *where), bench.plain)


def _serving(bench: Bench) -> Words:
    http, grpc, metrics = map(str, bench.ports)
    if not bench.listed[bench.repository]:
        _do(bench, "build", f"{NAMES[0]}.toml", "--prefixed", *_where(bench))
    return "serve", "--detach", *_where(bench), "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics


def _up(bench: Bench) -> bool:
    code, text = bench.run(("status", "--json"))
    return not code and bool(json.loads(text.splitlines()[-1]).get("servers"))


def _serve(bench: Bench) -> Turn:
    words = _serving(bench)
    if _up(bench):
        _do(bench, "stop", *_where(bench))
    return Turn("serve", words)


def _reload(bench: Bench) -> Turn:
    words = _serving(bench)
    if not _up(bench):
        _do(bench, *words)
    return Turn("reload", ("reload", *_where(bench)))


def _stop(bench: Bench) -> Turn:
    words = _serving(bench)
    if not _up(bench):
        _do(bench, *words)
    return Turn("stop", ("stop", *_where(bench)))


def _always(*words: str) -> Callable[[Bench], Turn]:
    return lambda _: Turn(words[-1], words)


_VERBS: Mapping[str, Callable[[Bench], Turn]] = {
    "build": _build,
    "publish": _publish,
    "add": _add,
    "remove": _remove,
    "rename": _rename,
    "gc": _always("cache", "gc"),
    "verify": _always("cache", "verify"),
    "lock": lambda bench: Turn("lock", ("lock", f"{_recipe(bench)}.toml")),
    "serve": _serve,
    "reload": _reload,
    "stop": _stop,
}
VERBS = tuple(_VERBS)
_QUIET = {"build": 5, "publish": 5, "add": 5, "remove": 4, "rename": 4, "gc": 2, "verify": 1, "lock": 4}
"""How often each is killed where nothing is served, for one time of each of those that want a server."""
_SERVED = ("serve", "add", "reload", "publish", "remove", "stop")


def deck(random: Random) -> list[str]:
    """Verbs in the order in which they are killed: first where nothing is served, then where a server is."""
    quiet = [verb for verb, count in _QUIET.items() for _ in range(count)]
    return [*random.sample(quiet, len(quiet)), *_SERVED]


def short(random: Random) -> list[str]:
    """The same, each once."""
    quiet = [verb for verb in VERBS if verb not in ("serve", "reload", "stop")]
    return [*random.sample(quiet, len(quiet)), "serve", "reload", "stop"]
