"""Grids and texts on the screen: within its width, and no word broken."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from manifold_bench.bench.terminal import LOG_WIDTH, Line, print_grid, print_text, terminal

WORDS = st.text("abc-_(=)", min_size=1, max_size=12)


def shown(width: int, show) -> list[str]:
    console = Console(width=width, file=(out := io.StringIO()), color_system=None)
    show(console)
    return out.getvalue().splitlines()


@given(st.integers(40, 90), st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=6))
def test_every_cell_is_whole_and_no_line_is_wider_than_the_screen(width, rows):
    lines = [Line(f"{name} x", figures, "a note of several words, wrapped if need be") for name, *figures in rows]
    out = shown(width, lambda console: print_grid(console, "title", ["label", "1", "2", "3", "4"], lines))
    assert max(map(cell_len, out)) <= width
    words = " ".join(out).split()
    for name, *figures in rows:
        assert {name, *figures} <= set(words)


def test_columns_without_room_follow_below_with_the_labels_again():
    lines = [Line("first", ["1" * 30, "2" * 30]), Line(), Line("second", ["3" * 30, "4" * 30])]
    out = shown(60, lambda console: print_grid(console, "", ["name", "a", "b"], lines))
    assert sum(line.startswith("first") for line in out) == 2
    assert not any("1" * 30 in line and "2" * 30 in line for line in out)


def test_a_long_text_is_broken_between_words_and_a_long_word_is_left_whole():
    path = "/" + "x" * 70 + "/report.html"
    out = shown(40, lambda console: print_text(console, f"{'some words ' * 8}{path}", indent="  "))
    assert all(line.startswith("  ") for line in out) and out[-1].strip() == path
    assert all(cell_len(line) <= 40 for line in out[:-1])
    assert re.sub(r"\s+", " ", " ".join(out)).strip() == f"{'some words ' * 8}{path}"


@pytest.mark.parametrize(("columns", "width"), [("0", LOG_WIDTH), ("72", 72), ("none", 80)])
def test_a_width_that_is_none_is_not_taken(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal().width == width
