"""A real Chromium for the tests of pages: opened from disk, watched for errors and requests."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed (Debian: chromium chromium-driver)"
)

# Every visible text against the nearest background behind it, by WCAG 2.2's contrast ratio; those below its AA limits.
LOW_CONTRAST = """
const channels = (colour) => {  // Chromium writes rgb(), rgba() with numbers
  const parts = colour.match(/[\\d.]+/g).map(Number);
  return {rgb: parts.slice(0, 3), alpha: parts[3] ?? 1};
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const {rgb, alpha} = channels(getComputedStyle(at).backgroundColor);
    if (alpha === 1) return rgb;
  }
  return [255, 255, 255];
};
const poor = [];
let seen = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  const text = walker.currentNode.textContent.trim();
  if (!text || !element.checkVisibility() || element.closest("script, style")) continue;
  const drawn = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [a, b] = [luminance(channels(drawn).rgb), luminance(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  seen += 1;
  if (ratio < (large ? 3 : 4.5)) poor.push([text.slice(0, 40), ratio.toFixed(2)]);
}
return {seen, poor};
"""


@contextmanager
def chromium() -> Iterator[WebDriver]:
    """A browser without a window, its console and network written down."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: WebDriver, page: Path, width: int = 1280, dark: bool = False) -> None:
    """Open a file as on a screen of this width, in a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(page.resolve().as_uri())


def console_errors(driver: WebDriver) -> list[str]:
    """What the console has said since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser")]


def outside_requests(driver: WebDriver) -> list[str]:
    """What was asked for since the log was last read, other than files and data in the page; and it is not empty."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in asked), "the network was not watched"
    return [url for url in asked if not url.startswith(("file:", "data:"))]


def low_contrast(driver: WebDriver) -> list[Any]:
    """Texts that are hard to read on what is behind them."""
    told = driver.execute_script(LOW_CONTRAST)
    assert told["seen"] > 20
    return told["poor"]


def whole_picture(driver: WebDriver, file: Path) -> None:
    """Photograph the whole page."""
    box = driver.execute_script("return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": box[0], "height": box[1], "scale": 1}
    told = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    file.write_bytes(base64.b64decode(told["data"]))
