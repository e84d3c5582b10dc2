"""Tables and plots of measurements, which are values of a defense that no attack takes part in."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from manifold_bench.bench.report.grids import picture_grid
from manifold_bench.bench.report.plots import measured_curves
from manifold_bench.bench.report.style import Plot
from manifold_bench.bench.report.table import Notes, Table
from manifold_bench.defenses.identity import JsonObject

LEGEND = "Values of each defense, measured without an attack."


def measurement_tables(results: list[JsonObject]) -> list[Table]:
    """Return a table for each data set and measurement: its values, one row for each defense.

    results: contents of the files of measurements.
    """
    made = []
    for (dataset, label), rows in _by_measurement(results).items():
        names = list(dict.fromkeys(name for row in rows for name in row["values"])) or [rows[0]["headline"]]
        notes = Notes()
        lines = []
        for row in rows:
            if row["status"] == "ok":
                cells = [f"{row['values'][name]:.4g}" for name in names]
            else:
                number = notes.number(f"{row['status']}: {row['reason']}")
                cells = [f"{row['status']} {number}"] * len(names)
            lines.append([row["defense"], *cells])
        title = f"{dataset}: {rows[0]['title']}"
        made.append(Table((dataset, label, "measurement"), title, ["defense", *names], lines, notes, LEGEND))
    return made


def _by_measurement(results: list[JsonObject]) -> dict[tuple[str, str], list[JsonObject]]:
    """Return (data set, label of the measurement) → its results."""
    found: dict[tuple[str, str], list[JsonObject]] = {}
    for result in results:
        found.setdefault((result["dataset"], result["measurement"]), []).append(result)
    return found


def curves(values: Mapping[str, float]) -> dict[str, list[tuple[float, float]]]:
    """Return the values whose names hold a number (`within 0.5`, `within 0.5, confidently`) as points of curves.

    The result maps a name without its number (`within, confidently`) to its points (number, value), in ascending order.
    A name with a single point is left out.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, value in values.items():
        if match := re.fullmatch(r"(\w+) ([\d.]+)(.*)", name):
            found.setdefault(match[1] + match[3], []).append((float(match[2]), value))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def measurement_plots(results: list[JsonObject], own: Collection[str] = ()) -> Iterator[Plot]:
    """Yield the curves of each measurement that has any, and a grid of images for each result with pictures.

    own: labels of the defenses that the user named.
    """
    for (dataset, label), rows in _by_measurement(results).items():
        drawn = {row["defense"]: curves(row["values"]) for row in rows if row["status"] == "ok"}
        for name in dict.fromkeys(name for own in drawn.values() for name in own):
            lines = {defense: own[name] for defense, own in drawn.items() if name in own}
            shown = "".join(c if c.isalnum() else "-" for c in name)
            yield Plot((dataset, label, shown), measured_curves(f"{dataset}: {label}", name, lines, own))
    for result in results:
        if pictures := result.get("pictures"):
            pixels = np.frombuffer(base64.b64decode(pictures["pixels"]), dtype=np.uint8).reshape(pictures["shape"])
            parts = (result["dataset"], result["defense"], result["measurement"])
            yield Plot(parts, picture_grid(", ".join(parts), pixels), "measurements")
