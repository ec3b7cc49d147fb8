"""The half of Forge that needs no recipe: which servers run, their logs and their end, and asking what they serve."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from forge.api.found import Results, search
from forge.api.wiring import Wiring
from forge.build.executor import Executors
from forge.build.toolbox import Toolbox, toolbox
from forge.client.chat_template import Turn
from forge.client.types import Chunk, Request
from forge.errors import ServerError
from forge.events import Event, Listener
from forge.repository.folders import whole
from forge.serve.log import lines, written
from forge.serve.lookup import Target, offered, running_on, served
from forge.serve.restart import unwatched
from forge.serve.server_types import Launch, Running
from forge.serve.state import DIED_LOG, States
from forge.settings import Settings

AnyPath = str | Path


class Served:
    """What runs in one home folder."""

    home: Path
    settings: Settings
    _wiring: Wiring
    _say: Callable[[str], None]
    _tell: Listener

    def servers(self) -> tuple[Running, ...]:
        """The servers of this home folder that are alive."""
        return self._wiring.server.running()

    def server(self, repository: AnyPath | None = None) -> Running:
        """The one that serves ``repository``, alone or with others."""
        return running_on(str(self._place(repository)), self.servers())

    def settled(self, repository: AnyPath, model: str) -> Running:
        """The server on ``repository`` once another forge that is starting it just now has it ready, or has ``model`` in it.

        ServerError where none runs there, or that start came to nothing.
        """
        return self._wiring.server.settled(self.server(repository), model)

    def _place(self, repository: AnyPath | None = None) -> Path:
        return whole(repository or self.settings.repository)

    def offered(self) -> tuple[str, ...]:
        """The names of all models that are served."""
        return offered(self.servers())

    def stop(self, running: Running) -> None:
        """Stop it; returns when no process and no shared memory is left."""
        self._wiring.server.stop(running)

    def logs(self, repository: AnyPath | None = None, *, follow: bool = False, tail: int | None = None) -> Iterator[str]:
        """The lines of the server's log, or of the last one's, or the last ``tail`` of them; with ``follow`` until it ends."""
        place, servers = self._place(repository), self.servers()
        running = next((each for each in servers if str(place) in each.repositories), None)
        first = Path(running.log) if running else States(self.home / "servers").log(place)
        log = written(running) if running else first
        if not log.is_file():  # a start that failed before it had one, after a Triton that died
            log = first.with_suffix(DIED_LOG)
        if running is None:
            if not log.is_file():
                running_on(str(place), servers)  # says where servers run
            self._say(f"no server runs on {place}: the last one's log ({log})")

        def now() -> Path | None:
            return written(found) if running and (found := self._now(running)) else None

        return lines(log, now if follow and running else None, tail)

    def wait(self, running: Running) -> None:
        """Return when the server has ended, as somebody asked it to; ServerError where it died and is not started again."""
        crashes = len(running.crashes)
        while now := self._now(running):
            for crash in now.crashes[crashes:]:
                self._tell(Event("note", "server", text=f"Triton died: {crash.why}; it is being started again"))
            crashes = len(now.crashes)
            time.sleep(0.5)
        if why := self.ended().get(running.repository):
            hint = f"its logs: {Path(running.log).with_suffix('.*log')}"
            raise ServerError(why, where=running.repository, hint=hint)

    def _now(self, running: Running) -> Running | None:
        """The server that was started so, also where it was started again."""
        mine = (running.shared_memory, running.nonce)
        return next((other for other in self.servers() if (other.shared_memory, other.nonce) == mine), None)

    def _left_alone(self, wanted: Launch) -> Running | None:
        """The server that was started as ``wanted`` and that nobody looks after any more."""
        for each in self.servers():
            same = replace(each.ports, key_file=wanted.ports.key_file) == wanted.ports
            if same and each.repositories == tuple(map(str, wanted.repositories)) and unwatched(each) and not each.down:
                return each
        return None

    def ended(self) -> Mapping[str, str]:
        """Repository -> of what its server died, where nobody has started one there, or stopped it, since."""
        return self._wiring.server.ended()

    def target(self, model: str, repository: AnyPath | None = None) -> Target:
        """Find a served model by its recipe's name, among the running servers or in one repository's."""
        return served(model, self.servers() if repository is None else (self.server(repository),))

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        """Ask and stream the answer; closing the iterator cancels the request."""
        return self._wiring.client.generate(address, request)

    def definition(self) -> Mapping[str, str]:
        """KServe's service definition with Triton's extensions: the text of each .proto file by its name."""
        from forge.client.definition import definition

        return definition()

    def spans(self, target: Target, text: str) -> tuple[tuple[str, int], ...]:
        """The tokens of ``text`` in the model's own tokenizer, as (text, how many); empty where that cannot be known."""
        from forge.client.tokenizer import spans

        return spans(target.tokenizer, text)

    def templated(self, target: Target, messages: Sequence[Turn]) -> str:
        """``messages`` as (role, text or parts), put into the model's own chat template, ready for its answer."""
        return self._wiring.templated(target.tokenizer, messages, target.model.limits)

    def untemplated(self, target: Target) -> str:
        """Why the model has no chat template to use; empty where it has one."""
        from forge.client.chat_template import lacking

        return lacking(target.tokenizer)

    def search(self, word: str, gpu: str = "", limit: int = 20) -> Results:
        """Models of the hub whose name has ``word``, each with the family that serves it and whether its weights fit."""
        return search(self._wiring, word, gpu, limit)

    def toolchain(self, image: str, program: str = "") -> Toolbox:
        """The scripts of an image (a tag, a reference, "local"); with ``program`` those of that name, with all their flags."""
        tools = Executors(self._wiring.containers, self._wiring.here, self._wiring.answers, "", self._say)
        return toolbox(tools, image, program, "all" if self._wiring.gpus() else "", self._say)
