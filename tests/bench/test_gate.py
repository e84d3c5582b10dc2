"""What the gate says: on the screen, in a pull request, to a CI server; and that the three say the same."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from handmade import a_run, cell, identities, run, write_run

from manifold_bench.bench.compare import main
from manifold_bench.bench.gate.gate import Gate
from manifold_bench.bench.gate.limits import Limit
from manifold_bench.bench.gate.shown import junit_gate, markdown_gate
from manifold_bench.bench.records.results import Results

N = 20
CLEAN = cell("clean", labels=[0] * N)


def attacked(beaten: int, attack: str = "a", **more) -> pd.DataFrame:
    """An attack that beats the first `beaten` of N inputs."""
    return cell(attack, labels=[0] * N, adv=[1] * beaten + [0] * (N - beaten), **more)


def gate(before: pd.DataFrame, after: pd.DataFrame, *limits: str) -> Gate:
    return Gate(a_run(before), a_run(after), [Limit.parse(limit) for limit in limits])


def versions_apart(before: pd.DataFrame, after: pd.DataFrame, of: str) -> Gate:
    """The gate where the new run has another version of that defense."""
    ids = identities(after)
    for identity in ids.values():
        if identity["defense"]["label"] == of:
            identity["defense"]["version"] = "2"
    return Gate(a_run(before), a_run(after, ids), [])


EVERYTHING = gate(
    run(
        CLEAN,
        attacked(3, "same"),
        attacked(3, "unsure"),
        attacked(0, "worse"),
        attacked(10, "better"),
        attacked(0, "crashed"),
        attacked(0, "gone"),
        attacked(0, "bare", status="failed", reason="then"),
    ),
    run(
        CLEAN,
        attacked(3, "same"),
        attacked(4, "unsure"),
        attacked(12, "worse"),
        attacked(0, "better"),
        attacked(0, "crashed", status="failed", reason="\x1b[31mout of <memory> | 1 & 2\x1b[0m"),
        attacked(0, "bare"),
        attacked(9, "added"),
    ),
    "robust_accuracy:2pp",
    "error:50%",
)
"""A gate with every sign, two limits, and a cell that only the new run has."""


@pytest.mark.parametrize(
    ("beaten", "passes", "closing"),
    [
        (3, True, "2 = (no difference)"),
        (4, False, "1 ~ (difference not significant), 1 = (no difference); 2 broken limits"),
        (2, True, "1 ~ (difference not significant), 1 = (no difference)"),
    ],
)
def test_a_broken_limit_fails_what_is_not_significant(beaten, passes, closing):
    found = gate(run(CLEAN, attacked(3)), run(CLEAN, attacked(beaten)), "robust_accuracy:2pp")
    assert (found.passes, found.closing_line) == (passes, closing)


def test_a_gate_that_could_compare_nothing_fails():
    found = versions_apart(CLEAN, CLEAN, "d")
    assert not found.passes
    assert found.closing_line == "1 x (not comparable); no cell could be compared"


def test_a_defense_of_which_nothing_was_compared_is_named_in_a_warning():
    both = run(CLEAN, cell("clean", labels=[0] * N, defense="e"))
    found = versions_apart(both, both, "e")
    assert found.passes
    (warning,) = found.warnings
    assert warning.startswith(
        "1 of 2 cells could not be compared, so the gate does not check them (among them every cell of digits / e)"
    )
    assert f"> {warning}" in markdown_gate(found)


def test_a_limit_that_could_be_checked_nowhere_fails():
    found = gate(CLEAN, CLEAN, "robust_accuracy:2pp", "median_distance:5%")
    assert not found.passes
    assert found.closing_line == "1 = (no difference); median_distance:5% could be checked on no cell"


def test_inputs_and_jobs_that_are_not_compared_are_named_in_a_warning(tmp_path):
    fewer = gate(run(CLEAN, attacked(0)), cell("a", labels=[0] * 2, adv=[1] * 2))
    assert ["a L∞ ε = 0.1 lacks 18" in one for one in fewer.warnings] == [True]
    assert not gate(CLEAN, CLEAN).warnings
    before = write_run(tmp_path, run(CLEAN, attacked(0)), {"d": "none"})
    gone = next((before / "records").glob("*--a--*.parquet"))
    gone.unlink()
    lacking = Gate(Results.load(before), a_run(run(CLEAN, attacked(N))), [])
    assert [gone.name in one for one in lacking.warnings] == [True]


def test_seeds_that_the_new_run_lacks_are_named_in_a_warning():
    both = run(CLEAN, attacked(3, seed=0), attacked(3, seed=1))
    assert not gate(both, both).warnings
    fewer = gate(both, run(CLEAN, attacked(3, seed=0)))  # seed 1 was left out, or its records are gone
    assert fewer.passes and ["a L∞ ε = 0.1 lacks 1." in one for one in fewer.warnings] == [True]


def test_cells_that_failed_in_both_runs_are_named_in_a_warning():
    broken = run(CLEAN, attacked(0, status="failed", reason="why"))
    assert gate(broken, broken).warnings == ["1 cells failed in both runs, so the gate does not check them."]


def test_seconds_of_another_machine_give_a_warning():
    here, there = ({"machine": {"processor": "x86_64", "cores": n}, "workers": n, "device": "cpu"} for n in (2, 4))
    limits = [Limit.parse("seconds:1.5x")]
    assert not Gate(a_run(CLEAN, **here), a_run(CLEAN, **here), limits).warnings
    (warning,) = Gate(a_run(CLEAN, **here), a_run(CLEAN, **there), limits).warnings
    assert "x86_64, 2 cores, 2 workers, cpu; x86_64, 4 cores, 4 workers, cpu" in warning
    assert not Gate(a_run(CLEAN, **here), a_run(CLEAN, **there), []).warnings


def test_markdown_tells_what_failed_first_and_folds_what_did_not_change():
    page = markdown_gate(EVERYTHING)
    assert page.startswith("## ❌ Robustness gate: FAIL\n")
    visible, folded = page.split("<details>", 1)
    rows = [line.split(" | ") for line in visible.splitlines() if line.startswith("| ")]
    attacks = [row[3] for row in rows if len(row) == 12 and row[0] in ("| ?", "| !", "| -", "| +")]
    assert attacks == ["gone", "crashed", "worse", "better"]
    assert ["| digits", "d", "1", "no figures in the baseline: failed: then |"] in rows
    assert [row[3] for row in rows if row[0] == "| robust_accuracy:2pp"] == ["unsure", "worse", "worst-case"]
    assert "| unsure |" in folded and "| same |" not in page
    assert "| digits | d | 2 |" in folded  # the clean cell and "same"
    assert "- digits / d / added L∞ ε = 0.1" in folded
    assert re.findall("</?details>", page) == ["<details>", "</details>"] * 2


def test_markdown_holds_whatever_a_reason_says():
    (line,) = (line for line in markdown_gate(EVERYTHING).splitlines() if "memory" in line)
    assert line.replace("\\|", "").count("|") == 13
    assert "&lt;memory>" in line


def test_markdown_of_a_green_gate_is_short():
    page = markdown_gate(gate(run(CLEAN, attacked(3)), run(CLEAN, attacked(3))))
    assert page.startswith("## ✅ Robustness gate: PASS\n\n2 = (no difference).\n\nAll 2 cells together: ")
    assert page.index("<details>") < 200


def test_junit_has_a_case_for_each_cell_and_its_outcome():
    suites = ElementTree.fromstring(junit_gate(EVERYTHING).tostring())
    (suite,) = suites
    cases = {(case.get("classname"), case.get("name")): case for case in suite}
    assert len(cases) == len(list(suite))  # no two of the same name, which servers would take for one

    def outcome(attack: str) -> list[str]:
        return [result.tag for result in cases["digits.d", f"{attack} L∞ ε = 0.1"]]

    tags = {"failure": ("worse", "crashed", "gone", "unsure", "worst-case"), "skipped": ("bare", "added")}
    expected = {attack: [tag] for tag, attacks in tags.items() for attack in attacks} | {"same": [], "better": []}
    assert {attack: outcome(attack) for attack in expected} == expected
    assert [name for (place, name) in cases if place == "gate"] == [
        "something was compared",
        "all cells together are not worse",
        "robust_accuracy:2pp was checked",
        "error:50% was checked",
    ]
    messages = {
        attack: cases["digits.d", f"{attack} L∞ ε = 0.1"][0].get("message") for attack in ("worse", "crashed", "bare")
    }
    assert messages["worse"].startswith("worse: 100.0 → 40.0, n = 20, lost/gained 12/0, p = ")
    assert "robust_accuracy:2pp broken: 100.0 → 40.0; error:50% broken: 0.0 → 60.0" in messages["worse"]
    assert messages["crashed"] == "failed in the new run: \\x1b[31mout of <memory> | 1 & 2\\x1b[0m"
    assert messages["bare"] == "not comparable: no figures in the baseline: failed: then"


def test_junit_has_what_ci_servers_read():
    """The rules of Jenkins' schema (xUnit plugin, junit-10.xsd) for what is used of it, and sums that add up."""
    suites = ElementTree.fromstring(junit_gate(EVERYTHING).tostring())
    (suite,) = suites
    assert (suites.tag, suite.tag) == ("testsuites", "testsuite")
    assert {"name", "tests", "failures", "errors"} <= set(suite.keys())
    for case in suite:
        assert case.tag == "testcase" and set(case.keys()) <= {"name", "classname", "time"} and case.get("name")
        assert all(
            result.tag in ("failure", "skipped") and set(result.keys()) <= {"type", "message"} for result in case
        )
    for timed in (suites, suite, *suite):
        assert re.fullmatch(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?", timed.get("time", ""))
    for counted in (suites, suite):
        assert int(counted.get("tests")) == len(list(suite))
        assert int(counted.get("failures")) == len(suite.findall("testcase/failure")) == 5
        assert int(counted.get("skipped")) == len(suite.findall("testcase/skipped")) == 2
        assert counted.get("errors") == "0"


@pytest.mark.parametrize(
    "found",
    [
        gate(CLEAN, CLEAN),
        gate(CLEAN, CLEAN, "median_distance:5%"),
        gate(attacked(0), attacked(1), "robust_accuracy:2pp"),
        versions_apart(CLEAN, CLEAN, "d"),
        gate(attacked(0), attacked(N)),
        gate(run(CLEAN, attacked(0)), CLEAN),
        EVERYTHING,
    ],
)
def test_junit_has_a_failure_exactly_where_the_gate_fails(found):
    assert (junit_gate(found).failures == 0) is found.passes
    assert ("PASS" in markdown_gate(found)) is found.passes


def test_the_command_writes_what_was_asked_for(tmp_path, capsys):
    before, after = (write_run(tmp_path / name, run(CLEAN, attacked(n))) for name, n in (("before", 3), ("after", 4)))
    page, xml = tmp_path / "new" / "gate.md", tmp_path / "new" / "gate.xml"
    limits = ["--fail-on", "robust_accuracy:2pp", "--fail-on", "robust_accuracy:2pp"]
    assert main([str(before), str(after), *limits, "--markdown", str(page), "--junit", str(xml)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "FAIL: 1 ~ (difference not significant), 1 = (no difference); 2 broken limits"
    broken = [line.split() for line in lines if line.startswith("robust_accuracy:2pp: digits / d / ")]
    assert [(*row[5:6], *row[-2:]) for row in broken] == [("a", "85.0", "80.0"), ("worst-case", "85.0", "80.0")]
    assert page.read_text(encoding="utf-8").startswith("## ❌")
    assert ElementTree.parse(xml).getroot().get("failures") == "2"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--fail-on", "speed:2x"], "--fail-on: unknown figure 'speed'"),
        (["--fail-on", "accuracy:2"], "--fail-on: 'accuracy:2': '2' is not a limit"),
        (["--markdown", "{there}/summary.csv"], "--markdown: {there}/summary.csv is a file of a run"),
        (["--junit", "{there}/report.md"], "--junit: {there}/report.md is a file of a run"),
        (["--markdown", "{there}/records"], "--markdown: {there}/records cannot be written to"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path, capsys, extra, expected):
    there = str(write_run(tmp_path, CLEAN))
    for name in ("summary.csv", "report.md"):
        (tmp_path / name).write_text("kept", encoding="utf-8")
    assert main([there, there, *(one.format(there=there) for one in extra)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {expected.format(there=there)}")
    assert (tmp_path / "summary.csv").read_text() == (tmp_path / "report.md").read_text() == "kept"
    assert message.count("\n") == 1
