"""Many clients of every kind for an hour, on a twin that is served for real: nothing may grow, be lost, or come to another.

    python benchmarks/mixed.py [--minutes 60] [--clients 200] [--pause 10] [--every 60] [--probes 10]

A tiny random model is built and served with the OpenAI port. Each client asks again and again, with pauses of ``--pause``
seconds on average: streams and whole answers over both ways in; a tenth break off, a tenth send what is no JSON, a tenth read
slowly. Every ``--every`` seconds another model is added to the server or taken out of it, and the server told to reload. Each
answer has to be what the model says when it is asked alone. Sixty times every process of the server is looked at: memory,
open files, threads, and its shared memory. Ends with 1 where an answer is wrong, missing or refused, where something grew, or a
slot is still busy afterwards.

A Triton that dies is started again by forge, and takes its requests with it. Those are counted as ``restart`` where the client
was told that the server went away, its process was seen to be gone then, and forge has counted the crash; what is lost in any
other way is a fault as ever. ``--probes`` clients ask a second port of the same kind, before ``tests/kit/instant_triton.py``:
for a port's own share of the time to the first word on this machine under this load (see door.py); they are a process of their
own. How long the first port takes from a whole request to its going to Triton is told beside it.
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
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from urllib.request import urlopen

from msgspec.structs import replace

from forge.api.forge import Forge
from forge.client import AsyncClient, InferenceError, Request
from forge.errors import ForgeError, Trouble
from forge.machine import processes
from forge.schema.values import BuildOptions
from forge.serve import pulse, ready, vitals
from forge.serve.server_types import Running
from forge.serve.state import States

TESTS = Path(__file__).parent.parent / "tests" / "kit"
sys.path.insert(0, str(TESTS))

import door  # noqa: E402

import instant_triton  # noqa: E402
import tiny_served  # noqa: E402
from openai_front import front  # noqa: E402
from patience import free_ports, spare  # noqa: E402
from raw_http import Web  # noqa: E402

PROMPTS = ("hello", "hello world", "the END of the world", "How are you today?", "naïve café 你好", "a")
LENGTHS = (1, 3, 20)
Texts = Mapping[tuple[str, int], str]
_LOOKS = 60
_WAITED = "forge_queue_seconds_bucket{"
_AWAY = '"code":"server_unavailable"'
"""In what the OpenAI port says where Triton is away."""
_SLOW = 0.1
_GROWTH = 1.1
"""How much of memory a process may have more in the last quarter than in the second: allocators are not exact."""


@dataclass(frozen=True, slots=True)
class Away:
    """A client that was told that the server is away: when it asked and was told, in seconds since 1970."""

    asked: float
    told: float
    what: str


class Deaths:
    """When the server's Triton was gone: from when it was last seen alive until it answered again, in seconds since 1970."""

    def __init__(self, running: Running) -> None:
        self._states, self._running = States(Path(running.log).parent), running
        self.spans: list[tuple[float, float]] = []
        self._alive = time.time()

    async def watch(self) -> None:
        while True:
            await asyncio.to_thread(self._look)
            await asyncio.sleep(0.1)

    def _look(self) -> None:
        now, kept = time.time(), self._kept()
        down = bool(self.spans) and self.spans[-1][1] == float("inf")
        alive = kept is not None and bool(kept.pid) and processes.started(kept.pid) == kept.started
        if alive and kept and down:
            alive = all(ready.answers(kept.ports, model) for model in kept.models)
        if alive and down:
            self.spans[-1] = (self.spans[-1][0], time.time())
        elif not alive and not down:
            self.spans.append((self._alive, float("inf")))
        self._alive = now if alive else self._alive

    def _kept(self) -> Running | None:
        return next((each for each in self._states.kept() if each.nonce == self._running.nonce), None)

    def explains(self, away: Away) -> bool:
        """Whether the server was gone while a client waited, give or take a second: its sockets close before its process
        is gone, and it takes a moment to see that it is back."""
        return any(away.told >= gone - 1 and away.asked <= back + 1 for gone, back in self.spans)

    def faults(self) -> list[str]:
        """What forge has not counted, or not brought back."""
        kept = self._kept()
        crashes = [crash.at for crash in kept.crashes] if kept else []
        found = [] if len(crashes) == len(self.spans) else [f"{len(self.spans)} deaths seen, {len(crashes)} crashes counted"]
        for gone, back in self.spans:
            found += [] if any(gone <= at <= back for at in crashes) else [f"no crash is counted of the death at {gone:.1f}"]
            found += ["the server did not come back"] if back == float("inf") else []
        return found


