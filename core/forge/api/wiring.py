"""Which adapter is used for each port (a protocol of what forge needs of the world). Each is imported when it is first used."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from forge import diagnoses, settings
from forge.bench.driver import Driver
from forge.bench.readings import Instruments
from forge.bench.workload import Tokenizer
from forge.build.builder import Tools
from forge.build.bundle.opened import Opened
from forge.build.in_containers import Contained
from forge.build.sources.source import Origin
from forge.build.supply import Sharing, notary, sharing
from forge.client.chat_template import Turn
from forge.client.types import Client, ModelMetadata
from forge.cluster.equipment import Equipment
from forge.cluster.fleet import Fleet
from forge.diagnoses import Diagnosis
from forge.events import Event, Listener
from forge.machine.bonds import require_own_proc
from forge.machine.containers import Answers, Containers, Inside
from forge.machine.interrupt import Halt
from forge.machine.machine import Machine
from forge.plan.known_failures import Known
from forge.remote.place import Place
from forge.remote.signature import Notary
from forge.schema.values import Environment, Gpu, Host, LimitsTable, Ports, SourceKind
from forge.schema.wheels import Hashes
from forge.serve.server_types import Server
from forge.settings import RemoteTable
from forge.store.store import Store
from forge.verify.interview import Stages
from forge.verify.reference import Reciter

_LOOK = 10.0
"""Seconds for a server to say what a model takes."""


def equipped(tell: Listener) -> Equipment:
    """What the machine that this is called on works with, as its own environment and config file say: for a cluster's nodes."""
    environ = dict(os.environ)
    said = settings.read(environ)
    wiring = Wiring(
        settings.home(environ, said), environ, lambda text: tell(Event("note", "facts", text=text)), said.images.mirror
    )
    return wiring.equipment(said.remote)


