"""Worst cases without an attack that is made for the family of the defense, marked from run.json."""

from __future__ import annotations

import io
import json

import pytest
from handmade import RUN, a_run, cell, run, write_run
from rich.console import Console

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.metrics.summary import summary
from manifold_bench.bench.metrics.unadapted import NOT_ADAPTED
from manifold_bench.bench.records.provenance import stored_provenance
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report.contents import Report
from manifold_bench.bench.report.screen import print_report
from manifold_bench.bench.report.tables import doubts_of

LABELS = [0] * 10
BEATEN = {0.1: [0] * 8 + [1] * 2, 0.2: [1] * 10}
RECORDS = run(
    *(cell(CLEAN, labels=LABELS, defense=name) for name in ("inc", "plain")),
    *(cell("pgd", (0.1, 0.2), LABELS, adv=BEATEN, defense=name) for name in ("inc", "plain")),
    cell("pgd", (0.1, 0.5), LABELS, defense="inc", norm="l2"),
    cell("gaussian", labels=[-1] * 4, clean=[0] * 4, defense="inc", norm="fooling"),
)
WHOLE = {"dataset": "digits", "family": "projection", "defenses": ["inc"]}
PARTLY = WHOLE | {"sizes": {"inc": {"linf": [0.1], "l2": [0.5]}}}


def doubted(entry, records=RECORDS):
    """Norms and sizes of the worst cases whose robust accuracy is in doubt for want of an adapted attack."""
    found = doubts_of(a_run(records, undecided=[entry]), summary(records))
    assert {(dataset, defense) for dataset, defense, *_ in found} <= {("digits", "inc")}
    return {
        (norm, eps)
        for (_, _, norm, eps, figure), doubt in found.items()
        if figure == "robust_accuracy" and doubt.reason == NOT_ADAPTED
    }


def test_the_sizes_that_run_json_lists_are_in_doubt():
    assert doubted(PARTLY) == {("linf", 0.1), ("l2", 0.5)}


def test_without_sizes_all_are_but_noise_and_those_at_which_nothing_is_left():
    assert doubted(WHOLE) == {("linf", 0.1), ("l2", 0.1), ("l2", 0.5)}


def test_an_entry_on_another_data_set_or_defense_changes_nothing():
    for other in ({"dataset": "mnist"}, {"defenses": ["another"]}):
        assert not doubted(WHOLE | other)


def test_tables_and_the_screen_mark_the_worst_case_and_no_single_attack():
    report = Report(a_run(RECORDS, undecided=[PARTLY]))
    table = next(one for one in report.tables if one.name[1:] == ("linf", "attacks"))
    cells = {(defense, attack): figures for defense, attack, *figures in table.rows}
    assert any("§" in text for text in cells["inc", WORST_CASE])
    assert not any("§" in text for key, texts in cells.items() if key != ("inc", WORST_CASE) for text in texts)
    (note,) = (one for one in table.notes if one.startswith("§"))
    assert NOT_ADAPTED in note and note.endswith("inc, L∞ ε = 0.1 (projection)")
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(report, console)
    assert "80.0 §(" in console.export_text()


@pytest.mark.parametrize("entry", [WHOLE, PARTLY, WHOLE | {"sizes": {"inc": {"unrestricted": [float("inf")]}}}])
def test_run_json_is_read_with_and_without_sizes(tmp_path, entry):
    (write_run(tmp_path, RECORDS) / "run.json").write_text(json.dumps(RUN | {"undecided": [entry]}), encoding="utf-8")
    assert stored_provenance(tmp_path)["undecided"] == [entry]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"sizes": {"inc": {"linf": ["0.1"]}}}, "sizes.inc.linf.0"), ({"defenses": "inc"}, "defenses")],
)
def test_a_damaged_entry_is_refused_with_its_key(tmp_path, wrong, key):
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"undecided": [WHOLE | wrong]}), encoding="utf-8")
    with pytest.raises(InputError, match=f"undecided.0.{key}"):
        stored_provenance(tmp_path)
