"""What was attacked, as pictures: stored pixels, what an attack changed of them, and what came of it in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.robustness import inputs_of
from manifold_bench.bench.records.schema import ATTACK, IMAGE_COLUMNS


def pictured(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of attacked cells that have images, each cell (data set, defense, norm, attack) at its largest ε."""
    if IMAGE_COLUMNS[0] not in records:
        return records[:0]
    attacked = (records["kind"] == ATTACK) & (records["status"] == "ok")
    rows = records[attacked & records[IMAGE_COLUMNS[0]].notna()]
    largest = rows.groupby(["dataset", "defense", "norm", "attack"])["eps"].transform("max")
    return rows[rows["eps"] == largest]


def shown_inputs(cell: pd.DataFrame, limit: int) -> list[dict[Any, Any]]:
    """The first inputs of a cell at one ε as plain rows; of its rows, by aim and seed, a success shows most."""
    best = cell.assign(input=inputs_of(cell)).sort_values("success", ascending=False, kind="stable")
    return best.drop_duplicates("input").sort_index().head(limit).to_dict("records")


def pixels(raw: object, shape: list[int]) -> np.ndarray | None:
    """uint8 [H,W] or [H,W,3] of a stored image of that shape [C,H,W]; None where there is none."""
    if not isinstance(raw, bytes):
        return None
    image = np.frombuffer(raw, dtype=np.uint8).reshape(shape).transpose(1, 2, 0)
    return image if shape[0] == 3 else image[:, :, 0]


def difference(original: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, float]:
    """What an attack added, uint8 in the images' shape, and its largest size, pixels spanning 0 to 1.

    Middle grey is no change; the largest change is stretched to black or white.
    """
    change = adversarial.astype(float) - original
    largest = float(np.abs(change).max(initial=0))
    return np.round(127.5 + 127.5 * change / (largest or 1)).astype(np.uint8), largest / 255


def truth_text(record: dict[Any, Any]) -> str:
    """What an input is: `is 4`, or noise."""
    return "noise" if record["label"] < 0 else f"is {record['label']}"


def answer_text(record: dict[Any, Any]) -> str:
    """What the defense says of the attacked input, with a cross where that is a success of the attack."""
    return "rejected" if record["adv_rejected"] else f"says {record['adv_label']}{' ✗' if record['success'] else ''}"
