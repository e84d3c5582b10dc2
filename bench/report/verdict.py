"""The verdict on a defense in words: what the strongest attack leaves of it, how sure that is, and what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from manifold_bench.bench.diagnosis.diagnose import Diagnosis
from manifold_bench.bench.metrics.effort import effort_note
from manifold_bench.bench.metrics.summary import strongest
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import Row
from manifold_bench.bench.report.html.reproduce import matrix_name
from manifold_bench.bench.report.ranking import named_in
from manifold_bench.bench.report.tables import Doubts, Panel, keyed, panels
from manifold_bench.bench.text import eps_text, norm_text, percent
from manifold_bench.defenses.identity import JsonObject, Kind, registered

FIRST_LOOKS = {
    "smoke": "`smoke` tests the harness and says nothing of a defense.",
    "quick": "`quick` is a first look: it has no restarts, no AutoAttack, no queries alone, and few images.",
}
"""What has to be known of the answers of a matrix, by its name."""

STRONG = "strong"
"""The matrix that answers."""


@dataclass(frozen=True)
class Verdict:
    """What a run found of one defense on one data set, as sentences.

    clean: what it does without an attack. left: for each norm and ε, what the attacks leave. trust: what the diagnosis,
    the marks of tables and a budget of time say of these figures. advice: what would tell more, and the command for it.
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
        return f"Verdict on {self.defense}, {self.dataset}"

    @property
    def sentences(self) -> list[str]:
        """All of it but the title and the command."""
        return [self.clean, *self.left, *self.trust, self.advice]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in [*self.sentences, self.command])])


