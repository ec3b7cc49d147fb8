"""``python -m forge.serve.openai HOST PORT GRPC-ADDRESS REPOSITORY...``: OpenAI's API over the models of a server that runs,
and the page to look at.

With ``--key-file FILE`` whoever asks has to show the key that it holds; with ``--metrics ADDRESS`` the server's counts are read
there, which tell a busy engine from a dead one; ``--state FILE`` is the server's state file; with ``--kept`` it ends when its
standard input does.
`forge serve --openai-port` starts it so.
"""

import argparse
import asyncio
import gc
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from forge.client.grpc_aio import AsyncClient
from forge.errors import ForgeError
from forge.machine import gpus
from forge.machine.processes import MARKER
from forge.schema.values import Ports
from forge.serve import pulse, usage
from forge.serve.openai.access import Access, key
from forge.serve.openai.cards import Cards, Sight
from forge.serve.openai.models import Models
from forge.serve.openai.rounds import Rounds
from forge.serve.openai.service import Clocks, Service
from forge.serve.openai.web import Door, application, serve


async def main(said: argparse.Namespace) -> None:
    """Answer until told to end."""
    gc.set_threshold(20_000, 20, 20)  # an answer makes hundreds of objects and hardly a cycle
    marker = os.environ.get(MARKER, "")
    access = Access(Ports(host=said.host).local, key(said.key_file) if said.key_file else "")
    async with AsyncClient(said.address) as client:
        offers, times = Models(said.address, said.repositories), Clocks()
        rounds = Rounds(partial(pulse.ask, pulse.Place(said.address, said.metrics, marker)), offers, times.steady)
        service = Service(client, offers, rounds, times, said.state)
        cards = Cards(offers, rounds, partial(_look, marker), service.known, client.version)
        app = application(service, door=Door(access, cards.document))
        await serve(app, said.host, said.port, kept=said.kept)


def _look(marker: str) -> Sight:
    return Sight(
        memory=gpus.host_memory(whole=True) or None,
        gpus=gpus.present(os.environ),
        held=usage.held(marker, os.environ),
    )


def _words() -> argparse.Namespace:
    words = argparse.ArgumentParser(prog="python -m forge.serve.openai", allow_abbrev=False)
    words.add_argument("--kept", action="store_true")
    words.add_argument("--key-file", type=Path)
    words.add_argument("--metrics", default="")
    words.add_argument("--state", type=Path)
    words.add_argument("host")
    words.add_argument("port", type=int)
    words.add_argument("address")
    words.add_argument("repositories", type=Path, nargs="*")
    return words.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a server that ends is no line of this log
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(main(_words()))
    except ForgeError as error:
        sys.exit(str(error))
