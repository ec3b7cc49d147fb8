"""What is dead is found and brought back: the judgement by itself, over a server that is only a note of what runs."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from fakes import FakeServer
from forge.errors import ServerError
from forge.schema import manifest
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import Ports, Role, RuntimeKind
from forge.serve.recovery import TRIES, Care, Watch
from forge.serve.server_types import Launch, Running
from forge.serve.vitals import Pulse, Signs

ROLES = {
    Role.PREPROCESSING: "preprocessing",
    Role.POSTPROCESSING: "postprocessing",
    Role.TENSORRT_LLM: "tensorrt_llm",
    Role.BLS: "tensorrt_llm_bls",
    Role.ENSEMBLE: "ensemble",
}
WELL = Signs(processes=1, instances=1)
GONE = replace(WELL, processes=0)
STOPPED = replace(WELL, stopped=1)


@dataclass
class Room:
    """One server of one recipe, a watch over it, and a clock that a test turns."""

    running: Running
    server: FakeServer
    time: float = 100.0
    said: list[str] = field(default_factory=list[str])
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.anew()

    def anew(self) -> None:
        """A watch that has seen nothing yet."""
        self.watch = Watch(self.server, self.plan, lambda: self.time, lambda: 1e9 + self.time, self.said.append, deadline=10.0)

    def plan(self, held: object, running: Running) -> Launch:
        return Launch(Path(running.repository), running.models)

    def look(self, times: int = 1, seconds: float = 2.0) -> None:
        for _ in range(times):
            self.watch.look(self.running)
            self.time += seconds

    def see(self, **signs: Signs) -> None:
        self.server.seen.update(signs)

    @property
    def restarts(self) -> list[str]:
        return [told.removeprefix("restart ") for told in self.server.told if told.startswith("restart ")]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    model = PublishedModel(name="tiny", entry="", runtime=RuntimeKind.TWIN, roles=ROLES)
    (tmp_path / manifest.NAME).write_bytes(msgspec.json.encode(Manifest(models=(model,))))
    running = Running(str(tmp_path), 1, 0.0, Ports(), tuple(ROLES.values()), "", "fake-1")
    made = Room(running, FakeServer(alive=[running]))
    made.see(**{name: WELL for role, name in ROLES.items() if role is not Role.ENSEMBLE})
    made.look()
    return made


def pulse(model: str, **more: object) -> Pulse:
    return msgspec.convert({"model": model, "answers": False, "seconds": 1.0, **more}, Pulse)


def test_models_that_are_well_are_never_asked(room: Room) -> None:
    room.look(20)
    assert room.server.told == []


@pytest.mark.parametrize(
    ("model", "restarted"),
    [
        ("tensorrt_llm", "tensorrt_llm tensorrt_llm_bls ensemble"),
        ("tensorrt_llm_bls", "tensorrt_llm_bls"),
        ("preprocessing", "preprocessing ensemble"),
        ("postprocessing", "postprocessing ensemble"),
    ],
)
def test_an_ended_process_is_restarted_with_what_stands_on_it(room: Room, model: str, restarted: str) -> None:
    room.see(**{model: GONE})
    room.look()
    assert room.restarts == []  # it may be a moment between two versions
    room.look()
    assert room.restarts == [restarted]
    assert room.server.healths[model].restarts == 1
    assert room.server.healths[model].since == 0.0


def test_one_of_several_instances_that_ended_is_enough(room: Room) -> None:
    room.see(preprocessing=Signs(processes=2, instances=2))
    room.look()
    room.see(preprocessing=Signs(processes=1, instances=2))
    room.look(2)
    assert room.restarts == ["preprocessing ensemble"]


def test_a_stopped_process_has_the_deadline_to_go_on(room: Room) -> None:
    room.see(tensorrt_llm_bls=STOPPED)
    room.look(4)
    room.see(tensorrt_llm_bls=WELL)
    room.look()
    assert room.restarts == []
    room.see(tensorrt_llm_bls=STOPPED)
    room.look(7)
    assert room.restarts == ["tensorrt_llm_bls"]


def test_a_model_without_processes_of_its_own_is_not_missed(room: Room) -> None:
    room.see(tensorrt_llm=Signs())
    room.anew()
    room.look(10)
    assert room.restarts == []


def test_a_request_that_failed_has_every_model_asked(room: Room) -> None:
    room.see(preprocessing=replace(WELL, failed=1))
    room.look(5)
    assert room.server.told == ["ask"]


def test_what_triton_names_twice_is_restarted(room: Room) -> None:
    said = pulse("tensorrt_llm_bls", why="Stub process 'tensorrt_llm_0_0' is not healthy.", blamed="tensorrt_llm")
    room.server.dead["tensorrt_llm_bls"] = said
    room.see(tensorrt_llm_bls=replace(WELL, failed=1))
    room.look()
    assert room.restarts == []
    room.look()
    assert room.restarts == ["tensorrt_llm tensorrt_llm_bls ensemble"]


def test_requests_that_wait_while_nothing_moves_have_it_asked(room: Room) -> None:
    waiting = {"preprocessing": replace(WELL, pending=3)}
    for model in ("preprocessing", "tensorrt_llm_bls", "ensemble"):
        room.server.dead[model] = pulse(model, late=True, why="no answer within 10 s")
    room.see(**waiting)
    room.look(5)
    assert room.server.told == []
    room.look(2)
    assert room.restarts == ["preprocessing ensemble"]  # who calls it is late too


def test_requests_that_wait_for_one_at_work_are_left_alone(room: Room) -> None:
    for number in range(50):
        room.see(tensorrt_llm=replace(WELL, pending=9, cpu={7: float(number)}))
        room.look()
    assert room.server.told == []


def test_a_late_one_without_a_visible_process_is_left_alone(room: Room) -> None:
    room.server.dead["tensorrt_llm"] = pulse("tensorrt_llm", late=True)
    room.see(tensorrt_llm=Signs(pending=1))
    room.anew()
    room.look(20)
    assert room.restarts == []


def test_a_bls_waiting_for_a_late_engine_is_left_alone(room: Room) -> None:
    """Where no processes are seen."""
    for model in ("tensorrt_llm", "tensorrt_llm_bls", "ensemble"):
        room.server.dead[model] = pulse(model, late=True, why="no answer within 10 s")
    room.see(tensorrt_llm=Signs(pending=4), tensorrt_llm_bls=replace(WELL, pending=4))
    room.anew()
    room.look(40)
    assert "ask" in room.server.told
    assert room.restarts == []


def die(room: Room) -> None:
    """The engine's process ends, and the watch has the looks that it takes to be sure; no time worth counting goes by."""
    room.see(tensorrt_llm=GONE)
    room.look(2, 0.01)


