"""Images from the client to vLLM: by forge generate, from Python, at the OpenAI door; and who takes none says so.

A real Triton, forge's own backend, and the stand-in where vLLM would be, which answers with the pixels that it was shown.
"""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from openai import BadRequestError, OpenAI
from PIL import Image

from fake_wiring import World
from fakes import LLAMA
from forge.build.sources.checkpoint_files import needed
from forge.cli import main
from forge.client import Client, Request
from forge.client.chat_template import ChatTemplate, asked
from forge.client.tensors import inputs_of
from forge.client.types import ModelMetadata, TensorMetadata
from forge.errors import InferenceError
from forge.plan.preview import provenance
from forge.schema.sight import LLMAPI, SEEING
from forge.serve.openai import requests
from forge.serve.openai.api_errors import Fault
from forge.vllm.pictures import PIXELS, pictures
from openai_front import front
from patience import free_ports
from tiny_served import adapter, checkpoint
from triton_fixture import Opened
from vllm_kit import Recipes, environment, standin_digest

TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)
"""In the manner of LLaVA's and Qwen2-VL's: a mark where an image stands."""


def picture(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    held = BytesIO()
    Image.new(mode, (width, height)).save(held, kind)
    return held.getvalue()


def encoded(file: bytes) -> str:
    return base64.b64encode(file).decode()


# -- the parts


def test_files_become_pictures_in_their_order_and_in_rgb() -> None:
    found = pictures([encoded(picture(2, 3)), encoded(picture(5, 7, "JPEG")), encoded(picture(1, 1, mode="P"))])
    assert [each.size for each in found] == [(2, 3), (5, 7), (1, 1)]
    assert {each.mode for each in found} == {"RGB"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("?", "image 1 is no base64"),
        (encoded(b"no image at all"), "image 1 cannot be read: cannot identify image file"),
        (encoded(picture(99, 99, "JPEG")[:400]), "image 1 cannot be read"),
        (encoded(picture(8001, 8001, mode="1")), f"image 1 has 8001 x 8001 pixels, and {PIXELS:,} are the most"),
    ],
)
def test_what_is_no_image_or_too_large_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pictures([text])


def test_a_template_is_told_where_images_stand() -> None:
    template = ChatTemplate(TEMPLATE, {})
    assert template.render([("user", asked("What is it?", 2))]) == "<image> <image> What is it?"
    assert template.render([("user", asked("Hello.", 0))]) == "Hello."
    with pytest.raises(InferenceError, match="the chat template fails") as refused:
        ChatTemplate("{{ messages[0].content + 'x' }}", {}).render([("user", asked("What is it?", 1))])
    assert refused.value.hint == "it seems to know no images: does this model see?"


def _model(*inputs: str) -> ModelMetadata:
    tensors = {name: TensorMetadata(name, "BYTES" if name != "max_tokens" else "INT32", (-1,)) for name in inputs}
    return ModelMetadata("m", tensors, {})


def test_a_model_without_an_input_for_images_refuses_them() -> None:
    request = Request("m", "x", 4, stream=False, images=(b"ab", b"cde"))
    with pytest.raises(InferenceError, match="the model takes no images") as refused:
        inputs_of(request, _model("text_input", "max_tokens"))
    assert refused.value.hint == SEEING
    with pytest.raises(InferenceError, match="the model takes no images") as refused:
        inputs_of(request, _model("text_input", "sampling_param_max_tokens", "image_url"))
    assert refused.value.hint == f"{LLMAPI}; {SEEING}"
    found = {each.name: each for each in inputs_of(request, _model("text_input", "max_tokens", "image"))}
    assert found["image"].shape == (2,)
    assert found["image"].raw == b"\4\0\0\0YWI=\4\0\0\0Y2Rl"


def _chat(*parts: object) -> requests.ChatAsk:
    body = {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}
    return requests.read(json.dumps(body).encode(), requests.ChatAsk)


def test_the_door_takes_images_that_stand_in_the_request() -> None:
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(b'abc')}", "detail": "low"}}
    ask = _chat({"type": "text", "text": "Look:"}, shown, {"type": "text", "text": "What is it?"})
    assert ask.images == (b"abc",)
    parts = ({"type": "text", "text": "Look:"}, {"type": "image"}, {"type": "text", "text": "What is it?"})
    assert ask.conversation == (("user", parts),)
    assert ask.applied(Request("m", "x", 4), 0).images == (b"abc",)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.com/cat.png", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("data:text/plain;base64,YWJj", "nothing is fetched"),
        ("data:image/png;base64,*", "no base64"),
    ],
)
def test_the_door_fetches_nothing(url: str, told: str) -> None:
    ask = _chat({"type": "image_url", "image_url": {"url": url}})
    with pytest.raises(Fault, match=told):
        _ = ask.images


@pytest.mark.parametrize(("kind", "said"), [("vllm", "want torchvision"), ("llmapi", LLMAPI)])
def test_a_plan_says_what_a_checkpoint_with_images_needs(world: World, tmp_path: Path, kind: str, said: str) -> None:
    config: dict[str, object] = {
        **LLAMA,
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": {"depth": 2},
    }
    world.origin.files["config.json"] = json.dumps(config).encode()
    recipe = tmp_path / "m.toml"
    recipe.write_text(f'name = "m"\n[source]\nhub = "owner/m"\n[runtime]\nkind = "{kind}"\n')
    shop = world.shop(tmp_path / "home")
    if kind == "llmapi":
        shop.build([recipe], repository=tmp_path / "repository")
    assert any(said in note for note in shop.plan([recipe]).notes)