@dataclass(slots=True)
class Tally:
    """What became of the requests."""

    deaths: Deaths
    ends: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    away: list[Away] = field(default_factory=list[Away])
    slowest: float = 0.0
    reloads: int = 0

    def all_faults(self) -> Counter[str]:
        """With those who were told that the server is away while it was not."""
        return self.faults + Counter(each.what for each in self.away if not self.deaths.explains(each))

    def __str__(self) -> str:
        restart = sum(map(self.deaths.explains, self.away))
        said = f"{sum(self.ends.values())} requests {dict(self.ends)}, {self.reloads} reloads, restart {restart}"
        return f"{said} ({len(self.deaths.spans)} restarts), {dict(self.all_faults())}"


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
            memory[name] += int(status.get("VmRSS", "0").split()[0]) // 1024  # one that has died has none
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
    """What the last quarter has more of than the second one; the first is for getting warm.

    Of files and threads the most counts: a stub that Triton starts later holds Triton's own sockets too (29 files, not 6), and
    one that comes and goes has none half of the time.
    """
    quarter = len(looks) // 4
    if not quarter:
        return ["too short to say"]
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    found: list[str] = []
    for what, slack, usual in (("memory", 5.0, statistics.median), ("files", 3, max), ("threads", 3, max)):
        for name in getattr(late[-1], what):
            before, after = (usual([getattr(each, what).get(name, 0) for each in part]) for part in (early, late))
            if before and after > before * _GROWTH + slack:
                found.append(f"{what} of {name}: {before:.0f} -> {after:.0f}")
    return found


async def _over_http(port: int, asked: bytes, dice: random.Random, kind: str) -> str:
    """The text of a streamed answer; empty where the client broke off."""

    def failed(what: str) -> InferenceError:
        return InferenceError(what, trouble=Trouble.AWAY if _AWAY in what.replace(": ", ":") else Trouble.OTHER)

    web, said = Web(port), ""
    try:
        async with aclosing(web.ask(asked, "/v1/completions")) as parts:
            async for part in parts:
                if part.startswith(b'{"error"'):
                    raise failed(part.decode())
                for line in part.splitlines():
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise failed(json.dumps(event))
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

    def __init__(self, model: str, running: Running, client: AsyncClient, pause: float) -> None:
        self._model, self._port, self._client, self._pause = model, running.ports.openai, client, pause
        self.tally, self._texts = Tally(Deaths(running)), dict[tuple[str, int], str]()

    async def alone(self) -> None:
        for pair in [(prompt, length) for prompt in PROMPTS for length in LENGTHS]:
            self._texts[pair] = (await self._client.ask(Request(self._model, *pair, stream=False))).text

    async def one(self, number: int, end: float) -> None:
        dice = random.Random(number)
        await asyncio.sleep(dice.uniform(0, self._pause))
        while time.monotonic() < end:
            kind = dice.choices(("http", "whole", "grpc", "left", "broken", "slow"), (30, 15, 25, 10, 10, 10))[0]
            began, asked = time.monotonic(), time.time()
            try:
                async with asyncio.timeout(300):
                    await self._ask(kind, dice)
                self.tally.ends[kind] += 1
            except InferenceError as error:
                what = f"{kind}: {error}"[:200]
                if error.trouble is Trouble.AWAY:
                    self.tally.away.append(Away(asked, time.time(), what))
                else:
                    self.tally.faults[what] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
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
            asked = {"model": "tiny", "prompt": prompt, "max_tokens": length, "stream": True, "temperature": 0}
            said = await _over_http(self._port, json.dumps(asked).encode(), dice, kind)
            if kind == "left":
                return None
        if said != self._texts[prompt, length]:
            self.tally.faults[f"{kind}: wrong: {said!r} instead of {self._texts[prompt, length]!r}"] += 1
        return None


async def reloads(shop: Forge, recipe: Path, repository: Path, tally: Tally, every: float, end: float) -> None:
    """Another model comes and goes, and the server is told to look at what has changed."""
    while time.monotonic() + every < end:
        await asyncio.sleep(every)
        asked = time.time()
        try:
            if any(model.name == "second" for model in await asyncio.to_thread(shop.models, repository)):
                await asyncio.to_thread(shop.remove, "second", repository)
            else:
                await asyncio.to_thread(shop.add, [recipe], repository=repository)
            await asyncio.to_thread(shop.reload, repository)
            tally.reloads += 1
        except ForgeError as error:
            tally.away.append(Away(asked, time.time(), f"reload: {error}"[:200]))


