"No secret reaches a log, a traceback, a notebook or a message, in whatever spelling it travels."
import base64
import copy
import html
import json
import logging
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sagelab.core.errors import SageLabError, SettingsError
from sagelab.core.secrets import RedactingFilter, Secrets, install_redaction, load_secrets, redact_notebook, redact_value

VALUE = 'k/9+z "ü=\\&<ß>'


def lab_with(root: Path, **values: str) -> Secrets:
    (root/"config").mkdir(parents=True, exist_ok=True)
    file = root/"config"/"secrets.env"
    file.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()), encoding="utf-8")
    file.chmod(0o600)
    return load_secrets(root)


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets: return lab_with(tmp_path, TOKEN=VALUE, PLAIN="plain-enough")


def spellings(value: str) -> set[str]:
    "The spellings that the value must not survive in, made by the tools that make them in earnest."
    content = value.encode()
    in_json = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    return {value, quote(value), quote(value, safe=""), quote(value, safe="!~*'()"), quote_plus(value), urlencode({"": value})[1:],
            "".join(f"%{byte:02x}" for byte in content), "".join(f"%{byte:02X}" for byte in content),
            *in_json, *(json.dumps(text)[1:-1] for text in in_json), repr(value)[1:-1], ascii(value)[1:-1], html.escape(value),
            base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode(), base64.b64encode(content).decode().rstrip("=")}


# One line, no single quote (the file is written with them), and nothing that UTF-8 cannot say.
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="'\n"), min_size=6, max_size=24)
# Values that could be spelled by the marks which take the place of others.
TRICKY = st.sampled_from(["***A***", "A******B", "**A***", "AAAAAA", "******", "%25%25", "%%%%%%", "\\\\\\\\\\\\", "+++ +++", "&amp;&", "aaaaaa", "aaaaaaa"])


