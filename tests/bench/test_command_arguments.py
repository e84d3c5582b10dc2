"""Words that a command does not take: what to write is said where it is known, and no option that is hardly like."""

from __future__ import annotations

import pytest

from manifold_bench.bench import baseline, compare, judge, list, run
from manifold_bench.bench.report import __main__ as report

CASES = {
    "a matrix without its option": (run, ["quick"], "write --matrix quick"),
    "a misspelt option": (run, ["--matix", "quick"], "did you mean '--matrix'?"),
    "an option spelt otherwise": (run, ["--defence=inc"], "did you mean '--defense'?"),
    "two names": (list, ["pgd", "apgd"], "takes NAME alone; got pgd, apgd"),
    "three runs": (compare, ["a", "b", "c"], "takes BASELINE NEW alone; got a, b, c"),
    "two files": (judge, ["a.npz", "b.npz", "--defense", "d"], "takes IMAGES alone; got a.npz, b.npz"),
}

UNLIKE = {"an output": (baseline, ["run", "--out", "bl"]), "to open": (report, ["run", "--open"])}


@pytest.mark.parametrize("case", CASES)
def test_what_to_write_is_said(case, capsys):
    command, words, said = CASES[case]
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("case", UNLIKE)
def test_an_option_that_is_hardly_like_is_not_suggested(case, capsys):
    command, words = UNLIKE[case]
    assert command.main(words) == 2
    assert "did you mean" not in capsys.readouterr().err
