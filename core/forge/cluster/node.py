"""What a step asks of a machine, what a node offers, and why the two do not meet. Pure."""

from collections.abc import Iterable, Sequence

from blake3 import blake3
from msgspec import Struct

from forge.errors import HostError
from forge.plan.steps import Fetch, MakeImage, ReadToolchain, Run, Step
from forge.schema.values import LOCAL, SourceKind

ALL = "all"
ANY = "any"
HINT = "`forge node labels`, called on each machine, prints how it joins the cluster"


class Ask(Struct, frozen=True):
    """What a step needs of the machine that makes it.

    ``sm`` is a GPU architecture as ``sm_90``; ``gpus`` are GPUs by number or id, or ``all``. ``inside`` is the mark of the
    environment of NVIDIA's container that it runs in without Docker. ``folders`` have to be seen there.
    """

    sm: str = ""
    docker: bool = False
    inside: str = ""
    gpus: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()


class Node(Struct, frozen=True):
    """One machine of a cluster, as its labels and resources tell. ``slots`` are the steps that it makes side by side.

    ``gpus`` are the numbers of its GPUs; ``memory`` in bytes, 0 where nobody says. Of what was asked for it sees ``folders``,
    and holds ``images`` and results, ``holds`` by their keys.
    """

    id: str
    name: str
    slots: int = 1
    sm: frozenset[str] = frozenset()
    docker: bool = False
    inside: str = ""
    gpus: frozenset[str] = frozenset()
    memory: int = 0
    folders: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    holds: frozenset[str] = frozenset()

    def lacks(self, ask: Ask) -> tuple[str, ...]:
        """Why a step that asks this cannot be made here, ever; nothing where it can."""
        found: list[str] = []
        if not self.slots:
            found.append("takes no steps (no resource `forge`)")
        if ask.sm not in ("", ANY) and not set(ask.sm.split("+")) <= self.sm:
            found.append(f"has {'+'.join(sorted(self.sm)) or 'no GPU'}, not {ask.sm}")
        if ask.docker and not self.docker:
            found.append("has no Docker")
        if ask.inside and ask.inside != self.inside:
            found.append("is another environment than the one that the recipe runs in" if self.inside else "is no TensorRT-LLM")
        if missing := self.without(ask.gpus):
            found.append(missing)
        found += [f"does not see {folder}" for folder in ask.folders if folder not in self.folders]
        return tuple(found)

    def without(self, gpus: frozenset[str]) -> str:
        """Which of ``gpus`` are not here; an id is taken for one of those that are."""
        if gpus and not self.gpus:
            return "has no GPU for it"
        numbers = {gpu for gpu in gpus if gpu.isdigit()} - self.gpus
        return f"has no GPU {', '.join(sorted(numbers))}" if numbers else ""

    def taken(self, gpus: frozenset[str]) -> frozenset[str]:
        """The numbers of the GPUs that nobody else may use meanwhile; an id may be any of them."""
        return gpus if all(gpu.isdigit() for gpu in gpus) else self.gpus


def asked(step: Step, local: Iterable[Step]) -> Ask:
    """What ``step`` asks, with ``local``: those of its needs that are made on the same machine."""
    steps = (step, *local)
    actions = [each.action for each in steps]
    references = [action.reference for action in actions if isinstance(action, MakeImage | ReadToolchain)]
    bases = [action.base for action in actions if isinstance(action, MakeImage | ReadToolchain) and action.reference == LOCAL]
    sources = [action.source for action in actions if isinstance(action, Fetch)]
    own = step.action
    run = own if isinstance(own, Run) else None
    gpus = own.gpus if isinstance(own, Run | ReadToolchain) else ""
    return Ask(
        sm=run.gpu if run and gpus else "",
        docker=any(reference != LOCAL for reference in references),
        inside=mark(bases[0]) if bases else "",
        gpus=frozenset(gpus.split(",")) - {""} if run else frozenset(),
        folders=tuple(source.location for source in sources if is_folder(source.kind) and source.location),
    )


def is_folder(kind: SourceKind) -> bool:
    """Whether a source is a person's own files, which no other machine has to see."""
    return kind in (SourceKind.PATH, SourceKind.GGUF)


def mark(identity: str) -> str:
    """The identity of an environment as a label can hold it."""
    return blake3(identity.encode()).hexdigest()[:16]


def require(asks: Iterable[tuple[str, Ask]], nodes: Sequence[Node]) -> None:
    """HostError where one of ``asks``, each with its step's name, is met by no node: the nearest one, and what it lacks.

    Ray would wait for such a node without a word.
    """
    problems: dict[tuple[str, ...], list[str]] = {}
    for name, ask in asks:
        if nodes and not any(not node.lacks(ask) for node in nodes):
            nearest = min(nodes, key=lambda node: (len(node.lacks(ask)), node.name))
            problems.setdefault((nearest.name, *nearest.lacks(ask)), []).append(name)
    if not nodes:
        raise HostError("no machine of the cluster takes forge's steps", where="the cluster", hint=HINT)
    if problems:
        told = "\n    ".join(
            f"{', '.join(names)}: the nearest is {near}, which {' and '.join(lacks)}"
            for (near, *lacks), names in problems.items()
        )
        raise HostError(f"no node can make\n    {told}", where="the cluster", hint=HINT)
