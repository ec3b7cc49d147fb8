"""What is missing on a machine for what recipes ask, and the fix of each: findings from values. Pure.

What the given recipes do not need is a remark; with no recipe everything is looked at, and what is missing is a warning that
says what it would be needed for.
"""

from collections.abc import Iterator
from enum import StrEnum

from msgspec import Struct, field

from forge.diagnoses import named
from forge.errors import ForgeError, HostError, Problem, RecipeError
from forge.machine.containers import DaemonFacts
from forge.machine.machine import Disk
from forge.plan.families import PluginInfo
from forge.schema.tags import version
from forge.schema.values import Gpu, Host, Pinned, Ports, RuntimeKind
from forge.schema.vllm_images import check_vllm_driver, vllm_toolchain
from forge.trtllm import image_table as compatibility
from forge.trtllm.image_table import releases

ROOM = 3
"""A build keeps the checkpoint, the converted one and the engine: so many times the source's bytes."""
IMAGE = 60 * 10**9
"""Bytes that NVIDIA's image takes while it is pulled, its layers and what they unpack to. An estimate, so never a problem."""
SHARED = 2 * 10**9
"""Bytes of /dev/shm that NVIDIA's containers are run with; forge gives it to those it starts."""
SHARED_TWIN = 64 * 10**6
"""Bytes of /dev/shm below which the Python models of one twin do not start; Docker's default for a container."""
CAPABILITY = (8, 0)
"""The oldest GPUs that all of the images' TensorRT-LLM were compiled for (Ampere)."""
CONTAINED = tuple(kind for kind in RuntimeKind if kind.contained)
HERE = tuple(kind for kind in RuntimeKind if not kind.contained)


class Status(StrEnum):
    """``problem``: a given recipe cannot be built or served. ``remark``: missing, and no given recipe needs it."""

    OK = "ok"
    REMARK = "remark"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Struct, frozen=True):
    """What one check found, and the fix where there is something to fix."""

    check: str
    status: Status
    what: str
    hint: str = ""


class RecipeNeeds(Struct, frozen=True):
    """What one recipe asks of the machine: GPUs (0 where its containers get none), an image, room.

    ``size`` is the bytes of its sources; ``missing`` those that are not held yet.
    """

    name: str
    kind: RuntimeKind
    image: str
    gpus: int = 1
    size: int = 0
    missing: int = 0
    plugins: tuple[str, ...] = ()
    """The plugins that it names; empty where any installed family may serve it."""
    ports: Ports = field(default_factory=Ports)
    """Where its deployment wants it to be served."""
    docker: bool = False
    """Whether a runtime that forge serves on this machine otherwise stands on an image: vLLM can."""

    @property
    def contained(self) -> bool:
        return self.kind.contained or self.docker

    @property
    def reference(self) -> str:
        """The whole name of its image."""
        return (vllm_toolchain if self.docker else compatibility.toolchain)(self.image).image


class Signs(Struct, frozen=True):
    """All that was seen of the machine. ``daemon`` is None where none answers, and ``docker`` then says why.

    ``images`` is the disk of Docker's images where it is one of this machine, ``held`` the image references that are there.
    ``inside`` is whether this is NVIDIA's own container. ``twin`` is why the twin cannot be served, ``leftovers`` the number
    of results in the store that dead builds left unfinished.
    """

    home: Disk
    host: Host
    shared_memory: int
    docker: tuple[Problem, ...] = ()
    daemon: DaemonFacts | None = None
    images: Disk | None = None
    held: frozenset[str] = frozenset()
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    inside: bool = False
    twin: Problem | None = None
    plugins: tuple[PluginInfo, ...] = ()
    leftovers: int = 0
    restricts: bool = True
    """Whether the Triton that is installed here, if any, can keep model control from whoever reaches its ports."""
    traces: bool = True
    """Whether forge can hand a server its secret out of sight."""
    temporary: Problem | None = None
    """Why no temporary file can be written."""
    refused: Problem | None = None
    """Why nothing can be kept in forge's home."""
    writers: str = ""
    """Who else may write to forge's home."""


