"""Images on their way to another machine: what `docker save` gives, and `docker load` takes."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from forge.errors import HostError
from forge.machine.docker.daemon import PATIENCE, Daemon, each, fault, ours

_PIECE = 2 * 1024 * 1024
_LOADED = re.compile(r"Loaded image(?: ID)?: (\S+)")


class Archives:
    """The images of one daemon as streams."""

    _daemon: Daemon

    def save(self, references: Sequence[str]) -> Iterator[bytes]:
        """All of them as one tar, so that layers which several share are in it once; the SDK's own call takes one image."""
        doing = "save images"
        with self._daemon.connected() as api:
            with ours(doing):
                url = f"{api.base_url}/v{api.api_version}/images/get"
                answer = api.get(url, params={"names": list(references)}, stream=True, timeout=PATIENCE)
            with closing(answer):
                if not answer.ok:
                    raise fault(doing, answer.text, ", ".join(references))
                yield from each(answer.iter_content(_PIECE), doing)

    def load(self, stream: Iterable[bytes]) -> tuple[str, ...]:
        """Their names or ids, as the daemon says them; HostError with its words where it refuses."""
        doing = "load images"
        found: list[str] = []
        with self._daemon.connected() as api:
            with ours(doing):
                events = api.load_image(iter(stream))
            with closing(events):
                for event in each(events, doing):
                    if refused := event.get("error"):
                        raise HostError(f"Docker could not {doing}: {refused}", hint="the daemon's own log says more")
                    found += _LOADED.findall(str(event.get("stream", "")))
        return tuple(found)
