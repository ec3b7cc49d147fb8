"""The only way to plugins: finds them, asks them, checks their answers, and names the one that misbehaves."""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from forge import hookspecs
from forge.diagnoses import Diagnosis, fault
from forge.errors import ForgeError, PluginError, Problem, RecipeError, meant
from forge.hookspecs import SINCE
from forge.plan.blame import found as sources, raised
from forge.plan.plugin import LOADING, Plugin, Question
from forge.plan.speculation import unread
from forge.recipe.rules import SPECULATIVE
from forge.schema.speculation_key import SpeculationKey
from forge.schema.values import (
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    Patch,
    Recipe,
    Requirements,
    RuntimeKind,
    Since,
    Tokenizer,
    Toolchain,
)

T = TypeVar("T")
Points = Mapping[str, tuple[EntryPoint, ...]]
"""What claims each name of a family or variant."""
WITHOUT_FAMILY = '--runtime vllm, llmapi, and twin with packages = ["transformers", "torch"] need none; an engine does'


class PluginInfo(Struct, frozen=True):
    """One installed plugin. ``api`` is the hook API it was written for; ``health`` is "ok" or what is wrong with it.

    ``where`` is the file and line that is at fault, ``source`` that line; ``trace`` is the traceback of what it raised.
    """

    name: str
    kind: str
    distribution: str
    version: str
    api: int
    health: str
    where: str = ""
    source: str = ""
    trace: str = ""


