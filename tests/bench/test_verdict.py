"""The verdict on a defense: its figures are those of the records, and it names a command that can be run."""

from __future__ import annotations

import shlex

import pytest
from handmade import RUN, a_run, cell, run

from manifold_bench.bench.diagnosis.diagnose import diagnose
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.records.schema import CLEAN
from manifold_bench.bench.report.tables import doubts_of
from manifold_bench.bench.report.verdict import Verdict, verdicts
from manifold_bench.bench.run import parser

LABELS = [0] * 10
RECORDS = run(
    cell(CLEAN, labels=LABELS, defense="pgd-training"),
    cell("fgsm", (0.1, 0.2), LABELS, adv=[1] * 2 + [0] * 8, defense="pgd-training"),
    cell("pgd", (0.1, 0.2), LABELS, adv={0.1: [0] * 10, 0.2: [1] * 3 + [0] * 7}, defense="pgd-training"),
    cell("cw", (0.5,), LABELS, norm="l2", status="failed", reason="out of memory", defense="pgd-training"),
    cell(CLEAN, labels=LABELS, defense="undefended"),
    cell("pgd", (0.1,), LABELS, adv=[1] * 10, defense="undefended"),
)


def made(records, **run_file) -> list[Verdict]:
    results = a_run(records, **run_file)
    found = summary(results.records)
    return verdicts(results, found, diagnose(results), doubts_of(results, found))


def named(matrix: str, defense: str = "pgd-training") -> list[Verdict]:
    source = {"matrix": RUN["matrix"] | {"source": f"bench/matrices/{matrix}.toml"}}
    return made(RECORDS, named={"defenses": [defense]}, **source)


def test_only_the_named_defense_has_a_verdict_and_one_alone_needs_no_name():
    (verdict,) = named("quick")
    assert (verdict.dataset, verdict.defense) == ("digits", "pgd-training")
    assert made(RECORDS) == []
    alone = RECORDS[RECORDS["defense"] == "undefended"].reset_index(drop=True)
    assert [one.defense for one in made(alone)] == ["undefended"]


def test_it_says_what_is_left_at_each_size_with_interval_number_and_strongest_attack():
    (verdict,) = named("quick")
    failed, weak, strong = verdict.left
    assert "L2" in failed and "failed" in failed
    for part in ("ε = 0.1", "80.0 %", "49.0 to 94.3", "n = 10", "fgsm"):
        assert part in weak
    for part in ("ε = 0.2", "70.0 %", "pgd"):
        assert part in strong
    assert "100.0 %" in verdict.clean


@pytest.mark.parametrize("matrix", ["smoke", "quick", "strong"])
def test_the_command_that_tells_more_can_be_run_and_attacks_the_same_defense(matrix):
    (verdict,) = named(matrix)
    words = shlex.split(verdict.command)
    assert words[:2] == ["manifold-bench", "run"]
    given = parser().parse_args(words[2:])
    assert given.norm == ["l2"] and given.eps == [0.5]
    assert given.matrix == "strong" and given.defense == ["pgd-training"] and given.dataset == ["digits"]
    assert (given.diagnose is True) == (matrix == "strong")  # without a diagnosis, that comes next


def test_a_model_of_a_program_has_advice_for_a_program():
    records = RECORDS.assign(defense=RECORDS["defense"].replace("pgd-training", "model"))
    (verdict,) = made(records, named={"defenses": ["model"]})
    assert verdict.command.startswith("mb.run(") and '"digits"' in verdict.command


@pytest.mark.parametrize(("by_queries", "misled"), [(20, True), (2, False), (0, False)])
def test_gradients_mislead_where_queries_beat_significantly_more(by_queries, misled):
    labels = [0] * 20
    beaten = {"square": by_queries, "pgd": 1}
    cells = [cell(name, (0.1,), labels, adv=[1] * n + [0] * (20 - n)) for name, n in beaten.items()]
    results = a_run(run(cell(CLEAN, labels=labels), *cells))
    for key, identity in results.identities.items():
        knowledge = {"square": "score", "pgd": "white-box"}.get(identity["attack"]["label"])
        results.index[key] = results.index[key]._replace(knowledge=knowledge)
    found = summary(results.records)
    (verdict,) = verdicts(results, found, diagnose(results), doubts_of(results, found))
    assert any("mislead" in sentence for sentence in verdict.trust) == misled


def test_marks_of_the_worst_case_are_named():
    blind = cell("pgd", (0.1,), LABELS, adv=LABELS)
    blind["blind"] = 1.0
    (verdict,) = made(run(cell(CLEAN, labels=LABELS), blind))
    assert any(sentence.startswith("‖") for sentence in verdict.trust)
    (clear,) = made(run(cell(CLEAN, labels=LABELS), cell("pgd", (0.1,), LABELS, adv=[1] * 10)))
    assert len(clear.trust) == 1 and "diagnos" in clear.trust[0]
