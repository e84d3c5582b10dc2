"""Perturbation sizes may be written as fractions: what counts is the number, and it is shown as papers write it."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.sizes import check_size
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


@pytest.mark.parametrize(
    ("norm", "largest", "too_large"), [("linf", 1.0, [1.001, 8, 300]), ("l2", 28.0, [28.1, 128]), ("l0", 784, [785])]
)
def test_a_size_beyond_the_box_of_the_data_is_refused_where_the_scale_is_said(norm, largest, too_large):
    for eps in (largest, *too_large):
        plan = partial(check_size, "attacks[0].eps[0]", norm, eps, (1, 28, 28))
        if eps == largest:
            plan()
            continue
        with pytest.raises(InputError) as caught:
            plan()
        said = str(caught.value)
        assert said.startswith("attacks[0].eps[0]: ") and "\n" not in said
        assert ("[0,1]" in said) == (norm != "l0") and (f"{eps_text(eps)}/255" in said) == (norm != "l0" and eps <= 255)


def test_a_matrix_is_planned_with_sizes_that_its_data_set_has():
    plan = make_plan(planned([1.5, 8.0], "l2"), Options(n=2))
    assert [job.eps for job in plan.jobs] == [(0.0,), (1.5, 8.0)]
    with pytest.raises(InputError, match="'digits'"):
        make_plan(planned([1.5, 8.1], "l2"), Options(n=2))


@pytest.mark.parametrize("name", ["pgd-training", "fgsm-training", "trades", "interval-training"])
def test_a_training_on_the_scale_of_grey_levels_is_refused(name):
    with pytest.raises(InputError, match=r"defenses\[0\].*8/255"):
        planned(0.1, defense={"name": name, "eps": 8})


def test_adversarial_training_in_l2_may_be_larger_than_1():
    assert planned(0.1, defense={"name": "pgd-training", "norm": "l2", "eps": 1.5}).defenses
