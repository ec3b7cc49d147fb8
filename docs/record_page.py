"""Draws docs/page.png from the real page: a served SmolLM2-135M-Instruct is asked under two settings, in a real Chromium.

pip install selenium; python docs/record_page.py     builds in an empty home, serves, asks, and stops again

Wants Chromium and its driver (Debian: chromium, chromium-driver).
"""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

HERE = Path(__file__).parent
RECIPE = "smollm2-135m-instruct"
PROMPT = "Name a fruit and say why you like it."
SETTINGS = {
    "temperature-a": "0",
    "temperature-b": "0.9",
    "seed-b": "3",
    "max_tokens-a": "30",
    "max_tokens-b": "30",
    "threshold-b": "-25",
}
WIDE, HIGH = 1280, 800
PATIENCE = 300
FORGE = str(Path(sys.executable).with_name("forge"))
PORTS = ("--http-port", "18700", "--grpc-port", "18701", "--metrics-port", "18702", "--openai-port", "18709")


def look(driver: Chrome, file: Path) -> None:
    """Ask, and keep what is seen."""
    view = {"width": WIDE, "height": HIGH, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
    driver.get("http://127.0.0.1:18709/")
    wait = WebDriverWait(driver, PATIENCE)
    wait.until(lambda held: held.execute_script("return document.querySelector('.link.good')"))
    driver.execute_script("document.getElementById('compare').click()")
    for name, value in SETTINGS.items():
        driver.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, value)
    for _ in range(2):  # the first answers of a server are slower than its others
        driver.execute_script(
            "document.getElementById('fresh').click(); document.getElementById('prompt').value = arguments[0]", PROMPT
        )
        driver.execute_script("document.getElementById('send').click()")
        wait.until(
            lambda held: held.execute_script("return !document.querySelector('.busy') && document.querySelector('.verdict')")
        )
    driver.execute_script("document.querySelectorAll('.answer')[1].querySelectorAll('.token')[3].focus()")
    file.write_bytes(base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]))


def main() -> None:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    with tempfile.TemporaryDirectory() as place:
        environ = {**os.environ, "FORGE_HOME": f"{place}/home"}
        named = ("--repository", f"{place}/models")
        subprocess.run([FORGE, "build", RECIPE, *named], env=environ, check=True)
        subprocess.run([FORGE, "serve", "--ui", "--detach", *named, *PORTS], env=environ, check=True)
        try:
            with Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
                look(driver, HERE / "page.png")
        finally:
            subprocess.run([FORGE, "stop", *named], env=environ, check=True)


if __name__ == "__main__":
    main()
