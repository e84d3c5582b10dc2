"""The verdict on a defense in sentences: its robust accuracy, how far to trust it, and what to run next."""

from __future__ import annotations

import json
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


FAILED = "Every attack failed, so nothing is known: mend what the reasons name, and run the same again."
"""Advice where no attack ended."""


@dataclass(frozen=True)
class Verdict:
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
        return f"Verdict on {self.defense}, {self.dataset}"

    @property
    def sentences(self) -> list[str]:
        """All sentences, without the title and the command."""
        return [self.clean, *self.left, *self.trust, self.advice]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}" for line in [*self.sentences, self.command] if line)])


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
        steps = _Steps(results, name, label, sizes)
        failed = bool(worst) and all(row["status"] == "failed" for row in worst)
        advice, command = (FAILED, "") if failed else _next(steps, finding["result"])
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
            happened = "failed" if row["status"] == "failed" else "was skipped"
            lines.append(f"{where}: not known, because every attack {happened}: {row['reason']}.")
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


@dataclass(frozen=True)
class _Steps:
    """Commands that attack one defense on one data set further: for a shell, or for Python where a shell can't name it.

    sizes: a norm of the run and its ε. The commands name them unless the data set is MNIST, as in the matrix `strong`.
    """

    results: Results
    dataset: str
    defense: str
    sizes: tuple[str, list[float]] | None

    @property
    def entry(self) -> JsonObject:
        """The defense's entry in the run's matrix, by its label."""
        entries = self.results.run.get("matrix", {}).get("defenses", [])
        return next((one for one in entries if one["label"] == self.defense), {"name": self.defense})

    @property
    def settings(self) -> JsonObject:
        """How the run used the model, by the keys of a matrix file; `randomized` only for an object of a program."""
        entry = self.entry
        used = {**entry.get("parameters", {}), "draws": entry.get("draws")}
        used |= {"randomized": bool(entry.get("randomized")) and not self.is_named}
        return {key: value for key, value in used.items() if value not in (None, False)}

    @property
    def is_named(self) -> bool:
        """Whether a shell can name the defense."""
        return _is_named_in_shells("defenses", self.entry["name"])

    @property
    def has_name_of_data(self) -> bool:
        """Whether a matrix can name the data set."""
        return _is_named_in_shells("datasets", self.dataset)

    @property
    def threat(self) -> JsonObject:
        """Norm and ε, and nothing if the run has none; ε as numbers, or texts for fractions."""
        if self.sizes is None:
            return {}
        texts = map(eps_text, self.sizes[1])
        return {"norm": self.sizes[0], "eps": [text if "/" in text else float(text) for text in texts]}

    def strong(self, **more: object) -> str:
        """Return the command that runs the matrix `strong`. more: further options of the command."""
        run, words = self.results.run, list(self.results.run.get("command", []))
        options: JsonObject = {} if self.dataset == "mnist5k" else {"dataset": [self.dataset]}
        options |= {} if self.dataset.startswith("mnist") else self.threat
        options |= {"device": run["device"]} if run.get("device", "cpu") != "cpu" else {}
        options |= {"data": words[words.index("--data") + 1]} if "--data" in words[:-1] else {}
        options |= more
        if self.is_named and not self.settings:
            parts = ["manifold-bench", "run", "--matrix", STRONG, "--defense", self.defense]
            for name, value in options.items():
                for one in value if isinstance(value, list) else [value]:
                    parts += [f"--{name}"] if one is True else [f"--{name}", str(one)]
            return shlex.join(parts)
        table = _Code("model") if not self.is_named else self.entry["name"]
        model = {"model": table, **self.settings} if self.settings else table
        label = "model" if self.is_named else self.defense
        return _call("mb.run", _literal(STRONG), {"defenses": {label: model}, **options})

    def again(self, **more: object) -> str:
        """Return the call that attacks the same data again, which no matrix can name. more: further arguments."""
        matrix, rows = self.results.run.get("matrix", {}), self.results.records
        attacks = [{"name": one["name"], **one.get("parameters", {})} for one in matrix.get("attacks", [])]
        given = [one["name"] if len(one) == 1 else one for one in attacks]
        own = [one for one in self.results.identities.values() if one["dataset"]["name"] == self.dataset]
        classes = {one["num_classes"] for one in own} - {int(rows["label"].max()) + 1}
        usage = self.settings | ({"classes": classes.pop()} if classes else {})
        model = self.entry["name"] if self.is_named else _Code("model")
        options = ({"attacks": given} if given else {}) | self.threat | usage | more
        return _call("mb.evaluate", f"{_literal(model)}, data", options)


class _Code(str):
    """The name of a variable in a command for Python."""


def _call(function: str, first: str, arguments: JsonObject) -> str:
    """Return a call in Python. first: its arguments without a name, as code."""
    return f"{function}({', '.join([first, *(f'{name}={_literal(value)}' for name, value in arguments.items())])})"


def _literal(value: object) -> str:
    """Return a value as Python code, with texts in double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, str) and not isinstance(value, _Code) else str(value)
    )


def _next(steps: _Steps, diagnosed: str) -> tuple[str, str]:
    """Return advice on what to run next, and the command. diagnosed: result of the diagnosis."""
    results = steps.results
    matrix = matrix_name(str(results.run.get("matrix", {}).get("source", "")))
    if matrix != STRONG and steps.has_name_of_data:
        advice = f"{FIRST_LOOKS.get(matrix, '')} Run the stronger attacks and the diagnosis of `{STRONG}`:".strip()
        return advice, steps.strong()
    if matrix == STRONG and budget_of(results.run):
        return "Run it without the budget, which cut it, or with a larger one:", steps.strong()
    run = steps.strong if steps.has_name_of_data else steps.again
    if diagnosed == "not run":
        return "A diagnosis would say whether the attacks worked:", run(diagnose=True)
    advice = "The next step is an attack written for this defense (docs/new_attack.md):"
    return advice, run(**{"attack" if steps.has_name_of_data else "attacks": ["my_attack.py:MyAttack"]})


def _is_named_in_shells(kind: Kind, name: str) -> bool:
    """Return whether the command line knows a name, which it does not for an object from a Python program."""
    return name in registered(kind) or ":" in name or name.endswith((".pt", ".pth", ".ts"))
