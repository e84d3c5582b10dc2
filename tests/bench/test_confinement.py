"""Entries of a matrix that concern some of its data sets and defenses, or the first of their images."""

from __future__ import annotations

import pytest

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix

MATRIX = {
    "datasets": [{"name": "digits", "n": 20}, {"name": "mnist5k", "n": 10}],
    "defenses": ["undefended", "inc", {"name": "pgd-training", "label": "pgd-training", "datasets": ["digits"]}],
    "attacks": [
        {"name": "fgsm", "eps": [0.1]},
        {"name": "pgd", "eps": [0.1], "n": 15},
        {"name": "noise", "eps": [0.1], "datasets": ["mnist5k"]},
        {"name": "mim", "eps": [0.1], "defenses": ["inc"], "n": 5},
        {"name": "noise", "norm": "fooling", "defenses": ["inc"], "n": 3},
    ],
}


def jobs(n: int | None = None) -> dict[tuple[str, str, str, str], int]:
    """(data set, defense, attack, norm) → number of inputs."""
    made = make_plan(parse_matrix(MATRIX, "m.toml"), Options(n=n)).jobs
    return {(job.dataset.name, job.defense.label, job.label, job.norm): job.n for job in made}


def test_what_is_confined_runs_there_and_nowhere_else():
    planned = jobs()
    assert {key[:2] for key in planned if key[2] == "pgd"} == {
        ("digits", "undefended"),
        ("digits", "inc"),
        ("digits", "pgd-training"),
        ("mnist5k", "undefended"),
        ("mnist5k", "inc"),
    }
    assert {key[:2] for key in planned if key[2:] == ("noise", "linf")} == {
        ("mnist5k", "undefended"),
        ("mnist5k", "inc"),
    }
    assert {key[:2] for key in planned if key[2] == "mim"} == {("digits", "inc"), ("mnist5k", "inc")}


def test_an_attack_takes_the_first_of_the_images():
    planned = jobs()
    sizes = {key[2:]: n for key, n in planned.items() if key[:2] == ("digits", "inc")}
    assert sizes == {
        ("clean", "none"): 20,
        ("fgsm", "linf"): 20,
        ("pgd", "linf"): 15,
        ("mim", "linf"): 5,
        ("noise", "fooling"): 3,
    }
    assert planned["mnist5k", "inc", "pgd", "linf"] == 10  # there are no more
    assert set(jobs(n=4).values()) == {3, 4}


def test_a_defense_that_is_added_meets_what_is_confined_to_others_too():
    whole = parse_matrix(MATRIX, "m.toml")
    added = make_plan(narrowed(whole, datasets=["digits"], defenses=["tiny:NearestMean"]), Options(), whole)
    assert {job.label for job in added.jobs if not job.skip} == {"clean", "fgsm", "pgd", "mim", "noise"}
    own = make_plan(narrowed(whole, datasets=["digits"], defenses=["undefended"]), Options(), whole)
    assert {job.label for job in own.jobs} == {"clean", "fgsm", "pgd"}


PGD = {"name": "pgd", "eps": [0.1]}


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("attacks", {**PGD, "defenses": ["in"]}, "attacks[1].defenses: 'in' is not in this matrix"),
        ("attacks", {**PGD, "datasets": ["mnist"]}, "did you mean 'mnist5k'? it has: digits,"),
        ("attacks", {**PGD, "datasets": []}, "attacks[1].datasets: [] is empty; give at least one"),
        ("attacks", {**PGD, "n": 0}, "attacks[1].n: 0 is not allowed; give a number ≥ 1"),
        ("defenses", {"name": "gmvae", "datasets": ["svhn"]}, "defenses[3].datasets: 'svhn' is not in this matrix"),
        ("defenses", {"name": "gmvae", "defenses": ["inc"]}, "defenses[3].defenses: 'gmvae' has no such parameter"),
    ],
)
def test_names_that_are_not_there_are_refused(kind, entry, expected):
    entries = [*MATRIX[kind], entry] if kind == "defenses" else [MATRIX[kind][0], entry]
    with pytest.raises(InputError) as caught:
        parse_matrix({**MATRIX, kind: entries}, "m.toml")
    assert str(caught.value).startswith("m.toml: ") and expected in str(caught.value)
