"""What is true of a person or a site, and not of a recipe: ``config.toml``, and FORGE_* variables over it.

The variable of a key is its name in capitals after ``FORGE_``, its table before it: ``[ports] http`` is FORGE_PORTS_HTTP.
A verb's own option wins over both. This is the one reader of either.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from forge.errors import ConfigError, Problem, RecipeError
from forge.files import texts

NAME = "config.toml"
DEFAULT = "default"
_PREFIX = "FORGE_"
_HOME = "FORGE_HOME"
_OPTION = "--remote"
PASSPHRASE = "FORGE_SIGN_PASSPHRASE"  # noqa: S105 - the name of one
"""The variable that opens an encrypted key of ``[remote] sign``: a secret, and so no key of the file."""
Jobs = Annotated[int, Meta(ge=1, le=256)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:-]+\Z", description="a host name or an address of this machine")]
Kept = Annotated[str, Meta(pattern=r"^[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]*\Z", description="a path that does not begin with '-'")]
Url = Annotated[
    str,
    Meta(
        # no user, password or query: what is secret in an address would be shown and logged with it
        pattern=r"^(|none|file:///[^\s@?#]*|(s3|gs|az|http|https|oci)://[^\s@?#]*)\Z",
        description="s3://, gs://, az://, file:///, http://, https:// or oci://, without user, password and query; or none",
    ),
]
Mirror = Annotated[
    str,
    Meta(
        pattern=r"^(|[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*)\Z",
        description="a registry as Docker names it, with a path there or without: harbor.example.com/nvcr",
    ),
]
Executor = Literal["docker", "local", "ray"]
Worth = str | int | float | tuple[str, ...] | None
Pushed = Literal["toolchain", "checkpoint", "engine", "weights"]


class RemoteTable(Struct, frozen=True, kw_only=True):
    """[remote]: the store that several machines share (docs/remote.md)."""

    url: Url = ""
    access: Literal["read-only", "read-write"] = "read-only"
    deadline: Annotated[float, Meta(gt=0, le=600)] = 10.0
    """Seconds without an answer after which forge goes on alone."""
    push: tuple[Pushed, ...] = ("toolchain", "checkpoint", "engine")
    sign: Kept | Literal[""] = ""
    """The file of the private key that signs what is sent; relative to the config file, as ``keys``."""
    verify: Literal["off", "require"] = "off"
    """Whether nothing is taken that no trusted key has signed."""
    keys: tuple[Kept, ...] = ()
    """The files of the public keys whose signatures count."""


class ImagesTable(Struct, frozen=True, kw_only=True):
    """[images]: where container images are pulled from."""

    mirror: Mirror = ""
    """In the place of nvcr.io: a registry, and a path there; images keep their name."""


class PortsTable(Struct, frozen=True, kw_only=True):
    """[ports]: where `forge serve` listens."""

    http: Port = 8000
    grpc: Port = 8001
    metrics: Port = 8002
    openai: Port | None = None
    host: Host = "127.0.0.1"


class Settings(Struct, frozen=True, kw_only=True):
    """All of it, with forge's own words where nobody has said otherwise. An empty ``home`` is the platform's cache folder."""

    home: Kept | Literal[""] = ""
    repository: Kept = "model-repository"
    executor: Executor | None = None
    """Where commands run, whatever the recipes say; None leaves it to them. ``ray``: on the machines of a cluster."""
    jobs: Jobs | None = None
    """Steps of a build that may compute side by side; None is half the processors, 2 to 4."""
    remote: RemoteTable = RemoteTable()
    images: ImagesTable = ImagesTable()
    ports: PortsTable = PortsTable()

    def over(self, jobs: int | None, executor: Executor | None) -> "Settings":
        """With what somebody's arguments say over it."""
        return msgspec.structs.replace(self, jobs=jobs or self.jobs, executor=executor or self.executor)


class Setting(Struct, frozen=True):
    """One key, its value, and where that comes from: a file, a variable, or ``default``."""

    key: str
    value: Worth
    source: str


def place() -> Path:
    """Where the config file would stand."""
    from platformdirs import user_config_path

    return user_config_path("forge") / NAME


def read(environ: Mapping[str, str], remote: str | None = None) -> Settings:
    """What holds for this person; ConfigError with everything that is wrong in the file and the variables.

    ``remote`` is what the option of that name says.
    """
    file = place()
    if not remote and not file.exists() and not any(name in environ for name in _VARIABLES - {_HOME}):
        return PLAIN
    return _stated(file, environ, remote)[0]


def shown(environ: Mapping[str, str]) -> tuple[Setting, ...]:
    """Every key with its value and its source; the home folder as it is found."""
    settings, sources = _stated(place(), environ)
    values = {**dict(_flat(settings)), "home": str(home(environ, settings))}
    return tuple(Setting(key, values[key], sources.get(key, DEFAULT)) for key in values)


