"""Keys: the same words give the same key, and a key moves with all that the step stands on and nothing else."""

from hypothesis import given, strategies as st
from msgspec.structs import replace

from forge.plan.steps import Assemble, Entry, Fetch, LayBackends, Link, MakeEnvironment, Plan, Run, Step
from forge.schema.values import Command, Environment, FileFact, Names, Pinned, Role, SourceKind, TextFile

PINNED = Pinned(SourceKind.HUB, "acme/tiny", "c0ffee", (FileFact("config.json", 12, "sha256:aa"),), location="/somewhere")


def model(source: Pinned = PINNED) -> Step:
    return Step("tiny: model", Fetch(source), promises=("config.json",))


def engine(source: Pinned = PINNED, gpu: str = "sm_89") -> Step:
    return Step("tiny: engine", Run((Command(("trtllm-build",)),), gpu=gpu), (("model", model(source)),))


def test_a_key_is_always_the_same_64_hex_digits() -> None:
    assert model().key == model().key
    assert len(model().key) == 64
    assert set(model().key) <= set("0123456789abcdef")


def test_where_this_machine_finds_things_enters_no_key() -> None:
    assert model(replace(PINNED, location="/elsewhere")).key == model().key
    environment = Environment("3.11", "linux-x86_64", ("jinja2==3.1.6",))
    here, there = (MakeEnvironment(environment, python) for python in ("/usr/bin/python3", "/opt/python"))
    assert Step("e", here).key == Step("e", there).key


def test_a_step_is_not_known_by_its_name() -> None:
    assert Step("one", Fetch(PINNED)).key == Step("two", Fetch(PINNED)).key


def test_a_key_moves_with_what_its_needs_stand_on() -> None:
    assert engine(replace(PINNED, revision="decaf")).key != engine().key


def test_the_gpu_moves_the_engine_and_not_its_inputs() -> None:
    other = engine(gpu="sm_90")
    assert other.key != engine().key
    assert other.needs[0][1].key == engine().needs[0][1].key


@given(st.permutations(["max_beam_width", "decoupled_mode", "engine_dir"]))
def test_the_order_of_settings_enters_no_key(order: list[str]) -> None:
    def entry(names: list[str]) -> str:
        settings = {Role.TENSORRT_LLM: dict.fromkeys(names, "x")}
        return Step("e", Assemble(Names(), (), settings, (Link("model", "a", "b"),))).key

    assert entry(order) == entry(["decoupled_mode", "engine_dir", "max_beam_width"])


def test_inputs_are_flat_and_long_texts_stand_by_their_digest() -> None:
    step = Step("b", LayBackends((TextFile("tensorrtllm/model.py", "x" * 500),)))
    (label, value), *_ = [item for item in step.inputs.items() if "model.py" in item[0]]
    assert label == "sources.tensorrtllm/model.py.content"
    assert value.startswith("blake3:")
    assert "500" not in value


def test_the_inputs_of_a_fetch_name_each_file() -> None:
    assert model().inputs["source.files.config.json.digest"] == "sha256:aa"


def test_a_plan_has_each_step_once_and_after_its_needs() -> None:
    entries = tuple(
        Entry(name, Names(name), Step(name, Assemble(Names(name), (), {}, ()), (("engine", engine()),)), None) for name in "ab"
    )
    keys = [step.key for step in Plan(entries).steps]
    assert len(keys) == len(set(keys)) == 4
    assert keys.index(model().key) < keys.index(engine().key) < keys.index(entries[0].step.key)


def test_a_size_is_known_only_where_every_file_states_one() -> None:
    assert model().size == 12
    assert model(replace(PINNED, files=(FileFact("a", 0),))).size is None
    assert engine().size is None
