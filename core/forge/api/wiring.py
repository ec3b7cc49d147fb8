"""The doors to the world: which adapter stands behind each port. Each is imported when it is first used."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from forge import diagnoses, families
from forge.benching.driving import Driver
from forge.benching.page import Page
from forge.benching.watching import Instruments
from forge.benching.workload import Tokenizer
from forge.builder import Tools
from forge.contained import Contained
from forge.containers import Answers, Containers, Inside
from forge.diagnoses import DIAGNOSES, Diagnosis
from forge.gpus import Gpu
from forge.halt import Halt
from forge.machine import Machine
from forge.model import Host, LimitsTable, Scalar, SourceKind
from forge.ports import Client, Origin, Ports, Request, Server
from forge.verifying.interviews import Stages
from forge.verifying.recitals import Reciter


class Known:
    """The failures that are known: the rows of a person's own ``file``, those of the installed plugins, forge's own.

    They are gathered when a failure is to be explained: plugins are imported for it.
    """

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self._file = file
        self._say = say

    def __iter__(self) -> Iterator[Diagnosis]:
        yield from self._own()
        yield from families.diagnoses()
        yield from DIAGNOSES

    def _own(self) -> tuple[Diagnosis, ...]:
        try:
            held = diagnoses.read(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            held = diagnoses.Own(problems=(str(error),))
        for problem in held.problems:
            self._say(f"{self._file}: {problem}; not used")
        return held.rows


class Doors:
    """One set of adapters over one home folder and one environment."""

    def __init__(self, home: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._home = home
        self._say = say
        self._environ = environ
        self._halt = Halt()

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        from forge.adapters.folder import FolderOrigin
        from forge.adapters.ggufs import GgufOrigin
        from forge.adapters.gits import GitOrigin
        from forge.adapters.hub import HubOrigin
        from forge.adapters.records import place
        from forge.adapters.wheels import WheelOrigin

        home = place(self._home, self._say)
        return {
            SourceKind.HUB: HubOrigin(home, self._environ, self._say),
            SourceKind.GIT: GitOrigin(home, self._environ, self._say, self._halt),
            SourceKind.PATH: FolderOrigin(home),
            SourceKind.GGUF: GgufOrigin(home),
            SourceKind.WHEEL: WheelOrigin(self._environ, self._halt),
        }

    @cached_property
    def machine(self) -> Machine:
        from forge.adapters.machine import ThisMachine

        return ThisMachine(self._environ)

    @cached_property
    def containers(self) -> Containers:
        from forge.adapters.docker_containers import DockerContainers

        return DockerContainers(self._environ, self._known, halt=self._halt)

    @cached_property
    def answers(self) -> Answers:
        from forge.adapters.records import Records

        return Records(self._home / "images")

    @cached_property
    def here(self) -> Inside:
        """This environment, for who runs forge inside NVIDIA's container."""
        from forge.adapters.here import Here

        return Here(self._environ, self._known, self._halt)

    @property
    def _known(self) -> Iterable[Diagnosis]:
        return Known(self._home / diagnoses.NAME, self._say)

    def gpus(self) -> tuple[Gpu, ...]:
        """What is here for engines, with what is free of it now."""
        from forge.adapters.gpus import present

        return present(self._environ)

    def memory(self) -> int:
        """Bytes of this machine's own memory that are free now."""
        from forge.adapters.gpus import host_memory

        return host_memory()

    def host(self) -> Host:
        from forge.adapters.environments import host

        return host(self._environ)

    @cached_property
    def tools(self) -> Tools:
        from forge.adapters.environments import PrivateEnvironments, backends
        from forge.adapters.programs import LocalExecutor

        return Tools(
            origins=self.origins,
            environments=PrivateEnvironments(self._environ, self._halt),
            executor=LocalExecutor(self._environ, self._halt, self._known),
            lay_backends=backends,
            contained=lambda: Contained(self.containers, self._home / "logs", self.here),
            logs=self._home / "logs",
            halt=self._halt,
        )

    @cached_property
    def server(self) -> Server:
        from forge.adapters.serving import Servers

        return Servers(self._home, self._environ)

    @cached_property
    def client(self) -> Client:
        from forge.adapters.inference import TritonClient

        return TritonClient()

    @property
    def patient(self) -> Client:
        """For who verifies: an answer that has not ended after five minutes is a failure, and no reason to wait for ever."""
        from forge.adapters.inference import TritonClient

        return TritonClient(timeout=300.0)

    @cached_property
    def stages(self) -> Stages:
        from forge.adapters.stages import TritonStages

        return TritonStages()

    def streams(self, address: str, model: str) -> bool:
        """Whether a served model may answer more than once."""
        from forge.adapters.inference import TritonClient

        return TritonClient().metadata(address, model).decoupled

    def reciter(self, python: str = "") -> Reciter:
        """A Python of this machine that speaks for a checkpoint: forge's own, unless another is named."""
        from forge.adapters.reciting import OwnPython

        return OwnPython(self._environ, python, self._halt)

    def image_reciter(self, image: str, key: str) -> Reciter:
        """The same in a container of the image with this id; ``key`` marks the container."""
        from forge.adapters.reciting import InImage

        return InImage(self.containers, image, key, self._home / "logs")

    def free_ports(self) -> Ports:
        """Addresses on the loopback that nobody listens on just now."""
        from forge.adapters.processes import spare

        http, grpc, metrics = spare(3)
        return Ports(http, grpc, metrics)

    def spans(self, tokenizer: Path, text: str) -> tuple[tuple[str, int], ...]:
        """The tokens of ``text``, as (text, how many)."""
        from forge.adapters.spans import spans

        return spans(tokenizer, text)

    def templated(self, tokenizer: Path, messages: Sequence[tuple[str, str]], limits: LimitsTable) -> str:
        """``messages`` in the chat template of a tokenizer's folder, ready to be sent as a prompt."""
        return self._rendered(tokenizer, messages, limits)

    @cached_property
    def _rendered(self) -> Callable[[Path, Sequence[tuple[str, str]], LimitsTable], str]:
        from forge.adapters.chat import ChatTemplates

        return ChatTemplates().prompt

    # -- measuring

    def load_loop(self, clock: Callable[[], float]) -> Driver:
        """The driver that forge brings."""
        from forge.benching.load import LoopDriver
        from forge.client import AsyncClient

        return LoopDriver(AsyncClient, clock)

    def aiperf(self, python: Path, hold: Callable[[], AbstractContextManager[None]], say: Callable[[str], None]) -> Driver:
        """NVIDIA's tool as a driver, in the environment of ``python``, which ``hold`` keeps."""
        from forge.adapters.aiperf import Aiperf, AiperfDriver
        from forge.adapters.inference import TritonClient

        tool = Aiperf(python, hold, TritonClient().metadata, self.tokens)
        return AiperfDriver(tool, self._home / "bench" / "aiperf", self._environ, self._halt, say)

    def instruments(self, ports: Ports) -> Instruments:
        """What looks at a server while it is under load."""
        from forge.adapters.instruments import ServerInstruments

        return ServerInstruments(ports)

    def tokens(self, folder: Path) -> Tokenizer:
        """The tokenizer of a model, for counting."""
        from forge.adapters.tokens import TokenizerFolder

        return TokenizerFolder(folder)

    def inputs(self, address: str, model: str) -> frozenset[str]:
        """The names of what a served model takes."""
        from forge.client import Client as Served

        with Served(address) as client:
            return frozenset(client.metadata(model).inputs)

    def stated(self, address: str, request: Request) -> Mapping[str, Scalar | list[Scalar]]:
        """What ``request`` says besides its prompt and its length, under the served model's own names."""
        from forge.adapters.wire import stated
        from forge.client import Client as Served

        with Served(address) as client:
            return stated(request, client.metadata(request.model))

    def processor(self) -> tuple[str, int, int]:
        """The processor's name, how many there are for this process, and bytes of memory."""
        from forge.adapters.processor import processor

        return processor()


def draws() -> bool:
    """Whether what draws pages is installed."""
    return find_spec("bokeh") is not None


def drawn(page: Page) -> str:
    """A benchmark's page as one HTML file."""
    from forge.adapters.bench_page import html

    return html(page)
