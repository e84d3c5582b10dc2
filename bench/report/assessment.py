"""The assessment of a defense in sentences: its robust accuracy, how far to trust it, and what to run next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from manifold_bench.bench.diagnosis.diagnose import Diagnosis
from manifold_bench.bench.metrics.effort import effort_note
from manifold_bench.bench.metrics.summary import strongest
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CLEAN, Row
from manifold_bench.bench.report.advice import misled, next_step
from manifold_bench.bench.report.diagnosis import found_text
from manifold_bench.bench.report.ranking import named_in
from manifold_bench.bench.report.steps import Steps, sizes_of_strong
from manifold_bench.bench.report.tables import INVALID, Doubts, Panel, panels, rows_by
from manifold_bench.bench.text import eps_text, norm_text, percent
from manifold_bench.defenses.identity import JsonObject

ONE_ANSWER = (
    "Its answers are random, and one answer to each image was judged. With `draws` = 10 the worst of ten counts, and "
    "with `eot` = 10 attacks follow the mean of ten gradients."
)
"""What to think of figures on a randomized defense that was judged by one answer."""

ELSEWHERE = (
    "The images were made elsewhere. The figures say how many of these the defense withstands, and nothing about an "
    "attack that is made on it."
)
"""What to think of figures on images that were made elsewhere."""


@dataclass(frozen=True)
class Assessment:
    """What a run found about one defense on one data set, in sentences.

    clean: accuracy and rejection without an attack. left: robust accuracy at each norm and ε. trust: what the
    diagnosis and the marks of tables say about these figures. advice: what to run next, and command: how to run it,
    empty where every attack failed.
    """

    dataset: str
    defense: str
    clean: str
    left: list[str]
    trust: list[str]
    advice: str
    command: str

    @property
    def title(self) -> str:
        return f"Assessment of {self.defense}, {self.dataset}"

    @property
    def sentences(self) -> list[str]:
        """All sentences, without the title and the command."""
        return [self.clean, *self.left, *self.trust, self.advice]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in [*self.sentences, self.command] if line)])


def assessments(results: Results, summary: pd.DataFrame, diagnosis: Diagnosis, doubts: Doubts) -> list[Assessment]:
    """Return the assessments on the defenses that the command line named, or on the only defense of a run.

    There is one for each data set and defense. summary: result of metrics.summary.summary. doubts: result of
    tables.doubts_of.
    """
    known = list(results.records["defense"].unique())
    named = named_in(results.run, "defenses") or (known if len(known) == 1 else [])
    checked = {(one["dataset"], one["defense"]): one for one in diagnosis["defenses"]}
    made = []
    for (dataset, defense), rows in summary.groupby(["dataset", "defense"]):
        if defense not in named:
            continue
        name, label = str(dataset), str(defense)
        attacked = [panel for panel in panels(rows) if not panel.is_noise]
        worst = [row for panel in attacked for row in panel.worst.to_dict("records")]
        finding = checked.get((name, label), {"result": "not run", "checks": []})
        answers = _answers(results, name, label)
        marks = [*_marks(worst, doubts), *([ONE_ANSWER] if answers == 1 else [])]
        cut = [sentence] if (sentence := budget_of(results.run)) else []
        # the norm under which most is left is the one that is still open
        sized = [panel for panel in attacked if np.isfinite(panel.worst["eps"]).all()]
        left = max(sized, key=lambda panel: panel.worst["robust_accuracy"].fillna(0).max(), default=None)
        sizes = left and (left.norm, sorted(left.worst["eps"].unique()))
        if {panel.norm: set(panel.worst["eps"]) for panel in sized} == sizes_of_strong():
            sizes = None  # then `strong` without options goes on in all of these norms
        steps = Steps(results, name, label, sizes)
        option = "--diagnose" if steps.is_of_command_line else "diagnose=True"
        advice, command = next_step(steps, finding, worst)
        elsewhere = results.made_elsewhere(name, label)
        made.append(
            Assessment(
                dataset=name,
                defense=label,
                clean=_clean(rows, answers),
                left=[line for panel in attacked for line in _left(panel)] or ["No attack ran."],
                trust=cut + ([ELSEWHERE, *marks] if elsewhere else _trust(finding, marks, option)),
                advice=advice,
                command=command,
            )
        )
    return made


def budget_of(run: JsonObject) -> str:
    """Return a sentence on what was cut so that a run fits its time budget; empty where nothing was cut.

    run: content of run.json.
    """
    return str(run.get("matrix", {}).get("budget", ""))


def left_out_of(results: Results) -> list[str]:
    """Return the lines on what no figure covers.

    First comes that of jobs without records, because the run is not finished or files are gone. Data sets and defenses
    follow that were skipped, because files or weights were not found.
    """
    run, gone = results.run, results.missing
    skipped = run.get("skipped") or [f"skipped: {reason}" for reason in run.get("missing_data", {}).values()]
    if not gone:
        return list(skipped)
    jobs = f"{len(gone)} of {len(gone) + len(results.index)} jobs have" if len(gone) > 1 else "1 job has"
    lack = f"{jobs} no records, the first one is {gone[0]}: no figure covers what they would have found"
    return [f"{lack}; run the matrix again", *skipped]


def _clean(rows: pd.DataFrame, answers: int) -> str:
    """Return a sentence on the clean images. answers: as in `_answers`."""
    before = rows_by(rows, "kind").get(CLEAN)
    if before is None or before["status"] != "ok":
        return "The accuracy without an attack is not known."
    rejected = f", {percent(before['rejection'])} % are rejected" if before["rejection"] else ""
    share = f"{percent(before['accuracy'])} % of {before['n']} images"
    in_all = f" in all of {answers} answers" if answers > 1 else ""
    return f"Without an attack, {share} are right{in_all}{rejected}."


def _answers(results: Results, dataset: str, defense: str) -> int:
    """Return the number of answers to each clean image that were judged; 0 for a defense that is not randomized."""
    rows = results.records
    clean = rows[(rows["dataset"] == dataset) & (rows["defense"] == defense) & (rows["kind"] == CLEAN)]
    return int(clean["answers"].max()) if "answers" in clean and clean["answers"].notna().all() and len(clean) else 0


def _left(panel: Panel) -> list[str]:
    """Return a sentence for each ε of a norm."""
    lines, before = [], rows_by(panel.clean, "kind").get(CLEAN, {})
    wrong = before.get("error", 0.0)
    for row in panel.worst.to_dict("records"):
        where = f"{norm_text(panel.norm)}, ε = {eps_text(row['eps'])}"
        if row["status"] in ("failed", "skipped"):
            happened = "failed" if row["status"] == "failed" else "was skipped"
            lines.append(f"{where}: not known, because every attack {happened}: {row['reason']}.")
            continue
        if row["valid"] <= wrong + 1e-9 and row["valid"] < 1:  # inputs that are wrong when clean are not attacked
            lines.append(
                f"{where}: not known, because all attacked images are invalid ({INVALID}). Images that were made "
                "elsewhere need the `indices` of their test images."
            )
            continue
        interval = f"95 % interval {percent(row['robust_low'])} to {percent(row['robust_high'])} %, n = {row['n']}"
        strict = row["strict_robust_accuracy"]
        rejecting = f", {percent(strict)} % if rejections count as errors" if strict < row["robust_accuracy"] else ""
        share = percent(row["robust_accuracy"])
        found = f"{_strongest(panel, row)}{_failed(panel, row['eps'])}"
        lines.append(f"{where}: {share} % stay right ({interval}){rejecting}; {found}.")
    return lines


def _failed(panel: Panel, eps: float) -> str:
    """Return a phrase that names the attacks which failed at that ε; "" if none did."""
    failed = panel.attacked[(panel.attacked["eps"] == eps) & (panel.attacked["status"] == "failed")]
    names = ", ".join(dict.fromkeys(failed["attack"]))
    return f"; not counted, because they failed: {names}" if names else ""


def _strongest(panel: Panel, worst: Row) -> str:
    """Return a phrase that names the attacks which alone leave the lowest robust accuracy within the worst case's ε."""
    found = strongest(pd.concat([panel.clean, panel.attacked]), worst["eps"])
    if not found.attacks:
        return "no attack succeeded"
    together = found.share > worst["robust_accuracy"]
    names = "strongest attack" + "s" * (len(found.attacks) > 1) + f": {found.names}"
    alone = "each of which alone leaves" if len(found.attacks) > 1 else "which alone leaves"
    return names + (f", {alone} {percent(found.share)} %" if together else "")


