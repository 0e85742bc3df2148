"The browser of runs: what it finds and says, and a real Chromium on it in JupyterLab and in Voila."
import json, os, shutil
import psutil, pytest
from sagelab.core.errors import Finding
from sagelab.core.settings import load_settings
from sagelab.lab.comparison import Catalogue, compare_rows, equity_curves, filter_rows
from sagelab.lab.run import run_notebook
from sagelab.lab.template import init_lab
from sagelab.ui.jobs import Cancelled
from sagelab.ui.runs import RunBrowser, replay_in_process
from ui_pages import TOKEN, faint_words, lab_server, open_in_lab, screenshot, tab, unnamed_controls, voila_server, write_notebook

PAGE = "from sagelab.ui.runs import RunBrowser\nRunBrowser()"
ROWS = "table.sl-runs tbody tr"


@pytest.fixture(scope="module")
def kept(tmp_path_factory, repository):
    "A lab with two real runs, and the committed example, which has verdicts."
    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.startswith("SAGELAB_")]: patch.delenv(name)
    root = init_lab(tmp_path_factory.mktemp("runs")/"lab")
    shutil.copytree(repository/"reports"/"example", root/"reports"/"example")
    for fast in (10, 5):
        run_notebook(root/"nbs/experiments/backtest.ipynb", {"strategies": "sma_cross", "start": "2015-01-01", "guards": False, "config": {"fast": fast, "slow": 30}}, settings=load_settings(root))
    patch.undo()
    return root


@pytest.fixture
def here(kept, tmp_path):
    "A copy of it."
    return shutil.copytree(kept, tmp_path/"lab")


def made(here): return [row for row in RunBrowser(load_settings(here)).rows if "-backtest-" in row.run_id]


def test_two_real_runs_side_by_side(here):
    catalogue = Catalogue(load_settings(here))
    assert catalogue.refresh() and catalogue.runs == 3 and len(catalogue.rows) == 6
    rows = filter_rows(catalogue.rows, "strategy=sma_cross -backtest-")
    assert [row.config["fast"] for row in rows] == [5, 10] and all(not row.verdicts for row in rows)
    found = compare_rows(rows)
    assert found.reason == "They had other parameters: fast 5 against fast 10." and found.parameters == {"fast": (5, 10)} and not found.notes
    assert [v["verdict"] for v in found.figures[0]["values"]] == ["not doubted"] * 2
    curves = equity_curves(rows)
    assert [len(c) for c in curves.values()] == [1006, 1006] and (curves[rows[0].key] != curves[rows[1].key]).any()
    across = compare_rows([rows[0], next(row for row in catalogue.rows if row.strategy == "sma_cross" and row.verdicts)])
    assert across.differences[0].what == "data" and "cannot be compared" in across.notes[0]


def test_a_file_that_was_touched_is_told_of(here):
    browser = RunBrowser(load_settings(here))
    row = made(here)[0]
    (row.folder/"trades.log").write_text("")
    browser.open_report(row.key)
    assert "trades.log was altered" in browser._table.detail["said"] and browser._table.detail["verdict_kind"] == "warning"
    shutil.rmtree(row.folder)
    browser.select(row.key), browser.select(made(here)[0].key)
    with pytest.raises(Finding, match="cannot be read any more"): browser.compare()


@pytest.fixture(scope="module")
def many(tmp_path_factory, repository):
    "Two thousand manifests."
    root = init_lab(tmp_path_factory.mktemp("many")/"lab")
    manifest = json.loads((repository/"reports"/"example"/"run.json").read_text())
    for number in range(2000):
        one = {**manifest["results"][1], "parameters": {"fast": 2 + number % 40, "slow": 50}, "metrics": {**manifest["results"][1]["metrics"], "sharpe": number / 1000}}
        folder = root/"reports"/f"run-{number:04d}"
        folder.mkdir(parents=True)
        (folder/"run.json").write_text(json.dumps({**manifest, "run_id": folder.name, "started": f"2026-01-01T{number // 60 % 24:02d}:{number % 60:02d}:00", "results": [one]}))
    return root


