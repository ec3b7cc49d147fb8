"""``python -m forge.serve.openai HOST PORT GRPC-ADDRESS REPOSITORY...``: OpenAI's API over the models of a server that runs.

With ``--kept`` in front it ends when its standard input does. `forge serve --openai-port` starts it so.
"""

import asyncio
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from forge.client.client import AsyncClient
from forge.machine.processes import MARKER
from forge.serve import pulse
from forge.serve.openai.errors import Fault, too_large
from forge.serve.openai.models import Offers
from forge.serve.openai.rounds import Rounds
from forge.serve.openai.service import Clocks, Desk
from forge.serve.openai.web import application, clocks, serve


async def main(host: str, port: int, address: str, repositories: list[Path], *, kept: bool) -> None:
    """Answer until told to end."""
    async with AsyncClient(address) as client:
        offers, times = Offers(address, repositories), Clocks(*clocks())
        rounds = Rounds(partial(pulse.ask, address, os.environ.get(MARKER, "")), offers, times.steady)
        desk = Desk(client, offers, rounds, times)
        await serve(application(desk, Fault, Fault, too_large), host, port, kept=kept)


if __name__ == "__main__":
    words = sys.argv[1:]
    held = words[:1] == ["--kept"]
    where, number, server, *places = words[1:] if held else words
    with suppress(KeyboardInterrupt):
        asyncio.run(main(where, int(number), server, [Path(place) for place in places], kept=held))
