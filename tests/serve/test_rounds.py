"""Whether the models that are offered live, as OpenAI's port finds out: the judgement by itself, over what asking would say."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from forge.schema import manifest
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import Role, RuntimeKind
from forge.serve.openai.models import Models
from forge.serve.openai.rounds import Rounds, Sick
from forge.serve.vitals import Pulse, judged, used

ROLES = {
    Role.PREPROCESSING: "pre",
    Role.POSTPROCESSING: "post",
    Role.TENSORRT_LLM: "engine",
    Role.BLS: "bls",
    Role.ENSEMBLE: "ensemble",
}
MODEL = PublishedModel(name="tiny", entry="", runtime=RuntimeKind.TWIN, roles=ROLES)
Meanwhile = Callable[[], None]


def late(model: str, *, works: bool = False) -> Pulse:
    return Pulse(model=model, answers=False, seconds=5.0, late=True, works=works, why="no answer within 5 s")


def rounds(place: Path, *said: Pulse, meanwhile: Meanwhile = lambda: None) -> tuple[Rounds, list[Sequence[str]]]:
    """Rounds over one model whose parts answer but for those that ``said`` something else, and what they were asked."""
    (place / manifest.NAME).write_bytes(msgspec.json.encode(Manifest(models=(MODEL,))))
    asked: list[Sequence[str]] = []
    others = {pulse.model: pulse for pulse in said}

    def ask(models: Sequence[str], deadline: float) -> list[Pulse]:
        asked.append(models)
        meanwhile()
        return [others.get(model, Pulse(model=model, answers=True, seconds=0.0)) for model in models]

    return Rounds(ask, Models("", [place]), lambda: 100.0), asked


def state(made: Rounds) -> str:
    return asyncio.run(made.states())["tiny"].state


def test_every_part_of_a_model_is_asked(tmp_path: Path) -> None:
    made, asked = rounds(tmp_path)
    assert state(made) == "answers"
    assert [set(models) for models in asked] == [set(ROLES.values())]


@pytest.mark.parametrize("part", ["pre", "post", "engine", "bls"])
def test_a_part_that_hangs_is_named_with_the_fix(tmp_path: Path, part: str) -> None:
    made, _ = rounds(tmp_path, late(part))
    with pytest.raises(Sick) as caught:
        asyncio.run(made.document())
    assert caught.value.status == 503
    said = msgspec.json.decode(caught.value.body)
    assert f"{part} does not answer (no answer within 5 s)" in said["error"]["message"]
    assert "forge reload" in said["error"]["message"]
    assert said["models"]["tiny"]["state"] == "dead"


def test_who_waits_for_a_worker_is_busy_a_bystander_not(tmp_path: Path) -> None:
    waiting = (late("bls"), late("ensemble"), late("engine", works=True))
    assert state(rounds(tmp_path, *waiting)[0]) == "busy"
    assert state(rounds(tmp_path, *waiting, late("pre"))[0]) == "dead"
    assert state(rounds(tmp_path, late("engine"), late("bls", works=True))[0]) == "dead"


def test_an_engine_whose_tokens_come_is_busy(tmp_path: Path) -> None:
    hearing, _ = rounds(tmp_path, late("engine"), late("bls"), meanwhile=lambda: hearing.heard("tiny"))
    assert state(hearing) == "busy"
    mute, _ = rounds(tmp_path, late("pre"), meanwhile=lambda: mute.heard("tiny"))
    assert state(mute) == "dead"


def test_who_asks_meanwhile_has_no_round_of_their_own(tmp_path: Path) -> None:
    both = threading.Event()
    made, asked = rounds(tmp_path, meanwhile=lambda: assert_set(both))

    async def crowd() -> None:
        waiting = [asyncio.create_task(made.states()) for _ in range(20)]
        await asyncio.sleep(0)
        both.set()
        await asyncio.gather(*waiting)

    asyncio.run(crowd())
    assert len(asked) == 1


def test_what_is_offered_anew_is_asked_at_once(tmp_path: Path) -> None:
    made, _ = rounds(tmp_path)

    async def both() -> list[set[str]]:
        first = set(await made.states())
        renamed = Manifest(models=(replace(MODEL, name="small"),))
        (tmp_path / "new").write_bytes(msgspec.json.encode(renamed))
        (tmp_path / "new").replace(tmp_path / manifest.NAME)
        return [first, set(await made.states())]

    assert asyncio.run(both()) == [{"tiny"}, {"small"}]


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)


def test_a_process_that_goes_hides_no_work_of_another() -> None:
    assert used({1: 90.0, 2: 10.0}, {2: 11.0}) == 1.0
    assert used({2: 10.0}, {2: 10.0, 3: 0.5}) == 0.5


def test_what_answers_is_not_called_busy() -> None:
    one = Pulse(model="engine", answers=True, seconds=0.1, works=True)
    assert judged((one, late("other")), {}) == (one, late("other"))