def test_thousands_of_runs_are_drawn_by_the_page_and_read_once(many):
    browser = RunBrowser(load_settings(many), page_size=50)
    view = browser._table.view
    assert len(browser.rows) == 2000 and len(view["rows"]) == 50 and view["pages"] == 40 and len(json.dumps(view)) < 40_000
    before = {row.key: row for row in browser.rows}
    shutil.copytree(many/"reports"/"run-0007", many/"reports"/"run-new")
    (many/"reports"/"run-new"/"run.json").write_text((many/"reports"/"run-0007"/"run.json").read_text().replace("run-0007", "run-new"))
    browser._heard(None, {"do": "look"}, [])
    assert len(browser.rows) == 2001 and sum(before.get(row.key) is row for row in browser.rows) == 2000, "only what is new was read"
    shutil.rmtree(many/"reports"/"run-new")
    browser._heard(None, {"do": "look"}, []), browser._heard(None, {"do": "filter", "text": "sharpe>=1.5 fast<12"}, [])
    assert browser._table.view["status"] == f"{sum(n % 40 < 10 for n in range(1500, 2000))} of 2,000 results." and browser._table.view["page"] == 0
    browser._heard(None, {"do": "sort", "name": "sharpe"}, []), browser._heard(None, {"do": "page", "page": 99}, [])
    assert browser._table.view["page"] == browser._table.view["pages"] - 1 and browser.rows[0].metrics["sharpe"] == max(row.metrics["sharpe"] for row in browser.rows)
    for row in browser.rows[:9]: browser.select(row.key)
    browser._heard(None, {"do": "compare"}, [])
    assert "9 results are selected, and 8 fit" in browser._table.view["error"] and len(browser.selected) == 9


def test_hostile_messages_and_names_stay_text(here):
    folder = here/"reports"/"evil"
    shutil.copytree(here/"reports"/"example", folder)
    evil = "<img src=x onerror=alert(1)>"
    manifest = json.loads((folder/"run.json").read_text())
    manifest |= {"run_id": evil, "started": "2099", "parameters": {evil: evil}, "results": [{**manifest["results"][1], "strategy": evil, "parameters": {evil: evil}}]}
    (folder/"run.json").write_text(json.dumps(manifest))
    browser = RunBrowser(load_settings(here))
    assert browser.rows[0].strategy == evil and browser._table.view["rows"][0]["run"] == evil
    for message in ({"do": "open", "key": "../../etc/passwd"}, {"do": "open", "key": ["x"]}, {"do": "sort", "name": "__class__"}, {"do": "page", "page": None}, {"do": "select"}, {"do": "replay", "run": "--help"}):
        browser._heard(None, message, [])
        assert browser._table.view["error"], message
    for message in ({"do": "_begin"}, {"do": None}, {}, "text", None): browser._heard(None, message, [])


def test_read_only_has_nothing_that_acts(here, monkeypatch):
    settings = load_settings(here)
    monkeypatch.setenv("SAGELAB_READ_ONLY", "1")
    browser = RunBrowser(settings, read_only=False)
    key = next(row.key for row in browser.rows if "-backtest-" in row.run_id)
    browser._heard(None, {"do": "open", "key": key, "where": {"root": str(here), "base": "/"}}, [])
    assert browser._table.detail["replay"] is False and browser._table.detail["url"] == "", "and no path of this machine"
    for what in ("replay", "cancel"): browser._heard(None, {"do": what, "run": key.split(":")[0]}, [])
    assert browser.jobs.current is None and not browser._table.detail["job"]


def at_work(folder) -> list[psutil.Process]:
    "Processes in a folder; a warm kernel is no child of who asked for it."
    found = []
    for process in psutil.process_iter():
        try: cwd = process.cwd()
        except psutil.Error: continue
        if process.pid != os.getpid() and cwd.startswith(f"{folder}{os.sep}"): found.append(process)
    return found


def test_a_repetition_can_be_cancelled_and_leaves_nothing(here, tmp_path):
    settings, door, seen = load_settings(here), tmp_path/"door", []
    door.touch()
    write_notebook(here/"patient.ipynb", f"import time\nfrom pathlib import Path\nwhile not Path({str(door)!r}).exists(): time.sleep(0.02)")
    run = run_notebook(here/"patient.ipynb", settings=settings).run_id
    door.unlink()
    def progress(share):
        seen.extend(at_work(settings.state/"replay"))
        if seen: raise Cancelled
    with pytest.raises(Cancelled): replay_in_process(run, settings, progress)
    gone, alive = psutil.wait_procs(seen, timeout=20)
    assert gone and not alive, "its kernel ends with it"
    assert not list((settings.state/"replay").glob("*"))


# ---- in a browser ----------------------------------------------------------------------------------------------------

def rows_say(page, count): page.wait_for_function("([rows, count]) => document.querySelectorAll(rows).length === count", arg=[ROWS, count])


