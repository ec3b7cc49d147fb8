"""The page at the OpenAI port's root, in a real Chromium, against a real Triton that serves a tiny random model."""

import itertools
import math
import re
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

import paced_triton
from browser import Browser, chromium
from openai_front import front, templated
from paced_triton import Paced
from page_kit import ASKED, FIGURES, IDLE, READY, TOKENS, ask, asked, opened, post, put, text
from patience import PATIENCE, spare
from tiny_served import Tiny

pytestmark = pytest.mark.slow

EVIL = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
TREE = """
const walk = (item, before) => {
  const own = before + [...item.querySelectorAll(':scope > .run > .text > .token')].map(each => each.textContent).join("");
  const ends = [...item.querySelectorAll(':scope > .run > .leaf b')].map(each => [Number(each.textContent), own]);
  return [...ends, ...[...item.querySelectorAll(':scope > ul > li')].flatMap(each => walk(each, own))];
};
return [...document.querySelectorAll('.turn:last-child .tree > li')].flatMap(each => walk(each, ""));
"""
"""The beams of a tree: rank and text."""
CONTRASTS = """
const SHARES = [.2126, .7152, .0722];
const parts = text => text.match(/[\\d.]+/g).map(Number);
const linear = each => each <= .03928 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => [r, g, b].map(each => linear(each / 255)).reduce((sum, each, at) => sum + each * SHARES[at], 0);
const ground = node => {
  for (let each = node; each; each = each.parentElement) {
    const colour = parts(getComputedStyle(each).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
};
return [...document.querySelectorAll(arguments[0])].filter(each => each.checkVisibility()).map(each => {
  const [one, other] = [light(parts(getComputedStyle(each).color)), light(ground(each))].sort((a, b) => b - a);
  return [each.className || each.tagName, (one + .05) / (other + .05)];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Paced]:
    with paced_triton.before(tiny.address) as paced:
        yield paced


@pytest.fixture(scope="module")
def address(server: Paced, tiny: Tiny) -> Iterator[str]:
    with front(server.address, tiny.target.repository) as api:
        yield api.removesuffix("/v1")


@pytest.fixture
def paced(server: Paced) -> Iterator[Paced]:
    server.settle()
    yield server
    server.release()


@pytest.fixture
def page(browser: Browser, address: str, paced: Paced) -> Browser:
    """Freshly opened, and ready."""
    return opened(browser, address)


def told(address: str, **more: object) -> Any:
    """What the API itself says to the same, choice by choice."""
    words = {"model": "tiny", "messages": [{"role": "user", "content": ASKED}], "logprobs": True, "top_logprobs": 5}
    return post(address, {**words, **more})["choices"]


def test_an_answer_comes_token_by_token_as_the_api_says(page: Browser, address: str, paced: Paced) -> None:
    (wanted,) = told(address)
    paced.let(3)
    ask(page)
    page.until("return document.querySelectorAll('.turn .token').length >= 1 && document.querySelector('.busy .state')")
    assert page.ask("return document.querySelector('.state').textContent") == "answering"
    assert wanted["message"]["content"].startswith(text(page))
    assert text(page) != wanted["message"]["content"]
    before = page.ask("return document.querySelector('.box').getBoundingClientRect().top")
    paced.release()
    page.until(IDLE)
    assert text(page) == wanted["message"]["content"]
    assert page.ask("return document.querySelector('.asked').textContent") == ASKED
    assert page.ask("return document.querySelector('.box').getBoundingClientRect().top") == before
    logs = [each["logprob"] for each in wanted["logprobs"]["content"]]
    figures = page.ask(FIGURES)
    assert figures["Tokens"] == str(len(logs))
    assert float(figures["Log-probability"].replace("\N{MINUS SIGN}", "-")) == pytest.approx(math.fsum(logs), abs=0.011)
    assert "s" in figures["First token"]
    assert "s" in figures["Between tokens"]
    assert page.logged() == []
    assert all(each.startswith(address) for each in page.requests())


def test_the_talk_goes_on_from_what_was_said(page: Browser, address: str) -> None:
    asked(page)
    (first,) = told(address)
    asked(page, "and then")
    history = [("user", ASKED), ("assistant", first["message"]["content"]), ("user", "and then")]
    (second,) = told(address, messages=[{"role": role, "content": content} for role, content in history])
    assert text(page) == second["message"]["content"]
    page.ask("document.getElementById('fresh').click()")
    assert page.ask("return document.querySelectorAll('.turn').length") == 0
    assert page.ask("return document.activeElement.id") == "prompt"


def test_a_new_talk_knows_nothing_of_an_answer_still_coming(page: Browser, address: str, paced: Paced) -> None:
    paced.let(2)
    ask(page)
    page.until("return document.querySelectorAll('.turn .token').length >= 1")
    page.ask("document.getElementById('fresh').click()")
    paced.release()
    page.until("return !document.body.classList.contains('busy')")
    asked(page, "another")
    (wanted,) = told(address, messages=[{"role": "user", "content": "another"}])
    assert text(page) == wanted["message"]["content"]


def test_a_question_without_an_answer_is_not_in_the_talk(page: Browser, address: str) -> None:
    asked(page, "a" * 400)
    assert "128" in page.ask("return document.querySelector('.fault[role=alert]').textContent")
    asked(page)
    (wanted,) = told(address)
    assert text(page) == wanted["message"]["content"]


def test_escape_stops_an_answer_at_the_server_too(page: Browser, paced: Paced) -> None:
    paced.let(2)
    ask(page)
    page.until("return document.querySelectorAll('.turn .token').length >= 1")
    page.press(Keys.ESCAPE)
    page.until(IDLE)
    assert paced.left.acquire(timeout=PATIENCE)
    assert page.ask("return document.querySelector('.state').textContent") == "stopped"
    paced.release()
    asked(page, "once more")
    assert len(page.ask("return [...document.querySelectorAll('.turn')].map(each => 1)")) == 2


def test_each_token_shows_its_probability_and_the_other_candidates(page: Browser, address: str) -> None:
    put(page, temperature__a=1.3, seed__a=11)
    asked(page)
    (wanted,) = told(address, temperature=1.3, seed=11)
    alone = [each for each in wanted["logprobs"]["content"] if each["token"]]
    marks = page.ask("return [...document.querySelectorAll('.turn .token')].map(each => [each.textContent, each.className])")
    places = [at for at, each in enumerate(wanted["logprobs"]["content"]) if each["token"]]
    assert len(marks) - len(alone) in {0, 1}  # a character that stayed broken is told at the end, without a token of its own
    for (shown, marked), one, at in zip(marks, alone, places, strict=False):
        assert shown == one["token"]
        if at == 0 or wanted["logprobs"]["content"][at - 1]["token"]:  # a token by itself
            assert f"p{[p <= math.exp(one['logprob']) for p in (0.9, 0.5, 0.2, 0.05, 0)].index(True)}" in marked
    spot = page.ask("const it = document.querySelector('.turn .token').getBoundingClientRect(); return [it.x + 2, it.y + 9]")
    page.point(*spot)
    page.until("return !document.getElementById('detail').hidden")
    rows = page.ask("return [...document.querySelectorAll('#detail li')].map(each => each.textContent)")
    assert len(rows) == len(alone[0]["top_logprobs"])
    page.ask("document.querySelector('.turn .text').focus()")
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ARROW_RIGHT)
    assert page.ask("return document.activeElement === document.querySelectorAll('.turn .token')[1]")
    assert "%" in page.until("return document.getElementById('said').textContent")
    page.press(Keys.ESCAPE)
    assert page.ask("return document.getElementById('detail').hidden")


def test_two_settings_answer_one_prompt_side_by_side(page: Browser, address: str) -> None:
    page.ask("document.getElementById('compare').click()")
    put(page, temperature__b=1.5, seed__b=3)
    asked(page)
    (one,), (other,) = told(address), told(address, temperature=1.5, seed=3)
    answers = page.ask(
        "return [...document.querySelectorAll('.turn .answer .text')].map(each => "
        "[...each.querySelectorAll('.token')].map(token => token.textContent).join(''))"
    )
    assert answers == [one["message"]["content"], other["message"]["content"]]
    boxes = page.ask("return [...document.querySelectorAll('.turn .answer')].map(each => each.getBoundingClientRect().top)")
    assert boxes[0] == boxes[1]
    parting = page.ask("return [...new Set([...document.querySelectorAll('.parting')].map(each => each.textContent))]")
    pairs = zip(*([t["token"] for t in each["logprobs"]["content"] if t["token"]] for each in (one, other)), strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    assert parting == [
        "They part at the first token." if not same else f"The same for {same} token{'s' * (same > 1)}, then they part."
    ]


def test_beams_are_a_tree_whose_shared_beginnings_stand_once(page: Browser, address: str) -> None:
    put(page, beam_width__a=4, max_tokens__a=9)
    locked = page.ask(
        "return [...document.querySelectorAll('input[id$=-a]')].filter(each => each.readOnly).map(each => each.id)"
    )
    assert locked == ["temperature-a", "top_k-a", "top_p-a", "min_p-a", "seed-a"]
    assert "draws nothing" in page.ask("return document.getElementById('row-temperature-note').textContent")
    asked(page)
    beams = told(address, beam_width=4, n=4, max_tokens=9)
    grown = sorted(page.ask(TREE))
    assert grown == [[at + 1, each["message"]["content"]] for at, each in enumerate(beams)]
    spoken = [[token["token"] for token in each["logprobs"]["content"] if token["token"]] for each in beams]
    prefixes = {tuple(each[: end + 1]) for each in spoken for end in range(len(each))}
    assert len(page.ask(TOKENS)) == len(prefixes)
    assert "whole" in page.ask(FIGURES)["First token"]


@pytest.mark.parametrize(("threshold", "below"), [(-0.01, True), (-900, False)])
def test_a_threshold_is_judged_and_its_effect_is_said(page: Browser, threshold: float, below: bool) -> None:
    put(page, threshold__a=threshold)
    asked(page)
    said = page.ask("return document.querySelector('.verdict').textContent")
    assert ("fell below" in said and f"forge generate --min-logprob {threshold}" in said and "exit code 17" in said) == below
    assert page.ask("return document.querySelector('.verdict').classList.contains('below')") == below


def test_a_bad_setting_is_told_before_anything_is_asked(page: Browser) -> None:
    put(page, temperature__a=7)
    ask(page)
    assert page.ask("return document.activeElement.id") == "temperature-a"
    assert page.ask("return document.querySelectorAll('.turn').length") == 0


def test_words_of_models_and_persons_never_become_markup(page: Browser, paced: Paced) -> None:
    paced.says = [EVIL, "<b>bold</b>", "&amp;"] * 2
    asked(page, EVIL)
    assert text(page).startswith(f"{EVIL}<b>bold</b>&amp;")
    assert page.ask("return document.querySelector('.asked').textContent") == EVIL
    page.ask("document.querySelector('.turn .text').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.ask("return window.pwned ?? document.querySelectorAll('main img, main script, main b').length") == 0
    assert page.logged() == []


def test_words_of_errors_never_become_markup(browser: Browser, tiny: Tiny, paced: Paced, tmp_path: Path) -> None:
    """A chat template, which a stranger has written, may refuse a conversation in words of its own."""
    strange = templated(tiny.target, tmp_path, f'{{{{ raise_exception("{EVIL}") }}}}')
    with front(paced.address, strange) as api:
        page = opened(browser, api.removesuffix("/v1"))
        asked(page)
        assert EVIL in page.ask("return document.querySelector('.fault[role=alert]').textContent")
        assert page.ask("return window.pwned ?? document.querySelectorAll('main img, main script').length") == 0


def test_the_browser_itself_would_refuse_foreign_code(page: Browser, address: str) -> None:
    with urllib.request.urlopen(f"{address}/") as answer:
        policy, html = answer.headers["content-security-policy"], answer.read().decode()
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<style" not in html
    assert "onclick" not in html
    assert html.count("<script") == html.count('<script type="module" src="/ui/page.js"></script>') == 1
    page.ask(
        "window.kept = 0; const script = document.createElement('script');"
        "const ways = [() => { script.textContent = 'window.pwned = 1'; document.head.append(script); },"
        " () => { document.body.innerHTML = '<p>x'; }];"
        "for (const way of ways) try { way(); } catch { window.kept += 1; }"
    )
    assert page.ask("return [window.pwned ?? null, window.kept]") == [None, 2]


def test_a_server_that_dies_midway_is_told_text_stays(page: Browser, paced: Paced) -> None:
    paced.let(3)
    ask(page)
    page.until("return document.querySelectorAll('.turn .token').length >= 1")
    came = text(page)
    paced.broken.set()
    paced.release()
    page.until(IDLE)
    assert page.ask("return document.querySelector('.state').textContent") == "failed"
    assert text(page) == came
    assert "What came stays" in page.ask("return document.querySelector('.fault[role=alert]').textContent")
    paced.settle()
    page.ask("document.querySelector('.fault button').click()")
    page.until(IDLE)
    assert page.ask("return [document.querySelectorAll('.turn').length, document.querySelectorAll('.fault').length]") == [1, 0]


def test_a_port_that_goes_is_looked_for_until_back(browser: Browser, tiny: Tiny, paced: Paced) -> None:
    (port,) = spare(1)
    with front(paced.address, tiny.target.repository, port, killed=True) as api:
        page = opened(browser, api.removesuffix("/v1"))
        paced.let(2)
        ask(page)
        page.until("return document.querySelectorAll('.turn .token').length >= 1")
    page.until("return document.querySelector('.link.bad')")
    paced.release()
    assert "away" in page.ask("return document.getElementById('link').textContent")
    assert page.ask("return document.querySelectorAll('.turn .token').length") >= 1
    with front(paced.address, tiny.target.repository, port):
        page.until(READY)
        asked(page, "are you there")
        assert text(page)


def test_a_key_is_taken_from_the_address_and_kept_nowhere(browser: Browser, tiny: Tiny, paced: Paced, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("correct-horse-battery\n")
    with front(paced.address, tiny.target.repository, key_file=str(tmp_path / "key")) as api:
        address = api.removesuffix("/v1")
        browser.visit(f"{address}/")
        browser.until("return document.getElementById('lock').open")
        browser.press("wrong-wrong-wrong", Keys.ENTER)
        assert "wrong" in browser.until("return document.getElementById('lock-why').textContent")
        browser.driver.get("about:blank")
        page = opened(browser, f"{address}/#key=correct-horse-battery&".removesuffix("/"))
        assert page.ask("return location.href") == f"{address}/"
        asked(page)
        assert text(page)
        assert not any("correct-horse" in each for each in page.requests())
        page.ask("sessionStorage.clear()")


def test_a_card_says_what_a_model_stands_on_and_holds(page: Browser) -> None:
    page.ask("document.getElementById('models').click()")
    page.until("return document.getElementById('cards').open")
    said = page.ask("return document.querySelector('.card').innerText")
    for words in ("tiny", "answers", "the twin", "4 beams", "256 with the answer", "in the repository"):
        assert words in said
    assert "Triton 2." in page.ask("return document.getElementById('cards').innerText")
    page.press(Keys.ESCAPE)
    page.until("return !document.getElementById('cards').open")


@pytest.mark.parametrize("several", [False, True], ids=["alone", "side by side"])
def test_nothing_is_wider_than_a_phone(browser: Browser, address: str, paced: Paced, several: bool) -> None:
    page = opened(browser, address, phone=True)
    assert not page.ask("return document.getElementById('settings').open")
    if several:
        page.ask("document.getElementById('compare').click()")
    put(page, beam_width__a=3)
    asked(page, "a" * 200)
    page.ask("document.getElementById('settings').open = true")
    wide = page.ask(
        "return [...document.querySelectorAll('body, main, aside, .turn, .answer, .tree, .row, .top, .composer')]"
        ".filter(each => each.scrollWidth > each.clientWidth + 1 || each.getBoundingClientRect().right > 391)"
        ".map(each => each.className || each.tagName)"
    )
    assert wide == []
    assert page.ask("return document.getElementById('prompt').getBoundingClientRect().bottom <= innerHeight")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(browser: Browser, address: str, paced: Paced, dark: bool) -> None:
    page = opened(browser, address, dark=dark)
    put(page, temperature__a=1.8, seed__a=2, max_tokens__a=40, threshold__a=-1)
    asked(page)
    found = page.ask(CONTRASTS, "p, small, label, h1, h3, dt, dd, .token, .state, .soft, button, code, .link")
    assert len(found) > 60
    assert [each for each in found if each[1] < 4.5] == []
    colours = page.ask(
        "return [0, 1, 2, 3, 4].map(at => getComputedStyle(document.querySelector(`.legend .p${at}`)))"
        ".map(style => [style.backgroundColor, style.textDecorationLine + style.textDecorationStyle])"
    )
    assert len({ground for ground, _ in colours}) == len({line for _, line in colours}) == 5


def test_everything_that_can_be_set_has_a_name(page: Browser) -> None:
    nameless = page.ask(
        "return [...document.querySelectorAll('input, select, textarea, button')].filter(each => each.checkVisibility() && "
        "!(each.labels?.length || each.textContent.trim() || each.ariaLabel || each.getAttribute('aria-labelledby')))"
        ".map(each => each.id)"
    )
    assert nameless == []
    missing = page.ask(
        "return [...document.querySelectorAll('[aria-labelledby], [aria-describedby]')].flatMap(each => "
        "`${each.getAttribute('aria-labelledby') ?? ''} ${each.getAttribute('aria-describedby') ?? ''}`.split(' '))"
        ".filter(id => id && !document.getElementById(id))"
    )
    assert missing == []


def test_every_file_of_the_page_is_reached_none_is_missing() -> None:
    folder = Path(str(files("forge.serve.openai"))) / "page"
    there = {each.name for each in folder.iterdir()}
    reached, left = {"index.html"}, ["index.html"]
    while left:
        named = re.findall(r"(?:/ui/|from \"\./)([\w-]+\.\w+)\"", (folder / left.pop()).read_text(encoding="utf-8"))
        left += [name for name in named if name not in reached]
        reached |= set(named)
    assert reached == there
