"""The robustness gate: whether a new run passes against its baseline."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from manifold_bench.bench.errors import InputError
from manifold_bench.bench.gate.limits import Check, Limit, check
from manifold_bench.bench.metrics.paired import VANISHED, Comparison, Joint, compare, joint
from manifold_bench.bench.metrics.signs import SIGNS
from manifold_bench.bench.records.provenance import kernels_text
from manifold_bench.bench.records.results import Cell, Results, cell_text
from manifold_bench.defenses.identity import JsonObject

FAILING = ("-", "!", "?")


@dataclass(frozen=True)
class Gate:
    """The comparison of a new run with its baseline, from which follows whether the new run passes.

    limits: limits of --fail-on. Raises InputError where no cell is in both runs.
    """

    baseline: Results
    new: Results
    limits: list[Limit]

    def __post_init__(self) -> None:
        if self.baseline.cells.keys().isdisjoint(self.new.cells):
            raise InputError(
                f"compare: BASELINE ({_defenses(self.baseline)}) and NEW ({_defenses(self.new)}) have no cell in "
                "common; give runs that share a defense, by its label, on the same data set, or compare two defenses "
                "in one run: --defense A --defense B"
            )

    @cached_property
    def found(self) -> list[Comparison]:
        """The comparison of each cell of the baseline."""
        return compare(self.baseline, self.new)

    @cached_property
    def joint(self) -> Joint | None:
        """The joint test of all cells; None where no cell could be compared."""
        return joint(self.baseline, self.new, self.found)

    @cached_property
    def checks(self) -> list[Check]:
        """The limits on each cell."""
        return check(self.limits, self.baseline, self.new, self.found)

    @cached_property
    def added(self) -> list[Cell]:
        """The cells that only the new run has."""
        return sorted(self.new.cells.keys() - self.baseline.cells.keys())

    @cached_property
    def seconds(self) -> dict[Cell, float]:
        """Cell of the new run → its wall time."""
        return {cell: float(rows["seconds"].sum()) for cell, rows in self.new.cells.items()}

    @property
    def broken(self) -> list[Check]:
        """The checks whose limit is broken."""
        return [one for one in self.checks if one.broken]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by sign, failing signs first; signs without a cell are left out."""
        counted = Counter(one.sign for one in self.found)
        return {sign: counted[sign] for sign in reversed(SIGNS) if counted[sign]}

    @property
    def unchecked(self) -> list[Limit]:
        """Limits of --fail-on that could be checked on no cell."""
        checked = {one.limit for one in self.checks}
        return [limit for limit in self.limits if limit not in checked]

    @property
    def compared(self) -> bool:
        """Whether at least one cell could be compared."""
        return any(one.p is not None for one in self.found)

    @property
    def cells_pass(self) -> bool:
        """Whether no cell is worse, failed or vanished, no limit is broken, and something was compared.

        A gate that could compare no cell, or could not check one of its limits, has no evidence that nothing got worse.
        """
        bad = any(one.sign in FAILING for one in self.found) or self.broken or self.unchecked
        return self.compared and not bad

    @property
    def exit_code(self) -> int:
        """0: the gate passes. 1: a cell or a limit fails. 3: none fails alone, but all cells together are worse."""
        if not self.cells_pass:
            return 1
        return 3 if self.joint and self.joint.worse else 0

    @property
    def passes(self) -> bool:
        return self.exit_code == 0

    @property
    def promotable(self) -> bool:
        """Whether the new run could be the next baseline if its change is meant: no cell failed or vanished."""
        return not any(one.sign in ("!", "?") for one in self.found)

    @property
    def result(self) -> str:
        return "PASS" if self.passes else "FAIL"

    @property
    def joint_line(self) -> str:
        """A line with the result of the joint test; empty where no cell could be compared."""
        if self.joint is None:
            return ""
        j = self.joint
        result = "worse" if j.worse else "no loss beyond chance"
        changed = f"{j.inputs} inputs changed, lost/gained {j.lost}/{j.gained}"
        return f"all {j.cells} cells together: {result} ({changed}, p = {j.p:.2g})"

    @property
    def closing_line(self) -> str:
        """The closing line: `2 - (worse), 3 = (no difference); 1 broken limit`."""
        counts = self.counts
        without = sum(one.sign == "=" and one.p is None for one in self.found)
        counts["="] = counts.get("=", 0) - without
        named = [f"{count} {sign} ({SIGNS[sign]})" for sign, count in counts.items() if count]
        parts = [", ".join([*named, *([f"{without} without figures in both runs"] if without else [])])]
        if self.broken:
            parts.append(f"{len(self.broken)} broken limit{'s' * (len(self.broken) > 1)}")
        if not self.compared:
            parts.append("no cell could be compared")
        parts += [f"{limit} could be checked on no cell" for limit in self.unchecked]
        return "; ".join(parts)

    @property
    def vanished(self) -> list[tuple[str, str]]:
        """Data set and name of the defenses of which the new run has no cell."""
        there = {one.cell[:2] for one in self.found if one.note != VANISHED}
        return list(dict.fromkeys(one.cell[:2] for one in self.found if one.cell[:2] not in there))

    @property
    def warnings(self) -> list[str]:
        """Sentences on what limits the meaning of the result, such as cells that could not be compared."""
        sentences = []
        if lacking := self.counts.get("x"):
            defenses = {one.cell[:2] for one in self.found if one.sign == "x"}
            defenses -= {one.cell[:2] for one in self.found if one.p is not None}
            whole = ", ".join(" / ".join(pair) for pair in sorted(defenses))
            sentences.append(
                f"{lacking} of {len(self.found)} cells could not be compared, so the gate does not check them"
                + (f" (among them every cell of {whole})" if whole else "")
                + ". If the change is intended, promote a new baseline (manifold-bench baseline)."
            )
        if failed := sum(one.sign == "=" and one.note.startswith("failed") for one in self.found):
            sentences.append(f"{failed} cells failed in both runs, so the gate does not check them.")
        if fewer := [one for one in self.found if one.gone]:
            worst = max(fewer, key=lambda one: one.gone)
            sentences.append(
                f"{len(fewer)} of {len(self.found)} cells lack inputs of the baseline, which the gate does not check: "
                f"{cell_text(worst.cell)} lacks {worst.gone}. Run as many images as the baseline has."
            )
        if vanished := self.vanished:
            names = ", ".join(f"{defense} on {dataset}" for dataset, defense in vanished)
            sentences.append(
                f"The new run has no cell of {names}. If it was meant to have only some defenses, compare it "
                "with a baseline of these (manifold-bench baseline)."
            )
        if fewer := [one for one in self.found if one.seeds_gone]:
            sentences.append(
                f"{len(fewer)} of {len(self.found)} cells lack seeds of the baseline, which the gate does not check: "
                f"{cell_text(fewer[0].cell)} lacks {fewer[0].seeds_gone}. Run all of them to the end."
            )
        if missing := self.baseline.missing:
            sentences.append(
                f"{len(missing)} of the baseline's jobs without records are not checked, the first one is "
                f"{missing[0]}. Restore the baseline's files, or promote a new one."
            )
        runs = [self.baseline.run, self.new.run]
        machines = list(map(_machine, runs))
        if machines[0] != machines[1] and any(limit.figure == "seconds" for limit in self.limits):
            sentences.append(
                f"Seconds were measured on different machines ({machines[0]}; {machines[1]}); limit passes instead."
            )
        kernels = [sorted(map(kernels_text, run.get("kernels", []))) for run in runs]
        if all(kernels) and kernels[0] != kernels[1]:
            texts = " / ".join("; ".join(side) for side in kernels)
            sentences.append(
                f"Baseline and new run were computed by different kernels ({texts}), so single inputs can differ by "
                "rounding. Such differences are marked ~ and do not fail the gate."
                + (" They can break a limit that is smaller than a few inputs of a cell." if self.broken else "")
            )
        return sentences


def _defenses(results: Results) -> str:
    """Return the defenses of a run with their data sets, the first few where there are many: `inc on mnist5k`."""
    pairs = {f"{defense} on {dataset}": None for dataset, defense, *_ in results.cells}
    return textwrap.shorten(", ".join(pairs), 200, placeholder=" …")


def _machine(run: JsonObject) -> str:
    """Return the machine of a run: `x86_64, 4 cores, 2 workers, cpu`. run: content of run.json."""
    machine = run.get("machine", {})
    processor, cores = machine.get("processor", "unknown machine"), machine.get("cores", "?")
    return f"{processor}, {cores} cores, {run.get('workers', '?')} workers, {run.get('device', '?')}"


def origin(run: JsonObject) -> str:
    """Return code revision and date of a run: `code a73c12558e, 2026-11-20`, or `origin unknown`.

    run: content of run.json, {} where there is none.
    """
    code, dirty, _ = str(run.get("code", "")).partition("+dirty")
    code = code[:10] if re.fullmatch(r"[0-9a-f]{40}", code) else code
    return f"code {code}{dirty}, {str(run.get('started', '?'))[:10]}" if code else "origin unknown"
