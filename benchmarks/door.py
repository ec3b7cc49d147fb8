"""What the OpenAI port adds to an answer: the same words through it and straight over gRPC, of a Triton that answers at once.

    python benchmarks/door.py [--rounds 300] [--tokens 32] [--clients 200] [--seconds 30] [--out FILE]

The Triton is ``tests/kit/instant_triton.py``, in a process of its own, and so is the port; asked by turns over one
connection each: time to the first word and time for each word after it, medians and 95th percentiles. ``idle`` asks after six
seconds of silence each, when what a model takes is to be read again. Processor time is told beside it, which other work on the
machine does not change. ``loaded``: so many clients, each of which asks again and again with pauses; a tenth break off, a tenth
send what is no JSON, a tenth read slowly. Words carry the moments when the request came and when they were sent: the port's own
share of the time to the first word is what lies before the one and after the other.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests" / "kit"
sys.path.insert(0, str(TESTS))

from forge.client.grpc_aio import AsyncClient  # noqa: E402
from forge.client.types import Request  # noqa: E402
from forge.machine import processes  # noqa: E402
from instant_triton import FRONT, repository  # noqa: E402
from openai_front import front  # noqa: E402
from patience import spare  # noqa: E402
from raw_http import Web  # noqa: E402

IDLE = 6.0
PROMISED = 2.0
"""Milliseconds of the port's own for each request."""


@dataclass(frozen=True, slots=True)
class Course:
    """One answer, in milliseconds: to the first word, and for each further one."""

    first: float
    further: float


@dataclass
class Load:
    """What many clients saw: the port's own share of the time to the first word, in milliseconds; and how requests ended."""

    shares: list[float] = field(default_factory=list[float])
    whole: int = 0
    left: int = 0
    refused: int = 0


def body(tokens: int, pause: int = 0) -> bytes:
    asked = {"model": "instant", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    return json.dumps({**asked, "max_tokens": tokens, "seed": pause, "temperature": 1.0}).encode()


def word(part: bytes) -> str:
    """The text of an event that has some."""
    said = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        for line in part.splitlines()
        if line.startswith(b"data: {")
    )
    return said.partition("\n")[0]


async def through(web: Web, tokens: int) -> Course:
    began = time.perf_counter()
    first = 0.0
    async with aclosing(web.ask(body(tokens))) as parts:
        async for part in parts:
            if not first and b'"content":"  ' in part:
                first = time.perf_counter()
    assert first, "no word came"
    return Course((first - began) * 1000, (time.perf_counter() - first) * 1000 / (tokens - 1))


async def straight(client: AsyncClient, tokens: int) -> Course:
    began = time.perf_counter()
    first = 0.0
    asked = Request(FRONT, "user: hello\n", tokens, temperature=1.0, seed=0, return_token_counts=True)
    async with aclosing(client.generate(asked)) as chunks:
        async for chunk in chunks:
            if not first and chunk.text:
                first = time.perf_counter()
    return Course((first - began) * 1000, (time.perf_counter() - first) * 1000 / (tokens - 1))


async def by_turns(
    web: Web, client: AsyncClient, rounds: int, tokens: int, idle: float = 0.0
) -> tuple[list[Course], list[Course]]:
    ways: tuple[list[Course], list[Course]] = ([], [])
    for number in range(rounds):
        await asyncio.sleep(idle)
        await web.open()
        for way in (0, 1) if number % 2 else (1, 0):
            ways[way].append(await (through(web, tokens) if way == 0 else straight(client, tokens)))
    return ways


async def client_of_many(port: int, number: int, until: float, load: Load) -> None:
    """One of many: mostly it reads its answer; some break off, send nonsense, or read slowly."""
    chance, web = random.Random(number), Web(port)
    await asyncio.sleep(chance.uniform(0, 10))
    while time.monotonic() < until:
        kind = chance.random()
        sent, first = time.monotonic(), ""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with aclosing(web.ask(b"{" if kind < 0.1 else body(16, 20))) as parts:
                async for part in parts:
                    if kind < 0.1:
                        load.refused += b'"error"' in part
                        continue
                    if not first and (first := word(part)):
                        came, said = map(float, first.split()[1:])
                        load.shares.append(((came - sent) + (time.monotonic() - said)) * 1000)
                        if kind < 0.2:
                            load.left += 1
                            break
                    if kind > 0.9:
                        await asyncio.sleep(0.05)
                else:
                    load.whole += kind >= 0.1
            if kind < 0.2:
                web.close()
        await asyncio.sleep(chance.uniform(5, 15))
    web.close()


