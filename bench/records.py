"""The schema of the per-input records that every figure is computed from."""

from __future__ import annotations

import pandas as pd

CLEAN = "clean"
"""The name under which the answers to the unperturbed inputs are recorded, with norm "none" and ε = 0."""

WORST_CASE = "worst-case"
"""The name of a figure over all attacks of a norm; never stored, always computed."""

DTYPES: dict[str, str] = {
    "dataset": "string",
    "split": "string",
    "sample": "int64",  # index in the data set's split
    "input_sha256": "string",
    "label": "int64",
    "defense": "string",
    "attack": "string",  # label of the attack with its parameters, unique in a run together with the norm
    "norm": "string",  # linf, l2, l0, unrestricted; "none" where attack is "clean"
    "eps": "float64",
    "seed": "int64",
    "protocol": "string",  # deterministic, or how a randomized defense was judged: single-shot, worst-of-5
    "clean_label": "int64",
    "clean_rejected": "bool",
    "adv_label": "int64",
    "adv_rejected": "bool",
    "linf": "float64",  # distances of what was judged at this ε, measured by the harness
    "l2": "float64",
    "l0": "float64",
    "distance": "float64",  # smallest distance, in the cell's norm, at which the attack beat this input in its whole
    # ε ladder: 0 where the clean answer is accepted and wrong already, inf where it never did
    "valid": "bool",  # the attack's output was finite, in the box and within ε
    "success": "bool",  # valid, accepted and wrong
    "forwards": "float64",  # passes this input cost in this cell
    "backwards": "float64",
    "seconds": "float64",  # share of the cell's wall time
    "status": "string",  # ok, failed, skipped
    "reason": "string",  # why it failed or was skipped; empty where ok
}
"""One row per input, cell and ε. A failed or skipped cell has its rows too, with the columns from clean_label to
backwards at their zero values: they mean nothing there and no figure may read them.

An output that is not valid is judged as the clean input in its place: adv_label and adv_rejected are the clean ones,
the distances are those of what the attack returned, and it is never a success.
A minimal-distance attack's row at an ε below the distance it found holds the clean input (distances 0).
"""

IMAGE_COLUMNS = ("image_original", "image_adversarial", "image_seen")
"""uint8 pixels [C,H,W] as bytes for the first few samples of a cell, null elsewhere; the shape is in the file's
metadata. `seen` is what the defense made of the adversarial image: its projection or reconstruction."""


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every column of the schema in its type and order; image columns stay behind them."""
    images = [column for column in IMAGE_COLUMNS if column in frame]
    return frame[[*DTYPES, *images]].astype(DTYPES)
