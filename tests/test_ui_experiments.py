"The board of experiments: what it shows, who may decide on it and who may not, and a real Chromium that says yes."
import json, os, shutil, subprocess
import pytest
from sagelab.cli.main import main
from sagelab.core.ledger import open_ledger
from sagelab.core.settings import load_settings
from sagelab.lab.decision import approve
from sagelab.lab.record import find_experiment, folder_of, note_step, only_one, read_report
from sagelab.lab.template import init_lab
from sagelab.ui.experiments import ExperimentBoard, PageTerminal
from ui_pages import TOKEN, faint_words, lab_server, open_in_lab, screenshot, tab, unnamed_controls, voila_server, write_notebook

WORDS = ["--name", "Faster", "--hypothesis", "A faster average turns sooner.", "--strategy", "sma_cross", "-c", "fast=5", "--baseline", "last"]
PAGE = "from sagelab.ui.experiments import ExperimentBoard\nboard = ExperimentBoard()\nboard"


def git(folder, *words):
    own = [p for s in ("user.name=P", "user.email=p@example.com", "commit.gpgSign=false", "core.hooksPath=/dev/null") for p in ("-c", s)]
    return subprocess.run(["git", "-C", str(folder), *own, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def kept(tmp_path_factory, repository):
    "A lab with an evaluated experiment, and a copy to put in its place again."
    patch = pytest.MonkeyPatch()
    patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in [n for n in os.environ if n.startswith(("SAGELAB_", "GIT_AUTHOR", "GIT_COMMITTER"))]: patch.delenv(name)
    folder = tmp_path_factory.mktemp("board")
    root = init_lab(folder/"lab")
    shutil.copytree(repository/"reports"/"example", root/"reports"/"example")
    git(root, "init", "-q", "-b", "work"), git(root, "add", "-A"), git(root, "commit", "-qm", "begin")
    before = os.getcwd()
    os.chdir(root)
    try: assert main(["experiment", "create", *WORDS, "--json"]) == 0 and main(["experiment", "create", *WORDS, "--no-run", "--json"]) == 0
    finally: os.chdir(before)
    shutil.copytree(root, folder/"copy", symlinks=True)
    yield folder
    patch.undo()


@pytest.fixture
def here(kept, monkeypatch):
    "That lab, fresh for each test; a working tree of git knows its own path."
    shutil.rmtree(kept/"lab")
    shutil.copytree(kept/"copy", kept/"lab", symlinks=True)
    monkeypatch.chdir(kept/"lab")
    return kept/"lab"


def opened(here, **more):
    "A board without a page."
    board = ExperimentBoard(load_settings(here), **more)
    assert board.wait()
    return board


def heard(board, **message):
    "A message that no page has sent."
    board._heard(None, message, [])
    assert board.wait()
    return board._board.view


def kinds(lab, *of): return [entry.kind for entry in open_ledger(lab).entries() if entry.kind.startswith(of)]


def test_a_card_says_what_the_command_line_says(here, capsys):
    board = opened(here)
    waiting, proposed = ({c["state"]: c for c in board.cards}[state] for state in ("evaluated", "created"))
    main(["experiment", "show", waiting["id"], "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (waiting["hypothesis"], waiting["waits"], waiting["branch"]) == (told["hypothesis"], told["waits_for"], told["branch"]) and waiting["recommended"] is told["report"]["recommendation"]["recommended"]
    assert [text for *_, text in waiting["requirements"]] == [r["sentence"] for r in told["report"]["recommendation"]["requirements"]]
    assert all("look-ahead: clean" in row[3] for row in waiting["figures"]) and proposed["figures"] == [] and proposed["changed"] == [["fast", "10", "5"]]
    assert [len(c["cards"]) for c in board._board.view["columns"]] == [1, 1, 0, 0, 0] and json.dumps(board._board.view)


def test_what_was_altered_is_told_of(here):
    board = opened(here)
    name = next(c["id"] for c in board.cards if c["state"] == "evaluated")
    folder = folder_of(name, load_settings(here))
    (folder/"trades.log").write_text("")
    heard(board, do="show", id=name)
    assert "trades.log was altered" in board._board.detail["card"]["altered"]
    (folder/"experiment_report.json").write_text("{")
    heard(board, do="refresh")
    assert "cannot be read" in next(c for c in board.cards if c["id"] == name)["problem"] and len(board.cards) == 2, "the other card is no worse for it"


def test_a_program_and_whoever_has_no_vote_see_why(here, monkeypatch):
    monkeypatch.setenv("SAGELAB_ACTOR", "a-model")
    board = opened(here)
    name = next(c["id"] for c in board.cards if c["state"] == "evaluated")
    heard(board, do="show", id=name)
    assert "a-model is a program" in board._board.detail["can"]["approve"] and "a-model is a program" in board._board.detail["can"]["reject"] and "(a program)" in board._board.view["status"]
    monkeypatch.delenv("SAGELAB_ACTOR")
    monkeypatch.setenv("SAGELAB_POLICY_OWNERS", "ada")
    monkeypatch.setenv("SAGELAB_POLICY_VIEWERS", "everybody-else")
    heard(board, do="refresh")
    assert "has no role here" in board._board.detail["can"]["approve"] and not any(c["can"] for column in board._board.view["columns"] for c in column["cards"])


def test_two_approvers_and_a_leak(here, monkeypatch):
    monkeypatch.setenv("SAGELAB_POLICY_APPROVERS", "2")
    settings = load_settings(here)
    board = opened(here)
    name = next(c["id"] for c in board.cards if c["state"] == "evaluated")
    heard(board, do="show", id=name)
    approve(name, "one", settings=settings, terminal=PageTerminal("page s-1", name))
    heard(board, do="look")
    assert board.wait() and board._board.detail["card"]["approvals"][0][2] == "one" and "2 different persons" in board._board.detail["can"]["approve"] and "1 approval by" in board._board.detail["card"]["waits"]
    note_step(settings, "evaluated", find_experiment(name, settings), "x", **{**find_experiment(name, settings).evaluation, "causality": "leak"})
    report = folder_of(name, settings)/"experiment_report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"causality": {"verdict": "leak", "sentence": "It looked."}}))
    heard(board, do="refresh")
    assert "never be approved" in board._board.detail["can"]["approve"] and board._board.detail["can"]["reject"] == ""


def test_news_and_what_runs_right_now(here):
    board = opened(here)
    settings, read = load_settings(here), []
    board._read, kept = (lambda found: (read.append(len(found[0])), kept(found))), board._read
    heard(board, do="look")
    open_ledger(here).append("backtest.finished", {"x": 1})
    heard(board, do="look")
    assert read == [], "nothing happened to an experiment"
    name = next(c["id"] for c in board.cards if c["state"] == "created")
    with only_one(folder_of(name, settings)/".lock", wait=False):
        heard(board, do="look")
        assert os.path.exists("/proc/locks") is next(c["running"] for c in board.cards if c["id"] == name)
    heard(board, do="look")
    main(["experiment", "reject", name, "--reason", "no", "--json"])
    heard(board, do="look")
    assert next(c["reason"] for c in board.cards if c["id"] == name) == "no" and len(read) >= 1


def test_read_only_has_neither_buttons_nor_what_they_call(here, monkeypatch):
    settings = load_settings(here)
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    board = ExperimentBoard(settings, read_only=False)
    assert board.wait()
    name = next(c["id"] for c in board.cards if c["state"] == "evaluated")
    before = kinds(here, "experiment", "policy")
    for message in ({"do": "show", "id": name}, {"do": "approve", "id": name, "reason": "r", "typed": name}, {"do": "reject", "id": name, "reason": "r"}): heard(board, **message)
    assert board._board.detail["can"] is None and kinds(here, "experiment", "policy") == before and not any(c["can"] for column in board._board.view["columns"] for c in column["cards"])


# ---- a kernel without a page -----------------------------------------------------------------------------------------

TRIES = """
import threading
def told(do, **given):
    board._heard(board._board, {"do": do, "id": name, "reason": "r", **given}, [])
    board.wait()
    return board._board.view["error"]
name = next(c["id"] for c in board.cards if c["state"] == "evaluated")
found = [told("approve", typed=name), told("reject")]
thread = threading.Thread(target=lambda: found.append(told("approve", typed=name)))
thread.start(), thread.join()
print(*found, sep="\\n")
"""


def test_cells_threads_and_a_headless_run_approve_nothing_and_a_page_message_counts_once(here):
    from jupyter_client import KernelManager
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(here), env=os.environ | {"SAGELAB_LAB": str(here), "JUPYTER_PLATFORM_DIRS": "0"})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(60)
        def run(code):
            "Execute a cell; what it printed."
            printed = []
            reply = client.execute_interactive(code, timeout=90, output_hook=lambda m: printed.append(m["content"].get("text", "") if m["msg_type"] == "stream" else ""))
            assert reply["content"]["status"] == "ok", reply["content"]
            return "".join(printed).strip()
        run(f"{PAGE}.wait()")
        refused = run(TRIES).splitlines()
        assert len(refused) == 3 and all("takes a person at a terminal" in line for line in refused)
        # What a page sends is a message of its own kind; this is how a page looks to the kernel.
        name = find_experiment("001", load_settings(here)).experiment_id
        data = {"method": "custom", "content": {"do": "approve", "id": name, "reason": "from a page", "typed": "yes"}}
        message = client.session.msg("comm_msg", {"comm_id": run("print(board._board.comm.comm_id)"), "data": data})
        client.shell_channel.send(message)
        assert "What was typed is not" in run("board.wait(); print(board._board.view['error'])")
        # Neither a thread nor a cell can use what a page has sent before.
        again = "content = {}\nboard._heard(board._board, content, []); board.wait(); print(board._board.view['error'])".format(data["content"] | {"typed": name})
        assert "takes a person at a terminal" in run(again)
        client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": message["content"]["comm_id"], "data": {"method": "custom", "content": data["content"] | {"typed": name}}}))
        assert "is approved" in run("board.wait(); print(board._board.view['status'])") and find_experiment(name, load_settings(here)).state == "approved"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert kinds(here, "experiment")[-1] == "experiment.approved" and kinds(here, "experiment").count("experiment.approved") == 1 and kinds(here, "policy.refused")


# ---- in a browser ----------------------------------------------------------------------------------------------------

def test_an_owner_approves_in_jupyterlab(browser, here, tmp_path, repository):
    name = find_experiment("001", load_settings(here)).experiment_id
    write_notebook(here/"board.ipynb", PAGE)
    with lab_server(here, here, tmp_path/"private") as address, tab(browser, f"{address}/lab/tree/board.ipynb?token={TOKEN}&reset", height=1000) as page:
        open_in_lab(page)
        page.wait_for_selector(".sl-board article >> nth=1")
        assert page.locator(".sl-board section h3").all_inner_texts() == ["Proposed 1", "Waits for a decision 1", "Approved 0", "Rejected 0", "Failed 0"]
        assert unnamed_controls(page) == [] and faint_words(page) == []
        screenshot(page, "board-lab", repository/"artifacts")
        page.get_by_role("button", name=f"Show {name}").click()
        page.wait_for_selector(".sl-decide")
        assert page.locator(".sl-detail table >> text=look-ahead: clean").count() >= 6 and page.locator("text=by the promotion policy; a person decides").is_visible()
        yes, reason, typed = page.get_by_role("button", name="Approve"), page.get_by_label("Why; it stands in the ledger"), page.get_by_label("type its id")
        assert yes.is_disabled() and page.get_by_role("button", name="Reject").is_disabled()
        reason.fill("The costs are fine with me.")
        typed.fill("yes")
        assert yes.is_disabled()
        # A script that fills in the form and presses the button is no person.
        page.evaluate("""name => { const box = document.querySelector('.sl-decide input'); box.value = name; box.dispatchEvent(new Event('input', {bubbles: true}));
                                   document.querySelector('.sl-decide button.primary').disabled = false; document.querySelector('.sl-decide button.primary').click(); }""", name)
        typed.fill("")
        typed.press_sequentially(name)
        assert kinds(here, "experiment.approved", "policy.refused") == [] and yes.is_enabled()
        assert unnamed_controls(page) == [] and faint_words(page) == []
        screenshot(page, "board-lab-decide", repository/"artifacts")
        yes.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(f"text={name} is approved. It waits for a person who merges")
        page.wait_for_selector("section[aria-labelledby$=approved] article")
        # the report, although its folder is hidden and served by nobody
        page.get_by_role("button", name="Open the report").click()
        page.frame_locator("iframe.sl-report").locator("html[data-plots=drawn]").wait_for()
        assert page.frames[-1].evaluate("window.origin") == "null"
        # the other one is turned down
        page.locator("section[aria-labelledby$=created] button").click()
        page.wait_for_selector("text=It has not been evaluated yet.")
        page.get_by_label("Why; it stands in the ledger").fill("One is enough.")
        page.get_by_role("button", name="Reject").click()
        page.wait_for_selector("section[aria-labelledby$=rejected] article")
    settings = load_settings(here)
    decided, entry = find_experiment(name, settings), [e for e in open_ledger(here).entries("experiment.approved")]
    assert decided.state == "approved" and read_report(decided, settings)["approved"] is True and [e.data["reason"] for e in entry] == ["The costs are fine with me."] and entry[0].actor == decided.approvals[0]["by"]
    assert find_experiment("002", settings).reason == "One is enough." and open_ledger(here).verify().ok
    assert json.loads(git(here, "show", f"{decided.branch}:experiments/{name}/experiment_report.json"))["approved"] is True


def test_others_see_who_may_and_an_altered_ledger_shows_nothing(browser, here, tmp_path):
    words = (here/"settings.ini").read_text()
    (here/"settings.ini").write_text(words.replace("\nowners =\n", "\nowners = ada\n").replace("\neditors =\n", "\neditors = bob\n"))
    write_notebook(here/"board.ipynb", PAGE)
    with lab_server(here, here, tmp_path/"private") as address, tab(browser, f"{address}/lab/tree/board.ipynb?token={TOKEN}&reset") as page:
        open_in_lab(page)
        page.locator("section[aria-labelledby$=evaluated] button").click()
        page.wait_for_selector(".sl-decide >> text=approves, and")
        assert page.locator(".sl-decide input, .sl-decide textarea, .sl-decide button").count() == 0
        ledger = open_ledger(here).path
        ledger.write_bytes(ledger.read_bytes().replace(b"A faster average", b"A better average"))
        page.locator(".sagelab").get_by_role("button", name="Refresh").click()
        page.wait_for_selector(".sl-error:has-text('was altered')")
        assert page.locator(".sl-board article").count() == 0


def test_voila_shows_and_decides_nothing(browser, here, tmp_path, repository):
    write_notebook(here/"board.ipynb", PAGE)
    with voila_server(here/"board.ipynb", here, tmp_path/"private") as address, tab(browser, f"{address}/?theme=dark") as page:
        page.wait_for_selector(".sl-board article >> nth=1")
        page.locator("section[aria-labelledby$=evaluated] button").click()
        page.wait_for_selector(".sl-detail table >> text=look-ahead: clean >> nth=5")
        assert [b for b in page.locator(".sagelab button").all_inner_texts() if b not in ("Refresh", "Read", "Open the report", "Close")] == [] and page.locator(".sagelab input, .sagelab textarea").count() == 0
        assert unnamed_controls(page) == [] and faint_words(page) == []
        screenshot(page, "board-voila-dark", repository/"artifacts")
        page.get_by_role("button", name="Open the report").click()
        page.frame_locator("iframe.sl-report").locator("html[data-plots=drawn]").wait_for()


def test_a_lab_without_experiments_says_what_to_do(lab, monkeypatch):
    monkeypatch.chdir(lab)
    assert "not under git" in opened(lab)._board.view["empty"][0][0]
    git(lab, "init", "-q", "-b", "work"), git(lab, "add", "-A"), git(lab, "commit", "-qm", "begin")
    lines = opened(lab)._board.view["empty"]
    assert lines[1][1] == "sagelab demo" and lines[2][1].startswith("sagelab experiment create")