@settings(max_examples=150, deadline=None)
@given(values=st.lists(VALUES | TRICKY, min_size=1, max_size=3), data=st.data())
def test_no_value_survives(values: list[str], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder: secrets = lab_with(Path(folder), **dict(zip("ABC", values, strict=False)))
    parts = st.sampled_from(sorted(set().union(*map(spellings, values)))) | st.text(max_size=5) | st.sampled_from(["*", "***", "A", "%", "\\", "a"])
    text = secrets.redact("".join(data.draw(st.lists(parts, max_size=8))))
    for value in values:
        for spelling in spellings(value): assert spelling not in text


@settings(max_examples=150, deadline=None)
@given(value=VALUES, before=st.binary(max_size=7), after=st.binary(max_size=7))
def test_no_value_survives_inside_longer_base64(value: str, before: bytes, after: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder: secrets = lab_with(Path(folder), A=value)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = secrets.redact(encode(before + value.encode() + after).decode())
        assert "***A***" in text


@settings(max_examples=100, deadline=None)
@given(value=VALUES, text=st.text(max_size=40))
def test_other_text_stays_as_it_is(value: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder: secrets = lab_with(Path(folder), A=value)
    if not any(spelling in text for spelling in spellings(value)) and "%" not in text and "+" not in text: assert secrets.redact(text) == text


def test_longest_value_wins(tmp_path: Path) -> None:
    found = lab_with(tmp_path, A="abcdef", B="abcdefghi", C="xabcdefghi")
    assert found.redact("abcdef abcdefghi xabcdefghi") == "***A*** ***B*** ***C***"


@pytest.fixture
def log() -> Iterator[list[str]]:
    "What handlers wrote, one on the root logger, as a program has it."
    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None: written.append(self.format(record))
    written: list[str] = []
    handler = Keep()
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(url)s", defaults={"url": ""}))
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


class Unprintable:
    def __repr__(self) -> str: raise RuntimeError("cannot be printed")
    def __str__(self) -> str: return VALUE


def write_everything(logger: logging.Logger) -> None:
    "Log a value in every way that logging knows."
    logger.error(VALUE)
    logger.error("key %s", VALUE)
    logger.error("key %(key)s", {"key": VALUE})
    logger.error("key %r", [VALUE])
    logger.error("key %s%s", VALUE[:5], VALUE[5:])
    logger.error("%d keys", VALUE)
    logger.error("key %s", Unprintable())
    logger.error("url", extra={"url": f"http://localhost/?key={quote(VALUE)}"})
    logger.error(ValueError(VALUE))
    try: raise ValueError("outer") from KeyError(VALUE)
    except ValueError: logger.exception("failed")
    logger.error("stack", stack_info=True)


def test_logs_hold_no_secret(secrets: Secrets, log: list[str], capsys: pytest.CaptureFixture) -> None:
    undo = install_redaction(secrets)
    try: write_everything(logging.getLogger("room"))
    finally: undo()
    text = "\n".join(log) + capsys.readouterr().err
    assert len(log) == 11 and text.count("***TOKEN***") >= 10
    for spelling in spellings(VALUE): assert spelling not in text
    logging.getLogger("room").error("key %s", VALUE)
    assert VALUE in log[-1], "without redaction this handler would have told"


def test_filter_works_on_a_handler_alone(secrets: Secrets) -> None:
    record = logging.LogRecord("room", logging.ERROR, "file.py", 1, "key %s", (VALUE,), None)
    assert RedactingFilter(secrets).filter(record) is True
    assert record.getMessage() == "key ***TOKEN***" and VALUE not in str(vars(record))


def test_record_without_secret_is_untouched(secrets: Secrets) -> None:
    try: raise ValueError("harmless")
    except ValueError: information = sys.exc_info()
    given = ({"a": object()}, Unprintable, 3)
    record = logging.LogRecord("room", logging.ERROR, "file.py", 1, "%s %s %d", given, information)
    before = dict(vars(record))
    RedactingFilter(secrets).filter(record)
    assert vars(record) == before and record.args is given and record.exc_info is information


def test_undo_leaves_nothing_behind(secrets: Secrets, log: list[str]) -> None:
    def state() -> tuple: return (sys.excepthook, sys.unraisablehook, threading.excepthook, logging.getLogRecordFactory(),
                                  [list(handler.filters) for handler in logging.getLogger().handlers])
    before = state()
    undo = install_redaction(secrets)
    assert all(new != old for new, old in zip(state(), before, strict=True))
    undo()
    undo()
    assert state() == before


PROGRAM = """
import logging, sys, threading
from pathlib import Path
from sagelab.core.secrets import install_redaction, load_secrets
secrets = load_secrets(Path(sys.argv[1]))
value = secrets.get("TOKEN").reveal()
def broken(*given): raise RuntimeError(f"broken hook for {value}")
if sys.argv[2] == "broken hook": sys.excepthook = broken
install_redaction(secrets)
class Late:
    def __del__(self): raise ValueError(f"late {value}")
def fail():
    error = ValueError(f"bad key {value}")
    error.add_note(f"the key was {value!r}")
    raise error
logging.basicConfig()
logging.warning("begin with %s", value)
if sys.argv[2] == "thread":
    thread = threading.Thread(target=fail); thread.start(); thread.join()
elif sys.argv[2] == "destructor":
    late = Late(); del late
else:
    try: fail()
    except ValueError as error: raise RuntimeError(f"cannot go on with {value}") from error
"""


@pytest.mark.parametrize("way", ["exception", "thread", "destructor", "broken hook"])
def test_printed_exceptions_hold_no_secret(way: str, secrets: Secrets, tmp_path: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), way], capture_output=True, encoding="utf-8")
    for spelling in spellings(VALUE): assert spelling not in answer.stderr + answer.stdout
    assert "WARNING:root:begin with ***TOKEN***" in answer.stderr
    expected = {"exception": "RuntimeError: cannot go on with ***TOKEN***", "thread": "ValueError: bad key ***TOKEN***",
                "destructor": "ValueError: late ***TOKEN***", "broken hook": "RuntimeError: broken hook for ***TOKEN***"}
    assert expected[way] in answer.stderr
    if way in ("exception", "thread"): assert "the key was '***TOKEN***'" in answer.stderr
    assert answer.returncode == (1 if way in ("exception", "broken hook") else 0)


def test_notebook_holds_no_secret(secrets: Secrets) -> None:
    notebook = {"cells": [{"cell_type": "code", "execution_count": 7, "metadata": {"tags": [f"key={VALUE}"]}, "source": [f"key = {VALUE!r}\n", "key"],
                "outputs": [{"data": {"text/plain": [repr(VALUE)], "text/html": html.escape(VALUE), "application/json": {VALUE: [json.dumps({"key": VALUE}), None, 1.5, True]}}},
                            {"output_type": "error", "ename": "ValueError", "evalue": VALUE, "traceback": [f"\x1b[31m{VALUE}\x1b[0m"]}]}],
                "metadata": {"papermill": {"parameters": {"url": f"http://localhost/?key={quote_plus(VALUE)}",
                                                          "basic": base64.b64encode(f"me:{VALUE}".encode()).decode()}}}, "nbformat": 4, "nbformat_minor": 5}
    original = copy.deepcopy(notebook)
    redacted = redact_notebook(notebook, secrets)
    text = json.dumps(redacted, ensure_ascii=False) + json.dumps(redacted) + str(redacted)
    for spelling in spellings(VALUE): assert spelling not in text
    assert text.count("***TOKEN***") >= 30 and notebook == original
    assert (redacted["nbformat"], redacted["cells"][0]["execution_count"]) == (4, 7)
    assert redacted["cells"][0]["outputs"][0]["data"]["application/json"]["***TOKEN***"][1:] == [None, 1.5, True]


def test_values_of_any_shape() -> None:
    assert redact_value(({"a": ["x", ("x",)]}, None, 1, b"x"), str.upper) == ({"A": ["X", ("X",)]}, None, 1, b"x")


def test_secrets_do_not_print_or_pickle(secrets: Secrets) -> None:
    for thing in (secrets, secrets.get("TOKEN"), [secrets.get("TOKEN")], {"secrets": secrets}):
        for text in (repr(thing), str(thing), f"{thing}", "%s" % (thing,), json.dumps(thing, default=repr)):
            for spelling in spellings(VALUE): assert spelling not in text
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises((SageLabError, TypeError, AttributeError, pickle.PicklingError)): pickle.dumps(thing, protocol)
        with pytest.raises((SageLabError, TypeError)): json.dumps(thing)
    assert VALUE not in str(vars(secrets)) and secrets.get("TOKEN").reveal() == VALUE


BAD_FILES = {
    "no assignment": ("A=abcdefgh\nhunter2hunter2\n", 2), "open quote": ("A='hunter2hunter2\n", 1), "two words": ("\n# x\nA=hunter2 hunter2\n", 3),
    "text after quotes": ("A='hunter2'hunter2\n", 1), "bad name": ("hunter2-hunter2=x\n", 1), "too short": ("A=hunt2\n", 1), "empty": ("A=\n", 1),
    "twice": ("A=hunter2hunter2\nA=hunter2hunter2\n", 2), "second line of a quote": ("A=\"hunter2\nhunter2\"\n", 1),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_line_is_named_and_not_shown(name: str, tmp_path: Path) -> None:
    text, line = BAD_FILES[name]
    (tmp_path/"config").mkdir()
    (tmp_path/"config"/"secrets.env").write_text(text)
    with pytest.raises(SettingsError, match=f"secrets.env line {line}\\b") as caught: load_secrets(tmp_path)
    # Tools that print a traceback with the variables of each frame see no content either; the test's own frame is the first.
    frames, trace = [], caught.value.__traceback__.tb_next
    while trace: frames, trace = [*frames, trace.tb_frame], trace.tb_next
    assert frames and caught.value.__cause__ is caught.value.__context__ is None
    assert "hunt" not in str(caught.value) + repr([frame.f_locals for frame in frames])


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path/"config").mkdir()
    (tmp_path/"config"/"secrets.env").write_bytes(b"A=hunter2\xff\xfe\n")
    with pytest.raises(SettingsError, match="not UTF-8") as caught: load_secrets(tmp_path)
    assert caught.value.__context__ is None


def test_file_of_another_editor(tmp_path: Path) -> None:
    "Windows line ends and a byte order mark are read as what they are."
    (tmp_path/"config").mkdir()
    (tmp_path/"config"/"secrets.env").write_bytes(b"\xef\xbb\xbfA=abcdefgh\r\n\r\n# c\r\nexport B='ij kl mn'\r\n")
    found = load_secrets(tmp_path)
    assert [found.get(name).reveal() for name in found.names()] == ["abcdefgh", "ij kl mn"]


def test_environment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "from the environment")
    assert "TOKEN" not in load_secrets(tmp_path) and load_secrets(tmp_path).names() == ()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_open_file_works_and_is_warned_about(mode: int, warned: bool, tmp_path: Path) -> None:
    lab_with(tmp_path, A="abcdefgh")
    (tmp_path/"config"/"secrets.env").chmod(mode)
    found = load_secrets(tmp_path)
    assert found.names() == ("A",) and any("chmod 600" in text for text in found.warnings()) is warned


def test_committed_example_is_a_valid_file(repository: Path, tmp_path: Path) -> None:
    (tmp_path/"config").mkdir()
    (tmp_path/"config"/"secrets.env").write_bytes((repository/"config"/"secrets.env.example").read_bytes())
    assert load_secrets(tmp_path).names() == ()


def test_large_text_takes_moments(tmp_path: Path) -> None:
    "A value of nothing but backslashes has many spellings that begin alike; the search stays linear."
    found = lab_with(tmp_path, A="\\" * 30 + "x", B="%" * 30 + "x", C="a" * 30 + "x")
    for character in "\\%a":
        text = character * 20_000
        assert found.redact(text) == text
