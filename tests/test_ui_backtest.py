"The backtest explorer on real pages: by keyboard, in light and dark, in Voila and in JupyterLab."
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from ui_pages import TOKEN, faint_words, lab_server, open_in_lab, screenshot, set_lab_theme, tab, unnamed_controls, voila_server, write_notebook

from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.lab.guards import count_trials
from sagelab.lab.run import list_runs
from sagelab.lab.template import init_lab
from sagelab.strategy.registry import get_strategy

STATUS = "document.querySelector('.sl-main .sl-status')?.textContent ?? ''"
SLOW = '''import time
from sagelab.strategy.base import Strategy, StrategyConfig
class Slow(Strategy):
    "Thinks about every bar."
    class Config(StrategyConfig):
        window: int = 5
    def on_tick(self, market): time.sleep(0.001)
'''
EXPLORER = "from sagelab.ui.backtest import BacktestExplorer\nBacktestExplorer({more})"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A lab with a page, and with a strategy that is slow and one that is broken."
    root = init_lab(tmp_path_factory.mktemp("explorer")/"lab")
    (root/"strategies"/"slow.py").write_text(SLOW)
    (root/"strategies"/"torn.py").write_text("def (")
    write_notebook(root/"explorer.ipynb", EXPLORER.format(more="start='2005-01-01'"))
    return root


@pytest.fixture(scope="module")
def voila(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with voila_server(root/"explorer.ipynb", root, tmp_path_factory.mktemp("voila")) as address: yield address


def settled(page, words: str = "Checked") -> str:
    "Wait until the status line says this; what it says."
    page.wait_for_function(f"words => ({STATUS}).includes(words)", arg=words)
    return page.evaluate(STATUS)


def figure(page, name: str) -> str:
    "A figure as the table shows it."
    return page.locator(".sl-figures tr", has=page.get_by_role("rowheader", name=name, exact=True)).locator("td").first.inner_text()


def painted(page, plot: str = ".sl-result") -> int:
    "How many lines a plot has drawn."
    page.wait_for_selector(f"{plot} .sl-plot[data-drawn]")
    return page.locator(f"{plot} .sl-plot .scatterlayer .trace").count()


def ask_everything(page, kept: Path, name: str) -> None:
    "Whether all is painted, every control has a name and every word can be read."
    assert painted(page) >= 4 and unnamed_controls(page) == [] and faint_words(page) == []
    assert page.locator(".sagelab").first.evaluate("box => box.scrollWidth <= box.clientWidth + 1")
    screenshot(page, name, kept)


def test_a_person_without_a_mouse(browser, voila: str, root: Path, tmp_path: Path) -> None:
    strategy, settings = get_strategy("sma_cross", root), load_settings(root, environment={})
    before = count_trials(settings, strategy, "SP500", "").count
    with tab(browser, f"{voila}/") as page:
        assert "Sharpe ratio" in settled(page)
        ask_everything(page, tmp_path, "explorer-voila-light")
        first, slider = figure(page, "Return"), page.get_by_role("slider", name="fast, slider")
        slider.focus()
        for _ in range(5): page.keyboard.press("ArrowRight")
        page.wait_for_function("text => document.querySelector('.sl-figures')?.textContent.includes(text) === false", arg=first)
        settled(page)
        assert page.get_by_role("textbox", name="fast", exact=True).input_value() == "15" and figure(page, "Return") != first
        assert figure(page, "Saw the future?") == "clean" and "variants of sma_cross on SP500 tried so far" in page.locator(".sl-top").first.inner_text()
        assert count_trials(settings, strategy, "SP500", "").count > before

        plot = page.locator(".sl-result .sl-plot")
        drawn = int(plot.get_attribute("data-drawn"))
        plot.focus()
        page.keyboard.press("+")
        page.wait_for_function("drawn => document.querySelector('.sl-result .sl-plot').dataset.drawn > drawn", arg=drawn)
        assert "2005" not in plot.locator(".xtick text").all_text_contents()

        page.get_by_role("textbox", name="fast", exact=True).fill("0")
        page.keyboard.press("Enter")
        assert settled(page, "Error: ") == "Error: sma_cross: fast = 0: Input should be greater than or equal to 1."
        page.get_by_label("From", exact=True).fill("2030-01-01")
        page.get_by_role("textbox", name="fast", exact=True).fill("12")
        page.keyboard.press("Enter")
        assert "before it starts" in settled(page, "range ends")
        page.get_by_label("Strategy", exact=True).select_option(label="torn")
        assert "torn.py:1" in settled(page, "broken") and "Traceback" not in page.locator("body").inner_text()
        page.get_by_label("Strategy", exact=True).select_option(label="sma_cross")
        page.get_by_label("From", exact=True).fill("2005-01-01")
        assert "Sharpe ratio" in settled(page)


def test_a_sweep_and_its_cells(browser, voila: str, tmp_path: Path) -> None:
    with tab(browser, f"{voila}/?theme=dark") as page:
        settled(page)
        ask_everything(page, tmp_path, "explorer-voila-dark")
        page.get_by_role("radio", name="Result").focus()
        page.keyboard.press("ArrowRight")
        for place, values in enumerate(("5:31:5", "40,60,80,100")): page.get_by_label("Its values", exact=True).nth(place).fill(values)
        page.get_by_role("button", name="Run the sweep").click()
        page.wait_for_function("document.querySelector('.sl-sweep .sl-status').textContent.includes('judged')")
        assert page.locator(".sl-sweep .heatmaplayer image").count() == 1 and "24 cells" in page.locator(".sl-sweep .sl-status").inner_text()
        assert "luck alone would give the best of them" in page.locator(".sl-sweep").inner_text() and unnamed_controls(page) == [] and faint_words(page) == []
        screenshot(page, "explorer-sweep-dark", tmp_path)
        page.get_by_text("The cells as a table").click()
        assert page.locator("details table tbody tr").count() == 24

        cells = page.get_by_label(re.compile("^Cells, best"))
        chosen = cells.locator("option").nth(2).inner_text()
        cells.select_option(index=2)
        page.get_by_role("button", name="Load this cell").click()
        fast, slow = re.search(r"fast (\d+), slow (\d+)", chosen).groups()
        for name, value in (("fast", fast), ("slow", slow)): expect(page.get_by_role("textbox", name=name, exact=True)).to_have_value(value)
        page.wait_for_function("value => document.querySelector('.sl-figures').textContent.includes(value)", arg=chosen.split()[0])
        assert figure(page, "Sharpe ratio") == chosen.split()[0] and painted(page) >= 4

        page.get_by_role("radio", name="Sweep").check()
        page.wait_for_selector(".sl-sweep .heatmaplayer image")
        box = page.locator(".sl-sweep .heatmaplayer image").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.5 / 6, box["y"] + box["height"] * 3.5 / 4)
        page.wait_for_selector(".sl-result .sl-plot", state="visible")
        for name, value in (("fast", "5"), ("slow", "40")): expect(page.get_by_role("textbox", name=name, exact=True)).to_have_value(value)  # the cell at the bottom left


