"""Makes bundles: from recipes one file with all that a build of them needs."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.api.wiring import Wiring
from forge.build.builder import Builder
from forge.build.bundle.choice import WEIGHTS, Chosen, choose, held
from forge.build.bundle.contents import Contents
from forge.build.bundle.pack import Texts, Writer, gathered, images, read
from forge.build.bundle.witness import Memory, Witnessed
from forge.build.recipe_facts import opened
from forge.build.resolve import Resolver
from forge.build.sources.source import Origin
from forge.build.together import Joint, JointResolver
from forge.errors import ForgeError
from forge.events import Listener
from forge.plan.plan import plan, require
from forge.plan.resolved import Resolved
from forge.plan.steps import Step, with_needs
from forge.remote import record
from forge.remote.signature import Notary
from forge.remote.tarred import BundleError, replaceable
from forge.schema.values import BuildOptions, SourceKind
from forge.settings import Settings
from forge.store.store import Artifact, Store


class Bundled(Struct, frozen=True):
    """A bundle that was made: its file and bytes, the steps whose results it holds, and the images."""

    file: Path
    size: int
    steps: tuple[str, ...]
    images: tuple[str, ...]


class Bundler(Struct, frozen=True):
    """Makes bundles of what one home holds or can build."""

    home: Path
    store: Store
    world: Wiring
    resolver: Resolver
    builder: Builder
    settings: Settings
    tell: Listener
    clock: Callable[[], float]
    notary: Notary

    def bundle(self, files: Sequence[Path], target: Path, options: BuildOptions, *, weights: bool) -> Bundled:
        """Build what ``files`` need, publish nothing, and write all of it to ``target``."""
        _require(target)
        if self.notary.signer:
            self.notary.signer.require()
        joint = JointResolver(self.resolver).joint(files)
        recipes = [self.resolver.read(joint.path(each), options.runtime) for each in joint.stated.members]
        if secret := [address for recipe in recipes for address in opened(recipe)]:
            hint = "take it out of the recipe: a git credential helper can know it (`git help credentials`)"
            raise BundleError(
                "a recipe's address holds a password or a token, and recipes go along", where=secret[0], hint=hint
            )
        found = gathered(joint, [recipe.verify.prompts for recipe in recipes])
        memory = Memory(found.place)
        all_resolved = self._resolved(joint, options, memory)
        steps = self._steps(all_resolved, options)
        kinds = (*self.settings.remote.push, WEIGHTS) if weights else self.settings.remote.push
        wanted = choose(steps, kinds)
        with self.store.using(step.key for step in steps):
            self.builder.realise(steps)
            chosen = held(wanted, self._held)
            contents = self._contents(found, options, all_resolved, steps, memory)
            size = Writer(target, self.tell, self.notary).write(contents, chosen, self.world.containers)
        return Bundled(target, size, _named(chosen), tuple(each.reference for each in contents.images))

    def _held(self, step: Step) -> Artifact:
        """The result of a step; where a shared store has spared it, it is taken from there or made now."""
        if found := self.store.find(step.key):
            return found
        return self.builder.realise(with_needs(step))[step.key]

    def _resolved(self, joint: Joint, options: BuildOptions, memory: Memory) -> list[Resolved]:
        """The recipes as a build has them, all that was asked of the world noted in ``memory``."""
        resolver = replace(self.resolver, outside=Witnessed(self.world, memory))
        together = JointResolver(resolver)
        found = together.resolve(joint, runtime=options.runtime, locked=options.locked)
        together.require_one_server(joint, found)
        for resolved in found if len(found) > 1 else ():  # who builds it may share GPUs between them
            _weighed(resolved, resolver.outside.origins)
        found = together.shared(joint, found)
        require(found)
        if contained := [each for each in found if each.recipe.runtime.contained]:
            resolver.require(contained, gpus=True)
        return [resolver.furnished(each, self.builder, self.tell) for each in found]

    def _steps(self, all_resolved: Sequence[Resolved], options: BuildOptions) -> tuple[Step, ...]:
        """All that a build makes, and what reads an image or a vLLM beforehand."""
        wanted = plan(all_resolved, prefixed=options.apart, inside=options.inside)
        before = (step for resolved in all_resolved for step in self.resolver.reading(resolved))
        return tuple({step.key: step for step in (*before, *wanted.steps)}.values())

    def _contents(
        self, found: Texts, options: BuildOptions, all_resolved: Sequence[Resolved], steps: Sequence[Step], memory: Memory
    ) -> Contents:
        host = self.world.host()
        templates = self.resolver.own_dockerfiles() if any(each.dockerfile for each in all_resolved) else {}
        return Contents(
            by=record.builder(self.clock()),
            python=host.python,
            platform=host.platform,
            triton=host.triton,
            runtime=options.runtime or "",
            prefixed=options.apart,
            inside=options.inside,
            executor=self.settings.executor or "",
            named=tuple(found.place(each) for each in found.named),
            texts=read(found, templates),
            answers=memory.noted(),
            images=images(all_resolved, steps, self.world.tools.contained, self.home, self.tell),
        )


def _require(target: Path) -> None:
    """BundleError, before anything is built, where no bundle can be written."""
    if not replaceable(target):
        raise BundleError("something else than a bundle stands there", where=str(target), hint="choose another name")
    folder = target.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        hint = "make the folder, or name another with -o"
        raise BundleError("nothing can be written into this folder", where=str(folder), hint=hint)


def _named(chosen: Chosen) -> tuple[str, ...]:
    return tuple(one.manifest.provenance.step for one in (*chosen.artifacts, *chosen.environments))


def _weighed(resolved: Resolved, origins: Mapping[SourceKind, Origin]) -> None:
    """Have the headers of all its tensors asked for, as far as somebody can say them."""
    for pinned in (resolved.facts.source, resolved.facts.draft, *(each.pinned for each in resolved.adapters)):
        if pinned is not None:
            with suppress(ForgeError):
                origins[pinned.kind].tensors(pinned)
