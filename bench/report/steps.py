"""What to run next on a defense: commands for a shell, or for Python where a shell cannot say it."""

from __future__ import annotations

import json
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from manifold_bench.bench.planning.folders import MATRICES
from manifold_bench.bench.records.results import Results
from manifold_bench.bench.records.schema import CLEAN, GIVEN, GUESSES, PROBE, UNDECLARED
from manifold_bench.bench.report.html.reproduce import matrix_name
from manifold_bench.bench.report.ranking import named_in
from manifold_bench.bench.text import MODEL_FILES, eps_text
from manifold_bench.defenses.identity import JsonObject, registered

STRONG = "strong"
"""Name of the matrix whose attacks are strong enough for a conclusion."""

ENOUGH = 100
"""Number of images of `strong`. With as many, no 95 % interval of a share is wider than 20 points."""

DRAWS = 10
"""Number of answers that a defense should be judged on when it turns out to be randomized."""

LIBRARIES = ("timm", "robustbench")
"""Libraries of trained models, whose names are given after a colon."""

USUAL = ["pgd", "autoattack"]
"""Attacks of `mb.evaluate` where none are given."""


def sizes_of_strong() -> dict[str, set[float]]:
    """Return the perturbation sizes of the matrix `strong` by norm."""
    sizes: dict[str, set[float]] = {}
    for one in tomllib.loads((MATRICES / f"{STRONG}.toml").read_text(encoding="utf-8"))["attacks"]:
        sizes.setdefault(one["norm"], set()).update(one["eps"])
    return sizes


