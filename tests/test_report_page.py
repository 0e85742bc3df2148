"The report page in a real browser: wide and narrow, light and dark, and nothing leaves the page."
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sagelab.data.store import load_bars
from sagelab.lab.report import report_page
from sagelab.trading.costs import Costs
from sagelab.trading.engine import backtest

SIZES = {1400: 900, 380: 800}
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
DRAWN = "html[data-plots=drawn]"
LAYOUT = "plot => document.querySelector(`[data-plot=${plot}]`).layout"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A report of two strategies, one of which tries to be code."
    bars = load_bars("SP500", lab=Path(__file__).parent)
    crossing, held = (backtest(name, bars, costs=Costs(fee=0.001), lab=Path(__file__).parent) for name in ("sma_cross", "buy_and_hold"))
    hostile = replace(crossing, parameters={HOSTILE: HOSTILE}, trades=[trade._replace(reason=HOSTILE) for trade in crossing.trades])
    meta = {"run_id": "20260101-000000-test", "title": "Two strategies on the S&P 500", "notes": [HOSTILE], "seed": 1, "verdicts": {"causality": HOSTILE}}
    file = tmp_path_factory.mktemp("report")/"report.html"
    file.write_text(report_page([hostile, held], meta), encoding="utf-8")
    return file


@contextmanager
def opened(browser, file: Path, width: int = 1400, scheme: str = "light", **context) -> Iterator:
    "A page whose plots are drawn; at its end nothing was complained about, nothing was fetched and no script was smuggled in."
    told, fetched = [], []
    session = browser.new_context(viewport={"width": width, "height": SIZES.get(width, 800)}, color_scheme=scheme, **context)
    page = session.new_page()
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector(DRAWN, timeout=60_000)
    yield page
    assert told == []
    assert [url for url in fetched if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert page.title() == "Two strategies on the S&P 500"
    session.close()


def background(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_page_fits_and_is_drawn(browser, page_file: Path, repository: Path, width: int, scheme: str) -> None:
    with opened(browser, page_file, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for plot in ("equity", "drawdown", "trades-0"): assert page.locator(f"[data-plot={plot}] svg.main-svg").first.is_visible()
        assert page.locator("table.figures tbody tr").count() >= 16 and page.locator("table.months:visible tbody tr").count() == 20
        (repository/"artifacts").mkdir(exist_ok=True)
        page.screenshot(path=repository/"artifacts"/f"report-{width}-{scheme}.png", full_page=True)


@pytest.mark.parametrize("width", [320, 768, 1600])
def test_page_never_scrolls_sideways(browser, page_file: Path, width: int) -> None:
    with opened(browser, page_file, width) as page:
        page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_plots_follow_a_change_to_dark(browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        light, text = background(page), page.evaluate(LAYOUT, "equity")["font"]["color"]
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"before => ({LAYOUT})('equity').font.color !== before", arg=text)
        assert background(page) != light


def test_controls_work_by_keyboard(browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        page.locator("#log").press("Space")
        page.wait_for_function(f"({LAYOUT})('equity').yaxis.type === 'log'")
        page.locator("select[data-choose]").first.press("ArrowDown")
        page.wait_for_selector("[data-plot=trades-1] svg.main-svg")
        assert page.locator("select[data-choose]").evaluate_all("all => all.map(select => select.value)") == ["1"] * 3
        assert "buy_and_hold" in page.locator("table.trades:visible caption").inner_text()
        page.locator("table.figures summary").first.press("Enter")
        assert page.locator("table.figures details p").first.is_visible()


def test_zoom_of_equity_and_drawdown_go_together(browser, page_file: Path) -> None:
    with opened(browser, page_file) as page:
        for one, other, year in (("equity", "drawdown", 2005), ("drawdown", "equity", 2008)):
            page.evaluate("([plot, range]) => void Plotly.relayout(document.querySelector(`[data-plot=${plot}]`), {'xaxis.range': range})",
                          [one, [f"{year}-01-01", f"{year + 1}-01-01"]])
            page.wait_for_function(f"([plot, year]) => String(({LAYOUT})(plot).xaxis.range[0]).startsWith(year)", arg=[other, str(year)])


def test_a_finger_scrolls_across_a_plot(browser, page_file: Path) -> None:
    with opened(browser, page_file, 380, has_touch=True, is_mobile=True) as page:
        page.evaluate("document.querySelector('[data-plot=equity]').scrollIntoView({block: 'center'})")
        box, before = page.locator("[data-plot=equity]").bounding_box(), page.evaluate("scrollY")
        finger, x, y = page.context.new_cdp_session(page), box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.6
        finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 16): finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y - 10 * step}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_function("before => scrollY > before + 50", arg=before)


def test_figures_can_be_read_without_scripts(browser, page_file: Path) -> None:
    session = browser.new_context(java_script_enabled=False)
    page = session.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("table.figures").is_visible() and page.locator("table.months").nth(1).is_visible()
    page.locator("table.figures summary").first.click()
    assert page.locator("table.figures details p").first.is_visible()
    session.close()
