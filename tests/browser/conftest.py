"""A real browser, headless, driven through its own driver: skipped, with the reason, where there is none."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.browser import pages

few, folder, ladder, long, page = pages.few, pages.folder, pages.ladder, pages.long, pages.page  # fixtures

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class Browser:
    """A page at a time, with what it asked of the network and said on its console."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1440, theme: str = "light") -> Browser:
        """Load a page from the disk in a window of that width and under that theme of the system."""
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.cdp("Emulation.setEmulatedMedia", features=features)
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(page.as_uri())
        return self

    def load_ms(self) -> float:
        """Milliseconds from asking for the page to its load event's end."""
        return float(self.js("performance.timing.loadEventEnd - performance.timing.navigationStart"))

    def cdp(self, command: str, **arguments: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, code: str, *arguments: Any) -> Any:
        """Run code in the page and return its value."""
        return self.driver.execute_script(f"return ({code});", *arguments)

    def all(self, css: str) -> list[Any]:
        """Elements."""
        return list(self.driver.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        """The one element there is."""
        found = self.all(css)
        assert len(found) == 1, f"{len(found)} elements are {css}"
        return found[0]

    def click(self, element: Any) -> None:
        """Scroll to an element and click it where it is."""
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def hover(self, element: Any) -> None:
        """Bring the pointer over an element."""
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        box = self.js("arguments[0].getBoundingClientRect().toJSON()", element)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def until(self, code: str, seconds: float = 3.0) -> None:
        """Wait until code gives true."""
        deadline = time.monotonic() + seconds
        while not self.js(code):
            assert time.monotonic() < deadline, f"still not so: {code}"
            time.sleep(0.03)

    def keep(self, path: Path, width: int) -> None:
        """Keep a picture of the whole page."""
        height = self.js("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16_000), "scale": 1}
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def console(self) -> list[str]:
        """What the page said on its console since it was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses it asked for since it was opened."""
        import json

        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def column_titles(browser: Browser) -> list[str]:
    return [cell.text for cell in browser.all("#measurements thead th")]


def start(profile: Path) -> Any:
    """A driver with its browser, or None where one of them is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        return None
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    made = start(tmp_path_factory.mktemp("profile"))
    if made is None:
        pytest.skip("no Chromium with its driver: on Debian, apt-get install chromium chromium-driver")
    yield made
    browser = made.capabilities.get("goog:processID")
    made.quit()
    if browser:  # a busy machine can leave it running
        with contextlib.suppress(ProcessLookupError):
            os.kill(browser, signal.SIGKILL)


@pytest.fixture
def browser(_driver: Any) -> Browser:
    """A browser with nothing in it."""
    return Browser(_driver)
