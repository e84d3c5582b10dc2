"""How reports show the diagnosis: every check that ran, and what did not run once."""

from __future__ import annotations

import pytest

from manifold_bench.bench.diagnosis.checks import CHECKS
from manifold_bench.bench.report.diagnosis import FINDINGS, diagnosis_lines, diagnosis_tables, not_run_lines


@pytest.mark.parametrize(
    ("results", "word"),
    [
        (["not run"] * 3, "not run"),
        (["pass", "not run", "not run"], "incomplete"),
        (["pass", "pass", "warn"], "warn"),
        (["fail", "pass", "not run"], "FAIL"),
    ],
)
def test_a_diagnosis_of_which_too_few_checks_ran_is_called_incomplete(results, word):
    checks = [{"check": str(i), "title": f"check {i}", "result": one, "evidence": ""} for i, one in enumerate(results)]
    overall = next((one for one in ("fail", "warn") if one in results), "not run")
    diagnosis = {"defenses": [{"dataset": "d", "defense": "a", "result": overall, "checks": checks}]}
    shown = "–" if word == "not run" else word
    assert next(diagnosis_lines(diagnosis)).startswith(f"diagnosis d / a: {shown} (")
    tables = diagnosis_tables(diagnosis)
    ran = [f"check {i}" for i, one in enumerate(results) if one != "not run"]
    assert bool(tables) == bool(ran)  # a table of checks that did not run says nothing
    for table in tables[:1]:
        assert [row[0] for row in table.rows] == ["overall", *ran] and table.rows[0][1] == shown
        assert all((f"check {i}" in table.legend) == (one == "not run") for i, one in enumerate(results))


def test_what_did_not_run_is_said_once_for_all_defenses_that_it_holds_for():
    def entry(defense, *reasons):
        checks = [
            {"check": str(i), "title": f"check {i}", "result": "not run" if reason else "pass", "evidence": reason}
            for i, reason in enumerate(reasons)
        ]
        return {"dataset": "d", "defense": defense, "result": "not run", "checks": checks}

    assert not_run_lines([entry("a", "slow", "slow", ""), entry("b", "slow", "slow", "other")]) == [
        "Not run (slow): check 0; check 1.",
        "Not run on b (other): check 2.",
    ]


def test_every_check_can_say_what_it_found_where_it_fails():
    assert set(FINDINGS) == set(CHECKS)
