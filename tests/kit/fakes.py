"""Fakes that do the work of the ports in miniature."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from forge.client.types import Chunk, Request
from forge.errors import InferenceError, ServerError, SourceError, StepError
from forge.events import Progress
from forge.files.safetensors import PREFIX, Tensor, length, parse
from forge.machine.containers import Job
from forge.schema.values import Calibration, Checkpoint, Command, Environment, FileFact, Pinned, Source, SourceKind
from forge.schema.wheels import NO_HASHES, Hashes
from forge.serve.server_types import Crash, Launch, Running, StartingError
from forge.serve.vitals import Health, Healths, Pulse, Signs, Stance, Usage, Used

LLAMA: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "torch_dtype": "float32",
    "vocab_size": 32,
}
"""A config.json as small as one can be."""


def tiny_checkpoint(config: Mapping[str, object] = LLAMA) -> dict[str, bytes]:
    """The files of a checkpoint: whole in its parts, with one empty weight. Path -> bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}}
    return {
        "config.json": json.dumps(dict(config)).encode(),
        "generation_config.json": b"{}",
        "model.safetensors": len(header).to_bytes(8, "little") + header,
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": b"{}",
    }


def tiny_adapter(rank: int = 4, module: str = "w", outer: tuple[int, int] = (16, 16), **config: object) -> dict[str, bytes]:
    """The files of a LoRA adapter over one module of ``outer`` (outputs, inputs), all zeros. Path -> bytes."""
    shapes = {"A": (rank, outer[1]), "B": (outer[0], rank)}
    header, at = dict[str, object](), 0
    for side, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        name = f"base_model.model.{module}.lora_{side}.weight"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [module.rpartition(".")[2]], **config}
    return {
        "adapter_config.json": json.dumps(stated).encode(),
        "adapter_model.safetensors": len(text).to_bytes(PREFIX, "little") + text + bytes(at),
    }


@dataclass
class FakeOrigin:
    """A place with one checkpoint, one data set and LoRA adapters by address in memory. ``fetches`` counts what was brought;
    ``down`` is a cut line."""

    files: dict[str, bytes] = field(default_factory=tiny_checkpoint)
    fetches: int = 0
    down: bool = False
    texts: dict[str, bytes] = field(default_factory=lambda: {"train.jsonl": b'{"text": "a few words"}\n'})
    adapters: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])

    def pin(self, source: Source, base: Path) -> Pinned:
        self._reach(source.address)
        facts = tuple(
            FileFact(path, len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")
            for path, content in sorted((self.texts if isinstance(source, Calibration) else self._held(source.address)).items())
        )
        commit = hashlib.sha256("".join(fact.digest for fact in facts).encode()).hexdigest()[:40]
        return Pinned(source.kind, source.address, commit, facts)

    def read(self, pinned: Pinned) -> Checkpoint:
        if pinned.kind is SourceKind.PATH and pinned.location:  # a folder that somebody has found, and not this origin's
            return Checkpoint(json.loads((Path(pinned.location) / "config.json").read_bytes()))
        self._reach(pinned.name)
        held = self._held(pinned.name)
        config = held.get("config.json", held.get("adapter_config.json"))
        return Checkpoint(json.loads(config) if config is not None else {})

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        self._reach(pinned.name)
        whole = [content for path, content in sorted(self._held(pinned.name).items()) if path.endswith(".safetensors")]
        return tuple(each for content in whole for each in parse(content[PREFIX : PREFIX + length(content)]))

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        self._reach(pinned.name)
        done, total = 0, sum(fact.size for fact in pinned.files)
        for fact in pinned.files:
            content = {**self.texts, **self._held(pinned.name)}.get(fact.path, b"")
            if f"sha256:{hashlib.sha256(content).hexdigest()}" != fact.digest:
                raise SourceError(f"{fact.path} is not what was pinned", where=pinned.name)
            target = into / fact.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            done += fact.size
            progress(done, total)
        self.fetches += 1

    def _held(self, address: str) -> dict[str, bytes]:
        return self.adapters.get(address, self.files)

    def _reach(self, address: str) -> None:
        if self.down:
            raise SourceError("out of reach", where=address, hint="fix the line")


@dataclass
class FakeEnvironments:
    """Environments that are only a list of what would be in them."""

    made: list[Environment] = field(default_factory=list[Environment])

    index: Hashes = field(default_factory=dict[str, tuple[str, ...]])
    """What an index says of everything that it is asked about."""

    def make(
        self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None], hashes: Hashes = NO_HASHES
    ) -> None:
        del hashes
        (into / "bin").mkdir(parents=True, exist_ok=True)
        (into / "bin" / "python3").write_text(f"#!{interpreter}\n")
        packages = "".join(f"{package}\n" for package in (*environment.packages, *environment.bare))
        (into / "packages.txt").write_text(packages)
        log(f"installed {len(environment.packages) + len(environment.bare)} packages")
        self.made.append(environment)

    def ask(self, environment: Environment, interpreter: str) -> Hashes:
        del environment, interpreter
        if not self.index:
            raise SourceError("the package index cannot be reached")
        return self.index


