"""The text of any exception is one line that is never empty."""

from __future__ import annotations

import pytest

from manifold_bench.defenses.errors import one_line


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("inner"), "KeyError: 'inner'"),
        (ValueError(), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (ValueError("\nsecond\n\tthird"), "ValueError: second third"),
        (ValueError("about: "), "ValueError: about"),
        (Unspeakable(), "Unspeakable"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_one_line_is_one_line(error, line):
    assert one_line(error) == line


def test_one_line_is_short():
    assert len(one_line(ValueError("word " * 1000))) <= 300
