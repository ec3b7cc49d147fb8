"""One plugin, asked behind guarded calls: what it raises and what it answers wrongly is told with the line that is at fault."""

from collections.abc import Callable
from functools import cached_property
from typing import cast

import pluggy
from msgspec import Struct, field

from forge import hookspecs
from forge.errors import ForgeError, PluginError, near
from forge.plan import blame
from forge.plan.blame import NOWHERE, Line
from forge.plan.hook_results import mismatch
from forge.schema.values import Checkpoint, Command, Recipe, Toolchain

LOADING = "import"
REQUIRED = ("forge_convert_commands", "forge_build_commands")
"""What a family has to answer besides its architectures."""


class Question(Struct, frozen=True):
    """What a hook may ask to be told."""

    recipe: Recipe | None = None
    checkpoint: Checkpoint | None = None
    toolchain: Toolchain | None = None
    draft: Checkpoint = field(default_factory=Checkpoint)
    base: tuple[Command, ...] = ()
    """For a variant: what the family below it answers to the same question."""


class Plugin:
    """One plugin with a pluggy manager of its own: no other plugin can disturb it.

    ``owner`` says what it was installed with, and that one's version: "forge-mine 0.1.0", or "" where nobody knows it. It is
    asked for an error's sake alone: it reads the metadata of a distribution, which takes longer than all else here.
    """

    def __init__(self, name: str, module: object, owner: Callable[[], str] = str) -> None:
        self.name = name
        self._owner = owner
        self._module = module
        self._own = blame.folders(module)
        self.api = self._api()
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        try:
            self._manager.register(module, name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            problem, hook = _meant(str(error))
            at = blame.implementation(getattr(module, hook, None))
            raise self._fault("registration", problem, at, hint="docs/hooks.md lists every hook") from error

    @property
    def distribution(self) -> str:
        return self._owner()

    def ask(self, hook: str, promised: object, question: Question) -> object:
        """The answer to one hook: None, or a value of the type ``promised``."""
        caller = cast("pluggy.HookCaller", getattr(self._manager.hook, hook))
        told = {name: getattr(question, name) for name in (caller.spec.argnames if caller.spec else ())}
        try:
            answer: object = caller(**told)
        except ForgeError:
            raise  # the plugin's own words to the person
        except (Exception, SystemExit) as error:  # a stranger's code can raise anything
            at = blame.raised(error, self._own)
            raise self._fault(hook, f"{type(error).__name__}: {error}", at or self.line(hook)) from error
        if answer is not None and (wrong := mismatch(answer, promised)):
            raise self.wrong(hook, wrong)
        return answer

    def wrong(self, hook: str, problem: str) -> PluginError:
        """What to raise where an answer to a hook will not do: it names the hook's implementation."""
        return self._fault(hook, problem, self.line(hook))

    def line(self, hook: str) -> Line:
        """Where a hook's implementation begins."""
        return blame.implementation(getattr(self._module, hook, None))

    def hooks(self) -> tuple[str, ...]:
        """The hooks that it answers."""
        plugin = self._manager.get_plugin(self.name)
        callers = self._manager.get_hookcallers(plugin) if plugin is not None else None
        return tuple(sorted(caller.name for caller in callers or ()))

    def arguments(self, hook: str) -> tuple[str, ...]:
        """What its implementation of a hook asks to be told."""
        caller = cast("pluggy.HookCaller", getattr(self._manager.hook, hook))
        return tuple(name for each in caller.get_hookimpls() for name in each.argnames)

    @cached_property
    def architectures(self) -> tuple[str, ...] | None:
        """What config.json says of the models it serves; None for a variant, which serves what its family serves."""
        return cast("tuple[str, ...] | None", self.ask("forge_architectures", tuple[str, ...], Question()))

    def lacking(self) -> tuple[str, ...]:
        """What keeps it from being asked at all: no hook, or not those that a family has to answer."""
        answered = self.hooks()
        if not answered:
            return ("it answers no hook: mark its functions with @forge.hookimpl",)
        if self.architectures is None:
            return ()
        if not self.architectures:
            return ("forge_architectures names none: a variant answers None, a family at least one",)
        return tuple(f"a family answers {hook}, and this one does not" for hook in REQUIRED if hook not in answered)

    def _api(self) -> int:
        """The hook API that the plugin was written for: its ``FORGE_API``, or 1."""
        stated: object = getattr(self._module, "FORGE_API", 1)
        if type(stated) is not int or stated < 1:
            hint = f"write the number of an API, without quotes: FORGE_API = {hookspecs.API}"
            raise self._fault(LOADING, f"FORGE_API is {stated!r}, and no whole number from 1 on", self._stated(), hint)
        if stated > hookspecs.API:
            what = f"it needs hook API {stated}, and this forge speaks {hookspecs.API}"
            raise self._fault(LOADING, what, self._stated(), "update forge")
        return stated

    def _stated(self) -> Line:
        """The line that states ``FORGE_API``."""
        return blame.containing(getattr(self._module, "__file__", None), "FORGE_API")

    def _fault(self, hook: str, problem: str, at: Line = NOWHERE, hint: str = "") -> PluginError:
        return PluginError(
            self.name, hook, problem, hint=hint, where=at.where, source=at.source, distribution=self.distribution
        )


def _meant(complaint: str) -> tuple[str, str]:
    """pluggy's complaint, with the hook or the argument that was probably meant; and the hook that it is about."""
    hooks = [name for name in vars(hookspecs) if name.startswith("forge_")]
    words = [word.strip("'\".,{}()") for word in complaint.replace("(", " ").split()]
    named = [word for word in words if word.startswith("forge_")]
    wrong = next((word for word in named if word not in hooks), "")
    _, _, strange = complaint.partition("Argument(s) {")
    told = strange.partition("}")[0].partition(",")[0].strip("' ")
    known = hooks if wrong else list(Question.__struct_fields__)
    close = near(wrong or told, known)
    text = " ".join(complaint.split())
    return text + (f"; did you mean {close!r}?" if close else ""), wrong or next(iter(named), "")