class Wiring:
    """One set of adapters over one home folder and one environment."""

    def __init__(self, home: Path, environ: Mapping[str, str], say: Callable[[str], None], mirror: str = "") -> None:
        """``mirror`` is where NVIDIA's images are pulled from, in the place of nvcr.io."""
        require_own_proc()
        self._home = home
        self._mirror = mirror
        self._say = say
        self._environ = environ
        self._halt = Halt()

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        from forge.build.sources.folder import FolderOrigin
        from forge.build.sources.gguf import GgufOrigin
        from forge.build.sources.git import GitOrigin
        from forge.build.sources.hub import HubOrigin
        from forge.build.sources.lookups import place
        from forge.build.sources.wheel import WheelOrigin

        home = place(self._home, self._say)
        return {
            SourceKind.HUB: HubOrigin(home, self._environ, self._say),
            SourceKind.GIT: GitOrigin(home, self._environ, self._say, self._halt),
            SourceKind.PATH: FolderOrigin(home),
            SourceKind.GGUF: GgufOrigin(home),
            SourceKind.WHEEL: WheelOrigin(self._environ, self._halt),
        }

    def place(self, url: str, deadline: float) -> Place:
        """What a shared store lies on."""
        from forge.remote.open import place

        return place(url, deadline)

    def sharing(self, said: RemoteTable, tell: Listener, clock: Callable[[], float], notary: Notary) -> Sharing | None:
        """The store that several machines share, where ``said`` names one."""
        return sharing(said, self.place, tell, clock, notary)

    def notary(self, said: RemoteTable, store: Store) -> Notary:
        """Who signs here, and whose signatures count."""
        return notary(said, settings.place().parent, self._environ, store)

    def packed(self, bundle: Opened) -> "Wiring":
        """The same over a bundle in the place of a network."""
        wiring = PackedWiring(self._home, self._environ, self._say)
        wiring.bundle = bundle
        return wiring

    @property
    def templates(self) -> Path:
        """Where a person's own Dockerfiles for families stand."""
        return Path("Dockerfiles")

    @cached_property
    def machine(self) -> Machine:
        from forge.machine.probe import ThisMachine

        return ThisMachine(self._environ)

    @cached_property
    def containers(self) -> Containers:
        from forge.machine.docker.containers import DockerContainers

        return DockerContainers(self._environ, self._known, self._halt, self._mirror)

    @cached_property
    def answers(self) -> Answers:
        from forge.build.sources.lookups import Records

        return Records(self._home / "images")

    @cached_property
    def here(self) -> Inside:
        """This environment, for who runs forge inside NVIDIA's container."""
        from forge.machine.inside import Here

        return Here(self._environ, self._known, self._halt)

    @property
    def _known(self) -> Iterable[Diagnosis]:
        return Known(self._home / diagnoses.NAME, self._say)

    def gpus(self) -> tuple[Gpu, ...]:
        """What is here for engines, with what is free of it now."""
        from forge.machine.gpus import present

        return present(self._environ)

    def memory(self) -> int:
        """Bytes of this machine's own memory that are free now."""
        from forge.machine.gpus import host_memory

        return host_memory()

    def host(self) -> Host:
        from forge.machine.environments import host

        return host(self._environ)

    def package_hashes(self, environment: Environment) -> Hashes:
        return self.tools.environments.ask(environment, self.host().interpreter)

    @cached_property
    def tools(self) -> Tools:
        from forge.machine.environments import PrivateEnvironments, backends
        from forge.machine.local_executor import LocalExecutor

        return Tools(
            origins=self.origins,
            environments=PrivateEnvironments(self._environ, self._halt),
            executor=LocalExecutor(self._environ, self._halt, self._known),
            lay_backends=backends,
            contained=lambda: Contained(self.containers, self._home / "logs", self.here),
            logs=self._home / "logs",
            halt=self._halt,
        )

    def equipment(self, said: RemoteTable) -> Equipment:
        """What this machine works with, as a node of a cluster or beside one; it signs and trusts as ``said``."""
        store = Store(self._home / "store", clock=time.time)
        return Equipment(store, self.tools, self.place, self.machine, lambda: self.containers, self.notary(said, store))

    def fleet(self) -> Fleet:
        """The cluster's machines; each finds its own equipment."""
        from forge.cluster.ray_fleet import RayFleet

        return RayFleet(equipped)

    @cached_property
    def server(self) -> Server:
        from forge.serve.server import Servers

        return Servers(self._home, self._environ)

    @cached_property
    def client(self) -> Client:
        from forge.client.grpc import TritonClient

        return TritonClient()

    @property
    def patient(self) -> Client:
        """For who verifies: an answer that has not ended after five minutes is a failure, and no reason to wait for ever."""
        from forge.client.grpc import TritonClient

        return TritonClient(timeout=300.0)

    @cached_property
    def stages(self) -> Stages:
        from forge.verify.stages import TritonStages

        return TritonStages()

    def metadata(self, address: str, model: str) -> ModelMetadata:
        """What a served model takes and gives."""
        from forge.client.grpc import TritonClient

        return TritonClient(timeout=_LOOK).metadata(address, model)

    def reciter(self, python: str = "") -> Reciter:
        """A Python of this machine that speaks for a checkpoint: forge's own, unless another is named."""
        from forge.verify.reciter import OwnPython

        return OwnPython(self._environ, python, self._halt)

    @cached_property
    def templated(self) -> Callable[[Path, Sequence[Turn], LimitsTable], str]:
        """Messages in the chat template of a tokenizer's folder, ready to be sent as a prompt."""
        from forge.client.chat_template import ChatTemplates

        return ChatTemplates().prompt

    # -- measuring

    def load_loop(self, clock: Callable[[], float]) -> Driver:
        """The driver that forge brings."""
        from forge.bench.load import LoopDriver
        from forge.client.grpc_aio import AsyncClient

        return LoopDriver(AsyncClient, clock)

    def aiperf(self, python: Path, hold: Callable[[], AbstractContextManager[None]], say: Callable[[str], None]) -> Driver:
        """NVIDIA's tool as a driver, in the environment of ``python``, which ``hold`` keeps."""
        from forge.bench.aiperf.driver import Aiperf, AiperfDriver
        from forge.client.grpc import TritonClient

        tool = Aiperf(python, hold, TritonClient().metadata, self.tokens)
        return AiperfDriver(tool, self._home / "bench" / "aiperf", self._environ, self._halt, say)

    def instruments(self, ports: Ports) -> Instruments:
        """What looks at a server while it is under load."""
        from forge.bench.instruments import ServerInstruments

        return ServerInstruments(ports)

    def tokens(self, folder: Path) -> Tokenizer:
        """The tokenizer of a model, for counting."""
        from forge.client.tokenizer import TokenizerFolder

        return TokenizerFolder(folder)


class PackedWiring(Wiring):
    """Adapters over a bundle: where a network would be asked, it answers. ``bundle`` is set before anything is asked."""

    bundle: Opened

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        from forge.build.bundle.replay import PackedOrigin

        return dict.fromkeys(SourceKind, PackedOrigin(self.bundle.contents, self.bundle.place))

    @cached_property
    def containers(self) -> Containers:
        from forge.build.bundle.replay import PackedContainers

        return PackedContainers(super().containers, self.bundle.packed, self.bundle.contents)

    @cached_property
    def answers(self) -> Answers:
        from forge.build.bundle.replay import PackedAnswers

        return PackedAnswers(self.bundle.contents, super().answers)

    @cached_property
    def tools(self) -> Tools:
        from forge.build.bundle.replay import PackedEnvironments

        environments = PackedEnvironments(self.bundle.packed, self.bundle.contents)
        tools = super().tools
        return replace(
            tools,
            origins=self.origins,
            environments=environments,
            contained=lambda: Contained(self.containers, tools.logs, self.here),
        )

    @property
    def templates(self) -> Path:
        return self.bundle.templates

    def host(self) -> Host:
        from forge.machine.environments import host_with

        return self.bundle.host(super().host(), lambda python: host_with(python, self._environ))

    def sharing(  # no network is asked
        self,
        said: RemoteTable,  # noqa: ARG002
        tell: Listener,
        clock: Callable[[], float],
        notary: Notary,  # noqa: ARG002 - the bundle's own signature was looked at
    ) -> Sharing:
        from forge.build.bundle.supply import supplied

        return supplied(self.bundle, tell, clock)
