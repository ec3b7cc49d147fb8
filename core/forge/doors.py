"""The doors to the world: which adapter stands behind each port. Each is imported when it is first used."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from forge.builder import Tools
from forge.contained import Contained
from forge.containers import Containers
from forge.gpus import Gpu
from forge.machine import Machine
from forge.model import Host, SourceKind
from forge.ports import Client, Origin, Server
from forge.repository import Blank


class Doors:
    """One set of adapters over one home folder and one environment."""

    def __init__(self, home: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._home = home
        self._say = say
        self._environ = environ

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        from forge.adapters.folder import FolderOrigin
        from forge.adapters.ggufs import GgufOrigin
        from forge.adapters.gits import GitOrigin
        from forge.adapters.hub import HubOrigin
        from forge.adapters.wheels import WheelOrigin

        return {
            SourceKind.HUB: HubOrigin(self._home, self._environ, self._say),
            SourceKind.GIT: GitOrigin(self._home, self._environ, self._say),
            SourceKind.PATH: FolderOrigin(self._home),
            SourceKind.GGUF: GgufOrigin(self._home),
            SourceKind.WHEEL: WheelOrigin(self._environ),
        }

    @cached_property
    def machine(self) -> Machine:
        from forge.adapters.machine import ThisMachine

        return ThisMachine(self._environ)

    @cached_property
    def containers(self) -> Containers:
        from forge.adapters.docker_containers import DockerContainers

        return DockerContainers(self._environ)

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

    @property
    def blank(self) -> Blank:
        from forge.adapters.pbtxt import blank

        return blank

    @cached_property
    def tools(self) -> Tools:
        from forge.adapters.environments import PrivateEnvironments, backends
        from forge.adapters.programs import LocalExecutor

        return Tools(
            origins=self.origins,
            environments=PrivateEnvironments(self._environ),
            executor=LocalExecutor(self._environ),
            lay_backends=backends,
            blank=self.blank,
            contained=lambda: Contained(self.containers, self._home / "logs"),
            logs=self._home / "logs",
        )

    @cached_property
    def server(self) -> Server:
        from forge.adapters.serving import Servers

        return Servers(self._home, self._environ)

    @cached_property
    def client(self) -> Client:
        from forge.adapters.inference import TritonClient

        return TritonClient()

    def templated(self, tokenizer: Path, messages: Sequence[tuple[str, str]]) -> str:
        """``messages`` in the chat template of a tokenizer's folder, ready to be sent as a prompt."""
        from forge.adapters.chat import ChatTemplate

        return ChatTemplate.of(tokenizer).prompt(messages)
