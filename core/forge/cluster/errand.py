"""A step on its way to a node, what becomes of it there, and what is heard of it: values that travel."""

from collections.abc import Mapping

from msgspec import Struct

from forge import errors
from forge.errors import ForgeError, HostError, StepError, StoreError
from forge.events import Event
from forge.plan.steps import Step
from forge.remote.place import RemoteError
from forge.settings import RemoteTable

_PLAIN: Mapping[str, type[ForgeError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, ForgeError) and kind.__init__ is ForgeError.__init__
}


class Errand(Struct, frozen=True):
    """One step for a node, with the shared store that its inputs come from and its result goes to.

    ``key`` is the step's as it was planned; ``owner`` who asked.
    """

    step: Step
    key: str
    remote: RemoteTable
    owner: str
    docker: bool = False


class Made(Struct, frozen=True):
    """The step's result stands in the shared store: bytes, and whether this errand made it."""

    size: int
    fresh: bool = True


class Failed(Struct, frozen=True):
    """An error as it can travel. ``here`` says that it is the node's own: another one may do better."""

    kind: str
    what: str
    where: str
    hint: str
    exit_code: int
    here: bool

    @classmethod
    def of(cls, error: BaseException, node: str) -> "Failed":
        """What was raised on ``node``; a place is one of that machine."""
        if not isinstance(error, ForgeError):
            return cls("", f"{type(error).__name__}: {error}", node, "this is a fault of forge's own", 1, here=False)
        here = isinstance(error, HostError | StoreError) and not isinstance(error, RemoteError)
        where = f"{error.where} (on {node})" if error.where else node
        return cls(type(error).__name__, error.what, where, error.hint, error.exit_code, here)

    def error(self) -> ForgeError:
        """The same error on the machine that asked, with its exit code."""
        made = _PLAIN.get(self.kind, ForgeError)(self.what, where=self.where, hint=self.hint)
        made.exit_code = self.exit_code
        return made


class Lost(Struct, frozen=True):
    """Nothing will be heard any more: the process is gone, and with ``node`` all of its node, whatever else still says so."""

    why: str
    node: bool = False


class Report(Struct, frozen=True):
    """What was heard of one errand: events, and its end where it has ended. ``node`` is the name of the one that has it."""

    key: str
    node: str
    events: tuple[Event, ...] = ()
    mine: bool = True
    """False where another build has sent the errand, and this one listens."""
    end: Made | Failed | Lost | None = None


def intact(step: Step, seen: dict[str, Step] | None = None) -> Step:
    """The step with its key to be reckoned anew, here: one that was sent brings along what the sender reckoned."""
    seen = {} if seen is None else seen
    if step.key not in seen:
        needs = tuple((name, intact(need, seen)) for name, need in step.needs)
        seen[step.key] = Step(step.name, step.action, needs, step.promises)
    return seen[step.key]


def required(errand: Errand) -> Step:
    """The errand's step; StepError where this forge means another one by the same words."""
    step = intact(errand.step)
    if step.key != errand.key:
        what = f"this node's forge reckons another key ({step.key[:12]}) than the one that asked ({errand.key[:12]})"
        raise StepError(what, where=step.name, hint="`forge cluster check` compares them")
    return step
