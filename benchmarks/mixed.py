"""Many clients of every kind for an hour, on a twin that is served for real: nothing may grow, be lost, or come to another.

    python benchmarks/mixed.py [--minutes 60] [--clients 200] [--pause 10] [--every 60]

A tiny random model is built and served with the OpenAI port. Each client asks again and again, with pauses of ``--pause``
seconds on average: streams and whole answers over both ways in; a tenth break off, a tenth send what is no JSON, a tenth read
slowly. Every ``--every`` seconds another model is added to the server or taken out of it, and the server told to reload. Each
answer has to be what the model says when it is asked alone. Once a minute every process of the server is looked at: memory,
open files, threads, and its shared memory. Ends with 1 where an answer is wrong, missing or refused, or where something grew.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.request import urlopen

from forge.api.forge import Forge
from forge.client import AsyncClient, InferenceError, Request
from forge.machine import processes
from forge.schema.values import BuildOptions
from forge.serve.server_types import Running

TESTS = Path(__file__).parent.parent / "tests" / "kit"
sys.path.insert(0, str(TESTS))

import tiny_served  # noqa: E402
from patience import free_ports, spare  # noqa: E402
from raw_http import Web  # noqa: E402

PROMPTS = ("hello", "hello world", "the END of the world", "How are you today?", "naïve café 你好", "a")
LENGTHS = (1, 3, 20)
Texts = Mapping[tuple[str, int], str]
_SLOW = 0.1
_GROWTH = 1.1
"""How much of memory a process may have more in the last quarter than in the second: allocators are not exact."""


@dataclass(slots=True)
class Tally:
    """What became of the requests."""

    ends: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    slowest: float = 0.0
    reloads: int = 0

    def __str__(self) -> str:
        return f"{sum(self.ends.values())} requests {dict(self.ends)}, {self.reloads} reloads, {dict(self.faults)}"


@dataclass(frozen=True, slots=True)
class Look:
    """The server at one moment: resident MB, open files and threads of each process by its name, and MB of shared memory."""

    memory: Mapping[str, float]
    files: Mapping[str, int]
    threads: Mapping[str, int]
    shared: float


def look(running: Running) -> Look:
    memory, files, threads = Counter[str](), Counter[str](), Counter[str]()
    for pid in processes.marked(running.shared_memory):
        with suppress(OSError):
            name, place = _name(pid), Path(f"/proc/{pid}")
            status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            memory[name] += int(status["VmRSS"].split()[0]) // 1024
            threads[name] += int(status["Threads"])
            files[name] += len(list((place / "fd").iterdir()))
    regions = processes.SHARED_MEMORY.glob(f"*{running.shared_memory}*")
    return Look(memory, files, threads, sum(each.stat().st_blocks * 512 for each in regions) / 1e6)


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    for word in words:
        if word.endswith("model.py"):
            return Path(word).parent.parent.name
    return next((word for word in words if word.startswith("forge.")), Path(words[0]).name)


def grown(looks: list[Look]) -> list[str]:
    """What the last quarter has more of than the second one; the first is for getting warm."""
    quarter = len(looks) // 4
    if not quarter:
        return ["too short to say"]
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    found: list[str] = []
    for what, slack in (("memory", 5.0), ("files", 3), ("threads", 3)):
        for name in getattr(late[-1], what):
            before, after = (statistics.median(getattr(each, what).get(name, 0) for each in part) for part in (early, late))
            if before and after > before * _GROWTH + slack:
                found.append(f"{what} of {name}: {before:.0f} -> {after:.0f}")
    return found


async def _over_http(port: int, asked: bytes, dice: random.Random, kind: str) -> str:
    """The text of a streamed answer; empty where the client broke off."""
    web, said = Web(port), ""
    try:
        async with aclosing(web.ask(asked, "/v1/completions")) as parts:
            async for part in parts:
                if part.startswith(b'{"error"'):
                    raise InferenceError(part.decode())
                for line in part.splitlines():
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise InferenceError(f"{event['error']}")
                        said += event["choices"][0]["text"] if event["choices"] else ""
                if kind == "left" and said:
                    return ""
                if kind == "slow":
                    await asyncio.sleep(dice.uniform(0, 2 * _SLOW))
    finally:
        web.close()
    return said


async def _refused(port: int) -> None:
    web = Web(port)
    try:
        async with aclosing(web.ask(b'{"model": ')) as parts:
            said = b"".join([part async for part in parts])
    finally:
        web.close()
    if b'"error"' not in said:
        raise InferenceError(f"what is no JSON is answered: {said[:200]!r}")


class Mix:
    """All that ask one server."""

    def __init__(self, name: str, model: str, port: int, client: AsyncClient, pause: float) -> None:
        self._name, self._model, self._port, self._client, self._pause = name, model, port, client, pause
        self.tally, self._texts = Tally(), dict[tuple[str, int], str]()

    async def alone(self) -> None:
        for pair in [(prompt, length) for prompt in PROMPTS for length in LENGTHS]:
            self._texts[pair] = (await self._client.ask(Request(self._model, *pair, stream=False))).text

    async def one(self, number: int, end: float) -> None:
        dice = random.Random(number)
        await asyncio.sleep(dice.uniform(0, self._pause))
        while time.monotonic() < end:
            kind = dice.choices(("http", "whole", "grpc", "left", "broken", "slow"), (30, 15, 25, 10, 10, 10))[0]
            began = time.monotonic()
            try:
                async with asyncio.timeout(300):
                    await self._ask(kind, dice)
                self.tally.ends[kind] += 1
            except (InferenceError, OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                self.tally.faults[f"{kind}: {type(error).__name__}: {error}"[:200]] += 1
            self.tally.slowest = max(self.tally.slowest, time.monotonic() - began)
            await asyncio.sleep(dice.uniform(0, 2 * self._pause))

    async def _ask(self, kind: str, dice: random.Random) -> None:
        if kind == "broken":
            return await _refused(self._port)
        prompt, length = dice.choice(PROMPTS), dice.choice(LENGTHS)
        if kind in ("grpc", "whole"):
            said = (await self._client.ask(Request(self._model, prompt, length, stream=kind == "grpc"))).text
        else:
            asked = {"model": self._name, "prompt": prompt, "max_tokens": length, "stream": True, "temperature": 0}
            said = await _over_http(self._port, json.dumps(asked).encode(), dice, kind)
            if kind == "left":
                return None
        if said != self._texts[prompt, length]:
            self.tally.faults[f"{kind}: wrong: {said!r} instead of {self._texts[prompt, length]!r}"] += 1
        return None


async def reloads(shop: Forge, recipe: Path, repository: Path, tally: Tally, every: float, end: float) -> None:
    """Another model comes and goes, and the server is told to look at what has changed."""
    there = False
    while time.monotonic() + every < end:
        await asyncio.sleep(every)
        if there:
            await asyncio.to_thread(shop.remove, "second", repository)
        else:
            await asyncio.to_thread(shop.add, [recipe], repository=repository)
        there = not there
        await asyncio.to_thread(shop.reload, repository)
        tally.reloads += 1


async def watch(running: Running, mix: Mix, looks: list[Look]) -> None:
    while True:
        looks.append(await asyncio.to_thread(look, running))
        memory = ", ".join(f"{name} {value:.0f}" for name, value in looks[-1].memory.items())
        files, shared = sum(looks[-1].files.values()), looks[-1].shared
        print(f"{time.strftime('%H:%M:%S')} {mix.tally}; {memory} MB; {files} files; shared {shared:.1f} MB", flush=True)
        await asyncio.sleep(60)


async def hour(shop: Forge, running: Running, recipe: Path, given: argparse.Namespace) -> bool:
    repository, looks = Path(running.repository), list[Look]()
    target = shop.target("tiny", repository)
    async with AsyncClient(target.address, timeout=600) as client:
        mix = Mix("tiny", target.request("").model, running.ports.openai, client, given.pause)
        await mix.alone()
        end = time.monotonic() + 60 * given.minutes
        spent, watching = door_seconds(running), asyncio.create_task(watch(running, mix, looks))
        changes = asyncio.create_task(reloads(shop, recipe, repository, mix.tally, given.every, end))
        await asyncio.gather(*(mix.one(number, end) for number in range(given.clients)))
        watching.cancel()
        await changes
    answers = sum(mix.tally.ends.values())
    spent = door_seconds(running) - spent
    await asyncio.sleep(10)
    after = await asyncio.to_thread(look, running)
    with urlopen(f"http://127.0.0.1:{running.ports.openai}/metrics") as said:
        counted = said.read().decode()
    under_way = [line for line in counted.splitlines() if line.startswith("forge_answers_under_way{")]
    faults = [*grown(looks), *(f"{count} x {what}" for what, count in mix.tally.faults.items())]
    faults += [line for line in under_way if not line.endswith(" 0.0")]
    print(f"{mix.tally}; the slowest took {mix.tally.slowest:.1f} s; load {os.getloadavg()[0]:.1f}")
    print(f"the port: {1000 * spent / max(1, answers):.2f} ms of a processor for a request; {', '.join(under_way)}")
    for name in looks[-1].memory:
        told = [0.0, *(each.memory.get(name, 0) for each in looks)]
        files = f"{looks[-1].files.get(name)} to {after.files.get(name)}"
        print(f"{name}: {told[1]:.0f}, {told[len(told) // 2]:.0f}, {told[-1]:.0f} MB; files {files}")
    print(f"shared memory {looks[-1].shared:.1f} to {after.shared:.1f} MB\nfaults: {faults or 'none'}")
    return not faults


def door_seconds(running: Running) -> float:
    """Seconds of processor that the OpenAI port has taken so far."""
    pid = processes.listener(running.ports.openai)
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between two requests of a client, on average")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two changes of what is served")
    given = parser.parse_args()
    shop = Forge.here()
    shop.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shop.home) as folder:
        place = Path(folder)
        tiny_served.checkpoint(place / "checkpoint")
        for name in ("tiny", "second"):
            text = tiny_served.RECIPE.replace('name = "tiny"', f'name = "{name}"')
            (place / f"{name}.toml").write_text(text, encoding="utf-8")
        built = shop.build([place / "tiny.toml"], BuildOptions(prefixed=True), repository=place / "repository")
        running = shop.serve(built.repository, replace(free_ports(), openai=spare(1)[0]))
        try:
            good = asyncio.run(hour(shop, running, place / "second.toml", given))
        finally:
            shop.stop(running)
    sys.exit(not good)


if __name__ == "__main__":
    main()
