"""Holds what is served to what its checkpoint says: finds both sides, asks them, and hands what they said to the judges."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from forge.client.chat_template import ChatTemplate
from forge.errors import ForgeError, HostError, InferenceError, StepError, VerifyError
from forge.files import texts, trees
from forge.machine import processes
from forge.plan.steps import Plan, Step, Verify
from forge.recipe import verify_prompts
from forge.recipe.verify_prompts import Prompt
from forge.repository import config as repository, publish
from forge.schema.manifest import Manifest, PublishedModel, Serving
from forge.schema.values import INSTALLED, LOCAL, NO_GPUS, RuntimeKind, VerifyTable
from forge.serve.launch import launch
from forge.serve.lookup import Target
from forge.store.artifact import noted
from forge.store.store import Store
from forge.verify import transcripts
from forge.verify.interview import Interview
from forge.verify.judge import TEMPLATE, Outcome, Stage, Verdict, judge, judge_ends
from forge.verify.limits import computed_in, limits
from forge.verify.one_model import WHOSE, judge_one
from forge.verify.outside import Outside
from forge.verify.reciter import InImage
from forge.verify.reference import Asked, Job, Reciter
from forge.verify.streaming import Checks
from forge.verify.tolerances import Tolerance
from forge.verify.transcripts import Reference
from forge.verify.verdicts import Report, next_steps

VERDICT = "verdict.json"
"""What the artifact of a passed verification holds."""
_SHOWN = 4
Line = Callable[[str], None]


class Terms(Struct, frozen=True):
    """What is asked and what is allowed. ``tie`` (nats) and ``diverging`` (a part of the prompts) override the table.

    ``golden`` are transcripts that may speak for the checkpoint; ``fresh`` asks transformers all the same. ``python`` names the
    Python that has transformers, ``checkpoint`` a folder to read in place of the store's.
    """

    prompts: tuple[Prompt, ...]
    max_tokens: int = 32
    tie: float | None = None
    diverging: float | None = None
    streaming: bool = True
    golden: str = ""
    fresh: bool = False
    python: str = ""
    checkpoint: Path | None = None


class VerifyOptions(Struct, frozen=True):
    """What a person asks of ``forge verify`` beside the recipe's own [verify]; None leaves it to that.

    ``prompts`` is a file; ``update`` writes the golden transcripts anew. The others are as in Terms.
    """

    prompts: Path | None = None
    max_tokens: int | None = None
    streaming: bool = True
    update: bool = False
    fresh: bool = False
    python: str = ""
    checkpoint: Path | None = None
    lora: str = ""
    """The adapter that the model is asked with, and its checkpoint merged with."""


PLAIN = VerifyOptions()


def terms(options: VerifyOptions, table: VerifyTable, asked: tuple[Prompt, ...], golden: str) -> Terms:
    """What is asked: the person's options over the recipe's table; ``asked`` are the recipe's prompts."""
    if options.prompts is not None:
        asked = verify_prompts.parse(texts.read(options.prompts, ForgeError, "the file of prompts"), str(options.prompts))
    return Terms(
        asked,
        options.max_tokens or table.max_tokens,
        table.tie,
        table.diverging,
        streaming=options.streaming and table.streaming,
        golden=golden,
        fresh=options.fresh or options.update,
        python=options.python,
        checkpoint=options.checkpoint,
    )


