"""Where AIConfigurator is installed, and how it is run there: one process, without a network."""

import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import msgspec

from forge.bench.aiconfigurator import known
from forge.bench.aiconfigurator.proposals import Answer, read
from forge.bench.aiconfigurator.question import Question
from forge.build.builder import Builder, Tools
from forge.events import Event, Listener
from forge.machine.bonds import temporary
from forge.machine.containers import Executor, Job
from forge.plan.steps import MakeEnvironment, Step
from forge.schema.values import Command, Host
from forge.store.store import Store

_OUT = "answer.json"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}


def ask(question: Question, host: Host, store: Store, builder: Builder, tools: Tools, tell: Listener) -> Answer:
    """AIConfigurator's answer; its environment is an artifact like any other, made when it is first asked for.

    HostError for a machine that cannot hold it, SourceError where its packages cannot be had, StepError, with the end of its
    log, where it fails.
    """
    step = Step("aiconfigurator", MakeEnvironment(known.environment(host), host.interpreter))
    if store.find(step.key) is None:
        size = f"{len(known.pins())} packages, {known.SIZE}"
        tell(Event("note", step.name, step.key, text=f"AIConfigurator {known.version()} gets an environment, once: {size}"))
    with store.using([step.key]):
        return run(question, builder.realise([step])[step.key].path, tools.executor, tools.logs)


def run(question: Question, environment: Path, executor: Executor, logs: Path) -> Answer:
    """Ask in the environment that stands there."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "aiconfigurator.log"
    with (
        tempfile.TemporaryDirectory(prefix="aiconfigurator-", dir=temporary()) as scratch,
        as_file(files("forge.bench.aiconfigurator") / "ask.py") as script,
    ):
        place = Path(scratch)
        (place / "question.json").write_bytes(msgspec.json.encode(question))
        argv = (str(environment / "bin" / "python3"), "-I", "/forge/script", "/forge/question", f"/forge/out/{_OUT}")
        mounts = {"environment": environment, "script": script, "question": place / "question.json", "out": place}
        executor.run(Job(Command(argv, {**_OFFLINE, "HOME": scratch}), mounts, log, (_OUT,)), lambda _: None)
        return read((place / _OUT).read_bytes(), str(log))
