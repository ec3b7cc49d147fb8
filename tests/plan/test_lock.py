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


WHEEL = Source(wheel="tiny==1.0", file="tiny/model.gguf")
HELD = Pinned(SourceKind.WHEEL, "tiny==1.0", "1.0", (FileFact("tiny/model.gguf", 0),))


@pytest.mark.parametrize(
    ("source", "pin"),
    [
        (WHEEL, replace(HELD, name="git+file:///tmp/evil")),
        (WHEEL, replace(HELD, name="file:///tmp/evil")),
        (WHEEL, replace(HELD, name="other==1.0")),
        (WHEEL, replace(HELD, name="tiny==2.0")),
        (WHEEL, replace(HELD, files=())),
        (WHEEL, replace(HELD, files=(*HELD.files, FileFact("tiny/other.gguf", 0)))),
        (WHEEL, replace(HELD, kind=SourceKind.PATH)),
        (SOURCE, replace(PINNED, name="acme/other")),
        (SOURCE, replace(PINNED, kind=SourceKind.GIT)),
    ],
)
def test_a_lock_that_pins_what_nobody_asked_for_is_refused(source: Source, pin: Pinned) -> None:
    """Whoever wrote it: a wheel's name goes to pip, and pip builds and runs what a URL names."""
    with pytest.raises(LockError, match="not readable: "):
        read(write(lock(Recipe(name="tiny", source=source), pin)), "tiny.toml.lock")


def test_drafts_and_adapters_that_nothing_asks_for_are_refused() -> None:
    for unasked in (replace(locked(), draft=PINNED), replace(locked(), lora=(PINNED,))):
        with pytest.raises(LockError, match="nothing asks for"):
            read(write(unasked), "tiny.toml.lock")


def test_a_wheel_that_was_asked_for_is_read() -> None:
    held = lock(Recipe(name="tiny", source=WHEEL), HELD)
    assert read(write(held), "tiny.toml.lock") == held