def verdicts(results: Results, summary: pd.DataFrame, diagnosis: Diagnosis, doubts: Doubts) -> list[Verdict]:
    """The verdict on each defense that the command line names; of a run with one defense alone, on that one.

    summary: summary.summary of the results. doubts: result of tables.doubts_of.
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
        marks = _marks(worst, doubts)
        sizes = next(((panel.norm, sorted(panel.worst["eps"].unique())) for panel in attacked), None)
        again = _command(results.run, name, label, sizes)
        advice, command = _next(results, name, label, finding["result"], again)
        made.append(
            Verdict(
                dataset=name,
                defense=label,
                clean=_clean(rows),
                left=[line for panel in attacked for line in _left(panel)] or ["No attack ran."],
                trust=[_diagnosed(finding), *marks, *filter(None, [budget_of(results.run)])],
                advice=advice,
                command=command,
            )
        )
    return made


def budget_of(run: JsonObject) -> str:
    """What a budget of time has cut of a run, in a sentence; empty where nothing was. run: run.json."""
    return str(run.get("matrix", {}).get("budget", ""))


def _clean(rows: pd.DataFrame) -> str:
    before = keyed(rows, "norm").get("none")
    if before is None or before["status"] != "ok":
        return "Without an attack: not known."
    rejected = f", {percent(before['rejection'])} % are rejected" if before["rejection"] else ""
    return f"Without an attack, {percent(before['accuracy'])} % of {before['n']} images are right{rejected}."


def _left(panel: Panel) -> list[str]:
    """A sentence for each ε of a norm."""
    lines = []
    for row in panel.worst.to_dict("records"):
        where = f"{norm_text(panel.norm)}, ε = {eps_text(row['eps'])}"
        if row["status"] in ("failed", "skipped"):
            lines.append(f"{where}: not known, every attack was {row['status']}.")
            continue
        interval = f"95 % interval {percent(row['robust_low'])} to {percent(row['robust_high'])} %, n = {row['n']}"
        strict = row["strict_robust_accuracy"]
        rejecting = f", {percent(strict)} % without a rejection" if strict < row["robust_accuracy"] else ""
        share = percent(row["robust_accuracy"])
        lines.append(f"{where}: {share} % stay right ({interval}){rejecting}; {_strongest(panel, row)}.")
    return lines


def _strongest(panel: Panel, worst: Row) -> str:
    """Which attacks alone leave the least within the ε of a worst case."""
    found = strongest(pd.concat([panel.clean, panel.attacked]), worst["eps"])
    if not found.attacks:
        return "no attack succeeded"
    together = found.share > worst["robust_accuracy"]
    names = "strongest attack" + "s" * (len(found.attacks) > 1) + f": {found.names}"
    return names + (f", which alone leaves {percent(found.share)} %" if together else "")


def _diagnosed(finding: JsonObject) -> str:
    result = finding["result"]
    titles = [check["title"] for check in finding["checks"] if check["result"] == result]
    if result == "fail":
        return f"The diagnosis says that these figures are not to be trusted: {'; '.join(titles)}."
    if result == "warn":
        return f"The diagnosis warns of these figures: {'; '.join(titles)}."
    if result == "pass":
        return f"The diagnosis found nothing against these figures ({len(titles)} checks passed)."
    return "No diagnosis was run, so nothing has checked whether the attacks worked as they should (--diagnose)."


def _marks(worst: Sequence[Row], doubts: Doubts) -> list[str]:
    """A sentence for each mark that the worst cases have in tables."""
    said: dict[str, None] = {}
    for row in worst:
        cell = (row["dataset"], row["defense"], row["norm"], row["eps"])
        if note := effort_note(row):
            said[f"‖ Every attack by gradients {note}; what is left there is not robustness."] = None
        if evidence := doubts.get((*cell, "robust_accuracy")):
            said[f"§ The attacks look too weak: {evidence}."] = None
        if row["status"] == "partial":
            said[f"‡ Partial: {row['reason']}."] = None
        if row["valid"] < 1:
            said["† Some outputs of attacks were invalid and count as no success."] = None
    return list(said)


def _next(results: Results, dataset: str, defense: str, diagnosed: str, strong: str) -> tuple[str, str]:
    """What would tell more than this run did, and the command for it. strong: that of the matrix `strong`."""
    matrix = matrix_name(str(results.run.get("matrix", {}).get("source", "")))
    shell = _is_named_in_shells("defenses", defense) and _is_named_in_shells("datasets", dataset)
    if matrix != STRONG:
        advice = f"{FIRST_LOOKS.get(matrix, '')} The matrix `{STRONG}` attacks harder and diagnoses itself:".strip()
        if shell:
            return advice, strong
        if _is_named_in_shells("datasets", dataset):
            return advice, f'mb.run("{STRONG}", defenses={{"{defense}": model}}, dataset=["{dataset}"])'
        if diagnosed == "not run":
            return "A diagnosis would say whether the attacks worked:", "mb.evaluate(model, data, …, diagnose=True)"
    elif diagnosed == "not run":
        return "A diagnosis would say whether the attacks worked:", f"{strong} --diagnose"
    advice = "Only an attack made for this defense would tell more (docs/new_attack.md):"
    if shell:
        return advice, f"{strong} --attack my_attack.py:MyAttack"
    return advice, 'mb.evaluate(model, data, …, attacks=["my_attack.py:MyAttack"])'


def _is_named_in_shells(kind: Kind, name: str) -> bool:
    """Whether a name means something on the command line: not that of an object that a program handed over."""
    return name in registered(kind) or ":" in name or name.endswith((".pt", ".pth", ".ts"))


def _command(run: JsonObject, dataset: str, defense: str, sizes: tuple[str, list[float]] | None) -> str:
    """The command that runs the matrix `strong` on one defense.

    sizes: a norm of the run and its ε, which are named where the images are not those that the matrix is made for.
    """
    parts = ["manifold-bench", "run", "--matrix", STRONG, "--defense", defense]
    parts += [] if dataset == "mnist5k" else ["--dataset", dataset]
    if sizes and not dataset.startswith("mnist"):
        norm, ladder = sizes
        parts += ["--norm", norm, *(word for eps in ladder for word in ("--eps", eps_text(eps)))]
    parts += ["--device", run["device"]] if run.get("device", "cpu") != "cpu" else []
    words = list(run.get("command", []))
    parts += ["--data", words[words.index("--data") + 1]] if "--data" in words[:-1] else []
    return shlex.join(parts)
