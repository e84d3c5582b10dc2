"""Every family of defenses meets an attack that is made for it, or the plan says that it doesn't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manifold_bench.bench.planning.adaptive import UNMARKED, Undecided, undecided
from manifold_bench.bench.planning.folders import MATRICES
from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.narrow import narrowed
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix, read_matrix
from manifold_bench.bench.run import main

DEFENSES = ["undefended", "pgd-training", "inc", "gmvae", "auxiliary-detector"]
PGD = {"name": "pgd", "norm": "linf", "eps": [0.1]}
TRACKING = {"name": "tracking", "norm": "linf", "eps": [0.1]}
SELECTIVE = {"name": "selective-pgd", "norm": "linf", "eps": [0.1]}


def jobs(*attacks: dict[str, Any], defenses: list[str] = DEFENSES) -> list[Job]:
    raw = {"datasets": [{"name": "digits", "n": 8}], "defenses": defenses, "attacks": list(attacks)}
    return make_plan(parse_matrix(raw, "test"), Options()).jobs


def families(found: list[Undecided]) -> set[str]:
    return {one.family for one in found}


def test_a_family_without_an_adapted_attack_is_named():
    assert families(undecided(jobs(PGD))) == {"projection", "generative rejection", "detection"}
    assert families(undecided(jobs(PGD, TRACKING))) == {"generative rejection", "detection"}
    assert undecided(jobs(PGD, TRACKING, SELECTIVE)) == []
    assert undecided(jobs(SELECTIVE, defenses=["undefended", "pgd-training"])) == [
        Undecided("digits", "adversarial training", ("pgd-training",))
    ]
    assert undecided(jobs(PGD | {"gradient": "gauss-newton"}, defenses=["inc"])) == []


def test_an_attack_confined_to_others_decides_nothing_for_a_family():
    confined = SELECTIVE | {"defenses": ["gmvae"]}
    assert families(undecided(jobs(PGD, TRACKING, confined))) == {"detection"}


def test_each_defense_of_a_family_has_to_meet_one():
    confined = SELECTIVE | {"defenses": ["gmvae"]}
    found = undecided(jobs(PGD, confined, defenses=["gmvae", {"name": "gmvae", "label": "other", "alpha": 0.1}]))
    assert found == [Undecided("digits", "generative rejection", ("other",))]


def test_what_the_command_line_leaves_out_counts():
    whole = parse_matrix(
        {"datasets": [{"name": "digits", "n": 8}], "defenses": ["inc"], "attacks": [PGD, TRACKING]}, "test"
    )
    cut = make_plan(narrowed(whole, [], [], ["pgd"], []), Options(), whole)
    assert undecided((*cut.jobs, *cut.other_jobs)) == []
    assert families(undecided(cut.jobs)) == {"projection"}


def test_the_dry_run_and_run_json_say_it(tmp_path: Path, capsys):
    matrix = tmp_path / "few.toml"
    matrix.write_text(
        'datasets = [{ name = "digits", n = 4 }]\ndefenses = ["gmvae"]\n'
        '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.1]\n',
        encoding="utf-8",
    )
    arguments = ["--matrix", str(matrix), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) == 0
    assert str(Undecided("digits", "generative rejection", ("gmvae",))) in " ".join(capsys.readouterr().out.split())
    assert main([*arguments, "--quiet", "--workers", "1"]) == 0
    stored = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["undecided"]
    assert stored == [{"dataset": "digits", "family": "generative rejection", "defenses": ["gmvae"], "sizes": {}}]


def test_an_attack_in_another_norm_or_at_other_sizes_decides_nothing():
    pgd = PGD | {"eps": [0.1, 0.2]}
    (inc, _) = undecided(jobs(pgd, TRACKING | {"norm": "l2", "eps": [0.5]}, defenses=["inc", "gmvae"]))
    assert inc == Undecided("digits", "projection", ("inc",), {"inc": {"linf": (0.1, 0.2)}})
    (inc,) = undecided(jobs(pgd, TRACKING, defenses=["inc"]))
    assert inc.sizes == {"inc": {"linf": (0.2,)}} and "inc (L∞ ε = 0.2)" in str(inc)
    (gmvae,) = undecided(jobs(pgd, defenses=["gmvae"]))
    assert gmvae.sizes == {}, "no size is decided, so that none is named"


def test_in_l0_plain_classifiers_are_decided_by_the_attack_that_differentiates_their_logits():
    others = [{"name": name, "norm": "l0", "eps": [2.0]} for name in ("noise", "sparse-rs", "jsma", "vfga")]
    plain = ["pgd-training", "distillation", "art:FeatureSqueezing"]
    assert families(undecided(jobs(*others, defenses=plain))) == {
        "adversarial training",
        "gradient masking",
        "input transformation",
    }
    sigma = {"name": "sigma-zero", "norm": "l0", "eps": [2.0]}
    left = undecided(jobs(*others, sigma, defenses=[*plain, "inc", "gmvae", "auxiliary-detector", "smoothing"]))
    assert families(left) == {"projection", "generative rejection", "detection", "certified"}


def test_noise_decides_nothing_and_has_no_figure_to_decide():
    noise = {"name": "noise", "norm": "fooling", "draws": 1}
    assert undecided(jobs(noise, PGD, defenses=["inc"])) == [Undecided("digits", "projection", ("inc",))]
    assert undecided(jobs(noise, TRACKING, defenses=["inc"])) == []


@pytest.mark.parametrize("name", sorted(path.stem for path in MATRICES.glob("*.toml")))
def test_every_matrix_that_ships_decides_each_family(name):
    """By what the attacks declare; some of the data sets are not in the package."""
    matrix = read_matrix(name)
    for entry in matrix.datasets:
        there = {c.cls.family for c in matrix.defenses if c.defends(entry.name)} - set(UNMARKED)
        met = {
            defense.cls.family
            for choice in matrix.attacks
            for defense in matrix.defenses
            if choice.applies_to(entry.name, defense.label) and defense.cls.family in choice.attack.adapted_to
        }
        left = there - met
        assert not left, f"{name}: nothing decides {', '.join(left)}"