@dataclass(frozen=True)
class Steps:
    """Commands that attack one defense on one data set further.

    sizes: a norm of the run and its ε. The commands name them unless the data set is MNIST, as in the matrix `strong`.
    """

    results: Results
    dataset: str
    defense: str
    sizes: tuple[str, list[float]] | None

    @property
    def words(self) -> list[str]:
        """The words of the command that made the run: of `manifold-bench`, or of a Python program."""
        return list(self.results.run.get("command", []))

    @property
    def is_of_command_line(self) -> bool:
        """Whether the command `manifold-bench run` made the run, so that a command has to be next."""
        return self.words[1:2] == ["run"]

    @property
    def matrix(self) -> str:
        """Name of the run's matrix, or its path."""
        return matrix_name(str(self._content.get("source", "")))

    @property
    def _content(self) -> JsonObject:
        content: JsonObject = self.results.run.get("matrix", {})
        return content

    @property
    def entry(self) -> JsonObject:
        """The defense's entry in the run's matrix, by its label."""
        entries = self._content.get("defenses", [])
        return next((one for one in entries if one["label"] == self.defense), {"name": self.defense})

    @property
    def settings(self) -> JsonObject:
        """How the run used the model, by the keys of a matrix file; `randomized` only for an object of a program."""
        entry = self.entry
        used = {**entry.get("parameters", {}), "draws": DRAWS if self.is_undeclared else entry.get("draws")}
        used |= {"randomized": (self.is_undeclared or bool(entry.get("randomized"))) and not self.is_named}
        return {key: value for key, value in used.items() if value not in (None, False)}

    @property
    def is_named(self) -> bool:
        """Whether a shell can name the defense."""
        name = self.entry["name"]
        return name in registered("defenses") or ":" in name or name.endswith(MODEL_FILES)

    @property
    def with_weights(self) -> str:
        """How a network in Python code is named with a file of weights; empty for a name with one, and for others."""
        name = str(self.entry["name"])
        is_code = ":" in name and name.partition(":")[0] not in (*LIBRARIES, *registered("defenses"))
        return f"{name}@weights.pt" if is_code and "@" not in name else ""

    @property
    def data(self) -> str:
        """What `--dataset` takes for the data set: a name, module:Class or a folder; empty for data of a program."""
        names = [one["name"] for one in self._content.get("datasets", [])]
        own = [name for name in names if self.dataset in (name, Path(name).name)]
        own = own or (names if len(names) == 1 else [])
        name = own[0] if len(own) == 1 else self.dataset
        named = name in registered("datasets") or name in named_in(self.results.run, "datasets")
        return name if named or (len(own) == 1 and name != GIVEN) else ""

    @property
    def can_be_strong(self) -> bool:
        """Whether a command can run `strong`, and it has the norm; settings of a matrix file need Python."""
        if self.sizes is not None and self.sizes[0] not in sizes_of_strong():
            return False
        return bool(self.data) and not (self.is_of_command_line and (self.settings or not self.is_named))

    @property
    def has_all_images(self) -> bool:
        """Whether the run attacked all images that the data set has."""
        entries = self._content.get("datasets", [])
        return any(one["n"] is None for one in entries if one["name"] in (self.data, self.dataset))

    @property
    def is_undeclared(self) -> bool:
        """Whether answers differ from call to call although the defense is not declared as randomized."""
        if self._clean["reason"].str.contains(UNDECLARED, regex=False).any():
            return True
        return any(
            one["values"].get("again", 0) > 0 and not one["values"].get("randomized", 0)
            for one in self.results.inspections
            if (one["dataset"], one["defense"]) == (self.dataset, self.defense)
            and one["measurement"] == f"{PROBE}repeats"
            and one["status"] == "ok"
        )

    @property
    def is_guessing(self) -> bool:
        """Whether the defense is no better than guessing on clean images."""
        return bool(self._clean["reason"].str.contains(GUESSES, regex=False).any())

    @property
    def _of_defense(self) -> pd.DataFrame:
        rows = self.results.records
        return rows[(rows["dataset"] == self.dataset) & (rows["defense"] == self.defense)]

    @property
    def _clean(self) -> pd.DataFrame:
        return self._of_defense[self._of_defense["kind"] == CLEAN]

    @property
    def images(self) -> int:
        """Number of images of the clean pass."""
        return int(self._clean["sample"].nunique())

    @property
    def threat(self) -> JsonObject:
        """Norm and ε, and nothing if the run has none; ε as numbers, or texts for fractions."""
        if self.sizes is None:
            return {}
        texts = map(eps_text, self.sizes[1])
        return {"norm": self.sizes[0], "eps": [text if "/" in text else json.loads(text) for text in texts]}

    def further(self, **more: object) -> str:
        """Return what runs next with these options of the command: `strong`, or the same where it can't be that."""
        if self.can_be_strong:
            return self.strong(**more)
        return self.same(**more)

    def declared(self) -> str:
        """Return what runs after the defense is declared as randomized."""
        return self.same() if self.is_of_command_line or not self.data else self.strong()

    def with_more_images(self) -> str:
        """Return what runs after images are added to the data set."""
        if self.data and not self.is_of_command_line:
            return self.strong(n=ENOUGH)
        return self.same()

    def same(self, **more: object) -> str:
        """Return what makes the run again. more: further options of the command."""
        if self.is_of_command_line:
            return shlex.join(["manifold-bench", *self.words[1:], *_options(more)])
        return self.strong(**more) if self.can_be_strong else self._evaluate(**more)

    def strong(self, **more: object) -> str:
        """Return the command that runs the matrix `strong`. more: further options of the command."""
        run, words, is_registered = self.results.run, self.words, self.data in registered("datasets")
        options: JsonObject = {} if self.data == "mnist5k" else {"dataset": [self.data]}
        options |= {} if is_registered and self.data.startswith("mnist") else self.threat
        options |= {"device": run["device"]} if run.get("device", "cpu") != "cpu" else {}
        options |= {"data": words[words.index("--data") + 1]} if "--data" in words[:-1] else {}
        if not is_registered and self.images < ENOUGH:
            options["n"] = self.images  # because a matrix refuses data sets that have fewer images than it wants
        options |= more
        name = self.entry["name"]
        if self.is_named and not self.settings:
            return shlex.join(["manifold-bench", "run", "--matrix", STRONG, "--defense", name, *_options(options)])
        table = name if self.is_named else _Code("model")
        model = {"model": table, **self.settings} if self.settings else table
        label = "model" if self.is_named else self.defense
        return _call("mb.run", _literal(STRONG), {"defenses": {label: model}, **options})

    def _evaluate(self, **more: object) -> str:
        """Return the call that attacks a program's own data again, by the attacks that ran. more: see `further`."""
        rows = self._of_defense
        ran = set(rows.loc[rows["status"] != "skipped", "attack"])
        attacks = [one for one in self._content.get("attacks", []) if one["label"] in ran]
        tables = [{"name": one["name"], **one.get("parameters", {})} for one in attacks]
        given: list[object] = [one["name"] if len(one) == 1 else one for one in tables]
        given = more.pop("attack", given)  # type: ignore[assignment]
        own = [one for one in self.results.identities.values() if one["dataset"]["name"] == self.dataset]
        classes = {one["num_classes"] for one in own} - {int(rows["label"].max()) + 1}
        usage = self.settings | ({"classes": classes.pop()} if classes else {})
        model = self.entry["name"] if self.is_named else _Code("model")
        options: JsonObject = ({"attacks": given} if given and given != USUAL else {}) | self.threat | usage | more
        if options.get("norm") == "linf":
            del options["norm"]  # the default
        if "eps" in options and len(options["eps"]) == 1:
            options["eps"] = options["eps"][0]
        return _call("mb.evaluate", f"{_literal(model)}, {_literal(self.data or _Code('data'))}", options)


class _Code(str):
    """The name of a variable in a command for Python."""


def _options(options: JsonObject) -> list[str]:
    """Return options as words of a command."""
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return words


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
