"""How fast tokens stream, side by side in one run: transformers, the bare decoder, one stream and eight through Triton.

    python benchmarks/streaming.py                                     builds and serves the demo's recipe for it
    python benchmarks/streaming.py --checkpoint DIR --address HOST:PORT [--model tensorrt_llm_bls]
    python benchmarks/streaming.py --vllm REPOSITORY --vllm-model NAME  bare vLLM in float32 beside them, with the environment
                                                                        and arguments of a repository built by --runtime vllm

Rounds are interleaved, so that what else the machine does falls on all alike; medians and their ratios are printed. The
tokens are greedy and the end token is forbidden, so every way does the same work.
"""

import argparse
import contextlib
import importlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from forge.api.forge import Forge
from forge.client.types import Request
from forge.schema.values import Ports
from forge.twin.arrays import Ints

PROMPT = "<|im_start|>user\nWhy is the sky blue? Explain it to a child, then to a physicist.<|im_end|>\n<|im_start|>assistant\n"
RECIPE = Path(__file__).parent.parent / "recipes" / "smollm2-135m-instruct.toml"
STREAMS = 8


@dataclass(frozen=True, slots=True)
class Served:
    """A checkpoint folder (weights), the folder of its tokenizer, and where a Triton speaks for it."""

    checkpoint: Path
    tokenizer: Path
    address: str
    model: str
    python: str
    """The interpreter of the serving environment."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way's measurement: seconds to the first token and in all, for this many tokens of all streams together."""

    first: float
    whole: float
    tokens: int

    @property
    def decoding(self) -> float:
        """Tokens per second once the first was said."""
        return (self.tokens - 1) / (self.whole - self.first)

    @property
    def total(self) -> float:
        """Tokens per second with the prompt's time counted."""
        return self.tokens / self.whole


def free_ports() -> Ports:
    """Three ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        http, grpc, metrics = (int(one.getsockname()[1]) for one in held)
    return Ports(http, grpc, metrics)


@contextlib.contextmanager
def served() -> Generator[Served]:
    """The demo's recipe, built and served for this run by forge's Python API."""
    shop = Forge.here()
    shop.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shop.home) as folder:
        built = shop.build([RECIPE], repository=Path(folder) / "repository")
        running = shop.serve(built.repository, free_ports())
        try:
            target = shop.target(built.models[0].name, built.repository)
            engines = target.tokenizer.parent / "engines"
            environment = shop.launch(built.repository, running.ports).environment
            python = str(environment / "bin" / "python3") if environment else sys.executable
            yield Served(engines, target.tokenizer, target.address, target.request("").model, python)
        finally:
            shop.stop(running)


@contextlib.contextmanager
def bare(target: Served) -> Generator[Callable[[Ints, int, int], Run]]:
    """The numpy decoder by itself, in a process of the serving environment."""
    here = Path(__file__).parent
    process = subprocess.Popen(
        [target.python, str(here / "bare_decoder.py"), str(target.checkpoint)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(here.parent / "core" / "forge")},
    )

    def ask(prompt: Ints, count: int, end: int) -> Run:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({"prompt": prompt.tolist(), "count": count, "end": end}) + "\n")
        process.stdin.flush()
        first, whole = json.loads(process.stdout.readline())
        return Run(first, whole, count)

    with process:
        try:
            yield ask
        finally:
            process.terminate()


def transformers_generate(checkpoint: Path) -> Callable[[Ints, int], Run]:
    """transformers' generate on the same float32 weights; its first token is timed by a generate of one."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    def generate(prompt: Ints, count: int) -> Run:
        ids = torch.from_numpy(prompt[None, :])
        times: list[float] = []
        for length in (1, count):
            began = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=length,
                    max_new_tokens=length,
                )
            times.append(time.perf_counter() - began)
        return Run(times[0], times[1], count)

    return generate


def stream(shop: Forge, target: Served, count: int) -> Run:
    """One stream through Triton."""
    request = Request(target.model, PROMPT, count, min_tokens=count)
    began = time.perf_counter()
    times = [time.perf_counter() - began for chunk in shop.generate(target.address, request) if chunk.text]
    return Run(times[0], times[-1], count)


