"""Every reader of what others write, under coverage-guided fuzzing: none may end in another error than its own.

    make fuzz RUNS=1000000                   or: python tests/kit/fuzz.py --runs 1000000 [READER ...]

A reader gets up to 16 KiB; it may refuse them by the errors that it names, within ten seconds on whatever machine this is, in a
process that may hold 1 GB with all that it has loaded. What it did not survive is left in tests/corpora/READER, and
``test_fuzz.py`` reads all of that at each run.
Atheris (PyPI) does the guessing; each reader has a process of its own.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORPORA = HERE.parent / "corpora"
SECONDS = 10
"""That a reader may take: most take a millisecond, and the machine may be busy."""
MEGABYTES = 1024
_INSTRUMENTED = ("forge", "tomli", "tomlkit", "google.protobuf", "prometheus_client", "securesystemslib")
"""What guides the guesses: Python alone. Of JSON, which msgspec reads, only what forge makes of it does."""


@dataclass(frozen=True, slots=True)
class Reader:
    """``read`` may raise ``refuses`` and nothing else; ``seeds`` are files and texts to begin with."""

    read: Callable[[bytes], object]
    refuses: tuple[type[BaseException], ...]
    seeds: tuple[bytes, ...] = ()


def readers() -> Mapping[str, Reader]:
    """Every reader by its name."""
    from forge import errors, protobuf, safetensors
    from forge.bench import instruments, quality, results
    from forge.build.sources import cache
    from forge.fit import model_shape
    from forge.plan import lock
    from forge.recipe import deployment, prompts, reader
    from forge.remote import record
    from forge.schema import manifest
    from forge.serve.openai import requests
    from forge.serve.openai.errors import Fault
    from forge.trtllm import help_texts
    from forge.twin import faults, gguf_header, shape
    from forge.verify import transcripts

    root = HERE.parents[1]
    recipes = tuple(file.read_bytes() for file in sorted((root / "recipes").glob("*.toml")))
    deployments = tuple(file.read_bytes() for file in sorted((root / "deployments").glob("*.toml")))
    configs = tuple(file.read_bytes() for file in sorted((root / "core/forge/repository/skeletons").glob("*.pbtxt")))
    return {
        "recipe": Reader(_text(lambda text: reader.read(text, "it")), (errors.RecipeError,), recipes),
        "deployment": Reader(_text(lambda text: deployment.read(text, "it")), (errors.RecipeError,), deployments),
        "lock": Reader(
            _text(lambda text: lock.read(text, "it")), (errors.LockError,), (b'format = 1\n[source]\nhub = "a/b"\n',)
        ),
        "prompts": Reader(
            _text(lambda text: prompts.parse(text, "it")), (errors.ForgeError,), (b'{"name": "a", "text": "b"}\n',)
        ),
        "manifest": Reader(manifest.read, (errors.RepositoryError,), (b'{"format": 3, "models": []}',)),
        "config.json": Reader(
            lambda given: shape.read_shape(cache.checkpoint(given, "it").config),
            (errors.SourceError, faults.CheckpointFault),
            (_LLAMA, b'{"architectures": ["Gemma2ForCausalLM"], "sliding_window": 8, "layer_types": ["full_attention"]}'),
        ),
        "shape for fit": Reader(
            lambda given: model_shape.read(cache.checkpoint(given, "it").config),
            (errors.SourceError, model_shape.UnknownShapeError),
            (
                _LLAMA,
                b'{"model_type": "t5", "d_model": 8, "num_heads": 2, "num_layers": 2, "is_encoder_decoder": true}',
            ),
        ),
        "config.pbtxt": Reader(_text(protobuf.parse), (protobuf.Unreadable,), configs),
        "safetensors": Reader(_sizes(safetensors.parse), (ValueError,), (b'{"a": {"dtype": "F32", "shape": [2, 3]}}',)),
        "gguf": Reader(_file(gguf_header.read_header), (gguf_header.GgufError,), (b"GGUF\x03\0\0\0" + bytes(16),)),
        "help text": Reader(
            _text(lambda text: (help_texts.options(text), help_texts.complaints(["--a", "1"], text))), (), (_HELP,)
        ),
        "reference": Reader(
            lambda given: transcripts.read(given, "it"), (errors.ForgeError,), (b'{"by": "", "transcripts": []}',)
        ),
        "bench results": Reader(
            lambda given: results.read(given, "it"), (errors.BenchError,), (b'{"format": 1, "points": []}',)
        ),
        "quality": Reader(
            _text(lambda text: quality.read(text, "it")),
            (errors.BenchError,),
            (_EXAM,),
        ),
        "metrics": Reader(_text(instruments.parse), (ValueError,), (b'a{b="c"} 1.5\n# TYPE a gauge\n',)),
        "openai chat": Reader(lambda given: requests.read(given, requests.ChatAsk).conversation, (Fault,), (_CHAT, _CALLS)),
        "openai text": Reader(
            lambda given: requests.read(given, requests.TextAsk), (Fault,), (b'{"model": "m", "prompt": ["a"]}',)
        ),
        "bundle": Reader(_file(_bundle), (errors.StoreError,), (_tar({f"files/ab/{'ab' * 32}": b"x", "bundle.json": b"{}"}),)),
        "record": Reader(
            lambda given: record.decode("a" * 64, given),
            (record.Rotten,),
            (b'{"format": 1, "manifest": "{}", "listing": "[]"}',),
        ),
        "signature": Reader(
            _text(_envelope), (errors.StoreError,), (b'{"payload": "e30=", "payloadType": "a", "signatures": []}',)
        ),
        "tuned recipe": Reader(
            _text(_tuned),
            (errors.RecipeError, errors.BenchError),
            recipes[:2],
        ),
    }


_LLAMA = b"""{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 128,
"max_position_embeddings": 512, "rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}, "hidden_act": "silu"}"""
_HELP = b"""usage: convert_checkpoint.py [-h] [--dtype {auto,float16}]

options:
  -h, --help            show this help message and exit
  --dtype {auto,float16}
                        of the weights (default: auto)
  --a N                 a number
"""
_RECORD = b'{"format": 1, "by": {"forge": "0", "plugins": "0"}, "manifest": "{}", "listing": "[]"}'
_SIGNATURE = (
    b'{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [{"keyid": "a", "sig": "YQ=="}]}'
)
_EXAM = b'[[prompt]]\nname = "a"\ntext = "b"\ncheck = [{ regex = "c+" }, { json_schema = { type = "object" }, not = true }]\n'
_CHAT = b"""{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 3,
"stream": true, "stop": ["x"], "logprobs": true, "top_logprobs": 2, "response_format": {"type": "json_object"}}"""
_CALLS = b"""{"model": "m", "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$defs": {"a": {}}}}}],
"tool_choice": "required", "logit_bias": {"5": -1.5}, "messages": [{"role": "assistant", "tool_calls": [{"id": "1",
"function": {"name": "f", "arguments": "{\\"a\\": 1}"}}]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]}"""


def _tuned(text: str) -> object:
    from forge.bench.tune import evidence
    from forge.recipe import reader

    reader.read(text, "")
    return evidence.applied(text, {"build.max_batch_size": 3}), evidence.stated(text, {"serve.instances": 3}, "why")


def _bundle(file: Path) -> object:
    from forge.build.bundle import contents
    from forge.remote.tarred import Packed

    packed = Packed(file)
    try:
        return contents.read(packed)
    finally:
        packed.close()


def _envelope(text: str) -> object:
    from forge.remote.signature import Trust

    return Trust((), needed=False).about(text, ())


def _tar(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            tar.addfile(told, io.BytesIO(data))
    return made.getvalue()


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """A reader of text: what is no UTF-8 never gets that far."""

    def decoded(given: bytes) -> object:
        try:
            text = given.decode()
        except UnicodeDecodeError:
            return None
        return read(text)

    return decoded


def _sizes(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """A reader of tensors, whose sizes are asked for too."""

    def asked(given: bytes) -> object:
        return [tensor.size for tensor in read(given)]  # type: ignore[attr-defined]

    return asked


def _file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of a file."""

    def laid(given: bytes) -> object:
        with tempfile.NamedTemporaryFile() as file:
            file.write(given)
            file.flush()
            return read(Path(file.name))

    return laid


def survived(one: Reader, given: bytes) -> str:
    """Why a reader did not take it as it should; empty where it did."""
    began = time.perf_counter()
    try:
        one.read(given)
    except one.refuses:
        pass
    except BaseException as error:  # noqa: BLE001 - whatever it is, a person would see it
        return f"{type(error).__name__}: {error}"[:500]
    seconds = time.perf_counter() - began
    return f"it takes {seconds:.1f} s" if seconds > SECONDS else ""


def fuzz(name: str, runs: int, corpus: Path) -> None:
    """Read guesses until one is not survived, or so many were; the process ends here."""
    import atheris

    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        one = readers()[name]
        for seed in one.seeds:
            survived(one, seed)  # what is imported late is imported now, where it is seen
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(one.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def ask(given: bytes) -> None:
        if said := survived(one, given):
            raise RuntimeError(said)

    kept = CORPORA / name
    kept.mkdir(parents=True, exist_ok=True)
    words = [
        f"-runs={runs}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
        "-max_len=16384",
        f"-artifact_prefix={kept}/",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *words, str(corpus), str(kept)], ask)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="*")
    parser.add_argument("--runs", type=int, default=100_000, help="of each reader")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "forge-fuzz")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.reader[0], given.runs, given.corpus / given.reader[0])
        return 0
    failed: list[str] = []
    for name in given.reader or readers():
        words = [sys.executable, __file__, name, "--one", "--runs", str(given.runs), "--corpus", str(given.corpus)]
        began = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(HERE)})
        said = "NOT survived" if done.returncode else "survived"
        print(f"{name}: {given.runs:,} runs, {time.monotonic() - began:.0f} s, {said}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stderr[-3000:])
    return len(failed) > 0


if __name__ == "__main__":
    raise SystemExit(main())
