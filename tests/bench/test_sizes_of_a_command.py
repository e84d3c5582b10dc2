"""--eps: sizes of perturbations on the command line, in place of the matrix's."""

from __future__ import annotations

import pytest

from manifold_bench.bench.arguments import run_parser
from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.reading import parse_matrix

MATRIX = parse_matrix(
    {
        "datasets": [{"name": "digits", "n": 10}],
        "defenses": ["undefended"],
        "attacks": [
            {"name": "pgd", "norm": "linf", "eps": [0.1, 0.2]},
            {"name": "noise", "norm": "fooling"},
            {"name": "pgd", "norm": "l2", "eps": [1.0]},
        ],
    },
    "test.toml",
)


def test_sizes_replace_those_of_one_norm_in_ascending_order():
    given = run_parser().parse_args(["--eps", "8/255", "--eps", "0.01", "--eps", "8/255"])
    cut = narrowed(MATRIX, norms=["linf", "fooling"], eps=given.eps)
    assert [choice.eps for choice in cut.attacks] == [(0.01, 8 / 255), MATRIX.attacks[1].eps]


@pytest.mark.parametrize("eps", [[0.1], [2.0]])
def test_sizes_of_several_norms_or_beyond_the_box_are_refused(eps):
    norms = [] if eps == [0.1] else ["linf"]
    with pytest.raises(InputError, match="--eps"):
        narrowed(MATRIX, norms=norms, eps=eps)


@pytest.mark.parametrize("text", ["0", "-1", "8/0", "inf", "nan", "much"])
def test_no_sizes(text):
    with pytest.raises(InputError, match="--eps"):
        run_parser().parse_args(["--eps", text])
