"""The page at the OpenAI port's root, as a person uses it: opened, set, asked, and read."""

import json
import urllib.request
from typing import Any

from selenium.webdriver.common.keys import Keys

from browser import Browser
from patience import PATIENCE

ASKED = "hello world"
READY = "return Boolean(document.querySelector('.link.good')) && document.querySelector('#model-a').value"
IDLE = "return document.querySelectorAll('.turn').length && !document.querySelector('.busy')"
TOKENS = "return [...document.querySelectorAll('.turn:last-child .answer .text .token')].map(each => each.textContent)"
FIGURES = """
return Object.fromEntries([...document.querySelectorAll('.turn:last-child .answer:last-child .figures div')].map(each =>
  [each.querySelector('dt').textContent, each.querySelector('dd').textContent]));
"""


def opened(browser: Browser, address: str, **how: bool) -> Browser:
    browser.visit(f"{address}/", **how)
    browser.until(READY)
    return browser


def put(page: Browser, **values: object) -> None:
    """Type into settings, by their ids."""
    script = "const it = document.getElementById(arguments[0]); it.value = arguments[1]; it.dispatchEvent(new Event('input'));"
    for name, value in values.items():
        page.ask(f"document.getElementById('settings').open = true; {script}", name.replace("__", "-"), str(value))


def ask(page: Browser, words: str = ASKED) -> None:
    page.ask("document.getElementById('prompt').focus()")
    page.press(words, Keys.ENTER)


def asked(page: Browser, words: str = ASKED) -> None:
    """Ask, and wait for the end."""
    ask(page, words)
    page.until(IDLE)


def text(page: Browser) -> str:
    return "".join(page.ask(TOKENS))


def post(address: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)
