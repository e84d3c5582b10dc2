"""Perturbation sizes may be written as fractions: what counts is the number, and it is shown as papers write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.text import eps_of, eps_text


def planned(eps, norm="linf", defense="undefended", **parameters):
    attack = {"name": "pgd", "norm": norm, "eps": eps, **parameters}
    return parse_matrix({"datasets": ["digits"], "defenses": [defense], "attacks": [attack]}, "m.toml")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", (8 / 255,)),
        (["8/255"], (0.03137254901960784,)),
        (["8/255", "0.5/255", 0.1], (0.5 / 255, 8 / 255, 0.1)),
        (" 1 / 16 ", (0.0625,)),
        ("0.03", (0.03,)),
        ("1e-05", (1e-5,)),
        (0.03, (0.03,)),
    ],
)
def test_a_fraction_is_the_number_that_it_stands_for(written, value):
    assert planned(written).attacks[0].eps == value


def test_the_same_size_is_the_same_attack_however_it_is_written():
    assert planned(["8/255"], step_size="2/255").attacks == planned([8 / 255], step_size=2 / 255).attacks
    trained = planned("8/255", defense={"name": "pgd-training", "eps": "8/255"}).defenses
    assert trained == planned("8/255", defense={"name": "pgd-training", "eps": 8 / 255}).defenses
    assert trained[0].label == "pgd-training(eps=8/255)"


@pytest.mark.parametrize(
    "text",
    ["", "/", "8/", "/255", "8/255/2", "-8/255", "8/0", "8/0.0", "inf", "nan", "1e", "e3", "1e999", "1e2/255", "٨/255"],
)
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ValueError, match="not a perturbation size"):
        eps_of(text)
    with pytest.raises(InputError, match=r"m\.toml: attacks\[0\]\.eps\[0\]: "):
        planned(text)


@given(st.integers(1, 2040).map(lambda eighths: eighths / 8))
def test_levels_are_shown_so_that_they_are_read_as_the_same_number(levels):
    size = levels / 255
    assert eps_of(eps_text(size)) == pytest.approx(size, rel=1e-15)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_what_is_shown_can_be_read_again(size):
    assert eps_of(eps_text(size)) == pytest.approx(size, rel=1e-5)


def test_short_decimal_numbers_stay_as_they_are():
    shown = {0.1: "0.1", 0.2: "0.2", 0.3: "0.3", 0.0313725: "0.0313725", 5.0: "5", 0.1 + 0.2: "0.3"}
    assert {size: eps_text(size) for size in shown} == shown
    assert [eps_text(size) for size in (8 / 255, 0.5 / 255, 128 / 255)] == ["8/255", "0.5/255", "128/255"]
