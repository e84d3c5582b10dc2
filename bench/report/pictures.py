"""Stored images of attacked inputs, prepared for reports: as pixels, as differences, and with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.robustness import inputs_of
from manifold_bench.bench.records.schema import ATTACK, IMAGE_COLUMNS, Row
from manifold_bench.bench.text import LEVELS

PICTURED = (
    *("dataset", "split", "defense", "attack", "norm", "eps", "seed", "sample", "key"),
    *("label", "adv_label", "adv_rejected", "success", *IMAGE_COLUMNS),
)
"""Columns of the records that pictures and their captions need; to leave out the others saves time."""


def pictured(records: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with images of attacked cells, each cell (data set, defense, norm, attack) at its largest ε.

    The result has the columns PICTURED, where there are any rows.
    """
    if IMAGE_COLUMNS[0] not in records:
        return records[:0]
    attacked = (records["kind"] == ATTACK) & (records["status"] == "ok")
    rows = records.loc[attacked & records[IMAGE_COLUMNS[0]].notna(), list(PICTURED)]
    largest = rows.groupby(["dataset", "defense", "norm", "attack"])["eps"].transform("max")
    return rows[rows["eps"] == largest]


def shown_inputs(cell: pd.DataFrame, limit: int) -> Sequence[Row]:
    """Return the first `limit` inputs of a cell at one ε, a row of records for each.

    Where an input has several rows (by target class or seed), a successful one is taken, if there is any.
    """
    best = np.argsort(~cell["success"].to_numpy(), kind="stable")
    _, first = np.unique(inputs_of(cell).to_numpy()[best], return_index=True)
    return cell.iloc[np.sort(best[first])[:limit]].to_dict("records")


def pixels(raw: object, shape: list[int]) -> np.ndarray | None:
    """Return a stored image as float64 [H,W] or [H,W,3], values in [0, 1]; None where none was stored.

    raw: its bytes, as uint8 or float32 pixels (schema.IMAGE_COLUMNS). shape: [C,H,W].
    """
    if not isinstance(raw, bytes):
        return None
    in_levels = len(raw) == math.prod(shape)
    image = np.frombuffer(raw, np.uint8) / LEVELS if in_levels else np.frombuffer(raw, np.float32).astype(float)
    image = np.clip(np.nan_to_num(image), 0, 1).reshape(shape).transpose(1, 2, 0)
    return image if shape[0] == 3 else image[:, :, 0]


def levels(image: np.ndarray) -> np.ndarray:
    """Return an image with values in [0, 1] as uint8 of the same shape."""
    return np.round(image * LEVELS).astype(np.uint8)


def difference(original: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a picture of what an attack changed in an image (uint8), and the largest change of a pixel.

    original, adversarial: [H,W] or [H,W,3], values in [0, 1]. In the picture middle grey means no change, and the
    largest change is black or white.
    """
    change = adversarial - original
    largest = float(np.abs(change).max(initial=0))
    return levels(0.5 + 0.5 * change / (largest or 1)), largest


def size_text(largest: float) -> str:
    """Return the largest change of a pixel and its magnification as text: `± 8/255, × 16`, `± 0.2, × 2.5`."""
    if not largest:
        return "± 0"
    size = f"{largest * LEVELS:.2g}/{LEVELS}" if largest < 0.0995 else f"{largest:.2g}"
    times = 0.5 / largest
    return f"± {size}, × {times:.0f}" if times >= 10 else f"± {size}, × {times:.2g}"


def truth_text(record: Row) -> str:
    """Return the true label of an input as text: `is 4`, or `noise`."""
    return "noise" if record["split"] == "noise" else f"is {record['label']}"


def answer_text(record: Row) -> str:
    """Return the defense's answer to the attacked input as text, with a cross where the attack succeeded."""
    return "rejected" if record["adv_rejected"] else f"says {record['adv_label']}{' ✗' if record['success'] else ''}"
