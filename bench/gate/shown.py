"""The robustness gate on the screen, as Markdown and as JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult
from rich.console import Console

from manifold_bench.bench.gate.gate import FAILING, Gate, origin
from manifold_bench.bench.gate.limits import Check
from manifold_bench.bench.metrics.paired import VANISHED, Comparison
from manifold_bench.bench.metrics.signs import SIGNS
from manifold_bench.bench.records.results import Cell, cell_text
from manifold_bench.bench.records.schema import WORST_CASE
from manifold_bench.bench.report.table import markdown_grid, markdown_text
from manifold_bench.bench.terminal import Line, print_grid, print_line, print_text
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text, percent, printable

STYLES = {"-": "bold red", "!": "bold red", "?": "bold red", "x": "yellow", "+": "green"}

CELL_HEADER = ("data set", "defense", "attack", "norm", "ε")

HEADER = ("", *CELL_HEADER, "n", "baseline", "new", "lost/gained", "p", "note")

LIMIT_HEADER = ("broken limit", *CELL_HEADER, "baseline", "new", "note")

LEGEND = (
    "Baseline, new: robust inputs in percent of the n that both runs share; lost/gained: number of inputs robust only "
    "in the baseline / only in the new run; p: exact McNemar test, Holm-corrected over the cells; for all cells "
    "together: a sign-flip test over inputs."
)


def _cell(cell: Cell) -> list[str]:
    dataset, defense, attack, norm, eps = cell
    return [dataset, defense, attack, norm_text(norm), eps_text(eps)]


def _row(one: Comparison) -> list[str]:
    """Return a row of the table of cells; its columns are HEADER."""
    figures = ["–"] * 5
    if one.n is not None and one.baseline is not None and one.new is not None:
        figures = [str(one.n), percent(one.baseline), percent(one.new), f"{one.lost}/{one.gained}", f"{one.p:.2g}"]
    return [one.sign, *_cell(one.cell), *figures, one.note]


def _limit_row(one: Check) -> list[str]:
    """Return a row of the table of broken limits; its columns are LIMIT_HEADER."""
    return [str(one.limit), *_cell(one.cell), *one.texts, one.note]


def print_gate(gate: Gate, console: Console, advice: str = "") -> None:
    """Print the table of cells, broken limits, the cells that only the new run has, warnings, and the closing line.

    advice: what to do about the result; it comes before the closing line.
    """
    cells: list[Line] = []
    for (alike, pair), same in groupby(gate.found, key=lambda one: (one.sign == "=", one.cell[:2])):
        found, name = list(same), " / ".join(pair)
        if alike:  # in most runs nearly all cells, which would hide the others
            cells.append(Line(f"= {name}", note=_alike(found)))
            continue
        cells += [Line()] * bool(cells) + [Line(name)]
        if pair in gate.vanished:
            cells.append(Line(f"? all {len(found)} cells", [NOT_RUN] * 5, VANISHED, STYLES["?"]))
            continue
        for one in found:
            figures = _row(one)[6:-1]
            cells.append(Line(f"{one.sign} {_strength(one.cell)}", figures, one.note, STYLES.get(one.sign, "")))
    if cells:
        print_grid(console, "", ["cell", *HEADER[6:-1]], cells)
        print_text(console, LEGEND)
    style = STYLES["-"]
    broken = [Line(f"{one.limit}: {cell_text(one.cell)}", one.texts, one.note, style) for one in gate.broken]
    if broken:
        print_grid(console, "", ["broken limit", "baseline", "new"], broken)
    for cell in gate.added:
        print_text(console, f"new, not in the baseline: {cell_text(cell)}")
    for warning in gate.warnings:
        print_text(console, f"warning: {warning}", STYLES["x"])
    if gate.joint_line:
        print_text(console, gate.joint_line, STYLES["-"] if gate.joint and gate.joint.worse else "")
    if advice:
        print_line(console, advice)
    print_text(console, f"{gate.result}: {gate.closing_line}")


def _alike(found: list[Comparison]) -> str:
    """Return a phrase on cells without any difference: `3 cells without any difference`."""
    compared = sum(one.p is not None for one in found)
    without = Counter(one.note.split()[0] for one in found if one.p is None)
    parts = [f"{compared} cell{'s' * (compared != 1)} without any difference"] if compared else []
    parts += [f"{count} cell{'s' * (count != 1)} {status} in both runs" for status, count in without.items()]
    return ", ".join(parts)


def _strength(cell: Cell) -> str:
    """Return a cell's attack, norm and ε: `pgd L∞ ε = 0.1`."""
    return cell_text(cell).split(" / ", 2)[2]