def test_in_jupyterlab(browser, here, tmp_path, repository):
    write_notebook(here/"runs.ipynb", PAGE)
    with lab_server(here, here, tmp_path/"private") as address, tab(browser, f"{address}/lab/tree/runs.ipynb?token={TOKEN}&reset") as page:
        open_in_lab(page)
        rows_say(page, 6)
        # filter: by words and conditions, and what is wrong stands in place
        box = page.get_by_label("Filter", exact=True)
        box.fill("sma_cross sharpe > -5")
        rows_say(page, 3)
        box.fill("sharp>0")
        page.wait_for_function("document.querySelector('.sl-error').textContent.includes(\"Did you mean 'sharpe'?\")")
        assert box.get_attribute("aria-invalid") == "true" and page.locator(ROWS).count() == 3
        box.fill("")
        rows_say(page, 6)
        # sort: by mouse, and by keyboard, where the focus stays
        head = page.get_by_role("columnheader", name="Sharpe")
        head.get_by_role("button").click()
        page.wait_for_selector("th[aria-sort=descending] >> text=Sharpe")
        first = page.locator(ROWS).first.inner_text()
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("th[aria-sort=ascending] >> text=Sharpe")
        assert page.locator(ROWS).last.inner_text() == first and page.evaluate("document.activeElement.dataset.focus") == "sort-sharpe"
        # compare
        boxes = page.get_by_role("checkbox", name="Select sma_cross of")
        for place in range(2):
            boxes.nth(place).focus()
            page.keyboard.press("Space")
            page.wait_for_selector(f"text={place + 1} selected")
        page.get_by_role("button", name="Compare 2 results").click()
        page.wait_for_selector(".sl-detail >> text=Why the numbers may differ.")
        page.wait_for_selector(".js-plotly-plot .main-svg >> nth=0")
        assert page.locator(".sl-detail table").first.locator("tbody th[scope=row]").count() >= 16 and page.locator(".sl-detail .beside").count() >= 32
        assert page.evaluate("document.activeElement.className") == "sl-detail", "the focus goes to what was asked for"
        assert unnamed_controls(page) == [] and faint_words(page) == []
        screenshot(page, "runs-lab-compare", repository/"artifacts")
        # the report, in a frame that may nothing, and in a tab of its own that may nothing either
        page.get_by_role("button", name="Open the report of").first.click()
        page.frame_locator("iframe.sl-report").locator("html[data-plots=drawn]").wait_for()
        assert page.locator("iframe.sl-report").get_attribute("sandbox") == "allow-scripts" and page.frames[-1].evaluate("window.origin") == "null"
        with page.context.expect_page() as opened: page.get_by_role("link", name="Open in a new tab").click()
        opened.value.wait_for_selector("html[data-plots=drawn]")
        assert opened.value.evaluate("window.origin") == "null" and opened.value.url.endswith("/report.html")
        opened.value.close()
        # run it again: in a process of its own, with progress, and an answer
        page.locator(f"{ROWS}:has-text('-backtest-')").first.get_by_role("button", name="Open the report of").click()
        page.frame_locator("iframe.sl-report[title*='-backtest-']").locator("html[data-plots=drawn]").wait_for()
        page.get_by_role("button", name="Run it again").click()
        page.wait_for_selector("progress[aria-label='Progress of the repetition']")
        page.wait_for_selector("text=Identical: data, parameters, figures, trades and equity came out the same.", timeout=180_000)
        assert page.locator("iframe.sl-report").count() == 1 and page.frames[-1].evaluate("document.documentElement.dataset.plots") == "drawn", "the report was not loaded anew"
        # a run that comes while one looks turns up by itself
        page.get_by_role("button", name="Close").click()
        shutil.copytree(here/"reports"/"example", here/"reports"/".partial-new")
        os.replace(here/"reports"/".partial-new", here/"reports"/"zz-later")
        rows_say(page, 10)


def test_in_voila(browser, here, tmp_path, repository):
    empty = init_lab(tmp_path/"empty")
    write_notebook(here/"runs.ipynb", PAGE, f"from sagelab.core.settings import load_settings\nRunBrowser(load_settings({str(empty)!r}))")
    with voila_server(here/"runs.ipynb", here, tmp_path/"private") as address, tab(browser, f"{address}/?theme=dark", scheme="light") as page:
        rows_say(page, 6)
        # a lab without runs says what to do
        second = page.locator(".sagelab").nth(1)
        second.get_by_text("There is no run yet.").wait_for()
        assert second.locator("code >> text=sagelab demo").is_visible() and not second.locator("table.sl-runs").is_visible() and second.get_by_role("button").all_inner_texts() == ["Refresh"]
        page.get_by_role("columnheader", name="Return").get_by_role("button").click()
        page.wait_for_selector("th[aria-sort=descending] >> text=Return")
        for place in range(2):
            page.get_by_role("checkbox").nth(place).click()
            page.wait_for_selector(f"text={place + 1} selected")
        page.get_by_role("button", name="Compare 2 results").click()
        page.wait_for_selector(".js-plotly-plot .main-svg >> nth=0")
        assert unnamed_controls(page) == [] and faint_words(page) == []
        screenshot(page, "runs-voila-dark", repository/"artifacts")
        page.get_by_role("button", name="Open the report of").first.click()
        frame = page.frame_locator("iframe.sl-report")
        frame.locator("html[data-plots=drawn]").wait_for()
        assert frame.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(22, 24, 27)", "as dark as the page it stands in"
        assert page.get_by_role("button", name="Run it again").count() == 0 == page.get_by_role("link", name="Open in a new tab").count()
        screenshot(page, "runs-voila-report", repository/"artifacts")