async def watch(running: Running, mix: Mix, looks: list[Look], every: float) -> None:
    while True:
        looks.append(await asyncio.to_thread(look, running))
        memory = ", ".join(f"{name} {value:.0f}" for name, value in looks[-1].memory.items())
        files, shared = sum(looks[-1].files.values()), looks[-1].shared
        print(f"{time.strftime('%H:%M:%S')} {mix.tally}; {memory} MB; {files} files; shared {shared:.1f} MB", flush=True)
        await asyncio.sleep(every)


async def hour(shop: Forge, running: Running, place: Path, given: argparse.Namespace) -> bool:
    """Whether all went well."""
    repository, looks = Path(running.repository), list[Look]()
    target = shop.target("tiny", repository)
    async with AsyncClient(target.address, timeout=600) as client:
        mix = Mix(target.request("").model, running, client, given.pause)
        await mix.alone()
        end = time.monotonic() + 60 * given.minutes
        spent = door.seconds(running.ports.openai)
        beside = [watch(running, mix, looks, 60 * given.minutes / _LOOKS), mix.tally.deaths.watch()]
        watching = [asyncio.create_task(each) for each in beside]
        changes = asyncio.create_task(reloads(shop, place / "second.toml", repository, mix.tally, given.every, end))
        with (
            door.triton() as address,
            front(address, instant_triton.repository(place / "instant")) as url,
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as another,
        ):
            port = int(url.split(":")[2].partition("/")[0])
            probes = asyncio.get_running_loop().run_in_executor(another, door.apart, port, given.probes, end)
            await asyncio.gather(*(mix.one(number, end) for number in range(given.clients)))
            load = await probes
        await changes
        for each in watching:
            each.cancel()
        said = await asyncio.gather(*watching, return_exceptions=True)
    spent = door.seconds(running.ports.openai) - spent
    after, faults = await asyncio.to_thread(afterwards, running)
    faults += [*grown(looks), *mix.tally.deaths.faults(), *(f"{each!r}" for each in said if isinstance(each, Exception))]
    faults += [f"{count} x {what}" for what, count in mix.tally.all_faults().items()]
    print(f"{mix.tally}; the slowest took {mix.tally.slowest:.1f} s; load {os.getloadavg()[0]:.1f}")
    print(f"the port: {1000 * spent / max(1, sum(mix.tally.ends.values())):.2f} ms of a processor for a request")
    if load.shares:
        door.shown("a port's share of the first, ms", load.shares)
    for name in looks[-1].memory:
        told = [0.0, *(each.memory.get(name, 0) for each in looks)]
        files = f"{looks[-1].files.get(name)} to {after.files.get(name)}"
        print(f"{name}: {told[1]:.0f}, {told[len(told) // 2]:.0f}, {told[-1]:.0f} MB; files {files}")
    print(f"shared memory {looks[-1].shared:.1f} to {after.shared:.1f} MB\nfaults: {faults or 'none'}")
    return not faults


def afterwards(running: Running) -> tuple[Look, list[str]]:
    """The server once nobody asks any more, and what of it is still busy."""
    time.sleep(10)
    after, before = look(running), pulse.signs(running) or {}
    time.sleep(3)
    now = pulse.signs(running) or {}
    busy = [f"{name}: {signs.pending} requests wait" for name, signs in now.items() if signs.pending]
    for name, signs in now.items():
        spent = vitals.used(before[name].cpu, signs.cpu) if name in before else 0.0
        busy += [f"{name}: it computes, and nobody asks ({spent:.2f} s within 3)"] if spent > 3 * vitals.WORKING else []
    with urlopen(f"http://127.0.0.1:{running.ports.openai}/metrics") as said:
        counted = said.read().decode().splitlines()
    under_way = [line for line in counted if line.startswith("forge_answers_under_way{")]
    busy += [line for line in under_way if not line.endswith(" 0.0")]
    waits = [(line.split('le="')[1].split('"')[0], float(line.split()[-1])) for line in counted if _WAITED in line]
    most = next(bound for bound, count in waits if count >= 0.99 * waits[-1][1])
    print(f"the port: 99 % of {waits[-1][1]:.0f} requests went to Triton within {float(most) * 1000:g} ms of being whole")
    print(f"slots after the end: {', '.join(now) or 'nothing'} and the port looked at: {busy or 'none is busy'}")
    return after, busy if now else ["the server does not speak"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between two requests of a client, on average")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two changes of what is served")
    parser.add_argument("--probes", type=int, default=10, help="clients of a port before a Triton that answers at once")
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
        door.end_on_signals(lambda: shop.stop(running))
        print(f"Triton is process {running.pid}", flush=True)
        try:
            good = asyncio.run(hour(shop, running, place, given))
        finally:
            shop.stop(running)
    sys.exit(not good)


if __name__ == "__main__":
    main()