def test_stop_ends_a_slow_strategy(browser, voila: str, root: Path) -> None:
    with tab(browser, f"{voila}/") as page:
        settled(page)
        kept = figure(page, "Return")
        page.get_by_label("Strategy", exact=True).select_option(label="slow")
        settled(page, "Running")
        page.get_by_role("button", name="Stop", exact=True).click()
        assert "last finished result" in settled(page, "Stopped") and figure(page, "Return") == kept
        assert page.get_by_role("button", name="Stop", exact=True).is_disabled()
        page.get_by_label("Strategy", exact=True).select_option(label="buy_and_hold")
        assert "1 trade." in settled(page) and not any(e.data.get("strategy") == "slow" for e in open_ledger(root).entries() if e.kind == "backtest.finished")


def test_in_jupyterlab_a_variant_becomes_a_run(browser, root: Path, tmp_path: Path) -> None:
    write_notebook(root/"own.ipynb", EXPLORER.format(more="start='2005-01-01', parameters={'fast': 20, 'slow': 100}"))
    with lab_server(root, root, tmp_path/"private") as address, tab(browser, f"{address}/lab/tree/own.ipynb?token={TOKEN}", width=1680, height=1150) as page:
        open_in_lab(page)
        settled(page)
        ask_everything(page, tmp_path, "explorer-lab-light")
        slider = page.get_by_role("slider", name="fast, slider")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(f"!({STATUS}).includes('Checked')")
        settled(page)
        assert page.get_by_role("textbox", name="fast", exact=True).input_value() == "19", "JupyterLab leaves the arrow keys to the slider"
        set_lab_theme(page, "JupyterLab Dark")
        page.wait_for_function("getComputedStyle(document.querySelector('.sagelab')).backgroundColor === 'rgb(22, 24, 27)'")
        page.wait_for_function("getComputedStyle(document.querySelector('.sl-result .xtick text')).fill === 'rgb(169, 170, 168)'")  # plots follow
        ask_everything(page, tmp_path, "explorer-lab-dark")
        set_lab_theme(page, "JupyterLab Light")

        known = {run.run_id for run in list_runs(load_settings(root, environment={}))}
        page.get_by_role("button", name="Save as run").click()
        page.wait_for_selector(".sl-saved >> text=Saved as run")
        run, = [run for run in list_runs(load_settings(root, environment={})) if run.run_id not in known]
        assert run.manifest["parameters"]["config"] == {"fast": 19, "slow": 100} and figure(page, "Sharpe ratio") == f"{run.manifest['metrics']['sma_cross']['sharpe']:.2f}"
        link = page.get_by_role("link", name=f"Open the report of {run.run_id}")
        with page.expect_popup() as opened: link.click()
        opened.value.wait_for_selector("table.figures")
        opened.value.close()