def test_what_says_how_images_are_cut_comes_with_the_checkpoint() -> None:
    there = ("config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json", "README.md")
    assert needed(there, allow_pickle=False, where="x") == tuple(sorted(there[:-1]))


# -- the whole way


@pytest.fixture(scope="module")
def place(home: Path, opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipes]:
    """A model that can see, and one that cannot, on one server."""
    shop, folder = opened(home / f"vllm-{standin_digest()}"), tmp_path_factory.mktemp("images")
    found = Recipes(shop, folder)
    checkpoint(folder / "checkpoint")
    adapter(folder / "adapter")
    blind = found.recipe("blind")
    (step,) = [step for step in shop.plan([blind]).steps if step.name == "vllm environment"]
    shop.store.make(step.key, provenance(step), environment)
    shop.build([blind], repository=found.repository)
    told: tuple[tuple[str, dict[str, object]], ...] = (
        ("config.json", {"vision_config": {"depth": 2}}),
        ("tokenizer_config.json", {"chat_template": TEMPLATE}),
    )
    for name, more in told:
        file = folder / "checkpoint" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    shop.add([found.recipe("sees")], repository=found.repository)
    running = shop.serve(found.repository, free_ports(), restart=False)
    yield found
    shop.stop(running)


@pytest.mark.slow
@pytest.mark.network
def test_images_go_from_the_command_line_to_the_model(place: Recipes, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.jpg"
    one.write_bytes(picture(20, 30))
    two.write_bytes(picture(10, 10, "JPEG"))
    asked = ("generate", "sees", "What is it?", "--chat", "--quiet", "--max-tokens", "2", "--repository", str(place.repository))
    assert place.invoke(*asked, "--image", str(one)) == " 600 601\n"
    assert place.invoke(*asked, "--image", str(one), "--image", str(two)) == " 700 701\n"
    assert place.invoke(*asked) == " 0 1\n"


@pytest.mark.slow
@pytest.mark.network
def test_in_a_talk_images_stand_before_the_first_question(place: Recipes, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    image.write_bytes(picture(20, 30))
    words = ("chat", "sees", "--image", str(image), "--max-tokens", "2", "--repository", str(place.repository), "--json")
    runner = CliRunner(env={**place.environ, "FORGE_HOME": str(place.shop.home)})
    lines = [json.loads(line) for line in runner.invoke(main, words, input="What is it?\nAnd now?\n").stdout.splitlines()]
    assert [line["answer"] for line in lines if "answer" in line] == [" 600 601", " 600 601"]
    blind = runner.invoke(main, ("chat", "blind", *words[2:]), input="What is it?\n")
    assert "chat template" in json.loads(blind.stdout)["error"]["message"]


@pytest.mark.slow
@pytest.mark.network
def test_a_runtime_without_images_is_refused_before_a_build(place: Recipes, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    image.write_bytes(picture(20, 30))
    shown = ("What is it?", "--image", str(image), "--max-tokens", "2", "--repository", str(place.repository))
    runner = CliRunner(env={**place.environ, "FORGE_HOME": str(place.shop.home)})
    assert " 600 601\n" in runner.invoke(main, ("run", "sees", *shown)).stdout
    recipe = tmp_path / "sees.toml"
    recipe.write_text(
        f'name = "sees"\n[source]\npath = "{place.folder / "checkpoint"}"\n[build]\nmax_input_len = 100\nmax_seq_len = 200\n'
    )
    elsewhere = ("--repository", str(tmp_path / "none"), "--runtime", "twin")
    said = runner.invoke(main, ("run", str(recipe), *shown[:-2], *elsewhere))
    assert said.exit_code == 2, said.output
    assert "sees takes no images: it runs on twin" in said.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.network
def test_an_unseeable_image_fails_its_request_and_not_the_model(place: Recipes) -> None:
    with Client(place.shop.target("sees", place.repository).address, timeout=300) as client:
        with pytest.raises(InferenceError, match="image 1 cannot be read"):
            client.ask(Request("sees", "x", 2, images=(b"no image",)))
        with pytest.raises(InferenceError, match="At most 0 image"):
            client.ask(Request("blind", "x", 2, images=(picture(2, 2),)))
        with pytest.raises(InferenceError, match="4 features for 0 places"):
            client.ask(Request("sees", "x NOWHERE", 2, images=(picture(2, 2),)))
        with pytest.raises(InferenceError, match="gave the request up"):
            client.ask(Request("sees", "x GIVEN UP", 2, images=(picture(2, 2),)))
        assert client.ask(Request("sees", "x", 2, images=(picture(2, 2),))).text == " 4 5"


@pytest.mark.slow
@pytest.mark.network
def test_images_go_through_the_openai_door(place: Recipes) -> None:
    target = place.shop.target("sees", place.repository)
    with front(target.address, place.repository) as url, OpenAI(base_url=url, api_key="none", timeout=300) as client:

        def say(model: str, address: str) -> str:
            content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What is it?"}]
            said = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": content}],  # type: ignore[misc,list-item] # pyright: ignore[reportArgumentType]
                max_tokens=2,
            )
            return said.choices[0].message.content or ""

        assert say("sees", f"data:image/png;base64,{encoded(picture(20, 30))}") == " 600 601"
        with pytest.raises(BadRequestError, match="nothing is fetched"):
            say("sees", "https://example.com/cat.png")
        with pytest.raises(BadRequestError, match="chat template"):
            say("blind", f"data:image/png;base64,{encoded(picture(2, 2))}")
