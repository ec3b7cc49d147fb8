"""The page on other runtimes than the twin: an engine and llmapi of the stand-in image, in a real container; vLLM itself."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest
from selenium.webdriver.common.keys import Keys

import paced_triton
from browser import Browser, chromium
from docker_fixture import environ
from forge.api.forge import Forge
from openai_front import front
from paced_triton import Paced
from page_kit import ASKED, FIGURES, IDLE, ask, asked, opened, post, put, text
from patience import PATIENCE, free_ports
from shipped import SMOLLM2
from standin import checkpoints
from standin.tree import Image

pytestmark = pytest.mark.slow
RECIPE = """
name = "{kind}"
[source]
path = "model"
[runtime]
kind = "{kind}"
image = "{image}"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 2
max_input_len = 300
max_seq_len = 400
max_beam_width = {beams}
[sampling]
max_tokens = 12
"""
VLLM_RECIPE = """
name = "vllm"
[source]
{smollm2}
[runtime]
kind = "vllm"
[build]
max_batch_size = 4
max_input_len = 300
max_seq_len = 400
[serve.vllm]
kv_cache_memory_bytes = 1073741824
[sampling]
max_tokens = 12
"""
BARE = "FROM ${base}\nRUN echo ${pip}\n"
LOCKED = "return [...document.querySelectorAll('input[id$=-a]')].filter(each => each.readOnly).map(each => each.id)"
NOTE = "return document.getElementById(`row-${arguments[0]}-note`).textContent"


@dataclass(frozen=True)
class Elsewhere:
    """One runtime's model behind the OpenAI port at ``address``; ``paced`` holds its streams up."""

    kind: str
    address: str
    paced: Paced


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as made:
        yield made


VLLM = pytest.param(
    "vllm",
    marks=[
        pytest.mark.network,
        pytest.mark.skipif(
            os.environ.get("FORGE_TEST_VLLM") != "1", reason="vLLM itself takes 3.4 GB: FORGE_TEST_VLLM=1 runs it"
        ),
    ],
)


@pytest.fixture(scope="module", params=["engine", "llmapi", VLLM])
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    kind, place = str(request.param), tmp_path_factory.mktemp("elsewhere")
    recipe = place / "one.toml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        if kind == "vllm":
            shop = cast("Forge", request.getfixturevalue("shop"))
            recipe.write_text(
                VLLM_RECIPE.format(smollm2=SMOLLM2.read_text().partition("[source]")[2].partition("[runtime]")[0])
            )
        else:
            checkpoints.llama(place / "model")
            (place / "Dockerfiles").mkdir()
            (place / "Dockerfiles" / "family.Dockerfile").write_text(BARE)
            image = cast("Image", request.getfixturevalue("standin"))
            recipe.write_text(RECIPE.format(kind=kind, image=image.reference, beams=1 if kind == "llmapi" else 3))
            shop = Forge(place / "home", environ(str(request.getfixturevalue("engine"))))
        built = shop.build([recipe], repository=place / "models")
    running = shop.serve(built.repository, free_ports(), restart=False)
    try:
        target = shop.target(kind, built.repository)
        with paced_triton.before(target.address) as paced, front(paced.address, built.repository) as api:
            yield Elsewhere(kind, api.removesuffix("/v1"), paced)
    finally:
        shop.stop(running)


@pytest.fixture
def page(browser: Browser, elsewhere: Elsewhere) -> Iterator[Browser]:
    elsewhere.paced.settle()
    yield opened(browser, elsewhere.address)
    elsewhere.paced.release()


def test_an_answer_streams_and_is_what_the_api_says(page: Browser, elsewhere: Elsewhere) -> None:
    wanted = post(
        elsewhere.address, {"model": elsewhere.kind, "messages": [{"role": "user", "content": ASKED}], "temperature": 0}
    )
    elsewhere.paced.let(3)
    put(page, temperature__a=0)
    ask(page)
    page.until("return document.querySelectorAll('.turn .token').length >= 1 && document.querySelector('.busy .state')")
    assert wanted["choices"][0]["message"]["content"] != text(page)
    elsewhere.paced.release()
    page.until(IDLE)
    assert text(page) == wanted["choices"][0]["message"]["content"]
    assert page.logged() == []


def test_escape_stops_it_at_the_server_too(page: Browser, elsewhere: Elsewhere) -> None:
    elsewhere.paced.let(2)
    ask(page)
    page.until("return document.querySelectorAll('.turn .token').length >= 1")
    page.press(Keys.ESCAPE)
    page.until(IDLE)
    assert elsewhere.paced.left.acquire(timeout=PATIENCE)
    assert page.ask("return document.querySelector('.state').textContent") == "stopped"


def test_two_settings_answer_side_by_side(page: Browser) -> None:
    page.ask("document.getElementById('compare').click()")
    put(page, top_k__a=1, temperature__b=1.5, seed__b=3)
    asked(page)
    states = page.ask(
        "return [...document.querySelectorAll('.turn .answer')].map(each => each.querySelector('.state').textContent)"
    )
    assert len(states) == 2
    assert set(states) <= {"cut at max tokens", "ended by itself"}
    assert "part" in page.ask("return document.querySelector('.parting').textContent")


def test_what_the_runtime_cannot_is_locked_and_says_why(page: Browser, elsewhere: Elsewhere) -> None:
    locked = {name.removesuffix("-a"): page.ask(NOTE, name.removesuffix("-a")) for name in page.ask(LOCKED)}
    asked(page)
    after = page.ask("return document.querySelector('.turn .after').textContent")
    if elsewhere.kind == "engine":
        assert locked == {}  # the stand-in's models are forge's own, which have an input for everything
        assert "log-probability, token by token" in after
        return
    if elsewhere.kind == "vllm":
        assert locked == {"beam_width": "vLLM behind Triton has no beam search"}
        assert "log-probability, token by token" in after
        spot = page.ask(
            "const it = document.querySelector('.turn .token').getBoundingClientRect(); return [it.x + 2, it.y + 9]"
        )
        page.point(*spot)
        page.until("return document.querySelectorAll('#detail li').length >= 5")
        return
    assert locked.keys() == {"min_p", "beam_width", "repetition_penalty", "threshold"}
    assert all(locked.values())
    assert locked["threshold"] == "models of llmapi tell the sum over an answer, and not of its tokens"
    assert f"No probabilities: {locked['threshold']}." in after
    assert page.ask(FIGURES)["Log-probability"] == "\N{EN DASH}"


def test_beams_of_an_engine_are_a_tree(page: Browser, elsewhere: Elsewhere) -> None:
    if elsewhere.kind != "engine":
        pytest.skip("of these engines alone have beams; the page says so of the others")
    put(page, beam_width__a=3, max_tokens__a=6)
    asked(page)
    assert len(page.ask("return [...document.querySelectorAll('.tree .leaf b')].map(each => each.textContent)")) == 3
