"""What Triton and forge cost beside vLLM alone: tokens a second of the served model, of vLLM's own server and of bare vLLM.

    python benchmarks/vllm_share.py --repository model-repository --model smollm2-135m-instruct
    python benchmarks/vllm_share.py --repository model-repository --model NAME --streams 1,8,64 --tokens 256 --json FILE

The repository is built already (``forge build --runtime vllm``) and is not being served: this starts its server, vLLM's own one
for OpenAI's API, and bare vLLM, one after the other, since a GPU holds one of them at a time; every other turn the other way
round. Bare vLLM is AsyncLLMEngine in a process of the same environment, asked inside it: nothing goes over a wire, and there is
no client. All have the arguments of the same model.json and answer the same prompts, likeliest tokens only, the end token
forbidden; tokens are those that vLLM counts.

The servers' clients are processes of their own, so that what is measured is the server and not one thread of Python.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from threading import Thread
from typing import IO, Protocol, cast

from forge.api.forge import Forge
from forge.bench import prompts
from forge.client.grpc_aio import AsyncClient
from forge.client.tokenizer import TokenizerFolder
from forge.client.types import Request
from forge.machine import processes
from forge.schema.manifest import PublishedModel
from forge.schema.values import Ports, RuntimeKind
from forge.schema.vllm_environment import PYTHON
from forge.vllm import remains

_LEAD = 1.0
"""Seconds that the clients get to hear of a round before it begins."""
Said = tuple[float, float, int]
"""Of one stream: seconds from the round's beginning to the first token and to the last, and how many tokens came."""
Ask = Callable[[Sequence[str], int], list[Said]]


@dataclass(frozen=True, slots=True)
class Round:
    """So many streams at once: tokens a second over all of them, median seconds to a first token and between two."""

    tokens_per_s: float
    ttft: float
    itl: float


def heard(said: Sequence[Said], count: int) -> Round:
    """A round's figures; SystemExit where an answer has not the tokens that it was to have."""
    if wrong := [tokens for _, _, tokens in said if tokens != count]:
        raise SystemExit(f"{count} tokens were asked for, and {len(wrong)} of {len(said)} answers have others: {wrong[:5]}")
    whole = max(last for _, last, _ in said)
    gaps = [(last - first) / max(count - 1, 1) for first, last, _ in said]
    return Round(len(said) * count / whole, statistics.median(first for first, _, _ in said), statistics.median(gaps))


# -- servers, and the processes that ask them

Stream = Callable[[str], Awaitable[Said]]
"""One answer to a text, on the event loop that it is asked from."""


def ask_share(streams: "Streams", texts: Sequence[str], count: int, begin: float) -> list[Said]:
    """What one client process does in a round; ``begin`` is by time.monotonic, the same clock in every process."""

    async def all_of_them() -> list[Said]:
        async with streams.open(count, begin) as stream:
            await asyncio.sleep(max(0.0, begin - time.monotonic()))
            return await asyncio.gather(*(stream(text) for text in texts))

    return asyncio.run(all_of_them())


class Streams(Protocol):
    """How a server is asked; goes to the client processes."""

    def open(self, count: int, begin: float) -> AbstractAsyncContextManager[Stream]: ...


@dataclass(frozen=True, slots=True)
class OfTriton:
    """The served model, by forge's own client."""

    address: str
    model: str

    @contextlib.asynccontextmanager
    async def open(self, count: int, begin: float) -> AsyncGenerator[Stream]:
        async with AsyncClient(self.address) as client:
            await client.metadata(self.model)

            async def stream(text: str) -> Said:
                request = Request(self.model, text, count, temperature=0.0, min_tokens=count, return_token_counts=True)
                first, tokens = 0.0, 0
                async for chunk in client.generate(request):
                    if chunk.output_tokens:
                        tokens += chunk.output_tokens
                        first = first or time.monotonic() - begin
                return first, time.monotonic() - begin, tokens

            yield stream


@dataclass(frozen=True, slots=True)
class OfVllm:
    """vLLM's own server, by what its stream of events is on the wire: no client library takes part."""

    port: int
    model: str

    @contextlib.asynccontextmanager
    async def open(self, count: int, begin: float) -> AsyncGenerator[Stream]:
        words = {"model": self.model, "max_tokens": count, "min_tokens": count, "temperature": 0, "stream": True}
        usage = {"include_usage": True, "continuous_usage_stats": True}

        async def stream(text: str) -> Said:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            body = json.dumps({**words, "stream_options": usage, "prompt": text}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: application/json\r\n\r\n"
            writer.write(head.encode() + body)
            first, tokens = 0.0, 0
            async for line in reader:
                if line == b"data: [DONE]\n":
                    break
                if line.startswith(b"data: ") and (used := json.loads(line[6:])["usage"]["completion_tokens"]):
                    tokens, first = used, first or time.monotonic() - begin
            writer.close()
            return first, time.monotonic() - begin, tokens

        yield stream


@contextlib.contextmanager
def asked(streams: Streams, clients: int) -> Generator[Ask]:
    """A server's clients: so many processes."""
    with ProcessPoolExecutor(clients, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(clients)))  # each process is there before it is timed

        def ask(texts: Sequence[str], count: int) -> list[Said]:
            shares = [texts[place::clients] for place in range(clients) if texts[place::clients]]
            begin = time.monotonic() + _LEAD
            told = [pool.submit(ask_share, streams, share, count, begin) for share in shares]
            return [said for each in told for said in each.result()]

        yield ask