def markdown_gate(gate: Gate) -> str:
    """Return a Markdown page for a pull request: failures first, then other changes; the rest is counted and folded."""
    mark = "✅" if gate.passes else "❌"
    text = [f"## {mark} Robustness gate: {gate.result}", "", f"{gate.closing_line}.", ""]
    text += [f"{gate.joint_line[0].upper()}{gate.joint_line[1:]}.", ""] if gate.joint_line else []
    for warning in gate.warnings:
        text += ["> [!WARNING]", f"> {markdown_text(warning)}", ""]
    if gate.broken:
        text += [*markdown_grid(LIMIT_HEADER, map(_limit_row, gate.broken)), ""]
    if changed := [one for sign in ("?", "!", "-", "+") for one in gate.found if one.sign == sign]:
        text += [*markdown_grid(HEADER, map(_row, changed)), ""]
    if incomparable := [one for one in gate.found if one.sign == "x"]:
        why = Counter((*one.cell[:2], one.note) for one in incomparable)
        rows = [[dataset, defense, str(cells), note] for (dataset, defense, note), cells in sorted(why.items())]
        text += [*markdown_grid(("data set", "defense", "cells not comparable", "why"), rows), ""]
    text += _folded("no significant difference", list(_insignificant_lines(gate.found)))
    text += _folded("only in the new run", [f"- {markdown_text(cell_text(cell))}" for cell in gate.added])
    text += [f"{LEGEND} Baseline: {origin(gate.baseline.run)}; new: {origin(gate.new.run)}."]
    return "\n".join(text) + "\n"


def _insignificant_lines(found: list[Comparison]) -> Iterator[str]:
    """Yield lines on the cells without a significant difference; cells without any difference are only counted."""
    if unsure := [one for one in found if one.sign == "~"]:
        yield from (*markdown_grid(HEADER, map(_row, unsure)), "")
    same = Counter(one.cell[:2] for one in found if one.sign == "=")
    if same:
        rows = [[*pair, str(cells)] for pair, cells in sorted(same.items())]
        yield from markdown_grid(("data set", "defense", "cells without any difference"), rows)


def _folded(summary: str, lines: list[str]) -> list[str]:
    """Return lines in a section that GitHub shows folded; an empty list for no lines."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>", ""] if lines else []


def junit_gate(gate: Gate) -> JUnitXml:
    """Return JUnit XML: a test case for each cell, and cases for the joint test and for limits that were not checked.

    A case fails where the cell is worse, failed, vanished or breaks a limit. It is skipped, with the reason, where the
    cell is not comparable, has no figures in either run, or is not in the baseline.
    """

    def case(cell: Cell, result: Sequence[FinalResult]) -> TestCase:
        return _case(f"{cell[0]}.{cell[1]}", _strength(cell), result, gate.seconds.get(cell, 0.0))

    cases = []
    limits: dict[Cell, list[str]] = {}
    for one in gate.broken:
        limits.setdefault(one.cell, []).append(f"{one.limit} broken: {' → '.join(one.texts)}")
    for found in gate.found:
        faults = [_outcome(found)] if found.sign in FAILING else []
        faults += limits.get(found.cell, [])
        result: Sequence[FinalResult] = [Failure(_xml("; ".join(faults)), SIGNS[found.sign])] if faults else []
        if found.sign == "x" or (found.sign == "=" and found.n is None):
            result = [Skipped(_xml(_outcome(found)))]
        cases.append(case(found.cell, result))
    for cell in dict.fromkeys(one.cell for one in gate.checks if one.cell[2] == WORST_CASE):
        broken = limits.get(cell, [])
        cases.append(case(cell, [Failure(_xml("; ".join(broken)), "broken limit")] if broken else []))
    for cell in gate.added:
        cases.append(case(cell, [Skipped("not in the baseline")]))
    nothing = [] if gate.compared else [Failure("no cell could be compared", "gate")]
    cases.append(_case("gate", "something was compared", nothing))
    worse = [Failure(gate.joint_line, "gate")] if gate.joint and gate.joint.worse else []
    cases.append(_case("gate", "all cells together are not worse", worse))
    for limit in gate.limits:
        missed = [Failure(f"{limit} could be checked on no cell", "gate")] if limit in gate.unchecked else []
        cases.append(_case("gate", f"{limit} was checked", missed))
    suite = TestSuite("robustness gate")
    suite.add_testcases(cases)
    xml = JUnitXml("manifold-bench compare")
    xml.add_testsuite(suite)
    xml.update_statistics()
    return xml


def _outcome(one: Comparison) -> str:
    """Return the outcome of a cell: `worse: 90.0 → 40.0, n = 20, lost/gained 10/0, p = 0.002`, or why there is none."""
    if one.n is None or one.baseline is None or one.new is None:
        return f"{SIGNS[one.sign]}: {one.note}"
    shares = f"{percent(one.baseline)} → {percent(one.new)}"
    return f"{SIGNS[one.sign]}: {shares}, n = {one.n}, lost/gained {one.lost}/{one.gained}, p = {one.p:.2g}"


def _case(classname: str, name: str, result: Sequence[FinalResult], seconds: float = 0.0) -> TestCase:
    case = TestCase(_xml(name), _xml(classname), round(seconds, 3))
    case.result = list(result)
    return case


def _xml(text: str) -> str:
    """Return a text with escapes in place of the control characters that XML cannot hold, such as those of colours."""
    return printable(text)
