"""The verdict on a defense in sentences: its robust accuracy, how far to trust it, and what to run next."""

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
    "smoke": "`smoke` tests this benchmark itself and says nothing about a defense.",
    "quick": "`quick` is a first look: few images, no restarts, no AutoAttack, and no attack that uses queries only.",
}
"""Name of a matrix → sentence on what its results do not show."""

STRONG = "strong"
"""Name of the matrix whose attacks are strong enough for a conclusion."""


@dataclass(frozen=True)
class Verdict:
    """What a run found about one defense on one data set, in sentences.

    clean: accuracy and rejection without an attack. left: robust accuracy at each norm and ε. trust: what the
    diagnosis and the marks of tables say about these figures. advice: what to run next, and command: how to run it.
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
        """All sentences, without the title and the command."""
        return [self.clean, *self.left, *self.trust, self.advice]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in [*self.sentences, self.command])])


def verdicts(results: Results, summary: pd.DataFrame, diagnosis: Diagnosis, doubts: Doubts) -> list[Verdict]:
    """Return the verdicts on the defenses that the command line named, or on the only defense of a run.

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
                trust=[_diagnosed(finding), *_misled(finding), *marks],
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


def missing_data_of(run: JsonObject) -> list[str]:
    """Return a line on each data set that was skipped because its files were not found.

    run: content of run.json.
    """
    return [f"skipped: {reason}" for reason in run.get("missing_data", {}).values()]


def _clean(rows: pd.DataFrame) -> str:
    before = keyed(rows, "norm").get("none")
    if before is None or before["status"] != "ok":
        return "The accuracy without an attack is not known."
    rejected = f", {percent(before['rejection'])} % are rejected" if before["rejection"] else ""
    return f"Without an attack, {percent(before['accuracy'])} % of {before['n']} images are right{rejected}."


def _left(panel: Panel) -> list[str]:
    """Return a sentence for each ε of a norm."""
    lines = []
    for row in panel.worst.to_dict("records"):
        where = f"{norm_text(panel.norm)}, ε = {eps_text(row['eps'])}"
        if row["status"] in ("failed", "skipped"):
            lines.append(f"{where}: not known, every attack was {row['status']}.")
            continue
        interval = f"95 % interval {percent(row['robust_low'])} to {percent(row['robust_high'])} %, n = {row['n']}"
        strict = row["strict_robust_accuracy"]
        rejecting = f", {percent(strict)} % if rejections count as errors" if strict < row["robust_accuracy"] else ""
        share = percent(row["robust_accuracy"])
        lines.append(f"{where}: {share} % stay right ({interval}){rejecting}; {_strongest(panel, row)}.")
    return lines


def _strongest(panel: Panel, worst: Row) -> str:
    """Return a phrase that names the attacks which alone leave the lowest robust accuracy within the worst case's ε."""
    found = strongest(pd.concat([panel.clean, panel.attacked]), worst["eps"])
    if not found.attacks:
        return "no attack succeeded"
    together = found.share > worst["robust_accuracy"]
    names = "strongest attack" + "s" * (len(found.attacks) > 1) + f": {found.names}"
    alone = "each of which alone leaves" if len(found.attacks) > 1 else "which alone leaves"
    return names + (f", {alone} {percent(found.share)} %" if together else "")


def _diagnosed(finding: JsonObject) -> str:
    result = finding["result"]
    titles = [check["title"] for check in finding["checks"] if check["result"] == result]
    if result == "fail":
        return f"Do not trust these figures. The diagnosis finds that this does not hold: {'; '.join(titles)}."
    if result == "warn":
        return f"The diagnosis has doubts about these figures, because this may not hold: {'; '.join(titles)}."
    if result == "pass":
        return f"The diagnosis found nothing against these figures ({len(titles)} checks passed)."
    return "The whole diagnosis was not run (--diagnose), so it is not known whether the attacks worked as they should."


def _misled(finding: JsonObject) -> list[str]:
    """Return a sentence where query-based attacks beat significantly more than those with gradients; else nothing."""
    return [
        "Gradients mislead here: query-based attacks, which use none, beat significantly more inputs than all "
        f"gradient-based attacks together ({check['evidence']})."
        for check in finding["checks"]
        if check["check"] == "query" and check["result"] in ("warn", "fail")
    ]


def _marks(worst: Sequence[Row], doubts: Doubts) -> list[str]:
    """Return a sentence for each mark that the worst cases have in tables, every sentence once."""
    sentences: dict[str, None] = {}
    for row in worst:
        cell = (row["dataset"], row["defense"], row["norm"], row["eps"])
        if note := effort_note(row):
            sentences[f"‖ Every gradient-based attack {note}; this is no evidence of robustness."] = None
        if evidence := doubts.get((*cell, "robust_accuracy")):
            sentences[f"§ The attacks look too weak: {evidence}."] = None
        if row["status"] == "partial":
            sentences[f"‡ Partial: {row['reason']}."] = None
        if row["valid"] < 1:
            sentences["† Some outputs of attacks were invalid and count as no success."] = None
    return list(sentences)


def _next(results: Results, dataset: str, defense: str, diagnosed: str, strong: str) -> tuple[str, str]:
    """Return advice on what to run next, and the command. strong: the command that runs the matrix `strong`."""
    matrix = matrix_name(str(results.run.get("matrix", {}).get("source", "")))
    shell = _is_named_in_shells("defenses", defense) and _is_named_in_shells("datasets", dataset)
    if matrix != STRONG:
        advice = f"{FIRST_LOOKS.get(matrix, '')} Run the stronger attacks and the diagnosis of `{STRONG}`:".strip()
        if shell:
            return advice, strong
        if _is_named_in_shells("datasets", dataset):
            return advice, f'mb.run("{STRONG}", defenses={{"{defense}": model}}, dataset=["{dataset}"])'
        if diagnosed == "not run":
            return "A diagnosis would say whether the attacks worked:", "mb.evaluate(model, data, …, diagnose=True)"
    elif budget_of(results.run):
        return "Run it without the budget, which cut it, or with a larger one:", strong
    elif diagnosed == "not run":
        return "A diagnosis would say whether the attacks worked:", f"{strong} --diagnose"
    advice = "The next step is an attack written for this defense (docs/new_attack.md):"
    if shell:
        return advice, f"{strong} --attack my_attack.py:MyAttack"
    return advice, 'mb.evaluate(model, data, …, attacks=["my_attack.py:MyAttack"])'


def _is_named_in_shells(kind: Kind, name: str) -> bool:
    """Return whether the command line knows a name, which it does not for an object from a Python program."""
    return name in registered(kind) or ":" in name or name.endswith((".pt", ".pth", ".ts"))


def _command(run: JsonObject, dataset: str, defense: str, sizes: tuple[str, list[float]] | None) -> str:
    """Return the command that runs the matrix `strong` on one defense.

    sizes: a norm of the run and its ε. The command names them unless the data set is MNIST, as in the matrix.
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
