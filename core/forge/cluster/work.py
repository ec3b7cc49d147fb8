"""Which steps of a plan are made on other machines, and what has to be there before each. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field

from forge.cluster.node import Ask, asked, is_folder
from forge.plan.preview import provenance
from forge.plan.steps import Fetch, MakeImage, ReadToolchain, Run, Step, with_needs
from forge.remote.shared import kind
from forge.schema.values import LOCAL

_LINE = 50e6
"""Bytes a second that a download is taken to have, for who goes first; nothing else stands on it."""
_READ = 30.0
_CONVERT = 200e6
_BUILD = 40e6
_LEAST = 5.0


class Work(Struct, frozen=True):
    """A step for some node, with the keys of those steps that have to be in the shared store before.

    ``local`` are needs that do not travel (an environment, an image, weights that stay private): the node makes them for
    itself. Of these ``drawn`` are downloads, with their bytes, and ``images`` what they stand on. ``seconds`` is a guess,
    ``memory`` bytes of weights that it reads: a wish, and no condition.
    """

    step: Step
    needs: frozenset[str] = frozenset()
    local: tuple[Step, ...] = ()
    ask: Ask = field(default_factory=Ask)
    seconds: float = _LEAST
    memory: int = 0
    drawn: Mapping[str, int] = field(default_factory=dict[str, int])
    images: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return self.step.key


class Spreadable(Struct, frozen=True):
    """``works`` for nodes; ``first`` are steps of the machine that asks, which have to be in the shared store before."""

    works: tuple[Work, ...]
    first: tuple[Step, ...]


class Travel(Struct, frozen=True):
    """Which results go through the shared store: those of the ``kinds`` that the settings push."""

    kinds: tuple[str, ...]

    def travels(self, step: Step) -> bool:
        return kind(provenance(step)) in self.kinds

    def at_home(self, step: Step) -> bool:
        """Whether it is made where the build was asked for: a person's own files lie there."""
        return isinstance(step.action, Fetch) and is_folder(step.action.source.kind)

    def spread(self, steps: Sequence[Step], held: Callable[[Step], bool], there: frozenset[str]) -> Spreadable:
        """What of ``steps`` (each after those it needs) nodes have to make.

        ``held`` says what this machine has, ``there`` are the keys in the shared store.
        """
        wanted = set(tops(steps))
        works: list[Work] = []
        first: dict[str, Step] = {}
        for step in reversed(steps):
            if step.key not in wanted or step.key in there:
                continue
            if not self.travels(step):
                wanted.update(() if held(step) else (need.key for _, need in step.needs))
            elif held(step) or self.at_home(step):  # what no node asks for need not go there
                first[step.key] = step
            else:
                needs, local = self._beneath(step)
                wanted.update(needs)
                beneath = tuple(local.values())
                works.append(work(step, frozenset(needs), beneath))
        asked_for = frozenset(key for work in works for key in work.needs)
        return Spreadable(tuple(reversed(works)), tuple(step for key, step in reversed(first.items()) if key in asked_for))

    def _beneath(self, step: Step) -> tuple[dict[str, Step], dict[str, Step]]:
        """The nearest needs that travel, and those on the way to them that do not."""
        needs: dict[str, Step] = {}
        local: dict[str, Step] = {}
        todo = [need for _, need in step.needs]
        while todo:
            need = todo.pop()
            if self.travels(need):
                needs[need.key] = need
            elif need.key not in local:
                local[need.key] = need
                todo += [below for _, below in need.needs]
        return needs, local


def work(step: Step, needs: frozenset[str], local: tuple[Step, ...]) -> Work:
    """What a node has to do and to have for ``step``."""
    drawn = {each.key: each.size or 0 for each in local if isinstance(each.action, Fetch)}
    on = frozenset(images((step, *local)).values())
    return Work(step, needs, local, asked(step, local), guess(step), weights(step), drawn, on)


def images(steps: Iterable[Step]) -> dict[str, str]:
    """The identities of the images that steps stand on, by reference: what each node pulls that does not hold them."""
    actions = [step.action for step in steps]
    found = [action for action in actions if isinstance(action, MakeImage | ReadToolchain)]
    return {action.reference: action.base for action in found if action.reference != LOCAL}


def rest(
    steps: Sequence[Step], roots: Iterable[str], held: Callable[[Step], bool], travels: Callable[[Step], bool]
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """What a machine takes from the shared store of ``steps`` (each after those it needs), and what it makes itself.

    Wanted are the keys ``roots``, and what making takes.
    """
    wanted = set(roots)
    taken: list[Step] = []
    made: list[Step] = []
    for step in reversed(steps):
        if step.key not in wanted or held(step):
            continue
        if travels(step):
            taken.append(step)
        else:
            made.append(step)
            wanted.update(need.key for _, need in step.needs)
    return tuple(reversed(taken)), tuple(reversed(made))


def tops(steps: Sequence[Step]) -> frozenset[str]:
    """Keys of those that nothing else of ``steps`` needs: what a build is for."""
    return frozenset(step.key for step in steps) - {need.key for step in steps for _, need in step.needs}


def guess(step: Step) -> float:
    """About how many seconds a step takes: from the bytes of the weights that it brings, or that lie beneath it."""
    match step.action:
        case Fetch():
            return _LEAST + (step.size or 0) / _LINE
        case ReadToolchain():
            return _READ
        case Run(gpu=gpu):
            return _LEAST + weights(step) / (_BUILD if gpu else _CONVERT)
        case _:
            return _LEAST


def weights(top: Step) -> int:
    """Bytes of all checkpoints that are fetched for a step, as far as they are known beforehand."""
    return sum(step.size or 0 for step in with_needs(top) if isinstance(step.action, Fetch))
