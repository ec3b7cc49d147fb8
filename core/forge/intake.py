"""Takes recipes in: reads them, holds them against their locks, and gathers what planning may know of each."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from forge import lock as locks
from forge import recipe, toolchain
from forge.builder import Builder
from forge.doors import Doors
from forge.errors import ForgeError, HostError, LockError, SourceError
from forge.facts import World, gather
from forge.families import Family
from forge.lowering import images
from forge.model import Facts, Recipe, RuntimeKind, Source
from forge.order import Order
from forge.ports import Event, Listener
from forge.serving import serving_environment
from forge.store import Store

NO_GPUS = "none"


@dataclass(frozen=True)
class Intake:
    """The way in. ``templates`` is the folder where a person's own Dockerfiles for families stand."""

    store: Store
    doors: Doors
    templates: Path
    say: Callable[[str], None]

    def read(self, path: Path, runtime: RuntimeKind | None = None) -> Recipe:
        """The recipe at ``path``; RecipeError carries everything that is wrong with it."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise SourceError(f"cannot read the recipe: {error.strerror}", where=str(path)) from error
        except UnicodeDecodeError as error:
            raise SourceError(f"the recipe is not UTF-8 text: {error}", where=str(path)) from error
        return recipe.read(text, str(path), runtime)

    def order(self, path: Path, *, runtime: RuntimeKind | None = None, locked: bool = False) -> Order:
        """A recipe with its facts and its plugins, ready to be planned."""
        wanted = self.read(path, runtime)
        return self._order(wanted, self._gathered(wanted, path, self._lock(path, wanted, required=locked)))

    def lock(self, path: Path, *, upgrade: bool = False) -> tuple[Path, bool]:
        """Write ``<recipe>.lock``; what a valid one pins stays unless ``upgrade``. Says whether the file changed."""
        wanted = self.read(path)
        file = _beside(path)
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        kept = None if upgrade or not before else self._fitting(before, file, wanted)
        facts = self._gathered(wanted, path, kept)
        after = locks.write(locks.lock(wanted, facts.source, facts.draft, *_versions(wanted, facts)))
        if after != before:
            scratch = file.with_name(f"{file.name}.new")
            scratch.write_text(after, encoding="utf-8")
            scratch.replace(file)
        return file, after != before

    def require(self, orders: Sequence[Order], *, gpus: bool) -> None:
        """HostError with all that keeps containers from running here; GPUs count where a build would use one."""
        built = [order.recipe.runtime for order in orders if order.recipe.runtime.kind is RuntimeKind.ENGINE]
        wanted = gpus and any(runtime.gpus != NO_GPUS for runtime in built)
        problems = self.doors.containers.check(wanted)
        if problems:
            hint = "`forge doctor` looks closer; `forge plan` works without, and `--runtime twin` serves the recipe on the CPU"
            raise HostError("\n".join(map(str, problems)), where="this machine", hint=hint)
        self.doors.containers.reap()

    def furnished(self, order: Order, builder: Builder, tell: Listener) -> Order:
        """The order with what its image says of itself: pulled where it is not here, read where it was not."""
        if order.recipe.runtime.kind is RuntimeKind.TWIN:
            return order
        tools = order.facts.toolchain

        def progress(done: int, total: int) -> None:
            tell(Event("progress", tools.image, done=done, total=total))

        tell(Event("start", tools.image))
        image = self.doors.containers.hold(tools.image, progress)
        tell(Event("held", tools.image, size=image.size))
        known = self._order(order.recipe, replace(order.facts, toolchain=replace(tools, identity=image.identity)))
        if known.tooling is None:
            step = images.tools(known)
            with self.store.using([step.key]):
                builder.realise([step])
            known = self._order(known.recipe, known.facts)
        return known

    def _gathered(self, wanted: Recipe, path: Path, lock: locks.Lock | None) -> Facts:
        facts = gather(wanted, path.absolute().parent, World(self.doors.origins, self.doors.host), lock)
        if wanted.runtime.kind is RuntimeKind.TWIN:
            return facts
        held = None
        with suppress(ForgeError):  # no daemon: a plan is made without knowing the image
            held = self.doors.containers.inspect(facts.toolchain.image)
        identity = held.identity if held else ""
        pinned = lock.image.digest if lock and lock.image else ""
        if pinned and identity and pinned != identity:
            hint = f"pull {facts.toolchain.image} at the digest of the lock, or move it with `forge lock --upgrade`"
            raise LockError(f"the image here is {identity}, and the lock pins {pinned}", where=str(_beside(path)), hint=hint)
        return replace(facts, toolchain=replace(facts.toolchain, identity=identity or pinned), gpu=self._gpu(wanted))

    def _gpu(self, wanted: Recipe) -> str:
        """The architecture to build for, as sm_89; empty where no GPU is seen."""
        if wanted.runtime.gpus == NO_GPUS:
            return NO_GPUS
        capabilities = {gpu.capability for gpu in self.doors.machine.gpus() if gpu.capability}
        return "+".join(f"sm_{capability.replace('.', '')}" for capability in sorted(capabilities))

    def _order(self, wanted: Recipe, facts: Facts) -> Order:
        family = Family.of(wanted, facts.checkpoint, facts.draft_checkpoint)
        if wanted.runtime.kind is RuntimeKind.TWIN:
            return Order(wanted, family, facts)
        gpus = "" if facts.gpu in ("", NO_GPUS) else wanted.runtime.gpus
        order = Order(wanted, family, facts, dockerfile=self._template(family.name), gpus=gpus)
        held = self.store.find(images.tools(order).key)
        return replace(order, tooling=toolchain.read(held.path)) if held else order

    def _template(self, family: str) -> str:
        """A person's own Dockerfile for the family or for all, or forge's."""
        for name in (family, "family"):
            file = self.templates / f"{name}.Dockerfile"
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return toolchain.template()

    def _fitting(self, text: str, file: Path, wanted: Recipe) -> locks.Lock | None:
        with suppress(LockError):  # one that cannot be read is written anew
            found = locks.read(text, str(file))
            return None if locks.stale(found, wanted) else found
        return None

    def _lock(self, path: Path, wanted: Recipe, *, required: bool) -> locks.Lock | None:
        file = _beside(path)
        if not file.is_file():
            if required:
                raise LockError("there is no lock", where=str(file), hint=f"write it with `forge lock {path}`")
            return None
        found = locks.read(file.read_text(encoding="utf-8"), str(file))
        reasons = locks.stale(found, wanted)
        if not reasons:
            return found
        hint = f"move it with `forge lock {path}`"
        if required:
            raise LockError(f"the lock is stale: {'; '.join(reasons)}", where=str(file), hint=hint)
        self.say(f"{file}: the lock is stale and was not used: {'; '.join(reasons)}; {hint}")
        return None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _versions(wanted: Recipe, facts: Facts) -> tuple[locks.Image | None, dict[str, str]]:
    """The image of a lock, and the packages that serve the twin."""
    if wanted.runtime.kind is not RuntimeKind.TWIN:
        tools = facts.toolchain
        return locks.Image(reference=tools.image, digest=tools.identity, trtllm=tools.trtllm), {}
    environment = serving_environment(facts.host, wanted.runtime.packages)
    pins = (re.split("==", package, maxsplit=1) for package in (*environment.packages, *environment.bare))
    return None, {pin[0]: pin[-1] if len(pin) > 1 else "" for pin in pins}


def source_of(text: str, revision: str, base: Path) -> Source:
    """What a person means by SOURCE: something on this disk if it is there, a git URL by its looks, else a hub repository."""
    local = Path(text).expanduser()
    remote = "://" in text or text.endswith(".git") or re.match(r"[\w.]+@[\w.-]+:", text) is not None
    if remote or not local.exists():
        url = local.absolute().as_uri() if local.is_dir() else text
        return Source(git=url, revision=revision) if remote else Source(hub=text, revision=revision)
    place = os.path.relpath(local.absolute(), base.absolute())
    return Source(gguf=place) if local.is_file() else Source(path=place)


def safe_name(name: str) -> str:
    """``name`` as a folder's: what a recipe would refuse becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:128] or "model"