@dataclass
class FakeExecutor:
    """Runs commands by leaving what real ones would leave in /forge/out.

    A conversion gives TensorRT-LLM's checkpoint, a build its engine, anything else a Hugging Face checkpoint.
    A program named in ``failing`` ends with an error after it has written half of its result.
    """

    failing: frozenset[str] = frozenset()
    ran: list[Command] = field(default_factory=list[Command])

    def run(self, job: Job, line: Callable[[str], None]) -> None:
        argv = job.command.argv
        out = job.mounts["out"]
        out.mkdir(parents=True, exist_ok=True)
        self.ran.append(job.command)
        line(f"running {argv[0]}")
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(" ".join(argv) + "\n")
        (out / "config.json").write_text(json.dumps({"made_by": list(argv)}))
        if self.failing.intersection((argv[0], *(PurePosixPath(each).name for each in argv[:2]))):
            raise StepError(f"{argv[0]} ended with exit code 1", where=str(job.log), hint="read the log")
        for name, content in self._result(argv).items():
            (out / name).write_bytes(content)

    def _result(self, argv: tuple[str, ...]) -> dict[str, bytes]:
        told = "\n".join(argv).encode()
        if argv[0] == "trtllm-build":
            return {"rank0.engine": told}
        if any(each.endswith(("convert_checkpoint.py", "quantize.py")) for each in argv):
            return {"rank0.safetensors": told}
        return tiny_checkpoint()