class Prover(Struct, frozen=True):
    """Verifies served models, and candidates that are served for it alone."""

    home: Path
    store: Store
    outside: Outside

    def report(self, target: Target, terms: Terms, line: Line) -> Report:
        """What came out for a served model."""
        return self.compare(target, self.reference(target, terms, line), terms, line)

    def reference(self, target: Target, terms: Terms, line: Line) -> Reference:
        """What the checkpoint says: the golden transcripts where they fit, or transformers."""
        model = target.model
        key, folder = self._checkpoint(model, terms)
        asked, skipped = self._asked(target, terms)
        digest = verify_prompts.digest(terms.prompts)
        adapter = self._adapter(target)
        if terms.golden and not terms.fresh and adapter is None:
            found = transcripts.read(terms.golden, "golden transcripts")
            if found.fits(key, digest, terms.max_tokens):
                line(f"golden transcripts speak for the checkpoint ({found.by})")
                return replace(found, by=f"golden transcripts of {found.by}")
            line("the golden transcripts are of another checkpoint or other prompts: transformers is asked")
        room = limits(target)
        job = Job(
            key, digest, asked, terms.max_tokens, room.get("max_input_len", 0), room.get("max_seq_len", 0), str(adapter or "")
        )
        said = self._reciter(model, terms).recite(self._held(model, folder, key), job, line)
        return replace(said, skipped={**said.skipped, **skipped})

    def compare(self, target: Target, reference: Reference, terms: Terms, line: Line) -> Report:
        """Ask every served stage, and judge."""
        if not reference.transcripts:
            told = "; ".join(f"{name}: {why}" for name, why in reference.skipped.items())
            raise ForgeError(f"there is nothing to compare: {told}", where=target.model.name)
        model, allowed = target.model, self._allowed(target, terms)
        built = limits(target)
        streams = self.outside.metadata(target.address, model.front).decoupled
        interview = Interview(target.address, model, self.outside.patient, self.outside.stages, streams)
        room, places = built.get("max_seq_len", 0), built.get("max_batch_size", 8)
        interview = replace(interview, room=room, places=places, further=target.ends)
        interview = replace(interview, lora=target.lora, lora_task=target.lora_task)
        heard = interview.hear(reference, line)
        said = {each.name: each for each in reference.transcripts}
        one = model.runtime is RuntimeKind.VLLM
        judged = judge_one if one else judge
        stages = (verdict for each in heard for verdict in judged(said[each.prompt], each, reference, allowed))
        ends = judge_ends(heard[0].ends, reference, WHOSE) if one else judge_ends(heard[0].ends, reference)
        verdicts = (*self._template(target, reference), *ends, *stages)
        checks = tuple(Checks(interview, reference, heard, allowed, verdicts=verdicts).run(line)) if terms.streaming else ()
        notes = tuple(f"{name} was not asked: {why}" for name, why in reference.skipped.items())
        notes += (_QUANTIZED,) if allowed.diverging and terms.diverging is None else ()
        by = f"{reference.by}, with the adapter {target.lora} merged" if target.lora else reference.by
        return Report(target.named, by, allowed, verdicts, checks, notes)

    def _template(self, target: Target, reference: Reference) -> Iterator[Verdict]:
        """Whether conversations are put into the checkpoint's own chat template, whoever makes the prompt of it."""
        if not reference.template:
            return
        with suppress(InferenceError):  # what cannot be rendered was left out
            served = sha256(ChatTemplate.of(target.tokenizer).source.strip().encode()).hexdigest()
            what = "" if served == reference.template else "the chat template beside the served model is not the checkpoint's"
            yield Verdict(Stage.TOKENIZER, TEMPLATE, Outcome.DIFFERS if what else Outcome.SAME, what)

    # -- as a step of a build

    def require(self, wanted: Plan) -> None:
        """HostError, before anything is built, where a candidate will have to be verified and transformers is not here."""
        for step in wanted.steps:
            if isinstance(step.action, Verify) and self.store.find(step.key) is None and not step.action.golden:
                lacking = self.outside.reciter().lacks() if step.action.runtime == RuntimeKind.TWIN else ""
                if lacking:
                    raise HostError(f"[verify] on_build: {lacking}", where=step.action.name, hint=_INSTALL)

    def prove(self, step: Step, action: Verify, needs: Mapping[str, Path], out: Path, line: Line) -> None:
        """Serve the candidate in a repository of its own, verify it, and stop it; VerifyError where it differs."""
        halt = self.outside.tools.halt

        def told(text: str) -> None:
            halt.check()
            line(text)

        place = self.home / "verifying" / step.key[:16]
        if place.exists():
            trees.remove(place)
        place.mkdir(parents=True)
        try:
            model = _candidate(step, action)
            relocate = _unmoved if model.serving and model.serving.contained else self._relocated(place)
            publish.publish(needs["entry"], place, model, relocate)
            wanted = launch({place: Manifest(models=(model,))}, self.store, processes.spare_ports(), detach=False)
            running = self.outside.server.start(wanted, told)
            try:
                terms = Terms(
                    verify_prompts.parse(action.prompts, "prompts.jsonl"),
                    action.max_tokens,
                    action.tie,
                    action.diverging,
                    action.streaming,
                    action.golden,
                )
                address = running.ports.at(running.ports.grpc)
                report = self.report(Target(address, model, place), terms, told)
            finally:
                self.outside.server.stop(running)
        finally:
            trees.remove(place)
        if not report.passed:
            raise refusal(report, "the candidate was not published")
        (out / VERDICT).write_bytes(msgspec.json.format(msgspec.json.encode(document(report)), indent=1))

    def _relocated(self, place: Path) -> publish.Relocate:
        return lambda text: repository.relocate(text, str(place))

    # -- the two sides

    def _checkpoint(self, model: PublishedModel, terms: Terms) -> tuple[str, Path | None]:
        """Key and folder of what transformers reads: the fetched checkpoint, or a GGUF's converted one."""
        if terms.checkpoint is not None:
            config = terms.checkpoint / "config.json"
            if not config.is_file():
                raise ForgeError("there is no checkpoint here", where=str(config))
            return blake3(config.read_bytes()).hexdigest(), terms.checkpoint
        key = model.keys.get(f"{model.name}: hf checkpoint") or model.keys.get(f"{model.name}: model") or ""
        held = self.store.find(key) if key else None
        return key, held.path if held else None

    def _adapter(self, target: Target) -> Path | None:
        """PEFT's files of the adapter that the model is asked with, as they were fetched; None where it is asked with none."""
        if not target.lora:
            return None
        key = target.model.keys.get(f"{target.model.name}: lora {target.lora}", "")
        held = self.store.find(key) if key else None
        if held is None:
            hint = "build it again (`forge build RECIPE`)"
            what = f"the adapter {target.lora} is no longer in the store (key {key[:12] or 'unknown'})"
            raise StepError(what, where=target.model.name, hint=hint)
        return held.path

    def _held(self, model: PublishedModel, folder: Path | None, key: str) -> Path:
        if folder is None:
            hint = "build it again (`forge build RECIPE`), or name a folder with it: --checkpoint"
            raise StepError(
                f"the checkpoint is no longer in the store (key {key[:12] or 'unknown'})", where=model.name, hint=hint
            )
        return folder

    def _reciter(self, model: PublishedModel, terms: Terms) -> Reciter:
        """This machine's Python where it has transformers, otherwise the image that serves the model."""
        own = self.outside.reciter(terms.python)
        lacking = own.lacks()
        if not lacking or terms.python:
            if lacking:
                raise HostError(lacking, hint="name one that has torch and transformers")
            return own
        vllm = model.serving.vllm if model.serving else ""  # which needs torch and transformers itself
        if vllm and (held := self.store.find(vllm)):
            return self.outside.reciter(str(held.path / "bin" / "python3"))
        key = model.serving.image if model.serving else ""
        if key and (held := self.store.find(key)):
            image = noted(held.path)["id"]
            contained = self.outside.tools.contained()
            inside = InImage(contained.containers, image, key, contained.logs)
            if image != LOCAL and not inside.lacks():
                return inside
        raise HostError(f"nobody here can speak for the checkpoint: {lacking}", where=model.name, hint=_INSTALL)

    def _asked(self, target: Target, terms: Terms) -> tuple[tuple[Asked, ...], dict[str, str]]:
        """Each prompt as a client would send it; those that want a chat template are left out where there is none."""
        asked: list[Asked] = []
        skipped: dict[str, str] = {}
        for prompt in terms.prompts:
            text = prompt.text
            if prompt.messages:
                try:
                    turns = [(each.role, each.content) for each in prompt.messages]
                    text = self.outside.templated(target.tokenizer, turns, target.model.limits)
                except InferenceError as error:
                    skipped[prompt.name] = error.what
                    continue
            asked.append(Asked(prompt.name, text, prompt.messages))
        return tuple(asked), skipped

    def _allowed(self, target: Target, terms: Terms) -> Tolerance:
        found = computed_in(target)
        if terms.tie is not None:
            found = replace(found, tie=terms.tie)
        return found if terms.diverging is None else replace(found, diverging=terms.diverging)


