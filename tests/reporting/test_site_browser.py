"""The site of the committed leaderboards in Chromium, opened from its files."""

import json
from pathlib import Path

import pytest

from bench.reporting.leaderboard import leaderboards
from bench.reporting.site.folder import write_site
from bench.reporting.site.pages import Site
from bench.storage.store import Store

from .test_html_browser import CONTRAST, driver, media, size, until

__all__ = ["driver"]

pytestmark = pytest.mark.slow

COMMITTED = Path(__file__).parents[2] / "results" / "leaderboards"
SHOWN = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].filter((row) => !row.hidden)"


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_results):
    """The folder of the site, with another board after the committed ones, and the path of a page of each kind."""
    folder = tmp_path_factory.mktemp("committed") / "site"
    committed = [path.parent for path in sorted(COMMITTED.glob("*/runs"))]
    with Store.of_folders([*committed, tiny_results]) as store:
        files = Site(store, leaderboards(store)).files()
    write_site(folder, files)
    kinds = {path.partition("/")[0]: path for path in sorted(files) if path.endswith(".html")}
    assert len(kinds) == 5
    return folder, kinds


@pytest.fixture
def visit(driver, site):
    """Open a page of a kind, and check at the end that it said nothing and asked for nothing but files."""
    media(driver, "light")
    size(driver, 1280)
    for log in ("browser", "performance"):
        driver.get_log(log)

    def visit(kind: str, part: str = ""):
        folder, kinds = site
        driver.get("about:blank")
        driver.get((folder / kinds.get(kind, kind)).as_uri() + part)
        return driver

    yield visit
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "about"}


KINDS = ("index.html", "boards", "methods", "runs", "compare.html")


@pytest.mark.parametrize("kind", KINDS)
def test_no_page_scrolls_sideways(visit, kind):
    page = visit(kind)
    for width in (320, 768, 1280):
        size(page, width)
        page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
        whole, seen = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
        assert whole <= seen <= width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit, kind, scheme):
    media(visit(kind), scheme)
    texts, series, paper = visit(kind).execute_script(CONTRAST)
    assert min(texts)[0] >= 4.5, min(texts)
    assert min(series) >= 3
    assert (sum(paper) > 700) == (scheme == "light")


@pytest.mark.parametrize("kind", KINDS)
def test_first_content(visit, kind, capsys):
    page = visit(kind)
    read = "return performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)[0]"
    until(lambda: page.execute_script(read) is not None)
    with capsys.disabled():
        print(f"\nfirst contentful paint of {kind}: {page.execute_script(read):.0f} ms")


def test_search_and_sort(visit):
    from selenium.webdriver.common.by import By

    page = visit("boards")
    field = page.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys("dom-aug")
    until(lambda: [row.text.split()[2] for row in page.execute_script(SHOWN, ".ranking")] == ["DOM-AugMix"])
    field.clear()
    field.send_keys(" ")
    heading = page.find_element(By.CSS_SELECTOR, ".ranking th[data-column='3']")
    heading.find_element(By.TAG_NAME, "button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = page.execute_script(
        "return [...document.querySelectorAll('.ranking tbody tr')].map((row) => row.cells[3].dataset.value ?? null)"
    )
    known = [float(value) for value in values if value is not None]
    assert known == sorted(known, reverse=True)
    assert len(known) > 5
    assert None not in values[: len(known)]


def test_the_index_filters_methods(visit):
    from selenium.webdriver.common.by import By

    page = visit("index.html")
    fields = page.find_elements(By.CSS_SELECTOR, "input[type=search]")
    assert len(fields) == 2
    fields[1].send_keys("forgets")
    until(lambda: [row.text.split()[0] for row in page.execute_script(SHOWN, "#methods ~ div")] == ["FOMO"])


def test_from_the_index_to_a_run_by_keyboard(visit):
    from selenium.webdriver.common.keys import Keys

    page = visit("index.html")
    active = "return [document.activeElement.textContent.trim(), getComputedStyle(document.activeElement).outlineStyle]"

    def tab_to(text: str) -> None:
        for _ in range(80):
            page.switch_to.active_element.send_keys(Keys.TAB)
            name, outline = page.execute_script(active)
            if name.startswith(text):
                assert outline == "solid"
                return
        raise AssertionError(f"the keyboard does not reach '{text}'")

    tab_to("Skip to the content")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: page.execute_script("return document.activeElement.id") == "main")
    tab_to("cifar10 (a part, 8x8)")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: "/boards/" in page.current_url)
    tab_to("DOM-RE")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: "/methods/dom_re.html#" in page.current_url)
    tab_to("seed 0")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: "/runs/dom_re-seed0-" in page.current_url)
    tab_to("compare with another run")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: "compare.html#" in page.current_url)
    assert page.execute_script("return document.getElementById('a').selectedOptions[0].text") == "DOM-RE, seed 0"


def test_two_runs_compared(visit):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    page = visit("compare.html")
    choices = [Select(page.find_element(By.ID, name)) for name in "ab"]
    group = page.find_elements(By.TAG_NAME, "optgroup")[0]
    names = [option.text for option in group.find_elements(By.TAG_NAME, "option")]
    values = [option.get_attribute("value") for option in group.find_elements(By.TAG_NAME, "option")]
    shown = (
        "return [...document.querySelectorAll('#comparison tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    for choice, name in zip(choices, ("DOM-RE, seed 0", "AFT, seed 0"), strict=True):
        choice.select_by_value(values[names.index(name)])
    rows = page.execute_script(shown)
    assert ["AutoAttack", "best", "21.68"] in [row[:3] for row in rows]
    (best,) = (row for row in rows if row[:2] == ["AutoAttack", "best"])
    assert (best[4], best[6]) == ("12.70", "+8.98")
    assert len(page.find_elements(By.CSS_SELECTOR, "#comparison svg")) == 2
    assert len(page.find_elements(By.CSS_SELECTOR, "#comparison svg .line")) == 4
    address = page.current_url
    for choice, name in zip(choices, ("AFT, seed 0", "DOM-RE, seed 0"), strict=True):
        choice.select_by_value(values[names.index(name)])
    (swapped,) = (row for row in page.execute_script(shown) if row[:2] == ["AutoAttack", "best"])
    assert swapped[6] == "−8.98"
    assert swapped[7] == " to ".join(
        end.translate(str.maketrans("+−", "−+")) for end in reversed(best[7].split(" to "))
    )
    choices[1].select_by_index(len(choices[1].options) - 1)
    assert "different protocols" in page.find_element(By.ID, "comparison").text
    assert page.execute_script(shown) == []
    page.get(address)
    until(
        lambda: (
            [Select(page.find_element(By.ID, name)).first_selected_option.text for name in "ab"]
            == ["DOM-RE, seed 0", "AFT, seed 0"]
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_scripts_the_tables_are_there(visit, driver, kind):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        texts = visit(kind).find_element("tag name", "main").text
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert ("needs JavaScript" in texts) == (kind == "compare.html")
    assert "AutoAttack" in texts or kind == "compare.html"


def test_print_has_no_controls(visit):
    page = visit("boards")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = page.execute_script(
        "const parts = [...document.querySelectorAll('.controls, .site, .skip, nav')];"
        "return parts.some((part) => part.getClientRects().length > 0)"
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    assert not shown