def ports(said: PortsTable, deployed: Mapping[str, int | str], environ: Mapping[str, str]) -> PortsTable:
    """Where to serve: what the config file says, over it what a deployment does, and over that this shell's variables."""
    own = {name: value for name, value in deployed.items() if not environ.get(VARIABLES[f"ports.{name}"])}
    return msgspec.structs.replace(said, **own)


def home(environ: Mapping[str, str], settings: Settings | None = None) -> Path:
    """Where forge keeps what it makes and learns: FORGE_HOME, the file's word, or the platform's cache folder."""
    if named := environ.get(_HOME):
        return Path(named).expanduser().absolute()
    if named := (settings or read(environ)).home:
        return place().parent / Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("forge")


def _stated(file: Path, environ: Mapping[str, str], remote: str | None = None) -> tuple[Settings, Mapping[str, str]]:
    from msgspec import inspect

    from forge.recipe.validate import Walk, document

    form = inspect.type_info(Settings)
    said: dict[str, object] = {}
    text = texts.there(file, _unreadable, "the config file")
    if text is not None:
        try:
            said = document(text, str(file), "config file")
        except RecipeError as error:
            raise ConfigError(error.problems) from error
    sources = {key: str(file) for key in _keys(said)}
    for key, variable in VARIABLES.items():
        if worth := environ.get(variable):
            sources[key] = variable
            if variable != _HOME:  # any path will do
                _put(said, key, _beside_caller(key, _worth(key, worth)))
    if remote:
        _put(said, "remote.url", remote)
        sources["remote.url"] = _OPTION
    walk = Walk(form)
    clean = walk.table(form, said, "")
    if walk.problems:
        raise ConfigError(tuple(_problem(sources, file, key, *told) for key, told in walk.problems.items()))
    settings = msgspec.convert(clean, Settings)
    if settings.remote.verify == "require" and not settings.remote.keys:
        hint = 'name the public keys of those who may sign: keys = ["ci.pub"] (docs/signing.md)'
        raise ConfigError(
            (Problem(f"{file}: remote.keys", "is empty, and [remote] verify wants a signature by one of them", hint),)
        )
    ports = (settings.ports.http, settings.ports.grpc, settings.ports.metrics, settings.ports.openai)
    if len(set(ports)) < len(ports):
        what = f"each of them needs a port of its own; found {', '.join(str(port) for port in ports if port)}"
        raise ConfigError((Problem(f"{file}: ports", what),))
    return settings, sources


def _problem(sources: Mapping[str, str], file: Path, key: str, what: str, hint: str) -> Problem:
    source = sources.get(key) or sources.get(key.partition("[")[0], str(file))  # an item of a list comes from where that does
    if key == "remote.url":  # what stands there may hold a password
        what = f"found another address; allowed: {what.partition('allowed: ')[2]}"
        hint = "credentials come from the usual places of S3, GCS, Azure and registries (docs/remote.md), never from an address"
    return Problem(source if source in _VARIABLES | {_OPTION} else f"{file}: {key}", what, hint)


def _unreadable(what: str, *, where: str, hint: str) -> ConfigError:
    return ConfigError((Problem(where, what, hint),))


def _worth(key: str, text: str) -> object:
    """What a variable says, as TOML would have it; what is no number stays text, for the check to say so."""
    default = dict(_flat(PLAIN))[key]
    if isinstance(default, tuple):
        return [word for each in text.split(",") if (word := each.strip())]
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            return text
    return int(text) if key in _NUMBERS and text.isascii() and text.isdigit() and len(text) < 19 else text


def _beside_caller(key: str, worth: object) -> object:
    """Key files that a variable names: it is for one shell, and so relative to the current folder, as FORGE_HOME is."""
    match key, worth:
        case "remote.sign", str(name) if not name.startswith("-"):
            return str(Path(name).expanduser().absolute())
        case "remote.keys", list():
            named = msgspec.convert(worth, list[str])
            return [name if name.startswith("-") else str(Path(name).expanduser().absolute()) for name in named]
        case _:
            return worth


def _put(said: dict[str, object], key: str, value: object) -> None:
    table, _, name = key.rpartition(".")
    inner = said.setdefault(table, dict[str, object]()) if table else said
    if isinstance(inner, dict):  # what stands there instead of a table is told of as it is
        inner[name] = value


def _keys(said: Mapping[str, object]) -> Iterator[str]:
    for name, value in said.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in msgspec.convert(value, dict[str, object]))
        else:
            yield name


def _flat(settings: Settings) -> Iterator[tuple[str, Worth]]:
    for name, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, Struct):
            yield from ((f"{name}.{inner}", each) for inner, each in msgspec.structs.asdict(value).items())
        else:
            yield name, value


PLAIN = Settings()
VARIABLES = {key: _PREFIX + key.replace(".", "_").upper() for key, _ in _flat(PLAIN)}
"""Key -> the variable that says it for one shell."""
_VARIABLES = frozenset(VARIABLES.values())
_NUMBERS = {"jobs", *(key for key in VARIABLES if key.startswith("ports.") and key != "ports.host")}