def apart(port: int, clients: int, until: float) -> Load:
    """So many clients, for a process of their own: who shares one with others waits for them before it reads its own clock."""
    load = Load()
    gc.freeze()  # a collection of all that is imported would be taken for the port's

    async def ask() -> None:
        await asyncio.gather(*(client_of_many(port, number, until, load) for number in range(clients)))

    asyncio.run(ask())
    return load


async def worked(web: Web, rounds: int) -> float:
    """Milliseconds of processor time that the port takes for an answer of two words; others' work does not change it."""
    before = _processor()
    await web.open()
    for _ in range(rounds):
        await through(web, 2)
    spent = (_processor() - before) * 1000 / rounds
    print(f"\nprocessor time of the port for an answer of two words: {spent:.2f} ms")
    return spent


def _processor() -> float:
    """Seconds of processor time that the port has taken so far: of this process' child that is one."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    (port,) = (each for each in children if "forge.serve.openai" in Path(f"/proc/{each}/cmdline").read_text())
    return time.clock_gettime(~int(port) << 3 | 2)  # a process' clock by its id, as clock_getcpuclockid(3) makes it: to the ns


def seconds(port: int) -> float:
    """Seconds of processor that whoever listens there has taken so far."""
    user, system = Path(f"/proc/{processes.listener(port)}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def end_on_signals(stop: Callable[[], None]) -> None:
    """Ctrl-C and SIGTERM ``stop`` the server first: calls of threads, which nobody can cancel, end with it where it hangs."""

    def end(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        stop()
        for child in active_children():
            child.kill()
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


@contextmanager
def triton() -> Generator[str]:
    (port,) = spare(1)
    with subprocess.Popen([sys.executable, str(TESTS / "instant_triton.py"), str(port)]) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def shown(name: str, values: Sequence[float]) -> dict[str, float]:
    ranked = sorted(values)
    found = {share: ranked[min(len(ranked) - 1, int(len(ranked) * share / 100))] for share in (50, 95, 99)}
    print(f"{name:<34}" + "  ".join(f"p{share} {value:8.2f}" for share, value in found.items()) + f"  ({len(ranked)})")
    return {f"p{share}": value for share, value in found.items()}


async def measure(said: argparse.Namespace, address: str, port: int) -> dict[str, object]:
    web, found = Web(port), dict[str, object]()
    async with AsyncClient(address) as client:
        await by_turns(web, client, 20, said.tokens)  # both are warm then
        for name, rounds, idle in (("steady", said.rounds, 0.0), ("idle", said.idle_rounds, IDLE)):
            if not rounds:
                continue
            there, here = await by_turns(web, client, rounds, said.tokens, idle)
            print(f"\n{name}, ms")
            found[name] = {
                "port": shown("first word through the port", [each.first for each in there]),
                "grpc": shown("first word over gRPC", [each.first for each in here]),
                "further_port": shown("each further word, the port", [each.further for each in there]),
                "further_grpc": shown("each further word, gRPC", [each.further for each in here]),
                "own": (
                    own := statistics.median(each.first for each in there) - statistics.median(each.first for each in here)
                ),
            }
            print(f"of the port's own: {own:.2f} ms ({'kept' if own <= PROMISED else 'NOT kept'}: {PROMISED:g} ms)")
    found["processor"] = await worked(web, said.rounds)
    web.close()
    if said.clients:
        load = Load()
        until = time.monotonic() + said.seconds
        await asyncio.gather(*(client_of_many(port, number, until, load) for number in range(said.clients)))
        print(f"\n{said.clients} clients: {load.whole} whole, {load.left} left, {load.refused} refused; ms")
        found["loaded"] = shown("the port's share of the first word", load.shares)
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=300)
    words.add_argument("--idle-rounds", type=int, default=10)
    words.add_argument("--tokens", type=int, default=32)
    words.add_argument("--clients", type=int, default=200)
    words.add_argument("--seconds", type=float, default=30.0)
    words.add_argument("--out", type=Path)
    said = words.parse_args()
    with tempfile.TemporaryDirectory() as folder, triton() as address:
        time.sleep(2)
        with front(address, repository(Path(folder))) as url:
            found = asyncio.run(measure(said, address, int(url.split(":")[2].partition("/")[0])))
    if said.out:
        said.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