class Family:
    """A recipe's plugins asked as one: the variant first, then the family it stands on. Each is asked each question once.

    ``draft`` is what config.json of the recipe's second checkpoint says. Without a ``family`` there is nobody to ask: a runtime
    that converts nothing needs none.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Checkpoint,
        family: Plugin | None,
        variant: Plugin | None = None,
        draft: Checkpoint | None = None,
    ) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.name = family.name if family else ""
        self._draft = draft or Checkpoint()
        self._family = family
        self._variant = variant
        self._upward = tuple(plugin for plugin in (family, variant) if plugin is not None)
        self._answers: dict[tuple[str, str, Toolchain | None], object] = {}

    @classmethod
    def of(
        cls, recipe: Recipe, checkpoint: Checkpoint, draft: Checkpoint | None = None, among: "Points | None" = None
    ) -> "Family":
        """The plugins that the recipe names; the family is found by config.json's architectures where it names none.

        Where nothing is converted there may be none. Raises PluginError where one is broken, RecipeError where one is missing,
        and where none that is needed, or several, serve the checkpoint.
        """
        points = claimed() if among is None else among
        if missing := unknown(recipe, points):
            raise RecipeError(missing)
        family = _chosen(recipe, checkpoint, points)
        variant = _load(recipe.variant, points) if recipe.variant is not None else None
        if family and recipe.family is not None and (owner := _rightful(family, checkpoint, points)):
            served = ", ".join(family.architectures or ())
            what = f"{family.name!r} serves {served}; this checkpoint is {checkpoint.architectures[0]}"
            raise _wrong("family", what, f'say family = "{owner}", or take the line away')
        if family and family.architectures is None:
            raise _wrong("family", f"{family.name!r} is a variant", f'say variant = "{family.name}"')
        if variant is not None and variant.architectures is not None:
            raise _wrong("variant", f"{variant.name!r} is a family", f'say family = "{variant.name}"')
        return cls(recipe, checkpoint, family, variant, draft)

    def about(self, recipe: Recipe) -> "Family":
        """The same plugins, asked about another recipe for the same checkpoint."""
        other = copy(self)
        other.recipe = recipe
        other._answers = {}
        return other

    def architectures(self) -> tuple[str, ...]:
        return (self._family.architectures or ()) if self._family else ()

    def check(self, toolchain: Toolchain) -> tuple[Problem, ...]:
        """What the plugins find wrong with the recipe for these checkpoints and this image."""
        return (*self._joined("forge_check", tuple[Problem, ...], self._question(toolchain)), *self._unread())

    def _unread(self) -> Iterator[Problem]:
        """Keys of [speculation] that the variant does not declare. What forge's own read was checked with the recipe's text."""
        if self._variant is None or self.recipe.variant in SPECULATIVE:
            return
        declared = self._ask(self._variant, "forge_speculation", tuple[SpeculationKey, ...], self._question())
        if declared is None and self._variant.api >= SINCE["forge_speculation"]:
            declared = ()  # its author knows the hook, and names no key
        yield from unread(self.recipe, declared)

    def since(self) -> tuple[Since, ...]:
        """From which TensorRT-LLM on architectures are there."""
        return self._joined("forge_since", tuple[Since, ...], self._question())

    def requirements(self, toolchain: Toolchain) -> Requirements:
        joined = Requirements()
        for plugin in self._upward:
            joined |= self._ask(plugin, "forge_requirements", Requirements, self._question(toolchain)) or Requirements()
        return joined

    def patches(self, toolchain: Toolchain) -> tuple[Patch, ...]:
        return self._joined("forge_patches", tuple[Patch, ...], self._question(toolchain))

    def convert_commands(self, toolchain: Toolchain) -> tuple[Command, ...]:
        return self._commands("forge_convert_commands", toolchain)

    def build_commands(self, toolchain: Toolchain) -> tuple[Command, ...]:
        return self._commands("forge_build_commands", toolchain)

    def engines(self) -> tuple[Engine, ...]:
        """The engines that the build makes: where nobody answers, one in the result's own folder.

        PluginError where two stand in one folder, or are told to one model under one name.
        """
        answer = self._first("forge_engines", tuple[Engine, ...], self._question())
        if answer is None:
            return (Engine(),)
        if not answer or len({each.folder for each in answer}) < len(answer) or len(_told(answer)) < len(answer):
            problem = f"each engine has a folder and a parameter of its own, and there is at least one; answered {answer!r}"
            raise self._wrong("forge_engines", problem, "see docs/hooks.md")
        return answer

    def lora_modules(self) -> Mapping[str, str]:
        """Modules that an adapter may change, by the checkpoint's name of them; none where the family names none."""
        promised: type[Mapping[str, str]] = Mapping[str, str]  # type: ignore[type-abstract]  # what a hook's answer is held to
        return (self._family and self._ask(self._family, "forge_lora_modules", promised, self._question())) or {}

    def tokenizer(self) -> Tokenizer:
        """The first answer; where nobody answers, what AutoTokenizer would read."""
        return self._first("forge_tokenizer", Tokenizer, self._question()) or Tokenizer()

    def config_overrides(self) -> ConfigOverrides:
        merged = ConfigOverrides()
        for plugin in self._upward:
            merged |= self._ask(plugin, "forge_config_overrides", ConfigOverrides, self._question()) or ConfigOverrides()
        return merged

    def _question(self, toolchain: Toolchain | None = None) -> Question:
        return Question(self.recipe, self.checkpoint, toolchain, self._draft)

    def _ask(self, plugin: Plugin, hook: str, promised: type[T], question: Question) -> T | None:
        """A hook is a pure function: the same question has the same answer."""
        key = (plugin.name, hook, question.toolchain)
        if key not in self._answers:
            self._answers[key] = plugin.ask(hook, promised, question)
        return cast("T | None", self._answers[key])

    def _joined(self, hook: str, promised: type[tuple[T, ...]], question: Question) -> tuple[T, ...]:
        """All answers to a hook that answers a tuple, the family's first."""
        answers = (self._ask(plugin, hook, promised, question) for plugin in self._upward)
        return tuple(item for answer in answers for item in answer or ())

    def _first(self, hook: str, promised: type[T], question: Question) -> T | None:
        answers = (self._ask(plugin, hook, promised, question) for plugin in reversed(self._upward))
        return next((answer for answer in answers if answer is not None), None)

    def _commands(self, hook: str, toolchain: Toolchain) -> tuple[Command, ...]:
        """The variant's answer, which is told the family's; or the family's alone."""
        answer: tuple[Command, ...] = ()
        for plugin in self._upward:
            given = self._ask(plugin, hook, tuple[Command, ...], replace(self._question(toolchain), base=answer))
            answer = answer if given is None else given
        if not answer:
            raise self._wrong(hook, "answered no command", "this recipe's runtime needs one; see docs/hooks.md")
        return answer

    def _wrong(self, hook: str, problem: str, hint: str) -> PluginError:
        """The plugins' answer together will not do: the line is that of the uppermost that has the hook."""
        answered = [plugin for plugin in reversed(self._upward) if hook in plugin.hooks()]
        error = answered[0].wrong(hook, problem) if answered else PluginError("", hook, problem)
        names = " and ".join(plugin.name for plugin in reversed(self._upward))
        owners = " and ".join(dict.fromkeys(plugin.distribution for plugin in reversed(self._upward) if plugin.distribution))
        return PluginError(names, hook, problem, hint=hint, where=error.where, source=error.source, distribution=owners)


