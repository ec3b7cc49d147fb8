"""The campaign's course in containers: forge builds and serves on an own Docker engine and the stand-in for NVIDIA's image.

A container, its shim, dockerd or forge dies; dockerd is started again where it died, and the next command works.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from secrets import token_hex

from docker_fixture import children, engine_pid, listed, load, private_engine, start
from forge.api.forge import Forge
from forge.machine.docker.owners import OWNER
from forge.serve.state import States
from forge.trtllm.toolchain import template
from patience import spare
from standin import checkpoints, image
from standin.tree import Image
from torture import Campaign, Spent
from torture_left import in_time, told
from torture_tally import Tally
from torture_turns import REFUSED, Turn, Words

RECIPE = """
name = "contained"
family = "llama"
[source]
path = "checkpoint"
[runtime]
image = "{image}"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 2
max_input_len = 60
max_seq_len = {length}
[serve]
instances = 1
"""


def why_not() -> str:
    """Why no Docker engine can be had here; empty where one can."""
    if os.geteuid() != 0:
        return "only root can start a dockerd of its own"
    return "" if shutil.which("dockerd") else "there is no dockerd here (Debian has it in docker.io)"


def image_of(home: Path) -> Image:
    """The stand-in's archive, of the serving environment in this home."""
    store = Forge(home, dict(os.environ)).store
    made = next(one.path for one in store.artifacts() if one.manifest.provenance.step == "environment")
    return image.archive(made)


@dataclass
class InContainers(Campaign):
    """A campaign whose victims are Docker's, too."""

    engine: Path = Path()
    reference: str = ""
    order: list[str] = field(default_factory=list[str])

    @classmethod
    def course(cls, folder: Path, archive: Image, random: Random, spent: Spent) -> Tally:
        """All of it, from the engine's start to its end."""
        with private_engine() as (address, engine):
            load(address, archive.archive)
            os.environ["DOCKER_HOST"] = address
            ports, reference = spare(3), archive.reference
            campaign = cls(folder, folder / "home", random, ports, share=0.12, engine=engine, reference=reference)
            campaign.begin()
            spent.on(campaign)
            return campaign.tally

    def begin(self) -> None:
        checkpoints.llama(self.folder / "checkpoint")
        (self.folder / "Dockerfiles").mkdir()
        self._renew(image_too=True)
        code, text = self.run(self.building)
        if code:
            raise SystemExit(f"the first build in containers fails: {text}")

    @property
    def building(self) -> Words:
        return "build", "contained.toml", "--repository", str(self.repository)

    @property
    def serving(self) -> Words:
        http, grpc, metrics = map(str, self.ports)
        ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
        return "serve", "--detach", "--repository", str(self.repository), *ports

    @property
    def stopping(self) -> Words:
        return "stop", "--repository", str(self.repository)

    def _renew(self, *, image_too: bool) -> None:
        """An engine that is not held yet, sometimes of an image that is not either."""
        text = RECIPE.format(image=self.reference, length=self.random.randrange(100, 400))
        (self.folder / "contained.toml").write_text(text, encoding="utf-8")
        if image_too:
            text = f"{template()}\n# {token_hex(8)}\n"
            (self.folder / "Dockerfiles" / "family.Dockerfile").write_text(text, encoding="utf-8")

    def turn(self) -> None:
        self.order = self.order or self.random.sample(["build", "build", "serve", "stop"], 4)
        verb, before = self.order[-1], self.tally.total
        if verb == "build":
            if image_too := self.random.random() < 0.25:
                self._works(self.stopping, known=(0, 6, 9, 10))  # a server of another image could not take it in
            self._renew(image_too=image_too)
            words = self.building
        else:
            self._works(self.building)
            words = self.serving if verb == "serve" else self.stopping
            self._works(self.stopping if verb == "serve" else self.serving, known=(0, 6, 9, 10))
        self.run(words, verb)
        if self.tally.total > before:
            self.order.pop()
        start(self.engine)
        self.next(Turn(verb, words))
        for each in self.left():
            self.fault(f"left after the next command: {each}")

    def next(self, drawn: Turn) -> None:
        """The same again, or what ends it; both speak to the engine."""
        again = drawn.words if drawn.verb == "build" or self.random.random() < 0.5 else self.stopping
        self._works(again, known=(0,) if drawn.verb == "build" else REFUSED)
        if drawn.verb != "build":
            self._works(("status",))

    def _works(self, words: Words, known: tuple[int, ...] = (0,)) -> None:
        code, text = self.run(words)
        if code not in known:
            self.fault(f"`forge {' '.join(words)}` says {code}: {text[-1500:]}")

    def victims(self, pid: int) -> dict[str, list[int]]:
        found = super().victims(pid)
        shims = [each for each in told(self.engine) if _is_shim(each)]
        contained = [each for shim in shims for each in _below(shim)]
        with suppress(OSError):
            found |= {"dockerd": [engine_pid(self.engine)]}
        return {**found, "triton": [], "child": [], "container": contained, "shim": shims}

    def left(self) -> list[str]:
        """The same, and containers that no living server is."""
        ours = in_time(self.folder, self.home, (self.repository,), self.ports)
        return [*ours, *containers_left(f"unix://{self.engine}/docker.sock", self.home)]

    def end(self) -> None:
        """Stop all, build once more, and look for what is left."""
        for words in (("stop", "--all"), self.building, ("cache", "gc"), ("cache", "verify")):
            self._works(words, known=(0, 9, 10))
        for each in self.left():
            self.fault(f"left in the end: {each}")
        if staged := [each.name for each in (self.home / "store" / "staging").glob("*")]:
            self.fault(f"the store's staging holds {staged}")


def containers_left(address: str, home: Path) -> list[str]:
    """Containers that forge started on this engine and that are no server of this home.

    What the builder of dockerd leaves of a RUN step, where dockerd is killed, has a name of Docker's and the image's labels;
    so has whatever a person starts from such an image, and forge takes neither away.
    """
    kept = {one.container for one in States(home / "servers").kept()}
    names = {one.names[0].lstrip("/") for one in listed(address) if OWNER in one.labels}
    return [f"container {name}" for name in sorted(names - kept)]


def _is_shim(pid: int) -> bool:
    with suppress(OSError):
        return b"containerd-shim" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    return False


def _below(pid: int) -> list[int]:
    with suppress(OSError):
        return children(pid)
    return []
