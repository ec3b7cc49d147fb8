"""Many clients at once for a long time: every answer must come, and be the text that the model gives when asked alone.

    python benchmarks/soak.py [--minutes 60] [--requests 100000] [--clients 16] [--instances 1]
                                                                                  builds and serves a tiny model for it
    python benchmarks/soak.py --address HOST:PORT --model NAME                        asks a server of this machine

Streams and whole answers of 1, 3 and 20 tokens are mixed, and some clients leave in the middle. It ends after so many minutes
or requests, whichever comes first, and at the first answer that fails or takes longer than --patience seconds. To starve the
server, start all of it on one core (`taskset -c 0 nice -n 10 python benchmarks/soak.py`): the servers' processes inherit that.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from forge.api.forge import Forge
from forge.client import AsyncClient, InferenceError, Request

TESTS = Path(__file__).parent.parent / "tests" / "kit"
PROMPTS = ("hello", "hello world", "the END of the world", "How are you today?", "naïve café 你好", "a")
LENGTHS = (1, 3, 20)
LEAVING = 0.04
"""Of the streams, how many are left after their first piece."""

Texts = Mapping[tuple[str, int], str]
"""(prompt, max_tokens) -> the greedy answer."""


@dataclass(slots=True)
class Tally:
    """What became of the requests."""

    begun: int = 0
    right: int = 0
    left: int = 0
    hung: int = 0
    wrong: list[str] = field(default_factory=list[str])
    failed: Counter[str] = field(default_factory=Counter[str])
    slowest: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.hung or self.wrong or self.failed)

    def __str__(self) -> str:
        told = f"{self.begun} requests: {self.right} right, {self.left} left by their clients, {len(self.wrong)} wrong, "
        told += f"{self.failed.total()} failed, {self.hung} hung; the slowest took {self.slowest:.1f} s"
        return "\n".join([told, *self.wrong[:5], *(f"{count} x {what}" for what, count in self.failed.most_common(5))])


@dataclass(frozen=True, slots=True)
class Bounds:
    """When it ends: so many seconds or requests, or an answer that takes longer than ``patience`` seconds."""

    seconds: float
    requests: int
    patience: float = 120.0


async def alone(client: AsyncClient, model: str) -> Texts:
    """Every answer of the mix, one after the other."""
    pairs = [(prompt, length) for prompt in PROMPTS for length in LENGTHS]
    return {pair: (await client.ask(Request(model, *pair, stream=False))).text for pair in pairs}


async def soak(address: str, model: str, clients: int, bounds: Bounds, *, seed: int = 0) -> Tally:
    """The mix from so many clients; returns early at the first answer that fails or does not come."""
    tally, end = Tally(), time.monotonic() + bounds.seconds
    async with AsyncClient(address, timeout=2 * bounds.patience) as client:
        texts = await alone(client, model)

        async def one(number: int) -> None:
            dice = random.Random(seed * 1000 + number)
            while tally.begun < bounds.requests and time.monotonic() < end and not (tally.hung or tally.failed):
                tally.begun += 1
                began = time.monotonic()
                try:
                    async with asyncio.timeout(bounds.patience):
                        await _ask(client, model, texts, dice, tally)
                except TimeoutError:
                    tally.hung += 1
                except InferenceError as error:
                    tally.failed[str(error)] += 1
                tally.slowest = max(tally.slowest, time.monotonic() - began)

        told = asyncio.create_task(_tell(tally))
        await asyncio.gather(*map(one, range(clients)))
        told.cancel()
    return tally


async def _ask(client: AsyncClient, model: str, texts: Texts, dice: random.Random, tally: Tally) -> None:
    pair = dice.choice(PROMPTS), dice.choice(LENGTHS)
    stream, leaves = dice.random() < 0.5, dice.random() < LEAVING
    if not stream:
        said = (await client.ask(Request(model, *pair, stream=False))).text
    else:
        said = ""
        async with aclosing(client.generate(Request(model, *pair))) as chunks:
            async for chunk in chunks:
                said += chunk.text
                if leaves and said:
                    tally.left += 1
                    return
    if said == texts[pair]:
        tally.right += 1
    else:
        tally.wrong.append(f"{pair}, {'stream' if stream else 'whole'}: {said!r} instead of {texts[pair]!r}")


async def _tell(tally: Tally) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(60)
        print(f"after {(time.monotonic() - began) / 60:.0f} minutes: {str(tally).splitlines()[0]}", flush=True)


@contextlib.contextmanager
def served(instances: int) -> Generator[tuple[str, str]]:
    """A tiny random model, built and served for this run with so many instances of its bls: its gRPC address and Triton's name
    of that."""
    sys.path.insert(0, str(TESTS))
    import tiny_served
    from patience import free_ports

    shop = Forge.here()
    shop.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shop.home) as folder:
        place = Path(folder)
        tiny_served.checkpoint(place / "checkpoint")
        (place / "tiny.toml").write_text(tiny_served.RECIPE.replace("[serve]", f"[serve]\ninstances = {instances}"))
        built = shop.build([place / "tiny.toml"], repository=place / "repository")
        running = shop.serve(built.repository, free_ports())
        try:
            target = shop.target("tiny", built.repository)
            yield target.address, target.request("").model
            print(*list(shop.logs(built.repository))[-20:], sep="\n")
        finally:
            shop.stop(running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds that an answer may take")
    parser.add_argument("--instances", type=int, default=1, help="of the bls of the model that is built here")
    parser.add_argument("--address", help="gRPC address on this machine; without, a tiny model is built and served")
    parser.add_argument("--model", default="tensorrt_llm_bls", help="Triton's name of the model to ask")
    given = parser.parse_args()
    if given.address and given.address.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
        parser.error("--address is one of this machine: a soak is no load test of somebody's server")
    bounds = Bounds(given.minutes * 60, given.requests, given.patience)
    with contextlib.ExitStack() as stack:
        address, model = (given.address, given.model) if given.address else stack.enter_context(served(given.instances))
        began = time.monotonic()
        tally = asyncio.run(soak(address, model, given.clients, bounds))
        print(f"{tally}\nin {(time.monotonic() - began) / 60:.1f} minutes, {given.clients} clients")
    sys.exit(not tally.clean)


if __name__ == "__main__":
    main()