@contextlib.contextmanager
def served(shop: Forge, repository: Path, model: PublishedModel, clients: int) -> Generator[Ask]:
    """The repository under its server."""
    http, grpc, metrics = processes.spare(3)
    running = shop.serve(repository, Ports(http, grpc, metrics))
    try:
        with asked(OfTriton(f"{running.ports.host}:{running.ports.grpc}", model.front), clients) as ask:
            yield ask
    finally:
        shop.stop(running)


# -- bare vLLM


def arguments(repository: Path, model: PublishedModel) -> dict[str, object]:
    """model.json, its paths as bare vLLM finds them."""
    folder = repository / model.front
    found = cast("dict[str, object]", json.loads((folder / "1" / "model.json").read_text(encoding="utf-8")))
    for name in ("model", "tokenizer"):
        if str(found.get(name, "")).startswith(("./", "../")):
            found[name] = str((folder / str(found[name])).resolve())
    return found


@contextlib.contextmanager
def started(
    shop: Forge, repository: Path, stated: dict[str, object], argv: Sequence[str], log: IO[str]
) -> Generator[Popen[str]]:
    """A program of vLLM's environment, with the variables that forge's server gives to its own; none of it is left."""
    environ = dict(shop.command(repository, Ports()).env)
    prefix = remains.prefix("", os.getpid())
    remains.clear(prefix)
    variables = remains.environment(environ, prefix, remains.folder(prefix), eager=bool(stated.get("enforce_eager")))
    python = environ[PYTHON]
    variables["PATH"] = f"{Path(python).parent}{os.pathsep}{variables.get('PATH', os.defpath)}"
    # -P: this folder, which is beside the program, is not to be looked into for packages.
    whole = (python, "-s", "-P", *argv)
    process = Popen(whole, env=variables, stdin=PIPE, stdout=PIPE, stderr=log, text=True, process_group=0)
    try:
        yield process
    finally:
        cast("IO[str]", process.stdin).close()
        with contextlib.suppress(TimeoutExpired):
            process.wait(30.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        remains.clear(prefix)


def _ended(log: IO[str]) -> SystemExit:
    log.seek(0)
    return SystemExit("vLLM has ended:\n" + "".join(log.readlines()[-30:]))


@contextlib.contextmanager
def bare(shop: Forge, repository: Path, model: PublishedModel, versions: dict[str, str], **changes: object) -> Generator[Ask]:
    """AsyncLLMEngine by itself, asked in its own process; ``changes`` win over the arguments of model.json."""
    stated = {**arguments(repository, model), **changes}
    argv = (str(Path(__file__).parent / "bare_vllm.py"), json.dumps(stated))
    with tempfile.TemporaryFile("w+") as log, started(shop, repository, stated, argv, log) as process:
        into, out = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

        def hear() -> object:
            if line := out.readline():
                return json.loads(line)
            raise _ended(log)

        def ask(texts: Sequence[str], count: int) -> list[Said]:
            into.write(json.dumps({"prompts": texts, "count": count}) + "\n")
            into.flush()
            return [(first, last, tokens) for first, last, tokens in cast("list[Said]", hear())]

        versions["vllm"] = cast("dict[str, str]", hear())["ready"]
        yield ask


@contextlib.contextmanager
def own_server(shop: Forge, repository: Path, model: PublishedModel, clients: int) -> Generator[Ask]:
    """vLLM's server for OpenAI's API; its log goes where its output goes, and its pipe is shut when it is to end."""
    stated, (port,) = arguments(repository, model), processes.spare(1)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        file = Path(folder) / "arguments.yaml"  # JSON is YAML
        file.write_text(json.dumps({name.replace("_", "-"): value for name, value in stated.items()}))
        argv = ("-m", "vllm.entrypoints.openai.api_server", "--config", str(file), "--host", "127.0.0.1", "--port", str(port))
        quiet = ("--served-model-name", model.name, "--disable-uvicorn-access-log")
        with started(shop, repository, stated, (*argv, *quiet), log) as process:
            Thread(target=_copy, args=(process.stdout, log), daemon=True).start()
            while not _healthy(port):
                if process.poll() is not None:
                    raise _ended(log)
                time.sleep(0.2)
            with asked(OfVllm(port, model.name), clients) as ask:
                yield ask
            process.terminate()


def _copy(lines: IO[str], log: IO[str]) -> None:
    for line in lines:
        log.write(line)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5.0) as said:
            return bool(said.status == HTTPStatus.OK)
    except OSError:
        return False