@dataclass
class FakeServer:
    """A Triton that is only a note of what runs. A model named in ``broken`` does not load into one that runs; one named in
    ``stuck`` does not let itself be taken out, and Ctrl-C comes while one of ``interrupting`` loads."""

    alive: list[Running] = field(default_factory=list[Running])
    told: list[str] = field(default_factory=list[str])
    broken: set[str] = field(default_factory=set[str])
    stuck: set[str] = field(default_factory=set[str])
    interrupting: set[str] = field(default_factory=set[str])
    watched: list[str] = field(default_factory=list[str])
    busy: int = 0
    """How many more starts find that another forge is starting a server there."""
    failing: set[str] = field(default_factory=set[str])
    """Repositories whose server another forge is starting just now, and in vain: it is gone when that is over."""
    dead: dict[str, Pulse] = field(default_factory=dict[str, Pulse])
    """What models say in place of an answer, until they are restarted."""
    seen: dict[str, Signs] = field(default_factory=dict[str, Signs])
    """What is seen of models from outside; a restart leaves each with one process."""
    down: list[Running] = field(default_factory=list[Running])
    """Those that died, of ``died``; empty where they were asked to end."""
    died: str = ""
    stands: Stance = field(default_factory=lambda: Stance(speaks=True, stands=False))
    over: dict[str, str] = field(default_factory=dict[str, str])
    healths: Healths = field(default_factory=dict[str, Health])

    def command(self, launch: Launch) -> Command:
        models = tuple(f"--load-model={model}" for model in launch.models)
        return Command(("tritonserver", *(f"--model-repository={place}" for place in launch.repositories), *models))

    def start(self, launch: Launch, line: Callable[[str], None]) -> Running:
        if self.busy:
            self.busy -= 1
            raise StartingError("another forge is starting a server on this repository just now", where=str(launch.repository))
        line("ready")
        number = len(self.alive) + 1
        first, *others = map(str, launch.repositories)
        running = Running(first, number, 0.0, launch.ports, launch.models, "", f"fake-{number}", "", tuple(others), launch.base)
        running = replace(running, loaded=launch.entries)
        self.alive.append(running)
        return running

    def load(
        self,
        running: Running,
        launch: Launch,
        models: Sequence[str],
        line: Callable[[str], None],
    ) -> Running:
        for model in models:
            if model in self.broken:
                raise ServerError(f"model {model!r} did not load: it is broken", where=running.repository)
            if model in self.interrupting:
                raise KeyboardInterrupt
            self.told.append(f"load {model}")
            names = (*(each for each in running.models if each != model), model)
            known = {model: launch.entries[model]} if model in launch.entries else {}
            running = self._changed(running, names, {**running.loaded, **known})
        return running

    def unload(self, running: Running, models: Sequence[str]) -> Running:
        for model in models:
            if model in self.stuck:
                raise ServerError(f"model {model!r} could not be unloaded: it is stuck", where=running.repository)
            if model not in running.models:
                continue
            self.told.append(f"unload {model}")
            kept = {name: key for name, key in running.loaded.items() if name != model}
            running = self._changed(running, tuple(each for each in running.models if each != model), kept)
        return running

    def _changed(self, running: Running, models: tuple[str, ...], loaded: Mapping[str, str]) -> Running:
        at = next(number for number, each in enumerate(self.alive) if each.shared_memory == running.shared_memory)
        self.alive[at] = replace(self.alive[at], models=models, loaded=loaded)
        return self.alive[at]

    def running(self) -> tuple[Running, ...]:
        return tuple(self.alive)

    def current(self, marker: str) -> Running | None:
        return next((each for each in self.alive if each.shared_memory == marker), None)

    def settled(self, running: Running, model: str) -> Running:
        if running.repository in self.failing:
            self.failing.remove(running.repository)
            self.stop(running)
            raise ServerError("the server has ended", where=running.repository)
        return running

    def watch(self, running: Running, *, restart: bool, scrub: float) -> Running:
        if restart:
            self.watched.append(running.repository)
        return running

    def postmortem(self, marker: str) -> tuple[Running, str] | None:
        return next(((each, self.died) for each in self.down if each.shared_memory == marker), None)

    def crashed(self, running: Running, crash: Crash) -> Running:
        self.down = [replace(running, crashes=(*running.crashes, crash))]
        return self.down[0]

    def again(self, running: Running, launch: Launch, line: Callable[[str], None]) -> Running | None:
        if running.repository in self.failing:
            raise ServerError("the models do not load", where=running.repository)
        if running not in self.down:
            return None
        self.down, self.alive = [], [*self.alive, running]
        return running

    def give_up(self, running: Running, why: str) -> None:
        self.down, self.over = [], {running.repository: why}

    def ended(self) -> Mapping[str, str]:
        return self.over

    def ask(self, running: Running, deadline: float) -> tuple[Pulse, ...]:
        self.told.append("ask")
        return tuple(self.dead.get(model, Pulse(model=model, answers=True, seconds=deadline)) for model in running.models)

    def signs(self, running: Running) -> Mapping[str, Signs] | None:
        return {model: self.seen.get(model, Signs()) for model in running.models}

    def stance(self, running: Running) -> Stance:
        return self.stands

    def kill(self, running: Running) -> None:
        self.alive, self.down = [each for each in self.alive if each != running], [running]

    def usage(self, running: Running) -> Usage:
        models = {model: Used(host=10**8, requests=2) for model in running.models}
        return Usage(seconds=60.0, host=10**9, models=models)

    def restart(self, running: Running, launch: Launch, models: Sequence[str]) -> Running:
        self.told.append(f"restart {' '.join(models)}")
        for model in models:
            if model in self.broken:
                raise ServerError(f"model {model!r} did not load: it is broken", where=running.repository)
            self.dead.pop(model, None)
            if model in self.seen:
                self.seen[model] = Signs(processes=1, instances=1)
        return running

    def health(self, running: Running) -> Healths:
        return dict(self.healths)

    def note(self, running: Running, healths: Healths) -> None:
        self.healths = dict(healths)

    def stop(self, running: Running) -> None:
        self.alive = [each for each in self.alive if each.shared_memory != running.shared_memory]


@dataclass
class FakeClient:
    """A model that says the prompt's words again, one a chunk, up to max_tokens of them."""

    models: frozenset[str] = frozenset({"tensorrt_llm_bls", "ensemble"})

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        if request.model not in self.models:
            raise InferenceError(f"there is no model {request.model!r}", where=address)
        words = request.prompt.split()[: request.max_tokens]
        if not request.stream:
            yield Chunk(" ".join(words), final=True)
            return
        for number, word in enumerate(words):
            yield Chunk(f" {word}" if number else word)
        yield Chunk("", final=True)
