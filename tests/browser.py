"""A headless Chromium for tests, and what a page logged and fetched in it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

INSTALL = "Install chromium and chromium-driver (`make browser` does it on Debian)."
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def programs() -> tuple[str, str]:
    """The browser and its driver; where they are missing the test is skipped, or fails in CI."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser and driver:
        return browser, driver
    if os.environ.get("GRADSCALE_BROWSER") == "required":
        pytest.fail(f"There is no browser, and this run requires one. {INSTALL}")
    pytest.skip(f"needs chromium and chromedriver. {INSTALL}")


@contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A fresh browser with a profile of its own."""
    from selenium import webdriver

    browser, driver = programs()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=driver)
        chrome = webdriver.Chrome(options=options, service=service)
        try:
            chrome.get(
                "about:blank"
            )  # away from the browser's own first page, which fetches things
            yield Page(chrome)
        finally:
            chrome.quit()


class Page:
    """One tab."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, timeout: float = 60) -> float:
        """Load a report and wait until it is drawn; returns how many seconds that took."""
        started = time.perf_counter()
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.resolve().as_uri())
        self.until("return document.documentElement.dataset.ready === 'yes'", timeout)
        return time.perf_counter() - started

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, timeout: float = 10) -> Any:
        """Wait until a script returns something true."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            found = self.run(script)
            if found:
                return found
            time.sleep(0.03)
        raise AssertionError(f"not within {timeout} s: {script}\n{self.errors()}")

    def settle(self) -> None:
        """Wait for two frames: what was asked for has been drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)))"
        )

    def text(self, selector: str) -> str:
        """The text in an element, minus signs as people type them."""
        found = self.run("return document.querySelector(arguments[0]).innerText", selector)
        return found.replace("−", "-").replace("\xa0", " ")

    def texts(self, selector: str) -> list[str]:
        """The texts in all elements that match."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
        return self.run(script, selector)

    def number(self, selector: str) -> int:
        """The exact number behind what an element shows."""
        return int(self.run("return document.querySelector(arguments[0]).dataset.value", selector))

    def set(self, selector: str, value: object, event: str = "input") -> None:
        """Give a control another value, as a hand would."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2], {bubbles: true}))",
            selector, str(value), event,
        )  # fmt: skip
        self.settle()

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def hover(self, selector: str, dx: float = 0, dy: float = 0) -> None:
        """Bring the element into sight and the pointer over it, `dx` and `dy` from its middle."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element_with_offset(element, int(dx), int(dy)).perform()
        ActionChains(self.driver).move_by_offset(2, 1).perform()
        self.settle()

    def errors(self) -> list[str]:
        """What the console was told that no console should be told."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Everything that the page asked for, but its own file and what is inside it."""
        found: list[str] = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("file:", "data:", "blob:"))]

    def emulate(self, **features: str) -> None:
        """Media features, such as ``prefers_color_scheme="dark"``."""
        wanted = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        self.settle()
