"""Labels, reasons and messages come from anybody: none is a command to a terminal, a spreadsheet, or a browser."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from fuzzing import called, toml_file
from handmade import cell, run, write_run
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from manifold_bench.bench import compare
from manifold_bench.bench import run as running
from manifold_bench.bench.report import __main__ as report
from manifold_bench.bench.report.table import csv as to_csv
from manifold_bench.bench.report.table import markdown_text
from manifold_bench.bench.terminal import Terminal
from manifold_bench.bench.text import is_printable, printable

HOSTILE = ("=1+1", "[x](http://a)", "<script>alert(1)</script>", "$x$", "_a", "@b|c`d`", "\\")
TEN = [0] * 10


@given(st.text())
def test_what_is_printable_is_as_it_was_and_the_rest_is_escaped_on_one_line(text):
    shown = printable(text)
    assert is_printable(shown) and shown.encode("utf-8") is not None
    assert printable(shown) == shown
    if is_printable(text):
        assert shown == text


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\ud800", "\x00", "\x7f"])
def test_a_terminal_gets_no_character_that_steers_it(character):
    out = io.StringIO()
    terminal = Terminal(file=out, width=60, force_terminal=True, color_system=None)
    table = Table(f"head{character}")
    table.add_row(Text(f"a{character}b"))
    terminal.print(table)
    terminal.print(Text(f"line{character}\nline"), style="bold")
    terminal.print(f"plain{character}", markup=False)
    assert character not in out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


@pytest.mark.parametrize("arguments", [["--matrix", "\x1b[2J.toml"], ["--matrix=smoke", "\x1b[2J"], ["--n", "\x1b[2J"]])
def test_messages_hold_no_control_characters(arguments):
    end = called(running.main, *arguments)
    assert end.code == 2 and "\x1b" not in end.err and "x1b" in end.err


@pytest.mark.parametrize("place", ["defenses", "attacks", "measurements"])
def test_a_label_with_a_control_character_is_refused(tmp_path, place):
    raw = {
        "datasets": ["digits"],
        "defenses": [{"name": "undefended", "label": "d"}],
        "attacks": [{"name": "fgsm", "eps": [0.1]}],
        "measurements": [{"name": "reconstruction"}],
    }
    raw[place][0]["label"] = "a\x1b[2Jb"
    file = tmp_path / "m.toml"
    file.write_text(toml_file(raw))
    end = called(running.main, "--matrix", str(file), "--dry-run")
    assert end.code == 2 and f"{place}[0]" in end.err and "control characters" in end.err


@given(st.lists(st.sampled_from([*HOSTILE, "+1", "-1", "@x", "\tx", "plain", ""]), min_size=1, max_size=5))
def test_no_text_of_a_csv_file_is_a_formula(texts):
    rows = list(csv.reader(io.StringIO(to_csv(pd.DataFrame({"text": texts, "number": -1.5})))))[1:]
    assert [row[0].removeprefix("'") for row in rows] == texts
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t")) for row in rows)
    assert {row[1] for row in rows} == {"-1.5"}


@pytest.mark.parametrize("text", ["![x](http://a)", "[x][y]", "[y]: http://a", "<a href=x>", "`a`", "a|b"])
def test_markdown_opens_no_link_tag_code_or_cell(text):
    shown = markdown_text(text)
    assert "](" not in shown and "][" not in shown and "]:" not in shown and "<" not in shown
    assert "`" not in shown.replace("\\`", "") and "|" not in shown.replace("\\|", "")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run in which every defense has a hostile name."""
    adv = [1] * 5 + TEN[5:]
    cells = [cell("clean", labels=TEN, defense=name) for name in HOSTILE]
    cells += [cell(name, labels=TEN, adv=adv, defense=name) for name in HOSTILE]
    folder = write_run(tmp_path_factory.mktemp("hostile") / "run", run(*cells))
    assert called(report.main, str(folder)).code == 0
    return folder


def test_a_report_of_hostile_names_holds_them_as_text(hostile):
    table = pd.read_csv(hostile / "summary.csv", dtype=str)
    assert set(table["defense"].str.removeprefix("'")) == set(HOSTILE)
    assert not table["defense"].str.startswith("=").any()
    assert "<script>alert" not in (hostile / "report.html").read_text(encoding="utf-8")
    for page in (hostile / "report.md", *(hostile / "tables").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert "](http" not in text and "<script" not in text


def test_a_gate_of_hostile_names_holds_them_as_text(hostile, tmp_path):
    page = tmp_path / "gate.md"
    assert called(compare.main, str(hostile), str(hostile), "--markdown", str(page)).code == 0
    assert "](http" not in page.read_text(encoding="utf-8") and "<script" not in page.read_text(encoding="utf-8")