def names() -> tuple[str, ...]:
    """The families and variants that a recipe may name."""
    return tuple(sorted(claimed()))


def modules() -> tuple[str, ...]:
    """The packages or modules that installed plugins live in."""
    return tuple(sorted({point.module.partition(".")[0] for points in claimed().values() for point in points}))


def load(name: str) -> Plugin:
    """The installed plugin of that name. PluginError where it is missing, claimed twice, or does not load."""
    return _load(name, claimed())


def _load(name: str, known: Points) -> Plugin:
    points = list(known.get(name, ()))
    if not points:
        hint = f"{meant(name, known)} installed: {', '.join(sorted(known)) or 'none'}".strip()
        raise PluginError(name, LOADING, "no such plugin is installed", hint=hint)
    if len(points) > 1:
        claims = " and ".join(sorted(f"{_owner(point)[0]} ({point.value})" for point in points))
        raise PluginError(name, LOADING, f"two distributions claim this name: {claims}", hint="uninstall one of them")
    owner = partial(_distribution, points[0])
    try:
        module = points[0].load()
    except (Exception, SystemExit) as error:  # a stranger's module can raise anything
        at = raised(error, sources(points[0].module.partition(".")[0]))
        what, hint = f"{type(error).__name__}: {error}", f"the entry point is {name} = {points[0].value!r}"
        raise PluginError(name, LOADING, what, hint=hint, where=at.where, source=at.source, distribution=owner()) from error
    return Plugin(name, module, owner)


def unknown(recipe: Recipe, known: Points) -> tuple[Problem, ...]:
    """A family and a variant that the recipe names, and nobody has installed. vLLM's variants are no plugins."""
    named = {"family": recipe.family, "variant": None if recipe.runtime.kind is RuntimeKind.VLLM else recipe.variant}
    return tuple(_missing(key, name, known) for key, name in named.items() if name is not None and name not in known)


def _missing(key: str, name: str, known: Points) -> Problem:
    others = [each.name for each in installed(known) if each.kind == key]
    hint = f"{meant(name, others)} installed: {', '.join(others) or 'none'}; `forge plugins` shows them".strip()
    return Problem(key, f"no {key} {name!r} is installed", hint)


def diagnoses() -> tuple[Diagnosis, ...]:
    """The failures that installed plugins know. A plugin that is broken, and a row that is, are passed over."""
    found: list[Diagnosis] = []
    points = claimed()
    for name in sorted(points):
        with suppress(ForgeError):
            answer = _load(name, points).ask("forge_diagnoses", tuple[Diagnosis, ...], Question())
            found += cast("tuple[Diagnosis, ...] | None", answer) or ()
    return tuple(row for row in found if not fault(row))


def installed(among: Points | None = None) -> tuple[PluginInfo, ...]:
    """Every installed plugin, by name; a broken one is shown with what is wrong, and harms no other."""
    found = claimed() if among is None else among
    return tuple(_info(name, point, len(points)) for name, points in sorted(found.items()) for point in points)


def find(checkpoint: Checkpoint) -> str:
    """The name of the one installed family that serves the checkpoint; RecipeError where none or several do."""
    return _serving(checkpoint, claimed()).name


def serving(architectures: Sequence[str], among: Points) -> tuple[str, ...]:
    """The names of the families that serve any of them."""
    return tuple(plugin.name for plugin in _able(architectures, among)[0])