def streams(shop: Forge, target: Served, count: int, many: int) -> Run:
    """Many streams at once; the last one to end ends the run."""
    began, runs = time.perf_counter(), list[Run]()
    threads = [threading.Thread(target=lambda: runs.append(stream(shop, target, count))) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(runs) < many:
        raise SystemExit(f"{many - len(runs)} of {many} streams failed")
    return Run(min(run.first for run in runs), time.perf_counter() - began, count * many)


@contextlib.contextmanager
def vllm(shop: Forge, repository: Path | None, name: str) -> Generator[Callable[[int, int], Run] | None]:
    """Bare vLLM in float32, asked for so many tokens by so many streams; None where no repository says how to start it."""
    if repository is None:
        yield None
        return
    share: Any = importlib.import_module("vllm_share")
    place = repository.absolute()
    model = next(each for each in shop.manifest(place).models if each.name == name)
    with share.bare(shop, place, model, {}, dtype="float32") as ask:

        def answer(count: int, many: int) -> Run:
            said = ask([PROMPT] * many, count)
            assert all(tokens == count for _, _, tokens in said)
            return Run(min(first for first, _, _ in said), max(last for _, last, _ in said), count * many)

        yield answer


def measure(target: Served, count: int, rounds: int, repository: Path | None = None, model: str = "") -> dict[str, list[Run]]:
    """Every way, once a round, after one round that is thrown away."""
    shop = Forge.here()
    tokenizer = Tokenizer.from_file(str(target.tokenizer / "tokenizer.json"))
    prompt: Ints = np.array(tokenizer.encode(PROMPT).ids, np.int64)
    end = tokenizer.token_to_id("<|im_end|>") or 0
    with bare(target) as decode, vllm(shop, repository, model) as beside:
        ways: dict[str, Callable[[], Run]] = {
            "bare decoder": lambda: decode(prompt, count, end),
            "one stream": lambda: stream(shop, target, count),
            f"{STREAMS} streams": lambda: streams(shop, target, count, STREAMS),
        }
        if beside:
            ways |= {
                "vLLM, one stream": lambda: beside(count, 1),
                f"vLLM, {STREAMS} streams": lambda: beside(count, STREAMS),
            }
        elif find_spec("transformers") and find_spec("torch"):
            generate = transformers_generate(target.checkpoint)
            ways = {"transformers": lambda: generate(prompt, count), **ways}
        found: dict[str, list[Run]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                run = way()
                if turn:
                    found[name].append(run)
    return found


def report(found: dict[str, list[Run]]) -> dict[str, float]:
    """Prints a table of medians; returns and prints the ratios that the project promises."""
    print(f"{'':16} {'first token':>12} {'then':>14} {'in all':>14}")
    middle = {
        name: (
            statistics.median(run.first for run in runs),
            statistics.median(run.decoding for run in runs),
            statistics.median(run.total for run in runs),
        )
        for name, runs in found.items()
    }
    for name, (first, decoding, total) in middle.items():
        print(f"{name:16} {first * 1000:9.0f} ms {decoding:8.1f} tok/s {total:8.1f} tok/s")
    one, bare_speed, many = middle["one stream"], middle["bare decoder"], middle[f"{STREAMS} streams"]
    ratios = {"one stream / bare decoder": one[1] / bare_speed[1], f"{STREAMS} streams / one, in all": many[2] / one[2]}
    if "transformers" in middle:
        ratios["bare decoder / transformers"] = bare_speed[1] / middle["transformers"][1]
    if "vLLM, one stream" in middle:
        ratios["one stream / vLLM's"] = one[1] / middle["vLLM, one stream"][1]
        ratios[f"{STREAMS} streams / vLLM's, in all"] = many[2] / middle[f"vLLM, {STREAMS} streams"][2]
    wanted = {
        "one stream / bare decoder": 0.95,
        f"{STREAMS} streams / one, in all": 4.0,
        "bare decoder / transformers": 1.0,
        "one stream / vLLM's": 1.3,
        f"{STREAMS} streams / vLLM's, in all": 1.0,
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} (at least {wanted[name]:g}: {'held' if ratio >= wanted[name] else 'MISSED'})")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder with config.json, weights and tokenizer.json")
    parser.add_argument("--address", help="gRPC address of a Triton that serves it; without, forge builds and serves")
    parser.add_argument("--model", default="tensorrt_llm_bls", help="Triton's name of the model to ask")
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs the bare decoder")
    parser.add_argument("--vllm", type=Path, help="a repository built by --runtime vllm: measure bare vLLM, too")
    parser.add_argument("--vllm-model", default="smollm2-135m-instruct", help="the model's name there")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the ratios here")
    given = parser.parse_args()
    if bool(given.checkpoint) != bool(given.address):
        parser.error("--checkpoint and --address go together")
    with contextlib.ExitStack() as stack:
        if given.address:
            target = Served(given.checkpoint, given.checkpoint, given.address, given.model, given.python)
        else:
            target = stack.enter_context(served())
        ratios = report(measure(target, given.tokens, given.rounds, given.vllm, given.vllm_model))
    if given.json:
        given.json.write_text(json.dumps(ratios, indent=2) + "\n")


if __name__ == "__main__":
    main()
