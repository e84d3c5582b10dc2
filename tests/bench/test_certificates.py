"""Certificates against attacks: whichever is wrong, the harness does not stay silent; and what is measured of them."""

from __future__ import annotations

import certifying
import pytest
import torch
from handmade import cell, run
from one_job import ran

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.target import Target
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.measurements.certified import Certified, certified_name
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.certified import certified_plots, certified_tables
from manifold_bench.bench.running.judge import CertificateContradictedError, Inputs, Judge, Judgement, verdict
from manifold_bench.defenses.base import DefenseSpec
from manifold_bench.defenses.checks import ContractError, check_defense
from manifold_bench.defenses.training import initialise
from manifold_bench.defenses.undefended import Undefended

SPEC = DefenseSpec(shape=(1, 8, 8), num_classes=10)
ATTACK = {"name": "pgd", "eps": [0.05, 0.15], "steps": 5}
N = 40


def judged(name: str, attack: PGD, eps: float) -> Judgement:
    """What the judge says of an attack on the first digits, labelled as the defense answers them."""
    defense = getattr(certifying, name)(SPEC)
    x = Digits().test.images[:N]
    y = defense(x).argmax(1)
    inputs = Inputs(x, y, torch.full_like(y, -1), torch.arange(N))
    found = attack.run(Target(defense, N), x, y, eps, seed=0)
    return Judge(defense, attack.norm, draws=1, seed=0).judge(inputs, verdict(defense, x, y, 1, 0), found, eps)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("name", ["Honest", "InL2", "Silent", "Guesser"])
def test_true_certificates_and_those_that_may_be_wrong_let_every_success_count(name, eps, norm):
    size = eps if norm == "linf" else 8 * eps
    success = judged(name, PGD(norm=norm, steps=10), size).success
    assert torch.equal(success, judged("Silent", PGD(norm=norm, steps=10), size).success)
    assert success.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_refutes_a_proof_is_an_error(norm):
    with pytest.raises(CertificateContradictedError, match="Liar proves"):
        judged("Liar", PGD(norm=norm, steps=10), 0.1 if norm == "linf" else 0.8)


def test_the_cell_of_a_refuted_proof_fails_and_says_why(tmp_path):
    for name, status in (("Honest", "ok"), ("Liar", "failed")):
        _, attacked = ran(tmp_path, ATTACK, dataset="digits", defense=f"certifying:{name}", n=N)
        assert set(attacked["status"]) == {status}
        assert ("proves" in attacked["reason"].iloc[0]) == (status == "failed")


def test_attacks_on_a_network_never_refute_its_interval_bounds(tmp_path):
    ladder = ATTACK | {"eps": [0.001, 0.01, 0.1]}
    _, attacked = ran(tmp_path, ladder, dataset="digits", defense="undefended", n=N)
    assert set(attacked["status"]) == {"ok"} and attacked["success"].any()


def test_a_certificate_needs_its_method():
    class Half(Undefended):
        certificate = certifying.Honest.certificate
        certified = certifying.Defense.certified

    with pytest.raises(ContractError, match="certified"):
        check_defense(Half(Undefended.Spec(shape=(1, 8, 8), num_classes=10)))


def test_certified_accuracy_is_the_share_of_right_answers_that_are_safe():
    data, defense = Digits(), certifying.Honest(SPEC)
    rows = torch.from_numpy(data.chosen(400))
    mean, labels = data.test.images[rows].double().flatten(1).mean(1), data.test.labels[rows]
    values = Certified(eps=(0.005, 0.02), n=400).measure(defense, {}, data, seed=0)
    right = (mean > 0.3).long() == labels
    for eps in (0.005, 0.02):
        share = float((right & ((mean - 0.3).abs() > eps)).double().mean())
        assert values[f"certified {eps:g}, L∞"] == share
    assert values["certified accuracy"] == values["certified 0.02, L∞"] and values["images"] == 400
    assert 0 < values["certified 0.02, L∞"] < values["certified 0.005, L∞"]


def test_more_images_than_there_are_is_all_of_them():
    data = Digits()
    values = Certified(eps=(0.01,), n=10**6).measure(certifying.Honest(SPEC), {}, data, seed=0)
    assert values["images"] == len(data.test)


@pytest.mark.parametrize(
    ("name", "norm", "suits"),
    [("Honest", "linf", True), ("Honest", "l2", False), ("InL2", "l2", True), ("Silent", "linf", False)],
)
def test_only_certificates_of_that_norm_are_measured(name, norm, suits):
    reason = Certified(norm=norm).unsuited(getattr(certifying, name)(SPEC))
    assert (reason is None) == suits


def test_what_attacks_leave_is_never_less_than_what_is_certified(digits):
    defense = Undefended(Undefended.Spec(shape=(1, 8, 8), num_classes=10, width=4, hidden=16))
    initialise(defense.network, 0)
    defense.eval()
    x = digits.test.images[:200]
    y = defense(x).argmax(1)
    for eps in (0.001, 0.003, 0.01, 0.03):
        sure = defense.certified(x, y, torch.full((len(x), 1), eps))[:, 0]
        found = PGD(steps=20, loss="margin").run(Target(defense, len(x)), x, y, eps, seed=0)
        assert (defense(found).argmax(1)[sure] == y[sure]).all()


def measured(defense: str, norm: str, shares: dict[float, float], status: str = "ok") -> dict:
    values = {certified_name(norm, eps): share for eps, share in shares.items()} | {"images": 20.0}
    return {
        "dataset": "digits",
        "defense": defense,
        "measurement": f"certified-{norm}",
        "title": "T",
        "status": status,
        "headline": "certified accuracy",
        "reason": "",
        "values": values if status == "ok" else {},
    }


BEATEN = [0] * 6 + [1] * 4
FIGURES = summary(
    run(
        cell(CLEAN, labels=[0] * 10, defense="a"),
        cell("pgd", (0.1, 0.2), [0] * 10, adv=BEATEN, defense="a"),
        cell("pgd", (0.5,), [0] * 10, adv=BEATEN, defense="a", norm="l2"),
    )
)
STORED = [
    measured("a", "linf", {0.05: 0.5, 0.1: 0.25}),
    measured("b", "linf", {0.1: 0.75}),
    measured("c", "linf", {}, status="failed"),
]


def test_a_table_has_certified_and_robust_accuracy_next_to_each_other():
    (table,) = certified_tables(FIGURES, STORED)
    assert table.name == ("digits", "linf", "certified")
    assert table.header[1:] == ["certified, ε = 0.05", "robust, ε = 0.05", "certified, ε = 0.1", "robust, ε = 0.1"]
    cells = {row[0]: row[1:] for row in table.rows}
    assert set(cells) == {"a", "b"}
    assert [cell.split()[0] for cell in cells["a"]] == ["50.0", "–", "25.0", "60.0"]
    assert [cell.split()[0] for cell in cells["b"]] == ["–", "–", "75.0", "–"]


def test_a_plot_has_a_curve_of_each_figure():
    (plot,) = certified_plots(FIGURES, STORED)
    (axes,) = plot.figure.axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves == {
        "a, certified": [[0.05, 50], [0.1, 25]],
        "a, under attack": [[0, 100], [0.1, 60], [0.2, 60]],
        "b, certified": [[0.1, 75]],
    }


def test_without_certificates_there_is_nothing_to_show():
    assert certified_tables(FIGURES, []) == [] == list(certified_plots(FIGURES, STORED[2:]))
