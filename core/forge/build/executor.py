"""Where a recipe's commands run: in containers, or in this environment when forge runs inside NVIDIA's container."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from forge.errors import ForgeError, HostError, LockError, Problem, StepError
from forge.machine.containers import Answers, Containers, ImageFacts, Inside, Progress
from forge.plan.lock import Image
from forge.plan.resolved import Resolved
from forge.schema.values import LOCAL, NO_GPUS, Recipe, RuntimeKind, Toolchain
from forge.trtllm import image_table

_PYTHONS = ("python3", "/opt/venv-tritonserver/bin/python3")
"""The Pythons of NVIDIA's images that have TensorRT-LLM, or vLLM; from 26.03 on it is the second for TensorRT-LLM."""
_ASK = "import importlib.metadata as installed; print(installed.version('{}'))"


class Executors(Struct, frozen=True):
    """The two places. ``stated`` is what the person who calls forge says, and wins over recipes: docker, local, or nothing.

    ``answers`` keeps what images have said of themselves.
    """

    containers: Containers
    here: Inside
    answers: Answers
    stated: str
    say: Callable[[str], None]

    def local(self, recipe: Recipe) -> bool:
        """Whether the recipe's commands run here: said so, or this is NVIDIA's container and nobody says otherwise."""
        stated = self.stated or recipe.runtime.executor
        return stated == LOCAL if stated else self.here.present()

    def toolchain(self, recipe: Recipe, known: Toolchain, pinned: Image | None, where: str) -> Toolchain:
        """What the commands run with: ``known`` is what the recipe's image is known for, ``pinned`` what a lock says of it."""
        if self.local(recipe):
            return self._inside(known, pinned, where)
        held = None
        with suppress(ForgeError):  # no daemon: a plan is made without knowing the image
            held = self.containers.inspect(known.image)
        identity = held.identity if held else ""
        digest = "" if pinned is None or pinned.digest.startswith(f"{LOCAL}:") else pinned.digest
        if digest and identity and digest != identity:
            hint = f"pull {known.image} at the digest of the lock, or move it with `forge lock --upgrade`"
            raise LockError(f"the image here is {identity}, and the lock pins {digest}", where=where, hint=hint)
        if pinned is not None and not (known.trtllm or known.vllm):
            known = replace(known, trtllm=pinned.trtllm, examples=image_table.examples(pinned.trtllm), vllm=pinned.vllm)
        found = replace(known, identity=identity or digest)
        return self.versioned(found, recipe.runtime.kind) if held else found

    def versioned(self, known: Toolchain, kind: RuntimeKind) -> Toolchain:
        """``known`` with the TensorRT-LLM that the image itself names, or the vLLM, where nothing else has said it; empty where
        it does not.

        Asked is the Python of the image: whoever built on NVIDIA's image may have installed another version into it, and
        labels and variables then tell of the one that was there before.
        """
        if known.trtllm or known.vllm or known.image == LOCAL:
            return known
        package, question = ("vllm", f"{known.identity} vllm") if kind is RuntimeKind.VLLM else ("tensorrt_llm", known.identity)
        said = self.answers.recall(question) if known.identity else None
        if said is None and (said := self._asked(known.image, package)) and known.identity:
            self.answers.record(question, said)
        if not said:
            return known
        return (
            replace(known, vllm=said) if package == "vllm" else replace(known, trtllm=said, examples=image_table.examples(said))
        )

    def _asked(self, image: str, package: str) -> str:
        for python in _PYTHONS:
            with suppress(StepError, HostError):  # no such program, or no such package
                return self.containers.help_text(image, (python, "-c", _ASK.format(package))).strip()
        return ""

    def _inside(self, known: Toolchain, pinned: Image | None, where: str) -> Toolchain:
        """From inside, a container's digest cannot be seen: a lock is held to the version, and to what it saw from inside."""
        found = self.here.toolchain()
        found = replace(found, examples=image_table.examples(found.trtllm))
        if pinned is not None:
            other = pinned.digest.startswith(f"{LOCAL}:") and pinned.digest != found.identity
            if other or (pinned.trtllm and pinned.trtllm != found.trtllm):
                there = f"{pinned.trtllm} ({pinned.digest})"
                what = f"TensorRT-LLM {found.trtllm} is here ({found.identity}), and the lock pins {there}"
                hint = "run forge in the container that the lock was written for, or move it with `forge lock --upgrade`"
                raise LockError(what, where=where, hint=hint)
        if known.trtllm and known.trtllm != found.trtllm:
            self.say(f"the recipe's image holds TensorRT-LLM {known.trtllm}; taken is the {found.trtllm} that is here")
        return found

    def require(self, all_resolved: Sequence[Resolved], *, gpus: bool) -> None:
        """HostError with all that keeps the commands of ``orders`` from running; GPUs count where a build would use one."""
        inside = [resolved for resolved in all_resolved if resolved.facts.toolchain.image == LOCAL]
        outside = [resolved for resolved in all_resolved if resolved not in inside]
        problems: list[Problem] = []
        if inside:
            problems += self.here.check(gpus and _built(inside))
            wanted = [resolved.family.requirements(resolved.facts.toolchain) for resolved in inside]
            problems += dict.fromkeys(problem for each in wanted for problem in self.here.lacking(each))
        if outside:
            problems += self.containers.check(gpus and _built(outside))
        if problems:
            hint = "`forge doctor` looks closer; `forge plan` works without, and `--runtime twin` serves the recipe on the CPU"
            raise HostError("\n".join(map(str, problems)), where="this machine", hint=hint)
        if outside:
            self.containers.reap()

    def hold(self, image: str, progress: Progress) -> ImageFacts:
        """The image's facts; pulled first where it is one, and not here."""
        return self.here.hold(image, progress) if image == LOCAL else self.containers.hold(image, progress)


def _built(all_resolved: Sequence[Resolved]) -> bool:
    runtimes = [resolved.recipe.runtime for resolved in all_resolved if resolved.recipe.runtime.kind is RuntimeKind.ENGINE]
    return any(runtime.gpus != NO_GPUS for runtime in runtimes)
