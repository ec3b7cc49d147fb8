"""A real headless Chromium that looks at a page, and tells of everything that the page did."""

import json
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

from patience import PATIENCE

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
DRAWN = "return typeof Bokeh === 'object' && Bokeh.documents.length > 0 && Bokeh.documents.every(held => held.is_idle)"


@dataclass
class Browser:
    driver: Chrome

    def open(self, page: Path, *, dark: bool = False, phone: bool = False) -> None:
        """Show a file as a desktop or a phone, and wait until its plots are drawn."""
        self.visit(page.as_uri(), dark=dark, phone=phone)
        self.until(DRAWN)

    def visit(self, address: str, *, dark: bool = False, phone: bool = False) -> None:
        """Show what is at an address; what was logged and asked for before is forgotten."""
        self.scheme(dark=dark)
        size = {"width": 390, "height": 844, "mobile": True} if phone else {"width": 1280, "height": 900, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", {**size, "deviceScaleFactor": 1})
        self.logged()
        self.requests()
        self.driver.get(address)

    def scheme(self, *, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", {"features": [feature]})

    def ask(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)  # pyright: ignore[reportUnknownMemberType]

    def until(self, script: str, *arguments: object) -> Any:
        """What ``script`` returns as soon as that is true."""
        return self.settled(script, *arguments, wish=bool)

    def settled(self, script: str, *arguments: object, wish: Callable[[Any], bool]) -> Any:
        """What ``script`` returns as soon as that is as wished;"""
        end = time.monotonic() + PATIENCE
        while not wish(found := self.ask(script, *arguments)):
            assert time.monotonic() < end, f"never as wished, but {found}"
            time.sleep(0.05)
        return found

    def press(self, *keys: str) -> None:
        """Real key strokes, into what has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def point(self, x: float, y: float) -> None:
        """Move the mouse there, from a little beside."""
        for aside in (3, 0):
            self._command("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + aside, "y": y})

    def logged(self) -> list[str]:
        """What has been said on the console since the last time, errors of the browser itself too."""
        return [each["message"] for each in self._log("browser")]

    def requests(self) -> list[str]:
        """The addresses asked for since the last time."""
        events = [json.loads(each["message"])["message"] for each in self._log("performance")]
        return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def _command(self, name: str, arguments: dict[str, object]) -> dict[str, Any]:
        return cast("dict[str, Any]", self.driver.execute_cdp_cmd(name, arguments))  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def chromium(profile: Path) -> Generator[Browser]:
    """Skips, with what to install, where there is no Chromium; nothing is ever downloaded."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Chrome(options=options, service=Service(driver)) as made:
        yield Browser(made)
