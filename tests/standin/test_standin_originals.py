"""From a checkpoint to tokens on NVIDIA's own skeletons, their programs unchanged: built, checked, served, asked, verified.

Only the image's scripts and the `tensorrtllm` backend are the stand-in's; torch and transformers are the tests' own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

import chained
import originals
from forge.serve.lookup import Target
from forge.verify.verify import VerifyOptions
from patience import free_ports
from standin.inside import Insider, lay_backends
from triton_fixture import Serving

pytestmark = pytest.mark.slow
VERSIONS = ("0.16.0", "0.17.0", "0.18.0", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0")
"""The bls of those before wants Python 3.10: dataclasses of theirs have arrays for defaults, which later Pythons refuse."""
RECIPE = """
name = "chain"
family = "llama"
[source]
path = "model"
[runtime]
kind = "engine"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 4
max_input_len = 60
max_seq_len = 100
[serve]
instances = 1
[sampling]
max_tokens = 16
[verify]
prompts = "prompts.txt"
max_tokens = 16
"""


@dataclass(frozen=True)
class Bench:
    """A repository of NVIDIA's models, and the server on it."""

    insider: Insider
    skeletons: Path
    repository: Path

    @property
    def target(self) -> Target:
        return self.insider.shop.target("chain", self.repository)


@pytest.fixture(scope="module", params=VERSIONS)
def bench(serving: Serving, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bench]:
    skeletons = originals.programs(request.param)
    if skeletons is None:
        pytest.skip(originals.MISSING)
    folder = tmp_path_factory.mktemp("chain")
    chained.lay(folder / "model")
    (folder / "chain.toml").write_text(RECIPE)
    (folder / "prompts.txt").write_text("the\nthe capital of\n")
    environment = serving.with_own_packages(folder / "environment").environment
    laid = lay_backends(environment, folder / "backends", request.param)
    insider = Insider(folder, environment, laid, skeletons, request.param)
    built = insider.shop.build([folder / "chain.toml"], repository=folder / "models")
    running = insider.shop.serve(built.repository, free_ports(), restart=False)
    yield Bench(insider, skeletons, built.repository)
    insider.shop.stop(running)


def test_what_is_published_are_nvidias_programs_word_for_word(bench: Bench) -> None:
    theirs = [file for file in bench.skeletons.rglob("*.py") if file.relative_to(bench.skeletons).parts[0] != "tensorrt_llm"]
    assert len(theirs) >= 5
    for file in theirs:
        assert (bench.repository / file.relative_to(bench.skeletons)).read_bytes() == file.read_bytes()


def test_the_check_finds_nothing_that_is_wrong(bench: Bench) -> None:
    found = bench.insider.shop.check(bench.repository).findings
    assert {each.rule for each in found} <= {"placeholder-unset"}, found


def test_a_stream_says_what_the_whole_answer_says(bench: Bench) -> None:
    asked = replace(bench.target.request("the"), max_tokens=chained.COUNT)
    pieces = [chunk.text for chunk in bench.insider.shop.generate(bench.target.address, replace(asked, stream=True))]
    whole = [chunk.text for chunk in bench.insider.shop.generate(bench.target.address, replace(asked, stream=False))]
    assert "".join(whole) == "".join(pieces) == chained.SAID
    assert len([piece for piece in pieces if piece]) > 1


def test_what_is_served_is_what_the_checkpoint_says(bench: Bench) -> None:
    report = bench.insider.shop.verify("chain", bench.repository, VerifyOptions())
    assert report.passed, report.faults