def test_restarts_wait_longer_each_time_and_end(room: Room) -> None:
    began, waits = room.time, list[float]()
    for number in range(1, TRIES + 1):
        die(room)
        while len(room.restarts) < number:
            room.look(1, 0.1)
        waits.append(room.time - began)
        began = room.time
    assert [round(wait) for wait in waits] == [0, 1, 2, 4, 8]
    die(room)
    room.look(300)
    assert len(room.restarts) == TRIES
    assert room.server.healths["tensorrt_llm"].given_up
    assert "given up" in room.said[-1]


def test_a_model_that_lived_for_a_minute_begins_anew(room: Room) -> None:
    for _ in range(TRIES + 3):
        die(room)
        room.look(2, 61.0)
    assert len(room.restarts) == TRIES + 3
    assert not room.server.healths["tensorrt_llm"].given_up


def test_one_that_does_not_load_again_is_tried_again(room: Room) -> None:
    room.server.broken.add("tensorrt_llm_bls")
    room.see(tensorrt_llm_bls=GONE)
    room.look(2)
    assert "did not load" in room.server.healths["tensorrt_llm_bls"].why
    room.server.broken.clear()
    room.look(3)
    assert room.server.healths["tensorrt_llm_bls"].restarts == 2
    assert room.server.healths["tensorrt_llm_bls"].why == ""


def test_what_is_brought_back_by_hand_is_not_given_up(room: Room) -> None:
    for _ in range(TRIES + 1):
        die(room)
        room.look(20, 1.0)
    given_up = [room.server.healths["tensorrt_llm"].given_up]
    room.see(tensorrt_llm=WELL)
    room.look(2)
    given_up.append(room.server.healths["tensorrt_llm"].given_up)
    assert given_up == [True, False]
    assert room.server.healths["tensorrt_llm"].restarts == TRIES


def test_reload_restarts_the_one_that_is_to_blame(room: Room) -> None:
    why = "Stub process 'tensorrt_llm_0_0' is not healthy."
    for model in ("tensorrt_llm", "tensorrt_llm_bls", "ensemble"):
        room.server.dead[model] = pulse(model, why=why, blamed="tensorrt_llm")
    care = Care(room.server, room.plan, room.said.append)
    care.revive(room.running)
    assert room.restarts == ["tensorrt_llm tensorrt_llm_bls ensemble"]
    assert all(state.answers for state in care.states([room.running]))


def test_reload_says_what_does_not_answer_even_then(room: Room) -> None:
    room.server.dead["preprocessing"] = pulse("preprocessing", late=True, why="no answer within 10 s")
    room.server.dead["postprocessing"] = pulse("postprocessing", late=True, why="no answer within 10 s")
    with pytest.raises(ServerError, match="'preprocessing' does not answer: no answer within 10 s"):
        Care(room.server, room.plan, room.said.append).revive(room.running)


def test_a_state_says_since_when_and_how_often(room: Room) -> None:
    room.see(tensorrt_llm_bls=GONE)
    room.look(2)
    room.server.dead["tensorrt_llm_bls"] = pulse("tensorrt_llm_bls", why="gone", blamed="tensorrt_llm_bls")
    room.server.healths["tensorrt_llm_bls"] = replace(room.server.healths["tensorrt_llm_bls"], since=1e9)
    states = {state.model: state for state in Care(room.server, room.plan, room.said.append).states([room.running])}
    assert states["tensorrt_llm_bls"].said(1e9 + 7) == "tensorrt_llm_bls: does not answer for 7 s: gone; restarted 1 time"
    assert states["tensorrt_llm"].said(1e9) == ""
