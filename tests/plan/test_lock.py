"""The lock beside a recipe: what it keeps, and how it tells that it no longer answers."""

import pytest
from msgspec.structs import replace

from forge.errors import LockError
from forge.plan.lock import Image, Lock, lock, read, stale, write
from forge.schema.values import FileFact, Pinned, Recipe, RuntimeKind, RuntimeTable, ServeTable, Source, SourceKind

DIGEST = "sha256:" + "ab" * 32
SOURCE = Source(hub="acme/tiny")
RECIPE = Recipe(name="tiny", source=SOURCE)
FILES = (FileFact("config.json", 12, "gitsha1:01"), FileFact("model.safetensors", 99, "sha256:02"))
PINNED = Pinned(SourceKind.HUB, "acme/tiny", "c0ffee", FILES, "https://hub.example/acme/tiny")
IMAGE = Image(reference="25.08", digest=DIGEST, trtllm="0.21.0")


def locked(recipe: Recipe = RECIPE, image: Image | None = IMAGE) -> Lock:
    return lock(recipe, PINNED, image=image, versions={"nvidia-pytriton": "0.7.0"})


VERSIONS = write(locked()).replace('"nvidia-pytriton": "0.7.0"', "%s")


def test_a_lock_is_read_as_written_and_written_alike() -> None:
    assert read(write(locked()), "tiny.toml.lock") == locked()
    assert write(locked()) == write(locked())
    assert write(locked()).endswith("}\n")


def test_a_lock_holds_no_place_of_this_machine() -> None:
    assert "hub.example" not in write(locked())
    assert locked().source.files == FILES


def test_a_fresh_lock_is_not_stale() -> None:
    assert stale(locked(), RECIPE) == ()


def test_what_a_lock_does_not_pin_may_change() -> None:
    assert stale(locked(), replace(RECIPE, serve=ServeTable(stream=False), name="other")) == ()


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (replace(RECIPE, source=Source(hub="acme/tiny", revision="v2")), 'source.revision was not stated, is now "v2"'),
        (replace(RECIPE, source=Source(hub="acme/large")), 'source.hub was "acme/tiny", is now "acme/large"'),
        (replace(RECIPE, draft=Source(hub="acme/draft")), 'draft was not stated, is now {"hub":"acme/draft"}'),
        (replace(RECIPE, runtime=RuntimeTable(image="25.06")), 'image was "25.08", is now "25.06"'),
    ],
)
def test_a_changed_question_makes_a_lock_stale_in_words(recipe: Recipe, reason: str) -> None:
    assert stale(locked(), recipe) == (reason,)


def test_a_lock_of_the_twin_does_not_answer_an_engine() -> None:
    twin = replace(RECIPE, runtime=RuntimeTable(kind=RuntimeKind.TWIN))
    assert stale(locked(twin, image=None), twin) == ()
    assert stale(locked(twin, image=None), RECIPE) == ("the runtime engine needs an image, and the lock pins none",)
    assert stale(locked(), replace(twin, runtime=RuntimeTable(kind=RuntimeKind.TWIN, image="24.10"))) == ()


def test_locked_tensorrt_llm_and_vllm_images_do_not_mix() -> None:
    vllm = replace(RECIPE, runtime=RuntimeTable(kind=RuntimeKind.VLLM, executor="docker"))
    held = Image(reference="25.08-vllm", digest=DIGEST, vllm="0.9.2")
    assert stale(locked(vllm, held), vllm) == ()
    assert stale(locked(), vllm) == ("the runtime vllm needs an image with vLLM: the lock pins 25.08",)
    assert stale(locked(vllm, held), RECIPE) == (
        "the runtime engine needs an image with TensorRT-LLM: the lock pins 25.08-vllm",
    )
    assert stale(locked(vllm, held), replace(vllm, runtime=RuntimeTable(kind=RuntimeKind.VLLM))) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not readable"),
        ("[1]", "not readable"),
        ("<<<<<<< ours", "not readable"),
        ('{"format": "x"}', "not readable"),
        ('{"format": 1}', "not readable: Object missing required field"),
        (VERSIONS % '"--index-url=https://elsewhere/#": "1"', "not readable: .*versions"),
        (VERSIONS % '"numpy @ https://elsewhere/numpy.whl#": "1"', "not readable: .*versions"),
        (VERSIONS % '"numpy": "1 --pre"', "not readable: .*versions"),
        ('{"format": 2, "what": "comes later"}', r"written by a later forge \(format 2\)"),
    ],
)
def test_a_damaged_lock_is_named_with_the_fix(text: str, said: str) -> None:
    with pytest.raises(LockError, match=said) as caught:
        read(text, "tiny.toml.lock")
    assert caught.value.where == "tiny.toml.lock"
    assert "forge lock" in caught.value.hint
