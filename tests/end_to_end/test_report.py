"""The comparison's page in a real Chromium, as somebody opens it: from disk, by mouse, keyboard and on a phone."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, console_errors, low_contrast, needs_chromium, open_page, outside_requests, whole_picture
from PIL import Image
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from study_runs import FROZEN, TEXT, WARM, write_run

from genre_dist.compare.comparison import compare

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, sample_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / f"{name}-seed{seed}", sample_shards, skill, seed, options, every)
        for name, skill, options, every in (("frozen", 1, FROZEN, 2), ("warm", 2, WARM, 2), ("text", 1, TEXT, 1))
        for seed in range(1 if name == "text" else 2)
    ]
    compare(runs, folder / "out", resamples=100)
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser: WebDriver, report: Path) -> WebDriver:
    """The report, freshly opened on a desktop."""
    open_page(browser, report)
    return browser


def column(page: WebDriver, table: str, at: int) -> list[str]:
    rows = "[...document.querySelectorAll(arguments[0] + ' tbody tr')]"
    return page.execute_script(f"return {rows}.map((row) => row.cells[arguments[1]].innerText)", table, at)


def test_it_opens_from_disk_without_an_error_and_without_asking_any_network(page: WebDriver) -> None:
    assert "worth it" in page.title
    assert page.find_element(By.CSS_SELECTOR, ".answer").is_displayed()
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert page.execute_script(broken) == 0
    assert page.execute_script("return document.images.length") > 3
    assert outside_requests(page) == []
    assert console_errors(page) == []


def test_its_data_lie_beside_it(page: WebDriver, report: Path) -> None:
    links = [link for link in page.find_elements(By.CSS_SELECTOR, "a[download]") if link.is_displayed()]
    assert [link.get_dom_attribute("href") for link in links] == [
        "comparison.json",
        "comparison.csv",
        "comparison-labels.csv",
    ]
    for link in links:
        assert link.get_property("href") == (report.parent / link.text).resolve().as_uri()
        assert (report.parent / link.text).stat().st_size > 1000


def test_the_first_column_stays_where_a_wide_table_is_scrolled_on_a_phone(browser: WebDriver, report: Path) -> None:
    open_page(browser, report, 390)
    scrolled = """
    const box = [...document.querySelectorAll(".scroll")].find((one) => one.scrollWidth > one.clientWidth + 50);
    const [first, second] = box.querySelector("tbody tr").cells, before = second.getBoundingClientRect().left;
    const at = first.getBoundingClientRect().left;
    box.scrollLeft = 50;
    return [first.getBoundingClientRect().left - at, second.getBoundingClientRect().left - before,
            getComputedStyle(first).backgroundColor];
    """
    first, second, background = browser.execute_script(scrolled)
    assert (first, second) == (0, -50)
    assert not background.startswith("rgba")


def test_the_2018_study_is_shown_on_demand(page: WebDriver) -> None:
    def shown() -> set[str]:
        of_2018 = page.find_elements(By.CSS_SELECTOR, "#models .of-2018, #genres > .scroll .of-2018")
        return {one.text.split("\n")[0][:5] for one in of_2018 if one.is_displayed()}

    assert shown() == set()
    page.find_element(By.ID, "with-2018").click()
    assert "2018:" in shown()
    assert "2018" in {text[:4] for text in shown()}
    page.find_element(By.ID, "with-2018").click()
    assert shown() == set()


def test_tables_are_sorted_by_click_and_by_keyboard(page: WebDriver) -> None:
    before = column(page, "#genres > .scroll", 1)
    header = page.find_elements(By.CSS_SELECTOR, "#genres thead th")[1]
    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "descending"
    falling = [int(cell) for cell in column(page, "#genres > .scroll", 1)]
    assert falling == sorted(falling, reverse=True)
    assert sorted(before) == sorted(map(str, falling))
    page.switch_to.active_element.send_keys(Keys.ENTER)  # the clicked button has the focus
    assert header.get_attribute("aria-sort") == "ascending"
    assert [int(cell) for cell in column(page, "#genres > .scroll", 1)] == falling[::-1]
    ActionChains(page).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    page.switch_to.active_element.send_keys(Keys.SPACE)
    names = column(page, "#genres > .scroll", 0)
    assert names == sorted(names, key=str.lower)
    assert header.get_attribute("aria-sort") is None


def test_the_tab_key_alone_reaches_links_charts_choices_and_tables(page: WebDriver) -> None:
    reached: list[str] = []
    for _ in range(60):
        ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        reached.append(
            f"{active.tag_name} {active.get_attribute('class') or active.get_attribute('role') or ''}".strip()
        )
        if reached[-1] == "div mark":
            tip = page.find_element(By.ID, "tip")
            assert tip.is_displayed()
            assert tip.text == active.get_attribute("data-tip").strip()
    assert reached[0] == "a skip"
    assert {"a", "div mark", "select", "div scroll", "button"} <= set(reached)


def test_points_tell_their_figures_under_the_mouse(page: WebDriver) -> None:
    mark = page.find_element(By.CSS_SELECTOR, ".forest .mark[data-tip]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(page).move_to_element(mark).perform()
    tip = page.find_element(By.ID, "tip")
    assert "95 % interval" in tip.text
    curve = page.find_element(By.CSS_SELECTOR, ".curve")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", curve)
    ActionChains(page).move_to_element(curve).perform()
    assert "warm: " in tip.text
    assert "step" in tip.text
    ActionChains(page).click(curve).send_keys(Keys.ARROW_RIGHT).perform()
    moved = tip.text
    ActionChains(page).send_keys(*[Keys.ARROW_RIGHT] * 8).perform()
    assert tip.text != moved
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert not tip.is_displayed()
    assert console_errors(page) == []


def test_measures_and_axes_can_be_chosen(page: WebDriver) -> None:
    Select(page.find_element(By.ID, "pair")).select_by_value("mean_average_precision")
    shown = [one for one in page.find_elements(By.CSS_SELECTOR, "[data-group=pair]") if one.is_displayed()]
    assert [one.get_attribute("data-key") for one in shown] == ["mean_average_precision"]
    page.find_element(By.CSS_SELECTOR, "input[value=time]").click()
    shown = [one for one in page.find_elements(By.CSS_SELECTOR, ".curve") if one.is_displayed()]
    assert {one.get_attribute("data-axis") for one in shown} == {"time"}
    assert len(shown) == 3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_phone_and_desktop_and_every_text_stands_out(
    browser: WebDriver, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    open_page(browser, report, width, dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width  # wide tables scroll inside
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert low_contrast(browser) == []
    whole_picture(browser, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] == width
    assert (np.median(pixels) < 60) == dark
    assert pixels.std() > 10


def test_it_prints_every_table_whole_on_white_paper(page: WebDriver, tmp_path: Path) -> None:
    printed = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    document = base64.b64decode(printed["data"])
    assert document.startswith(b"%PDF")
    assert 3 <= document.count(b"/Type /Page\n") <= 20
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.find_element(By.CSS_SELECTOR, "nav").is_displayed()
    assert page.execute_script("return [...document.querySelectorAll('details')].every((one) => one.open)")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
