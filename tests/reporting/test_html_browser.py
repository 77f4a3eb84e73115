import json
import os
import shutil
import time

import pytest

from bench.reporting.leaderboard import leaderboards

from .html_report import boards, text

__all__ = ["boards", "text"]


@pytest.fixture(scope="module")
def driver():
    """Return headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    # On GitHub's machines CHROME_BIN is the one that the driver is of.
    browser = os.environ.get("CHROME_BIN") or shutil.which("chromium") or shutil.which("google-chrome")
    control = shutil.which("chromedriver")
    if not browser or not control:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(control)) as driver:
        yield driver


@pytest.fixture
def page(driver, text, tmp_path):
    """Return the report, open in a window of a desk."""
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    media(driver, "light")
    size(driver, 1280)
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get((tmp_path / "report.html").as_uri())
    yield driver
    assert driver.get_log("browser") == []


def media(driver, scheme: str) -> None:
    features = [
        {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"},
    ]  # fmt: skip
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def size(driver, width: int) -> None:
    settings = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)


def column(page, title: str) -> list[str]:
    """Return a column of the first leaderboard that stands in no group, as it is on the screen."""
    return page.execute_script(
        """
        const table = document.querySelector("table.leaderboard");
        let index = 0;
        for (const head of table.tHead.rows[0].cells) {
          if (head.innerText.trim() === arguments[0]) break;
          index += head.colSpan;
        }
        const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
        return shown.map((row) => (row.cells[index] ?? row.cells[0]).innerText.trim());
        """,
        title,
    )


def until(condition) -> None:
    """Wait for what the table does a moment later."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def header(page, title: str, nth: int = 0):
    """Return the sort button of the nth heading with this title in the first leaderboard."""
    from selenium.webdriver.common.by import By

    found = page.find_elements(By.CSS_SELECTOR, "table.leaderboard thead th")
    cells = [cell for cell in found if cell.get_attribute("textContent").strip() == title]
    return cells[nth], cells[nth].find_element(By.TAG_NAME, "button")


def test_no_request_leaves_the_page(page):
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url.split(":")[0] for url in asked if not url.startswith("data:")] == ["file"]


def test_sorting_by_pointer(page, boards):
    first = leaderboards(boards[0])[0]
    labels = [row.label for row in first.rows]
    assert column(page, "Method") == labels
    cell, button = header(page, "best", 0)
    button.click()
    until(lambda: cell.get_attribute("aria-sort") == "descending")
    expected = sorted((row for row in first.rows if row.figures), key=lambda row: -row.figures[0].best.mean)
    without = [row.label for row in first.rows if not row.figures]
    until(lambda: column(page, "Method") == [row.label for row in expected] + without)
    button.click()
    until(lambda: cell.get_attribute("aria-sort") == "ascending")
    until(lambda: column(page, "Method") == [row.label for row in reversed(expected)] + without)
    cell, button = header(page, "Seeds")
    button.click()
    until(lambda: cell.get_attribute("aria-sort") == "ascending")
    seeds = [len(row.seeds) for row in first.rows]
    until(lambda: [int(text.split()[0]) for text in column(page, "Seeds")] == sorted(seeds))


def test_sorting_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    cell, button = header(page, "Method")
    assert button.accessible_name == "Method"
    page.execute_script("arguments[0].focus()", button)
    style = page.execute_script(
        "const s = getComputedStyle(arguments[0]); return [s.outlineStyle, s.outlineWidth]", button
    )
    button.send_keys(Keys.ENTER)
    until(lambda: cell.get_attribute("aria-sort") == "ascending")
    labels = sorted(column(page, "Method"), key=str.casefold)
    until(lambda: column(page, "Method") == labels)
    assert style == ["solid", "2px"]


def test_filtering(page, boards):
    from selenium.webdriver.common.by import By

    field = page.find_element(By.CSS_SELECTOR, "input[type=search]")
    assert field.accessible_name.strip() == "Filter"
    field.send_keys("FOMO")
    rows = [row.label for row in leaderboards(boards[0])[0].rows]
    until(lambda: column(page, "Method") == [label for label in rows if "FOMO" in label])
    field.send_keys(" nothing")
    until(lambda: page.find_element(By.TAG_NAME, "output").text == f"0 of {len(rows)} rows")
    assert column(page, "Method") == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_does_not_scroll_sideways(page, width, scheme):
    media(page, scheme)
    size(page, width)
    page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    whole, seen = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert whole <= seen
    assert width - 20 < seen <= width  # less a scroll bar
    region = "const box = document.querySelector('.ranking .scroll'); "
    scrolls = page.execute_script(region + "return box.scrollWidth > box.clientWidth")
    until(lambda: page.execute_script(region + "return box.tabIndex") == (0 if scrolls else -1))
    assert scrolls or width >= 768


CONTRAST = """
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parts(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
for (const part of document.querySelectorAll("details")) part.open = true;
for (const element of document.querySelectorAll("body *:not(script, svg *)")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.getClientRects().length) continue;
  const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 80)]);
}
const root = getComputedStyle(document.body);
const paper = light(parts(root.backgroundColor));
const probe = document.body.appendChild(document.createElement("i"));
const series = [1, 2, 3, 4, 5, 6].map((n) => {
  probe.style.color = `var(--series-${n})`;
  const a = light(parts(getComputedStyle(probe).color));
  return (Math.max(a, paper) + 0.05) / (Math.min(a, paper) + 0.05);
});
return [found, series, parts(root.backgroundColor)];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, scheme):
    media(page, scheme)
    texts, series, paper = page.execute_script(CONTRAST)
    assert len(texts) > 100
    assert min(texts)[0] >= 4.5, min(texts)
    assert min(series) >= 3
    assert (sum(paper) > 700) == (scheme == "light")
    assert (sum(paper) < 100) == (scheme == "dark")


def test_a_row_lights_up_its_series(page):
    counted = """
    const all = [...document.querySelector(".board").querySelectorAll("svg .series")];
    const on = all.filter((series) => !series.classList.contains("dimmed"));
    return [all.length, on.length, [...new Set(on.map((series) => series.dataset.row))]];
    """
    total, lit, _ = page.execute_script(counted)
    assert total == lit > 0
    page.execute_script("document.querySelectorAll('.leaderboard tbody a')[1].focus()")
    total, lit, rows = page.execute_script(counted)
    assert rows == ["1"]
    assert lit < total
    page.execute_script("document.activeElement.blur()")
    assert page.execute_script(counted)[1] == total


def test_print_is_light_and_has_no_controls(page):
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    shown = page.execute_script(
        """
        const visible = (what) => [...document.querySelectorAll(what)].some((part) => part.getClientRects().length);
        return [visible(".controls, .copied button, nav, .skip"), visible("table.leaderboard"),
                getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector(".scroll")).overflowX];
        """
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    assert shown == [False, True, "rgb(255, 255, 255)", "visible"]