# -- the comparison


def turn(ask: Ask, tokens: TokenizerFolder, given: argparse.Namespace, number: int) -> dict[int, list[Round]]:
    """Every number of streams, round after round, after one round of each that is thrown away; prompts of their own each."""
    found: dict[int, list[Round]] = {streams: [] for streams in given.streams}
    for place in range(given.rounds + 1):
        for streams in given.streams:
            seed = 1 + 10_000 * number + 100 * place + streams * 1_000_003
            texts = [prompt.text for prompt in prompts.made(tokens, given.input_tokens, streams, seed)]
            said = heard(ask(texts, given.tokens), given.tokens)
            if place:
                found[streams].append(said)
    return found


def middle(rounds: Sequence[Round]) -> Round:
    names = ("tokens_per_s", "ttft", "itl")
    return Round(*(statistics.median(getattr(each, name) for each in rounds) for name in names))


def report(found: dict[str, dict[int, list[Round]]], streams: Sequence[int]) -> dict[str, object]:
    """Prints a table of medians and the ratios; returns them."""
    told: dict[str, object] = {}
    print(f"{'streams':>7}  {'':6} {'tokens/s':>10} {'from':>9} {'to':>9} {'first token':>13} {'between':>10}")
    for number in streams:
        ways = {name: middle(rounds[number]) for name, rounds in found.items()}
        for name, each in ways.items():
            speeds = sorted(one.tokens_per_s for one in found[name][number])
            row = f"{number:7}  {name:6} {each.tokens_per_s:10.1f} {speeds[0]:9.1f} {speeds[-1]:9.1f}"
            print(f"{row} {each.ttft * 1000:10.1f} ms {each.itl * 1000:7.2f} ms")
        ratios = {name: ways["forge"].tokens_per_s / ways[name].tokens_per_s for name in ways if "forge" in ways}
        print("".join(f"{number:7}  forge / {name}: {ratio:.3f}" for name, ratio in ratios.items()))
        rounds = {name: [asdict(one) for one in held[number]] for name, held in found.items()}
        told[str(number)] = {"ratios": ratios, **{name: asdict(each) for name, each in ways.items()}, "rounds": rounds}
    return told


def _end(*_: object) -> None:
    """A time limit's signal: what was started is stopped first, once, though it comes twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model-repository"))
    parser.add_argument("--model", required=True, help="the recipe's name")
    parser.add_argument("--streams", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--input-tokens", type=int, default=64, help="of each prompt")
    parser.add_argument("--rounds", type=int, default=5, help="of each turn")
    parser.add_argument("--turns", type=int, default=2, help="how often each of the two is started")
    parser.add_argument("--clients", type=int, default=min(8, max(1, (os.cpu_count() or 1) // 4)), help="processes that ask")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=["forge", "vllm", "bare"], help="what is measured")
    parser.add_argument("--json", type=Path, help="also write what was measured here")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    shop, place = Forge.here(), given.repository.absolute()
    model = next((each for each in shop.manifest(place).models if each.name == given.model), None)
    if model is None or model.runtime is not RuntimeKind.VLLM or (model.serving and model.serving.contained):
        raise SystemExit(f"{place} has no model {given.model!r} that is served by vLLM on this machine")
    tokens, versions = TokenizerFolder(place / model.asset("model")), dict[str, str]()
    all_ways: dict[str, Callable[[], AbstractContextManager[Ask]]] = {
        "forge": lambda: served(shop, place, model, given.clients),
        "vllm": lambda: own_server(shop, place, model, given.clients),
        "bare": lambda: bare(shop, place, model, versions),
    }
    ways = {name: all_ways[name] for name in given.ways}
    found: dict[str, dict[int, list[Round]]] = {name: {streams: [] for streams in given.streams} for name in ways}
    for number in range(given.turns):
        for name in ways if number % 2 == 0 else reversed(ways):
            print(f"turn {number + 1} of {given.turns}: {name}", file=sys.stderr, flush=True)
            with ways[name]() as ask:
                for streams, rounds in turn(ask, tokens, given, number).items():
                    found[name][streams] += rounds
    stated = {name: getattr(given, name) for name in ("tokens", "input_tokens", "rounds", "turns", "clients")}
    print(f"vLLM {versions.get('vllm', 'unasked')}, {platform.platform()}, {os.cpu_count()} processors; {stated}")
    told = {**versions, "arguments": arguments(place, model), "settings": stated, "streams": report(found, given.streams)}
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