def _trust(finding: JsonObject, marks: list[str], option: str) -> list[str]:
    """Return sentences on how far to trust the figures; marks contradict a diagnosis that passes, so they join it.

    option: how the user asks for the whole diagnosis.
    """
    if finding["result"] != "pass" or not marks:
        return [_diagnosed(finding, option), *misled(finding), *marks]
    passed = sum(check["result"] == "pass" for check in finding["checks"])
    doubts = "; ".join(mark.removesuffix(".") for mark in marks)
    return [f"{passed} checks of the diagnosis passed, but the marks of these figures raise doubts: {doubts}."]


def _diagnosed(finding: JsonObject, option: str) -> str:
    result = finding["result"]
    checks = [check for check in finding["checks"] if check["result"] == result]
    if result == "fail":
        return f"Do not trust these figures: the diagnosis found that {'; '.join(map(found_text, checks))}."
    if result == "warn":
        return f"The diagnosis has doubts about these figures, because {'; '.join(map(found_text, checks))}."
    if result == "pass":
        return f"The diagnosis found nothing against these figures ({len(checks)} checks passed)."
    return f"The whole diagnosis was not run ({option}), so it is not known whether the attacks worked as they should."


def _marks(worst: Sequence[Row], doubts: Doubts) -> list[str]:
    """Return a sentence for each mark that the worst cases have in tables, every sentence once."""
    sentences: dict[str, None] = {}
    for row in worst:
        cell = (row["dataset"], row["defense"], row["norm"], row["eps"])
        if note := effort_note(row):
            sentences[f"‖ Every gradient-based attack {note}; this is no evidence of robustness."] = None
        if evidence := doubts.get((*cell, "robust_accuracy")):
            sentences[f"§ The attacks look too weak: {evidence.reason}: {evidence.evidence}."] = None
        if row["status"] == "partial":
            sentences[f"‡ Partial: {row['reason']}."] = None
    if (invalid := 1 - min((row["valid"] for row in worst if row["valid"] >= 0), default=1.0)) > 0:
        share = f"up to {max(100 * invalid, 0.1):.1f} %"
        sentences[f"† Of the outputs of attacks {share} were invalid ({INVALID}) and count as no success."] = None
    return list(sentences)