def examine(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> tuple[Finding, ...]:
    """Every finding about the machine, in the order in which a person would fix them."""
    checks = (_docker, _toolkit, _driver, _gpus, _disk, _images, _shared_memory, _twin, _control, _plugins, _store, _temporary)
    return tuple(finding for check in checks for finding in check(recipes, signs))


def had(name: str, pinned: Pinned) -> Finding:
    """A source that can be reached and read."""
    size = sum(file.size for file in pinned.files)
    at = f" at {pinned.revision[:12]}" if pinned.revision else ""
    count = f"{len(pinned.files)} file{'s' if len(pinned.files) != 1 else ''}"
    told = f"{count}, {_gb(size)}" if size else f"{count}, size not stated"
    return Finding("source", Status.OK, f"{name}: {pinned.name}{at}: {told}")


def failed(check: str, name: str, error: ForgeError) -> tuple[Finding, ...]:
    """What kept a recipe from being read, fetched or served by a plugin."""
    problems = error.problems if isinstance(error, RecipeError) else (Problem(error.where, error.what, error.hint),)
    told = [(_located(each), each.hint) for each in problems]
    return tuple(
        Finding(check, Status.PROBLEM, what if what.startswith(name) else f"{name}: {what}", hint) for what, hint in told
    )


def _missing(
    recipes: tuple[RecipeNeeds, ...], kinds: tuple[RuntimeKind, ...], finding: Finding, *, gpus: bool = False
) -> Finding:
    """``finding`` about something that is missing, as grave as it is for these recipes; ``gpus`` is what only GPUs need."""
    contained = kinds == CONTAINED
    wanted = [recipe.name for recipe in recipes if recipe.contained is contained and (recipe.gpus or not gpus)]
    needed = f"needed for the runtime{'s' if len(kinds) > 1 else ''} {' and '.join(kinds)}{' on GPUs' if gpus else ''}"
    if wanted:
        verb = "need" if len(wanted) > 1 else "needs"
        return Finding(finding.check, Status.PROBLEM, f"{finding.what} ({', '.join(wanted)} {verb} it)", finding.hint)
    status = Status.REMARK if recipes else Status.WARNING
    what = f"{finding.what} ({needed}{', which these recipes are not' if recipes else ''})"
    return Finding(finding.check, status, what, finding.hint)


def _uncontained(recipes: tuple[RecipeNeeds, ...], signs: Signs, finding: Finding, *, gpus: bool = False) -> Finding:
    if signs.inside:
        return Finding(finding.check, Status.REMARK, f"{finding.what} (not needed: TensorRT-LLM itself is here)", finding.hint)
    return _missing(recipes, CONTAINED, finding, gpus=gpus)


def _docker(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    for problem in signs.docker:
        yield _uncontained(recipes, signs, Finding("docker", Status.PROBLEM, _located(problem), problem.hint))
    if signs.daemon:
        rootless = ", rootless" if signs.daemon.rootless else ""
        yield Finding("docker", Status.OK, f"Docker {signs.daemon.version}{rootless} answers")


def _toolkit(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if signs.daemon is None:
        return  # nobody to ask, and the finding about Docker says so
    if signs.daemon.nvidia:
        yield Finding("toolkit", Status.OK, "Docker has NVIDIA's runtime")
        return
    known = named("no-nvidia-runtime")
    yield _uncontained(recipes, signs, Finding("toolkit", Status.PROBLEM, known.meaning, known.fix), gpus=True)


def _driver(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if not signs.driver:
        hint = "install NVIDIA's driver (https://www.nvidia.com/drivers) and load it; `nvidia-smi` then lists the GPUs"
        yield _missing(recipes, CONTAINED, Finding("driver", Status.PROBLEM, "no NVIDIA driver is loaded", hint), gpus=True)
        return
    known = f"known images: {releases()[0].tag} to {releases()[-1].tag}"
    fitting = [each.tag for each in releases() if each.driver and not _refuses(each.tag, signs.driver)]
    newest = f"enough for the images up to {fitting[-1]}" if fitting else "older than every image whose driver is stated needs"
    said = False
    for image, vllm in dict.fromkeys((recipe.image, recipe.docker) for recipe in recipes if recipe.contained):
        if refusal := _refuses(image, signs.driver, vllm=vllm):
            said = True
            yield Finding("driver", Status.PROBLEM, refusal.what, refusal.hint)
    if not said:
        status = Status.OK if fitting or recipes else Status.WARNING
        yield Finding("driver", status, f"NVIDIA driver {signs.driver}: {newest} ({known})")


def _refuses(image: str, driver: str, *, vllm: bool = False) -> HostError | None:
    try:
        (check_vllm_driver if vllm else compatibility.check_driver)(image, driver)
    except HostError as error:
        return error
    return None


def _gpus(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if not signs.gpus:
        hint = "engines are built and served on the GPU that they run on; `--runtime twin` needs none"
        yield _missing(recipes, CONTAINED, Finding("gpu", Status.PROBLEM, "no NVIDIA GPU is here", hint), gpus=True)
        return
    for gpu in signs.gpus:
        old = bool(gpu.capability) and version(gpu.capability) < CAPABILITY
        what = f"{gpu.name}{f', {_gb(gpu.memory)}' if gpu.memory else ''}"
        if old:
            what += f", compute capability {gpu.capability}: older than newer images' TensorRT-LLM was compiled for"
        yield Finding("gpu", Status.WARNING if old else Status.OK, what, "use a GPU of 8.0 or newer" if old else "")
    memory = min(gpu.memory for gpu in signs.gpus)
    for recipe in recipes:
        if not recipe.contained:
            continue
        if recipe.gpus > len(signs.gpus):
            hint = "lower [convert] tp or pp"
            what = f"{recipe.name} asks for {recipe.gpus} GPUs (tp x pp), and {len(signs.gpus)} are here"
            yield Finding("gpu", Status.PROBLEM, what, hint)
        elif memory and recipe.gpus and recipe.size > recipe.gpus * memory:
            what = f"{recipe.name}: {_gb(recipe.size)} of weights on {recipe.gpus} x {_gb(memory)} of GPU memory"
            yield Finding(
                "gpu", Status.WARNING, what, "quantize ([convert] quantization), or split over more GPUs ([convert] tp)"
            )


def _disk(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if signs.refused:
        return  # the finding about the store says so
    wanted = ROOM * sum(recipe.missing for recipe in recipes)
    hint = "make room (`forge cache gc`), or set FORGE_HOME to a larger disk"
    what = f"{signs.home.place}: {_gb(signs.home.free)} free"
    if not wanted:
        yield Finding("disk", Status.OK, what)
        return
    what += f"; building takes about {_gb(wanted)} there"
    # Below the sources' own size nothing helps; the rest is an estimate.
    short = Status.PROBLEM if signs.home.free < wanted // ROOM else Status.WARNING
    yield Finding("disk", short, what, hint) if signs.home.free < wanted else Finding("disk", Status.OK, what)


def _images(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if signs.images is None:
        return
    asked = {recipe.reference for recipe in recipes if recipe.contained}
    absent = sorted(asked - signs.held)
    # One filesystem has to hold both.
    wanted = IMAGE + (ROOM * sum(recipe.missing for recipe in recipes) if signs.images.device == signs.home.device else 0)
    what = f"{signs.images.place} (Docker's): {_gb(signs.images.free)} free"
    if absent:
        what += f"; to be pulled: {', '.join(absent)}"
    if signs.images.free < wanted and (absent or not recipes):
        hint = "make room (`docker system prune`), or move Docker's data-root to a larger disk"
        what += f"; about {_gb(wanted)} are taken while an image of NVIDIA's is pulled"
        yield Finding("disk", Status.WARNING, what, hint)
    else:
        yield Finding("disk", Status.OK, what)


def _shared_memory(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    what = f"/dev/shm: {_gb(signs.shared_memory)} free"  # noqa: S108 - the name that a person knows it by
    hint = "in a container, start it with --shm-size=2g; elsewhere, clear /dev/shm of what dead servers left"
    if signs.shared_memory < SHARED_TWIN:
        yield _missing(recipes, HERE, Finding("shared memory", Status.PROBLEM, f"{what}: too little", hint))
    elif signs.shared_memory < SHARED and any(recipe.contained for recipe in recipes):
        what += "; NVIDIA asks for 2 GB, which forge gives to containers: only an engine served outside of one has less"
        yield Finding("shared memory", Status.WARNING, what, hint)
    else:
        yield Finding("shared memory", Status.OK, what)


def _twin(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if signs.twin:
        yield _missing(recipes, HERE, Finding("triton", Status.PROBLEM, _located(signs.twin), signs.twin.hint))
        return
    triton = f"the Triton in {signs.host.triton}" if signs.host.triton else "a Triton from PyPI"
    yield Finding("triton", Status.OK, f"{triton} with Python {signs.host.python} ({signs.host.interpreter})")


def _control(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    """A problem only where `forge serve` refuses: a deployment beyond the loopback on a Triton that runs anybody's code."""
    if not signs.restricts:
        what = f"the Triton in {signs.host.triton} is too old to keep model control to forge: its ports run code"
        hint = "take one of 2.40 or later (containers from 23.11 on); `forge serve` keeps this one on the loopback"
        here = [recipe for recipe in recipes if signs.inside or recipe.kind is RuntimeKind.TWIN]
        hosts = sorted({recipe.ports.host for recipe in here if not recipe.ports.local})
        if hosts:
            what += f", and a deployment has it listen at {', '.join(hosts)}, which `forge serve` refuses"
            hint = "take one of 2.40 or later (containers from 23.11 on), or take [ports] host out of the deployment"
        yield Finding("control", Status.PROBLEM if hosts else Status.WARNING, what, hint)
    if not signs.traces:
        what = "ptrace is forbidden here, so the models of a running server cannot be changed, nor engines loaded in turn"
        hint = "allow it (sysctl kernel.yama.ptrace_scope=1, or seccomp), or `forge serve --exposed` (docs/security.md)"
        yield Finding("control", Status.WARNING, what, hint)
    if signs.restricts and signs.traces:
        yield Finding("control", Status.OK, "who reaches a server's ports can ask models, and nobody but forge can load any")


def _plugins(recipes: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    healthy = [plugin.name for plugin in signs.plugins if plugin.health == "ok"]
    if healthy:
        yield Finding("plugins", Status.OK, f"{', '.join(healthy)} work")
    for plugin in signs.plugins:
        if plugin.health == "ok":
            continue
        wanted = any(plugin.name in recipe.plugins for recipe in recipes)
        foreign = bool(recipes) and not wanted and all(recipe.plugins for recipe in recipes)
        status = Status.PROBLEM if wanted else Status.REMARK if foreign else Status.WARNING
        hint = f"update or uninstall {plugin.distribution} {plugin.version}".rstrip()
        at = f" ({plugin.where})" if plugin.where else ""
        yield Finding("plugins", status, f"{plugin.name}: {plugin.health}{at}", hint)


def _store(_: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if signs.writers:
        what = f"{signs.home.place} may be written to by {signs.writers}, and what lies there is believed, and run as yours"
        hint = "`chmod -R go-w` it, or set FORGE_HOME to a folder that is yours alone (docs/security.md)"
        yield Finding("store", Status.WARNING, what, hint)
    if signs.refused:
        yield Finding("store", Status.PROBLEM, f"{_located(signs.refused)}, so nothing can be built", signs.refused.hint)
    elif signs.leftovers:
        what = f"{signs.leftovers} unfinished results of builds that were killed"
        yield Finding("store", Status.WARNING, what, "the next build removes them; `forge cache gc` does it now")
    else:
        yield Finding("store", Status.OK, f"{signs.home.place} can be written, and holds nothing unfinished")


def _temporary(_: tuple[RecipeNeeds, ...], signs: Signs) -> Iterator[Finding]:
    if signs.temporary:
        yield Finding("temporary", Status.PROBLEM, signs.temporary.what, signs.temporary.hint)


def _located(problem: Problem) -> str:
    return f"{problem.where}: {problem.what}" if problem.where else problem.what


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