def _info(name: str, point: EntryPoint, claims: int) -> PluginInfo:
    distribution, version = _owner(point)
    try:
        plugin = load(name)
        kind = "variant" if plugin.architectures is None else "family"
        health = "; ".join(plugin.lacking()) or "ok"
    except PluginError as error:
        problem = f"{claims} distributions claim this name" if claims > 1 else f"{error.hook}: {error.problem}"
        trace = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        told = (error.where, error.source, trace) if claims == 1 else ("", "", "")
        return PluginInfo(name, "unknown", distribution, version, hookspecs.API, problem, *told)
    except ForgeError as error:  # the plugin's own words, where a person has asked it nothing
        return PluginInfo(name, "unknown", distribution, version, hookspecs.API, error.what, error.where)
    return PluginInfo(name, kind, distribution, version, plugin.api, health)


def claimed() -> Points:
    """Every claim on every name. Finding them reads the metadata of all that is installed: once for one question."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=hookspecs.PROJECT):
        found.setdefault(point.name, []).append(point)
    return {name: _claims(points) for name, points in found.items()}


def _claims(points: list[EntryPoint]) -> tuple[EntryPoint, ...]:
    """One distribution can be seen twice (an editable install and its build folder): that is one claim."""
    if len(points) == 1:
        return (points[0],)
    found: dict[tuple[str, str], EntryPoint] = {}
    for point in points:
        found.setdefault((_owner(point)[0], point.value), point)
    return tuple(found.values())


def _owner(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("unknown", "")


def _distribution(point: EntryPoint) -> str:
    return " ".join(_owner(point)).strip()


def _chosen(recipe: Recipe, checkpoint: Checkpoint, among: Points) -> Plugin | None:
    """The family that the recipe names, or that serves the checkpoint; None where nobody does and nothing is converted."""
    if recipe.family is not None:
        return _load(recipe.family, among)
    wanted = checkpoint.architectures
    if wanted and recipe.runtime.kind is not RuntimeKind.ENGINE and not _able(wanted, among)[0]:
        return None
    return _serving(checkpoint, among)


def _able(wanted: Sequence[str], among: Points) -> tuple[list[Plugin], list[str], list[str]]:
    """The families that serve one of ``wanted``, what all of them serve, and the plugins that are broken."""
    able: list[Plugin] = []
    served: list[str] = []
    broken: list[str] = []
    for name in sorted(among):
        try:
            plugin = _load(name, among)
            architectures = plugin.architectures or ()
        except ForgeError as error:
            broken.append(f"{name} ({error.where}: {error.what})" if error.where else f"{name} ({error.what})")
            continue
        served += [f"{name}: {', '.join(architectures)}"] if architectures else []
        able += [plugin] if set(wanted).intersection(architectures) else []
    return able, served, broken


def _serving(checkpoint: Checkpoint, among: Points) -> Plugin:
    """The one installed family that serves the checkpoint's architectures. A broken plugin is passed over, and told."""
    wanted = checkpoint.architectures
    able, served, broken = _able(wanted, among)
    if len(able) == 1:
        return able[0]
    if able:
        claims = " and ".join(plugin.name for plugin in able)
        raise _wrong("family", f"{claims} both serve {', '.join(wanted)}", f'choose: family = "{able[0].name}"')
    if not wanted:
        what = "cannot be found: this source says nothing of its architecture before it is fetched"
        raise _wrong("family", what, f"name one: {', '.join(each.partition(':')[0] for each in served)}")
    hint = f"{_served(served, broken)}. {WITHOUT_FAMILY}"
    raise _wrong("family", f"no installed family serves {', '.join(wanted)}", hint)


def _rightful(family: Plugin, checkpoint: Checkpoint, among: Points) -> str:
    """The other installed family whose architecture the checkpoint is; empty where the named one serves it, or nobody does."""
    wanted = set(checkpoint.architectures)
    if not wanted or family.architectures is None or wanted.intersection(family.architectures):
        return ""
    with suppress(RecipeError):
        return _serving(checkpoint, among).name
    return ""


def _served(served: Sequence[str], broken: Sequence[str]) -> str:
    told = f"installed families serve {'; '.join(served) or 'nothing'}"
    return f"{told}. Could not be asked: {'; '.join(broken)}" if broken else told


def _told(engines: Sequence[Engine]) -> set[tuple[str, str]]:
    return {(each.role, each.parameter) for each in engines}


def _wrong(where: str, what: str, hint: str) -> RecipeError:
    return RecipeError((Problem(where, what, hint),))
