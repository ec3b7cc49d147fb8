"""The machine code of the twin's decoder: what it computes, that its bits depend on nothing else, and what does without it."""

import importlib
import json
import mmap
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_checkpoints
from forge.twin import kernel
from forge.twin.arrays import Array, Floats
from forge.twin.attention_code import ENTRY as ATTEND, attention
from forge.twin.checkpoint import Weights, read_json, widened
from forge.twin.cores import Cores
from forge.twin.decoder import NumpyDecoder
from forge.twin.faults import CheckpointFault
from forge.twin.kernel import Attention, Matrix, Past, compiled, function
from forge.twin.kernel_code import ENTRY, code
from forge.twin.loading import load
from forge.twin.narrow import NARROW, bfloat16, int8
from forge.twin.projection import ByKernel, ByNumpy, projector
from forge.twin.shape import Shape, read_shape
from tiny_checkpoints import torch

save_file: Any = importlib.import_module("safetensors.numpy").save_file


def drawn(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def multiplied(weight: Array, x: Floats) -> Floats:
    out = np.empty((len(x), len(weight)), np.float32)
    Matrix(weight).multiply(x, out, 0, len(weight))
    return out


STORED: dict[str, Array] = {
    "float16": drawn(101, 83).astype(np.float16),
    "bfloat16": (drawn(101, 83).view(np.uint32) >> np.uint32(16)).astype(np.uint16),
    "int8": (drawn(101, 83) * 40).astype(np.int8),
}


@pytest.mark.parametrize("kind", STORED)
def test_weights_of_fewer_bits_give_the_bits_of_their_float32(kind: str) -> None:
    x = drawn(7, 83, seed=2)
    np.testing.assert_array_equal(multiplied(STORED[kind], x), multiplied(widened(STORED[kind]), x))


def test_a_sum_is_of_sixteen_lanes_halves_and_rest() -> None:
    weight, x = drawn(1, 19), drawn(1, 19, seed=2)
    exact = weight[0].astype(np.float64) * x[0]
    lanes = exact[:16].astype(np.float32)
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    said = lanes[0]
    for place in (16, 17, 18):
        said = np.float32(exact[place] + np.float64(said))
    assert multiplied(weight, x)[0, 0] == said


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares two x86-64 processors")
def test_the_bits_are_the_same_on_another_processor() -> None:
    theirs = compiled("x86-64-v3", "", code("float", 3, 2) + attention())
    ours = compiled("", "", code("float", 6, 4) + attention())
    weight, x = drawn(101, 83), drawn(9, 83, seed=2)
    rows: list[Floats] = []
    for engine in (ours, theirs):
        out = np.empty((9, 101), np.float32)
        function(engine, ENTRY, 3, 4)(weight.ctypes.data, x.ctypes.data, out.ctypes.data, 101, 83, 9, 101)
        queries, past = drawn(2 * 3, 32), drawn(2, 2, 60, 32)
        seen, scores = np.empty((6, 32), np.float32), np.empty(3 * 64, np.float32)
        places = (queries, past[0, :, 59], past[1, :, 59].copy(), past[0], past[1], seen, scores)
        function(engine, ATTEND, 7, 5)(*(place.ctypes.data for place in places), 2, 3, 32, 60 * 32, 60)
        rows += [out, seen]
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(rows[1], rows[3])


def test_vectors_that_do_not_fit_are_refused_before_reading() -> None:
    with pytest.raises(ValueError, match=r"vectors \(2, 4\) do not fit weights \(3, 5\)"):
        Matrix(drawn(3, 5)).multiply(drawn(2, 4), np.empty((2, 3), np.float32), 0, 3)
    past = drawn(1, 1, 8, 16)
    with pytest.raises(ValueError, match=r"are not those of the model"):
        Attention(1, 1, 16)(0, 0, drawn(1, 1, 16), drawn(1, 1, 16), [Past.of(past, past, 0)], np.empty((1, 16), np.float32))


@pytest.mark.parametrize(("heads", "group", "dim"), [(3, 3, 64), (1, 1, 16), (2, 4, 80), (8, 1, 128)])
@pytest.mark.parametrize(("length", "window"), [(0, 0), (15, 0), (99, 0), (99, 7), (40, 300)])
def test_attention_is_that_of_numpy(heads: int, group: int, dim: int, length: int, window: int) -> None:
    keys, values, new = drawn(2, heads, 128, dim), drawn(2, heads, 128, dim, seed=2), drawn(1, heads, dim, seed=3)
    turned, out = drawn(1, heads * group + heads, dim, seed=4), np.empty((1, heads * group * dim), np.float32)
    Attention(heads, group, dim)(1, window, turned, new, [Past.of(keys, values, length)], out)
    np.testing.assert_array_equal(keys[1, :, length], turned[0, heads * group :])
    np.testing.assert_array_equal(values[1, :, length], new[0])
    first = max(0, length + 1 - window) if window else 0
    seen_keys, seen_values = (part[1, :, first : length + 1].astype(np.float64) for part in (keys, values))
    scores = np.matmul(turned[0, : heads * group].reshape(heads, group, dim), seen_keys.transpose(0, 2, 1))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    wanted: NDArray[np.float64] = np.matmul(weights / weights.sum(axis=-1, keepdims=True), seen_values)
    np.testing.assert_allclose(out.reshape(wanted.shape), wanted, atol=3e-5)


def test_a_query_that_is_no_number_is_answered_by_none() -> None:
    past, turned = drawn(1, 1, 8, 16), drawn(1, 2, 16)
    turned[0, 0, 3] = np.nan
    out = np.empty((1, 16), np.float32)
    Attention(1, 1, 16)(0, 0, turned, drawn(1, 1, 16), [Past.of(past, past.copy(), 5)], out)
    assert np.isnan(out).all()


@pytest.fixture
def unmade() -> Iterator[None]:
    """As in a process that has made no code so far, and after it again."""
    for made in (kernel.product, kernel.engine):
        made.cache_clear()
    yield
    for made in (kernel.product, kernel.engine):
        made.cache_clear()


class Processor:
    """llvmlite on some other machine."""

    def __init__(self, features: dict[str, bool] | None) -> None:
        self._features = features

    def get_host_cpu_name(self) -> str:
        return "486"

    def get_host_cpu_features(self) -> dict[str, bool]:
        if self._features is None:
            raise RuntimeError("failed to get host cpu features")
        return self._features


@pytest.mark.usefixtures("unmade")
@pytest.mark.parametrize(
    ("features", "said"), [({"sse2": True}, "486) does not multiply and add in one"), (None, "failed to get host cpu features")]
)
def test_an_unfit_processor_falls_back_to_numpy(
    features: dict[str, bool] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_binding", lambda: Processor(features))
    assert isinstance(projector(), ByNumpy)
    assert said in projector().says


@pytest.mark.usefixtures("unmade")
def test_without_llvmlite_numpy_does_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert projector().says.startswith("numpy, which takes several times as long: llvmlite is not there")


@pytest.mark.usefixtures("unmade")
def test_a_system_forbidding_written_code_is_asked_before_llvm_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert "runs no code that a process writes (Permission denied)" in projector().says


def test_this_machine_has_it() -> None:
    assert projector().says.startswith("machine code for ")


def test_bfloat16_is_the_nearest_and_of_two_the_even_one() -> None:
    wide = np.concatenate([drawn(400) * 10 ** drawn(400, seed=2), [1.00390625, 1.01171875, -0.0, np.inf, np.nan]])
    wide = wide.astype(np.float32)
    wanted = torch.from_numpy(wide).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(widened(bfloat16(wide)[0]), wanted)
    assert bfloat16(bfloat16(wide)[0])[0].dtype == np.uint16


def test_int8_is_the_nearest_of_a_rows_own_steps() -> None:
    weight = drawn(5, 40) * np.array([[1e-3], [1.0], [0.0], [30.0], [1e9]], np.float32)
    steps, step = int8(weight)
    assert step is not None
    assert steps.dtype == np.int8
    assert (np.abs(widened(steps) * step[:, None] - weight) <= step[:, None] * 0.5001).all()
    assert list(np.abs(steps.astype(int)).max(axis=1)) == [127, 127, 0, 127, 127]


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_recipe_has_all_matrices_but_the_embedding_rounded(family: str, weights: str, tmp_path: Path) -> None:
    tiny_checkpoints.make(family, tmp_path, tie_word_embeddings=False)
    (tmp_path / "build_config.json").write_text(json.dumps({"weights": weights}))
    asked, by_numpy = load(tmp_path), NumpyDecoder(*read(tmp_path), ByNumpy(), NARROW[weights])
    tensors = {name: np.array(tensor) for name, tensor in Weights(tmp_path).items()}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            rounded, step = NARROW[weights](tensor)
            tensors[name] = widened(rounded) * (1 if step is None else step[:, None])
    save_file(tensors, tmp_path / "model.safetensors")
    before = NumpyDecoder(*read(tmp_path), ByNumpy())
    said = [decoder.prompt(decoder.start(), np.arange(2, 40), every=True) for decoder in (before, by_numpy, asked)]
    np.testing.assert_allclose(said[1], said[0], atol=2e-3)
    np.testing.assert_allclose(said[2], said[0], atol=2e-3)


def read(folder: Path) -> tuple[Shape, Weights]:
    return read_shape(read_json(folder / "config.json")), Weights(folder)


def test_weights_that_nobody_rounds_to_stop_the_load(tmp_path: Path) -> None:
    tiny_checkpoints.make("llama", tmp_path)
    (tmp_path / "build_config.json").write_text(json.dumps({"weights": "int3"}))
    with pytest.raises(CheckpointFault, match=r"weights is 'int3'; the twin rounds them to bfloat16 or int8"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen2"])
def test_machine_code_and_numpy_say_the_same_up_to_rounding(family: str, tmp_path: Path) -> None:
    tiny_checkpoints.make(family, tmp_path)
    shape, weights = read(tmp_path)
    found: list[Floats] = []
    for way in (ByKernel(), ByNumpy(cores=Cores(1))):
        decoder = NumpyDecoder(shape, weights, way)
        memory = decoder.start()
        found.append(decoder.prompt(memory, np.arange(2, 40), every=True))
        found += [decoder.step([memory], [token]) for token in (5, 17, 3)]
    for ours, theirs in zip(found[:4], found[4:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_no_infinite_number_or_nan_is_rounded(odd: float) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = odd
    with pytest.raises(CheckpointFault, match="no finite numbers"):
        int8(weight)
