"""Resolves recipes: reads them, holds them against their locks, and gathers what planning may know of each."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.build.builder import Builder
from forge.build.executor import Executors
from forge.build.outside import Outside
from forge.build.package_hashes import held
from forge.build.recipe_facts import adapters, gather, image, unknown
from forge.build.sources.named import safe_name, source_of
from forge.build.sources.source import Sealing
from forge.errors import ForgeError, HostError, LockError, Problem, RecipeError, SourceError, StepError
from forge.events import Event, Listener
from forge.files import texts, trees
from forge.machine.containers import dockerfile
from forge.plan import families, image_steps, lock as locks, vllm
from forge.plan.families import Family
from forge.plan.lock import NONE, Pins
from forge.plan.plan import check, objections
from forge.plan.resolved import Resolved
from forge.plan.steps import Step
from forge.recipe import new, reader as recipe, shipped, verify_prompts
from forge.recipe.new import Suited
from forge.recipe.reader import Looked, concerns
from forge.schema import vllm_known
from forge.schema.manifest import RecipeFile
from forge.schema.recipe import RuntimeTable
from forge.schema.values import LOCAL, NO_GPUS, Checkpoint, Facts, Pinned, Recipe, RuntimeKind, SourceKind
from forge.store.store import Store
from forge.trtllm import image_table as compatibility, toolchain

_RECIPE = 16 << 20
"""Bytes of the longest recipe or deployment that is read."""


class Resolver(Struct, frozen=True, dict=True):
    """Resolves one recipe. ``templates`` is the folder where a person's own Dockerfiles for families stand."""

    store: Store
    outside: Outside
    templates: Path
    say: Callable[[str], None]
    executor: str = ""
    """Where commands run, whatever the recipes say: ``docker`` or ``local``; empty leaves it to them."""
    architectures: Callable[[], frozenset[str]] | None = None
    """Gives the GPUs that engines are built on, as ``sm_90``, where those are not this machine's."""

    def read(self, path: Path, runtime: RuntimeKind | None = None) -> Recipe:
        """The recipe at ``path``; RecipeError carries everything that is wrong with it."""
        found = self._looked(path, runtime)
        if found.problems:
            raise RecipeError(found.problems)
        return found.recipe

    def _looked(self, path: Path, runtime: RuntimeKind | None) -> Looked:
        """The same, and what is wrong with it."""
        found = recipe.looked(self.text(path), str(path), runtime)
        if found.recipe.runtime.kind is not RuntimeKind.VLLM or self.executor not in ("docker", LOCAL):
            return found
        # Of vLLM the executor decides what it is served with, and not only where commands run.
        return replace(found, recipe=found.recipe.having(("runtime.executor", self.executor)))

    def text(self, path: Path) -> str:
        """What stands in a recipe or a deployment; SourceError where nobody can read it."""
        if os.path.exists(path) and not os.path.isdir(path):
            return texts.read(path, SourceError, "the recipe", most=_RECIPE)
        return texts.read(path, SourceError, "the recipe", hint=shipped.instead(path))

    def resolve(
        self,
        path: Path,
        *,
        runtime: RuntimeKind | None = None,
        locked: bool = False,
        adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    ) -> Resolved:
        """A recipe with its facts and plugins, ready to be planned; ``adapt`` gives it what a deployment wants otherwise.

        RecipeError with all that is wrong with it, as far as that can be told before the first of it is fixed.
        """
        looked = self._looked(path, runtime)
        wanted = adapt(looked.recipe)
        if problems := (*looked.problems, *(each.within(str(path)) for each in unknown(wanted, self._plugins))):
            raise RecipeError((*problems, *self._further(path, replace(looked, recipe=wanted))))
        with _in(path):
            return self._resolved(path, wanted, runtime, locked=locked)

    def _resolved(self, path: Path, wanted: Recipe, runtime: RuntimeKind | None, *, locked: bool) -> Resolved:
        pinned = self._lock(path, wanted, required=locked)
        facts = self._gathered(wanted, path, pinned)
        pins, why = locks.pins(pinned, wanted, facts)
        fix = f"move it with `forge lock --upgrade {path}`"
        if why and runtime and self.read(path).runtime.kind is not runtime:
            fix = f'say runtime.kind = "{runtime}" in the recipe, whose own runtime a lock is for, and {fix}'
        if why and locked:
            raise LockError(why, where=str(_beside(path)), hint=fix)
        if why:
            self.say(f"{_beside(path)}: {why}: forge's own pins are taken; {fix}")
        found = self._adapted(self._resolve(wanted, facts, pins), path, pinned)
        file = RecipeFile.of(os.path.abspath(path), self.text(path).encode())
        found = replace(found, locked=pinned is not None, file=file, named=str(path))
        if not wanted.verify.on_build:
            return found
        return replace(found, questions=verify_prompts.written(self.questions(path, wanted)), golden=spoken(path))

    def _further(self, path: Path, looked: Looked) -> Iterator[Problem]:
        """What would be told next, once what is wrong already is fixed: of keys that have nothing to do with that."""
        usual = {"runtime.image": RuntimeTable().image}
        wrong = {each.where: usual.get(each.where) for each in unknown(looked.recipe, self._plugins)}
        broken, wanted = looked.broken.union(wrong), looked.recipe.having(*wrong.items())
        if any(key.startswith(("source", "draft", "lora", "convert.calibration", "runtime.kind")) for key in broken):
            return
        try:
            lock = self._fitting(texts.there(_beside(path), LockError, "the lock") or "", _beside(path), wanted)
            found = self._resolve(wanted, self._gathered(wanted, path, lock))
            problems = objections(self._adapted(found, path, lock))
        except RecipeError as error:
            problems = error.problems
        except SourceError as error:
            problems = (Problem(error.where or "source", error.what, error.hint),)
        except ForgeError:
            return
        yield from (each.within(str(path)) for each in problems if not concerns(each, broken))

    def imaged(self, path: Path) -> Resolved:
        """As for its container image alone. Where nobody gives access to the sources, a named family does without."""
        there = replace(self, executor="docker")
        try:
            return there.resolve(path)
        except SourceError as error:
            wanted = self.read(path)
            if wanted.family is None:
                raise
            self.say(f"{error.what}; what the family requires because of config.json is left out")
            tools = there._executors.toolchain(wanted, image(wanted), None, str(path))
            source = Pinned(wanted.source.kind, wanted.source.address, "", ())
            return there._resolve(wanted, Facts(source, Checkpoint(), self.outside.host(), tools))

    def questions(self, path: Path, wanted: Recipe) -> tuple[verify_prompts.Prompt, ...]:
        """The prompts of the recipe's verification: the file that it names, or those that forge ships."""
        if wanted.verify.prompts is None:
            return verify_prompts.shipped()
        file = path.absolute().parent / wanted.verify.prompts
        return verify_prompts.parse(texts.read(file, SourceError, "the file of [verify] prompts"), str(file))

    def dockerfile(self, path: Path) -> str:
        """What a build would make the recipe's image from; the base as the recipe names it, where it is not here."""
        resolved = self.imaged(path)
        tools = resolved.facts.toolchain
        held = self.outside.containers.inspect(tools.image) if tools.identity else None
        base = held.base if held else tools.image
        return dockerfile(base, resolved.family.requirements(tools), resolved.dockerfile or toolchain.template())

    def draft(self, source: str, name: str | None, revision: str, base: Path) -> str:
        """The text of a recipe for a checkpoint; its paths are relative to ``base``."""
        origin = source_of(source, revision, base)
        found = self.outside.origins[origin.kind]
        pinned = found.pin(origin, base.absolute())
        checkpoint = found.read(pinned)
        stem = Path(source).stem if origin.kind is SourceKind.GGUF else Path(source).name.removesuffix(".git")
        able = families.serving(checkpoint.architectures, self._plugins)
        family = families.find(checkpoint) if len(able) > 1 else next(iter(able), "")  # of several nobody but a person chooses
        texts = [new.draft(name or safe_name(stem), origin, checkpoint, family, each) for each in _suits(checkpoint, family)]
        return next((text for text in texts if not self._objections(text, pinned, checkpoint)), texts[0])

    def _objections(self, text: str, pinned: Pinned, checkpoint: Checkpoint) -> tuple[Problem, ...]:
        """What a plan would refuse of a recipe that is about to be written."""
        try:
            wanted = recipe.read(text, "")
            return check(self._resolve(wanted, Facts(pinned, checkpoint, self.outside.host(), image(wanted))))
        except RecipeError as error:
            return error.problems

    def lock(self, path: Path, *, upgrade: bool = False) -> tuple[Path, bool]:
        """Write ``<recipe>.lock``; what a valid one pins stays unless ``upgrade``. Says whether the file changed."""
        wanted = self.read(path)
        file = _beside(path)
        before = texts.there(file, LockError, "the lock") or ""
        kept = None if upgrade or not before else self._fitting(before, file, wanted)
        facts = self._gathered(wanted, path, kept)
        if kept is None:
            facts = replace(facts, source=self._sealed(facts.source), draft=facts.draft and self._sealed(facts.draft))
        pins = locks.pins(kept, wanted, facts)[0]
        image, versions, stub = locks.versions(wanted, facts, pins)
        made = locks.lock(wanted, facts.source, facts.draft, facts.calibration, image, versions)
        loras = adapters(wanted, path.absolute().parent, self.outside, kept)
        if image is None:
            serving = locks.environments(wanted, facts, pins)
            made = held(made, serving, pins, self.outside.package_hashes, self.say)
        after = locks.write(made.beside([each.pinned for each in loras], stub))
        if after != before:
            trees.write_whole(file, after)
        return file, after != before

    def _sealed(self, pinned: Pinned) -> Pinned:
        origin = self.outside.origins[pinned.kind]
        return origin.sealed(pinned) if isinstance(origin, Sealing) else pinned

    def require(self, all_resolved: Sequence[Resolved], *, gpus: bool) -> None:
        """HostError with all that keeps commands from running here; GPUs count where a build would use one."""
        self._executors.require(all_resolved, gpus=gpus)
        engines = (each.recipe.runtime for each in all_resolved if each.recipe.runtime.kind is RuntimeKind.ENGINE)
        stated = frozenset(runtime.gpu for runtime in engines if runtime.gpu is not None)
        if gpus and stated and (here := self._here()) and stated != here:
            what = (
                f"engines for {', '.join(sorted(map(str, stated)))} are built on such a GPU; here is {', '.join(sorted(here))}"
            )
            raise HostError(what, where="runtime.gpu", hint="build on a machine that has it, or on a cluster: --executor ray")

    @property
    def _executors(self) -> Executors:
        return Executors(self.outside.containers, self.outside.here, self.outside.answers, self.executor, self.say)

    def furnished(self, resolved: Resolved, builder: Builder, tell: Listener) -> Resolved:
        """The recipe with what its image says of itself, or its vLLM: had where it is not here, and read where it was not."""
        known = self._held(resolved, tell) if resolved.recipe.runtime.contained else resolved
        if not (unread := self._unread(known)):
            return known
        with self.store.using(step.key for step in unread):
            try:
                builder.realise(unread)
            except StepError as error:
                if resolved.recipe.runtime.kind is not RuntimeKind.VLLM:
                    raise
                self.say(f"{resolved.recipe.name}: its vLLM could not be read, so nothing is held against it: {error}")
        return self._tooled(known)

    def _held(self, resolved: Resolved, tell: Listener) -> Resolved:
        tools = resolved.facts.toolchain

        def progress(done: int, total: int) -> None:
            tell(Event("progress", tools.image, done=done, total=total))

        tell(Event("start", tools.image))
        held = self._executors.hold(tools.image, progress)
        tell(Event("held", tools.image, size=held.size))
        tools = self._executors.versioned(replace(tools, identity=held.identity), resolved.recipe.runtime.kind)
        if problems := compatibility.check(resolved.recipe, tools):
            raise RecipeError(problems)
        return self._tooled(replace(resolved, facts=replace(resolved.facts, toolchain=tools)))

    def reading(self, resolved: Resolved) -> tuple[Step, ...]:
        """The steps that read its image, or its vLLM; none where there is nothing to be read."""
        if resolved.recipe.runtime.kind is RuntimeKind.VLLM:
            return vllm.reading(resolved)
        return (image_steps.tools(resolved),) if resolved.recipe.runtime.contained else ()

    def _unread(self, resolved: Resolved) -> tuple[Step, ...]:
        """The same, where it was not done yet."""
        known = resolved.vllm if resolved.recipe.runtime.kind is RuntimeKind.VLLM else resolved.tooling
        return self.reading(resolved) if known is None else ()

    def _gathered(self, wanted: Recipe, path: Path, lock: locks.Lock | None) -> Facts:
        facts = gather(wanted, path.absolute().parent, self.outside, lock)
        if not wanted.runtime.contained:
            return replace(facts, gpu=self._gpu(wanted)) if wanted.runtime.kind is RuntimeKind.VLLM else facts
        tools = self._executors.toolchain(wanted, facts.toolchain, lock.image if lock else None, str(_beside(path)))
        return replace(facts, toolchain=tools, gpu=self._gpu(wanted))

    def _adapted(self, resolved: Resolved, path: Path, lock: locks.Lock | None) -> Resolved:
        """The recipe with its adapters, and the tensors of the checkpoint that they go over."""
        if not resolved.recipe.lora:
            return resolved
        source = resolved.facts.source
        found = adapters(resolved.recipe, path.absolute().parent, self.outside, lock)
        return replace(resolved, adapters=found, tensors=self.outside.origins[source.kind].tensors(source))

    def _gpu(self, wanted: Recipe) -> str:
        """The architecture to build for, as sm_89; empty where no GPU is seen."""
        if wanted.runtime.gpus == NO_GPUS:
            return NO_GPUS
        if wanted.runtime.gpu is not None and wanted.runtime.kind is RuntimeKind.ENGINE:
            return wanted.runtime.gpu
        if self.architectures is None:
            return "+".join(sorted(self._here()))
        found = sorted(self.architectures()) if wanted.runtime.kind is RuntimeKind.ENGINE else []
        if len(found) > 1:
            what = f"the cluster has GPUs of {', '.join(found)}, and an engine is for one kind"
            hint = 'say which: runtime.gpu in the recipe, or { recipe = "...", name = "...", gpu = "..." } in the deployment'
            raise RecipeError((Problem("runtime.gpu", what, hint),))
        return "".join(found)

    def _here(self) -> frozenset[str]:
        """The architectures of this machine's GPUs."""
        capabilities = {gpu.capability for gpu in self.outside.machine.gpus() if gpu.capability}
        return frozenset(f"sm_{capability.replace('.', '')}" for capability in capabilities)

    def _resolve(self, wanted: Recipe, facts: Facts, pins: Pins = NONE) -> Resolved:
        if wanted.runtime.kind is RuntimeKind.VLLM:  # it converts nothing, so no plugin is asked
            known = facts.checkpoint.architectures
            unclaimed = bool(known) and not families.serving(known, self._plugins)
            family = Family(wanted, facts.checkpoint, None)
            return self._tooled(Resolved(wanted, family, facts, unclaimed=unclaimed, pins=pins))
        family = Family.of(wanted, facts.checkpoint, facts.draft_checkpoint, self._plugins)
        unclaimed = bool(facts.checkpoint.architectures) and not family.name
        found = Resolved(wanted, family, facts, unclaimed=unclaimed, pins=pins)
        if wanted.runtime.kind is RuntimeKind.TWIN:
            return found
        gpus = "" if facts.gpu in ("", NO_GPUS) else wanted.runtime.gpus
        return self._tooled(replace(found, dockerfile=self._template(family.name), gpus=gpus))

    def _tooled(self, resolved: Resolved) -> Resolved:
        """The recipe with what its image says of itself, or its vLLM, where that has been read."""
        if resolved.recipe.runtime.kind is RuntimeKind.VLLM:
            said = self.store.find(steps[-1].key) if (steps := vllm.reading(resolved)) else None
            return replace(resolved, vllm=vllm_known.read(said.path)) if said else resolved
        held = self.store.find(image_steps.tools(resolved).key)
        return replace(resolved, tooling=toolchain.read(held.path) if held else None)

    @cached_property
    def _plugins(self) -> families.Points:
        return families.claimed()

    def _template(self, family: str) -> str:
        """A person's own Dockerfile for the family or for all, or forge's."""
        for name in (family, "family"):
            file = self.templates / f"{name}.Dockerfile"
            if (text := texts.there(file, SourceError, "the Dockerfile of your own")) is not None:
                return text
        return toolchain.template()

    def own_dockerfiles(self) -> dict[str, str]:
        """A person's own Dockerfiles for families, by name."""
        found = sorted(self.templates.glob("*.Dockerfile")) if self.templates.is_dir() else ()
        return {file.name: texts.read(file, SourceError, "the Dockerfile of your own") for file in found}

    def _fitting(self, text: str, file: Path, wanted: Recipe) -> locks.Lock | None:
        with suppress(LockError):  # one that cannot be read is written anew
            found = locks.read(text, str(file))
            return None if locks.stale(found, wanted) else found
        return None

    def _lock(self, path: Path, wanted: Recipe, *, required: bool) -> locks.Lock | None:
        file = _beside(path)
        text = texts.there(file, LockError, "the lock", hint=f"move it away, and write it with `forge lock {path}`")
        if text is None:
            if required:
                raise LockError("there is no lock", where=str(file), hint=f"write it with `forge lock {path}`")
            return None
        found = locks.read(text, str(file))
        reasons = locks.stale(found, wanted)
        if not reasons:
            return found
        hint = f"move it with `forge lock {path}`"
        if required:
            raise LockError(f"the lock is stale: {'; '.join(reasons)}", where=str(file), hint=hint)
        self.say(f"{file}: the lock is stale and was not used: {'; '.join(reasons)}; {hint}")
        return None


def golden(path: Path) -> Path:
    """Where a recipe's golden transcripts stand."""
    return path.with_name(f"{path.name}.golden.json")


def spoken(path: Path) -> str:
    """A recipe's golden transcripts; empty where there are none."""
    return texts.there(golden(path), ForgeError, "the file of golden transcripts") or ""


@contextmanager
def _in(path: Path) -> Generator[None]:
    """Names the recipe's file in what is wrong with it."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(tuple(each.within(str(path)) for each in error.problems)) from error


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _suits(checkpoint: Checkpoint, family: str) -> list[Suited]:
    """What a draft can say of a checkpoint, the usual first; no family: what needs none."""
    if checkpoint.architectures and not family:
        return [replace(new.USUAL, kind=RuntimeKind.VLLM)]
    newer = [
        replace(new.USUAL, image=each.tag, why=f"NVIDIA's image by month; TensorRT-LLM {each.trtllm}, which knows this model")
        for each in compatibility.releases()
        if RuntimeKind.ENGINE in each.kinds and each.tag > new.USUAL.image
    ]
    plain = [new.USUAL, *newer]
    return [*plain, *(replace(each, dtype="bfloat16") for each in plain)]
