"""The checks that every plugin has to pass, forge's own and a stranger's alike. Reached through ``forge.testing``.

A plugin's author writes one class, and pytest runs every check of it::

    class TestMine(forge.testing.PluginConformance):
        plugin = forge_mine
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from types import ModuleType
from typing import cast
from unittest import SkipTest

from forge import hookspecs
from forge.diagnoses import DIAGNOSES, Diagnosis, fault
from forge.errors import ForgeError, PluginError, Problem
from forge.plan.plugin import REQUIRED, Plugin
from forge.repository import config
from forge.schema.speculation_key import SpeculationKey
from forge.schema.values import (
    CallPatch,
    ConfigOverrides,
    JsonPatch,
    Patch,
    Recipe,
    Role,
    Source,
    TextFile,
    TextPatch,
)
from forge.testing.command_checks import OURS, engines, own_flags, paths, well_formed
from forge.testing.questions import PROMISES, Case, Fault, answer, cases, demanded, loaded, put, told
from forge.trtllm import patches
from forge.trtllm.lora import MODULES

Check = Callable[[Plugin, tuple[Case, ...]], Iterable[Fault]]


class PluginConformance:
    """Derive from it, name the plugin, and pytest runs the checks. ``recipe`` is one that suits the plugin."""

    plugin: ModuleType | str
    recipe: Recipe = Recipe(name="conformance", source=Source(hub="owner/model"))

    def test_it_loads(self) -> None:
        loaded(self.plugin)

    def test_hooks_are_spelled_right(self) -> None:
        self._expect(lambda plugin, _: _misspelled(self.plugin, plugin))

    def test_a_family_names_its_architectures(self) -> None:
        self._expect(_architectures)

    def test_a_family_answers_how_to_convert_and_build(self) -> None:
        self._expect(_whole)

    def test_its_api_is_that_of_its_hooks(self) -> None:
        self._expect(_api)

    def test_answers_have_the_promised_types(self) -> None:
        self._expect(_typed)

    def test_the_same_question_has_the_same_answer(self) -> None:
        self._expect(_pure)

    def test_commands_name_constant_paths_only(self) -> None:
        self._expect(paths)

    def test_commands_are_well_formed(self) -> None:
        self._expect(well_formed)

    def test_the_recipes_own_flags_reach_the_command(self) -> None:
        self._expect(own_flags)

    def test_engines_stand_where_the_build_leaves_them(self) -> None:
        self._expect(engines)

    def test_patches_can_be_applied_again(self) -> None:
        self._expect(_patches)

    def test_config_overrides_name_parameters_that_there_are(self) -> None:
        self._expect(_overrides)

    def test_diagnoses_can_be_used(self) -> None:
        self._expect(_diagnoses)

    def test_keys_of_speculation_can_be_written(self) -> None:
        self._expect(_speculation)

    def test_modules_of_adapters_are_tensorrt_llms(self) -> None:
        self._expect(_lora)

    def _expect(self, check: Check) -> None:
        """What does not load is one fault, and told by the first check."""
        try:
            plugin = loaded(self.plugin)
        except PluginError as error:
            raise SkipTest(f"it does not load: {error.what}") from error
        if wrong := told(plugin, check(plugin, cases(plugin, self.recipe))):
            raise AssertionError("\n".join(map(str, wrong)))


def check_plugin(plugin: ModuleType | str, recipe: Recipe = PluginConformance.recipe) -> tuple[Problem, ...]:
    """Everything that is wrong with a plugin: a module, or the name of an installed one. Empty for a good one."""
    try:
        found = loaded(plugin)
        asked = cases(found, recipe)
    except ForgeError as error:
        return (Problem(error.where or str(plugin), error.what, error.hint),)
    return told(found, [*_misspelled(plugin, found), *(each for check in _CHECKS for each in check(found, asked))])


def _misspelled(source: ModuleType | str, plugin: Plugin) -> Iterator[Fault]:
    """pluggy refuses an unknown hook; a hook without its marker it would never find."""
    known = plugin.hooks()
    for name, thing in vars(source).items() if isinstance(source, ModuleType) else ():
        if name.startswith(f"{hookspecs.PROJECT}_") and callable(thing) and name not in known:
            yield Fault(name, f"{name} lacks @forge.hookimpl, so nobody will ask it")


def _architectures(plugin: Plugin, _: tuple[Case, ...]) -> Iterator[Fault]:
    stated = plugin.architectures or ()
    for each in dict.fromkeys(stated):
        if not each.isidentifier() or stated.count(each) > 1:
            twice = " twice" if stated.count(each) > 1 else ""
            yield Fault("forge_architectures", f"forge_architectures names {each!r}{twice}")


def _whole(plugin: Plugin, _: tuple[Case, ...]) -> Iterator[Fault]:
    for what in plugin.lacking():
        yield Fault(next((hook for hook in REQUIRED if hook in what), "forge_architectures"), what)


def _api(plugin: Plugin, _: tuple[Case, ...]) -> Iterator[Fault]:
    """A forge of before would not ask a hook that it does not know, and not say why."""
    for hook in plugin.hooks():
        uses = [(hook, hook), *((f"{hook}.{each}", f"{each} in {hook}") for each in plugin.arguments(hook))]
        for key, named in uses:
            since = hookspecs.SINCE.get(key, 1)
            if since > plugin.api:
                what = f"{named} came with API {since}, and the plugin says {plugin.api}"
                yield Fault(hook, what, hint=f"say FORGE_API = {since} in the module, or higher")


def _typed(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    for hook in plugin.hooks():
        for case in asked:
            try:
                demanded(plugin, hook, case)
            except PluginError as error:
                yield Fault(hook, error.what, case.name, error.where, error.source or error.hint)
            except ForgeError as error:
                yield Fault(hook, f"{hook} raises {type(error).__name__}: {error.what}", case.name, hint=error.hint)


def _pure(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    for hook in plugin.hooks():
        for case in asked:
            given = put(plugin, hook, case)
            before = copy.deepcopy(given)
            try:
                first = copy.deepcopy(plugin.ask(hook, PROMISES[hook], given))
            except ForgeError:
                continue  # that it raises is told already
            if given != before:
                yield Fault(hook, f"{hook} changes what it is given", case.name)
            if answer(plugin, hook, case) != first:
                yield Fault(hook, f"{hook} answers the same question differently each time", case.name)


def _diagnoses(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    hook, ours = "forge_diagnoses", {row.name for row in DIAGNOSES}
    for row in cast("tuple[Diagnosis, ...] | None", answer(plugin, hook, asked[0])) or ():
        if what := fault(row):
            yield Fault(hook, f"{hook}: {row.name}: {what}")
        if row.name in ours:
            yield Fault(hook, f"{hook}: {row.name} is the name of a row of forge's own")


def _overrides(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    """Held to forge's own skeletons, which have every parameter that NVIDIA's have had."""
    hook = "forge_config_overrides"
    engine = [TextFile(f"{Role.DRAFT}/{config.CONFIG}", file.content) for file in config.skeletons() if _of_engine(file)]
    for case in asked:
        given = cast("ConfigOverrides | None", answer(plugin, hook, case))
        recipe = case.question.recipe
        if given is None or recipe is None:
            continue
        if Role.VLLM in given.roles:
            yield Fault(hook, f"{hook}: {Role.VLLM} has no config.pbtxt with parameters", case.name)
        chosen = config.settings(recipe, given)
        for each in config.check((*config.skeletons(), *engine), chosen):
            where = each.where.removeprefix("serve.parameters.")
            yield Fault(hook, f"{hook}: {where}: {each.what}", case.name, hint=each.hint)


def _of_engine(file: TextFile) -> bool:
    return file.path == f"{Role.TENSORRT_LLM}/{config.CONFIG}"


def _speculation(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    hook = "forge_speculation"
    keys = cast("tuple[SpeculationKey, ...] | None", answer(plugin, hook, asked[0])) or ()
    if keys and plugin.architectures is not None:
        yield Fault(hook, f"{hook}: only a variant is asked, and this is a family")
    for each in dict.fromkeys(keys):
        if not each.writable:
            yield Fault(
                hook, f"{hook}: {each.name!r} is no name of a key", hint="letters, digits, '.', '_', '-'; a letter first"
            )
        if sum(other.name == each.name for other in keys) > 1:
            yield Fault(hook, f"{hook}: {each.name!r} is there twice")


def _lora(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    hook = "forge_lora_modules"
    for case in asked:
        named = cast("Mapping[str, str] | None", answer(plugin, hook, case)) or {}
        if named and plugin.architectures is None:
            yield Fault(hook, f"{hook}: only a family is asked, and this is a variant")
        for strange in sorted(set(named.values()) - set(MODULES)):
            yield Fault(hook, f"{hook}: {strange!r} is no module of TensorRT-LLM's", hint=f"it has {', '.join(MODULES)}")


def _patches(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    hook = "forge_patches"
    for case in asked:
        for patch in cast("tuple[Patch, ...] | None", answer(plugin, hook, case)) or ():
            for what in _of_patch(patch):
                yield Fault(hook, f"{hook}: {what}", case.name)


def _of_patch(patch: Patch) -> Iterator[str]:
    in_image = patch.file.startswith(OURS[1:])
    if ".." in PurePosixPath(patch.file).parts or (isinstance(patch, JsonPatch) == in_image):
        yield f"{patch.file!r} is neither a script of the image nor a JSON file of the checkpoint"
    match patch:
        case TextPatch(find=""):
            yield "a text patch has to say what to find"
        case TextPatch():
            once = patches.apply(patch, patch.find).text
            again = patches.apply(TextPatch(patch.file, patch.find, patch.put, required=False), once).text
            if once != again:
                yield f"the patch of {patch.find!r} changes the text once more each time"
        case CallPatch():
            if not patch.keywords or not all(word.isidentifier() for word in patch.keywords) or patch.start < 0:
                yield f"the patch of {patch.call!r} names no keywords that Python would take"
        case JsonPatch():
            if not patch.keys:
                yield f"the patch of {patch.file!r} sets nothing"


_CHECKS: tuple[Check, ...] = (
    *(_architectures, _whole, _api, _typed, _pure, paths, well_formed, own_flags),
    *(engines, _patches, _overrides, _diagnoses, _speculation, _lora),
)
