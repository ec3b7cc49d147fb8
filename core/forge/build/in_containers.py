"""Steps that happen in containers: what is read out of an image, the family image, and commands run in it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

from forge.errors import ForgeError, HostError, StepError
from forge.events import Event, Listener
from forge.machine.bonds import temporary
from forge.machine.containers import HOME, ContainerRun, Containers, ImageBuild, Inside, Progress, dockerfile
from forge.plan.steps import MakeImage, ReadToolchain, Run, Step
from forge.schema.values import LOCAL
from forge.store.artifact import IMAGE
from forge.trtllm import patches, toolchain

Line = Callable[[str], None]


class Contained(Struct, frozen=True):
    """Performs steps through the container engine; ``logs`` keeps each command's output whole."""

    containers: Containers
    logs: Path
    here: Inside | None = None
    """Where steps run whose image is ``LOCAL``."""

    def read_toolchain(self, action: ReadToolchain, out: Path, line: Line) -> None:
        """Skeletons, scripts and help texts of an image, as one artifact."""
        from concurrent.futures import ThreadPoolExecutor

        helps: dict[str, str] = {}
        containers = self._of(action.reference)
        with ThreadPoolExecutor() as pool:  # each is a container of its own, and most of its time is the daemon's
            asked = {
                words: pool.submit(containers.help_text, action.reference, (*words, "--help"), action.gpus)
                for words in action.programs
            }
        contents = containers.read(action.reference, toolchain.paths(action.programs))
        for words, answer in asked.items():
            try:
                helps[words[-1]] = answer.result()
            except (
                ForgeError
            ) as error:  # a script that needs a GPU to be imported says nothing without one: then nothing is checked
                line(f"{words[-1]} --help says nothing here, so its flags are not checked beforehand: {error.what}")
        for path, content in toolchain.files(contents, helps).items():
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def make_image(self, step: Step, action: MakeImage, out: Path, tell: Listener) -> None:
        """The family's image; the daemon keeps it, the artifact says which it is."""
        identity = self.image(step, action, tell)
        stated = {"id": identity, "base": action.base, "reference": action.reference}
        (out / IMAGE).write_text(json.dumps(stated) + "\n")

    def run(self, step: Step, action: Run, needs: Mapping[str, Path], out: Path, tell: Listener) -> None:
        """Every command in turn, each in a container of its own, with the step's inputs at their constant paths.

        What the step promises has to be there after the last: a file that is missing is explained by that container's log.
        """
        maker = next(need for name, need in step.needs if name == "image")
        if not isinstance(maker.action, MakeImage):
            raise StepError("its image is made by nothing that makes images", where=step.name)
        image, line = self.image(maker, maker.action, tell), _told(step, tell)
        inputs = {name: path for name, path in needs.items() if name not in ("image", "toolchain")}
        with TemporaryDirectory(prefix="scripts-", dir=temporary()) as scratch:
            overlays = self._overlays(action, needs.get("toolchain"), Path(scratch), line)
            for number, command in enumerate(action.commands):
                line(f"{step.name}: {' '.join(command.argv)}")
                last = number == len(action.commands) - 1
                run = ContainerRun(
                    image=image,
                    command=command,
                    inputs=inputs,
                    out=out,
                    log=self._log(step, number),
                    key=step.key,
                    overlays=overlays,
                    gpus=action.gpus,
                    promised=step.promises if last else (),
                )
                self._of(maker.action.reference).run(run, line)

    def image(self, step: Step, action: MakeImage, tell: Listener) -> str:
        """The id of the family image: found by its key, or built now, also where somebody has pruned it since.

        This environment is taken as it is: what it lacks of the requirements is said, and never installed.
        """
        if self.here is not None and action.reference == LOCAL:
            if lacking := self.here.lacking(action.requirements):
                hint = "\n".join(problem.hint for problem in lacking)
                raise HostError("\n".join(f"{each.where} {each.what}" for each in lacking), where=step.name, hint=hint)
            return LOCAL
        base = self.containers.inspect(action.reference)
        if base is None:
            base = self.containers.hold(action.reference, _pulled(step, tell))
        if not action.requirements.pip and not action.requirements.apt:
            return base.id
        try:
            text = dockerfile(base.base, action.requirements, action.template)
        except ValueError as error:
            raise StepError(f"the family image cannot be described: {error}", where=step.name) from error
        log = self._log(step, 0)
        build = ImageBuild(action.family, step.key, text, log, {HOME: str(self.logs.parent)})
        return self.containers.build(build, _told(step, tell))

    def _of(self, reference: str) -> Containers:
        return self.here if self.here is not None and reference == LOCAL else self.containers

    def _log(self, step: Step, number: int) -> Path:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{step.key[:16]}-{number}.log"

    def _overlays(self, action: Run, tools: Path | None, scratch: Path, line: Line) -> dict[str, Path]:
        """Patched copies of scripts, by the path in the image that each is mounted over."""
        scripts = toolchain.read(tools).scripts if tools and action.patches else dict[str, str]()
        changed, notes = patches.patched(action.patches, scripts)
        for note in notes:
            line(note)
        overlays = {text.path: scratch / f"{number}.py" for number, text in enumerate(changed)}
        for text in changed:
            overlays[text.path].write_text(text.content, encoding="utf-8")
        return overlays


def _told(step: Step, tell: Listener) -> Line:
    return lambda text: tell(Event("log", step.name, step.key, text=text))


def _pulled(step: Step, tell: Listener) -> Progress:
    return lambda done, total: tell(Event("progress", step.name, step.key, done=done, total=total))
