"""A Forge that is wired to fakes: everything between the recipe and the repository is real, the world is not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fake_containers import FakeContainers
from fakes import FakeClient, FakeEnvironments, FakeExecutor, FakeOrigin, FakeServer
from forge.api.forge import Forge
from forge.api.wiring import PackedWiring, Wiring
from forge.build.builder import Tools
from forge.build.bundle.opened import Opened
from forge.build.in_containers import Contained
from forge.build.sources.source import Origin
from forge.client.types import Client
from forge.events import Event, Listener
from forge.machine.containers import Containers, Inside
from forge.machine.inside import Here
from forge.schema.values import Gpu, Host, SourceKind, TextFile
from forge.serve.server_types import Server
from forge.settings import PLAIN, Settings


def lay_backends(environment: Path, triton: str, into: Path, sources: tuple[TextFile, ...]) -> None:
    """The twin's sources beside a note of where the rest would come from."""
    (into / "python").mkdir()
    (into / "python" / "from.txt").write_text(f"{triton or environment.name}\n")
    for source in sources:
        target = into / source.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.content)


@dataclass
class World:
    """The fakes, for a test to look at and to break."""

    origin: FakeOrigin = field(default_factory=FakeOrigin)
    environments: FakeEnvironments = field(default_factory=FakeEnvironments)
    executor: FakeExecutor = field(default_factory=FakeExecutor)
    server: FakeServer = field(default_factory=FakeServer)
    client: FakeClient = field(default_factory=FakeClient)
    containers: FakeContainers = field(default_factory=FakeContainers)
    gpus: tuple[Gpu, ...] = ()
    memory: int = 16 * 10**9
    events: list[Event] = field(default_factory=list[Event])
    wiring: list[Wiring] = field(default_factory=list[Wiring])

    def shop(self, home: Path, listener: Listener | None = None, settings: Settings = PLAIN) -> Forge:
        self.wiring.append(FakeWiring(home, self))
        return Forge(home, {}, listener or self.events.append, self.wiring[-1], settings=settings)

    def made(self) -> list[str]:
        """The steps that were made, by name."""
        return [event.step for event in self.events if event.kind == "made"]


class FakeWiring(Wiring):
    """The wiring of one World."""

    def __init__(self, home: Path, world: World) -> None:
        super().__init__(home, {}, lambda _: None)
        self._world = world
        self._logs = home / "logs"

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        return dict.fromkeys(SourceKind, self._world.origin)

    def gpus(self) -> tuple[Gpu, ...]:
        return self._world.gpus

    def memory(self) -> int:
        return self._world.memory

    def host(self) -> Host:
        return Host("3.11", "/usr/bin/python3.11", "linux-x86_64")

    @cached_property
    def tools(self) -> Tools:
        world = self._world
        contained = Contained(world.containers, self._logs, self.here)
        return Tools(self.origins, world.environments, world.executor, lay_backends, lambda: contained, self._logs)

    @cached_property
    def containers(self) -> Containers:
        return self._world.containers

    @cached_property
    def here(self) -> Inside:
        return Here({}, root=self._logs / "nowhere")

    @cached_property
    def server(self) -> Server:
        return self._world.server

    @cached_property
    def client(self) -> Client:
        return self._world.client

    @property
    def patient(self) -> Client:
        return self.client

    def packed(self, bundle: Opened) -> Wiring:
        wiring = FakePackedWiring(self._home, self._world)
        wiring.bundle = bundle
        return wiring


class FakePackedWiring(PackedWiring, FakeWiring):
    """The same world, and a bundle in the place of its network."""

    def __init__(self, home: Path, world: World) -> None:
        FakeWiring.__init__(self, home, world)


ENGINE = """
name = "tiny"
[source]
hub = "acme/tiny"
[runtime]
kind = "engine"
image = "25.08"
gpus = "none"
"""