_QUANTIZED = (
    "the engine is quantized: it may leave the checkpoint by more than rounding, so this says that the right model is served, "
    "and not what quantization costs (`forge bench` measures that); an engine of a stand-in for TensorRT-LLM proves neither"
)
_INSTALL = (
    "install `triton-forge[verify]` (torch and transformers), name a Python that has them (--python PATH), or verify against "
    "golden transcripts, which `forge verify RECIPE --update` writes where there is one"
)


def refusal(report: Report, what: str) -> VerifyError:
    """The error of a report with faults: the failing stage, the first of its faults, and what to do next."""
    failing = report.failing[0]
    shown = [each for each in report.faults if each.stage is failing]
    lines = [f"  {each.prompt}: {each.what}" for each in shown[:_SHOWN]]
    more = f"\n  and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    text = f"{what}: the {failing} is failing, it differs from the checkpoint\n" + "\n".join(lines) + more
    return VerifyError(text, where=report.model, hint=next_steps()[failing])


def document(report: Report) -> dict[str, object]:
    """The report as JSON shows it."""
    return {
        "model": report.model,
        "passed": report.passed,
        "failing": report.failing,
        "next": {stage: next_steps()[stage] for stage in report.failing},
        "reference": report.reference,
        "allowed": report.allowed,
        "verdicts": report.verdicts,
        "checks": report.checks,
        "notes": report.notes,
    }


def _candidate(step: Step, action: Verify) -> PublishedModel:
    """The manifest's words for what is served in a repository of its own."""
    keys = {name: need.key for name, need in step.needs}
    serving = Serving(
        environment=keys.get("environment", ""),
        backends=keys.get("backends", ""),
        triton=INSTALLED if action.triton == LOCAL else action.triton,
        image=keys.get("image", ""),
        gpus="" if action.gpus == NO_GPUS else action.gpus,
        world=action.world,
        vllm=keys.get("vllm", ""),
    )
    return PublishedModel(
        name=action.name,
        entry=keys["entry"],
        runtime=RuntimeKind(action.runtime),
        roles=action.names.all(),
        prefix=action.names.prefix,
        keys={need.name: need.key for _, need in step.needs},
        serving=serving,
        inside=action.names.inside,
    )


def _unmoved(text: str) -> str:
    """Configs name the container's place already."""
    return text
