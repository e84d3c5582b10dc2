"""The schema of the per-input records that every figure is computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd

from manifold_bench.bench.text import is_printable

REVISION = 5
"""Of the schema below and of how outputs are judged. It is part of every job's identity, so that records of another
revision are never taken for these."""


Kind = Literal["clean", "calibration", "attack", "probe"]
"""What a row is about: a test input as it is, a held-out input as it is, an attacked input, or one that the diagnosis'
own attacks attacked."""


Row = Mapping[Any, Any]
"""A row of records, or of a table that follows from them, as pandas hands it out: values by column."""


CLEAN: Literal["clean"] = "clean"
"""The kind of the answers to the unperturbed inputs, and their name among attacks; norm "none", ε = 0."""


UNSTEADY = "its answers "
"""What a remark in the `reason` of a clean pass begins with that says that answers change by themselves."""


CALIBRATION: Literal["calibration"] = "calibration"
"""The kind of the answers to unperturbed validation images, and their name; norm and ε as above. Thresholds that a
figure needs are set on these, never on test images."""


ATTACK: Literal["attack"] = "attack"


PROBED: Literal["probe"] = "probe"
"""The kind of the records of the diagnosis' own attacks. They lie beside those of the matrix, and only the diagnosis
reads them: no figure, table or comparison is taken over them."""


PROBE = "diagnosis:"
"""What the names of the diagnosis' own attacks and inspections begin with."""


WORST_CASE = "worst-case"
"""The name of a figure over all attacks of a norm; never stored, always computed."""


DTYPES: dict[str, str] = {
    "dataset": "string",  # name of the data set
    "split": "string",  # test; validation where kind is "calibration"; noise where norm is "fooling"
    "sample": "int64",  # index in the data set's split; the number of the noise image
    "input_sha256": "string",  # hash of the clean image as float32, so that two runs can be matched by input
    "label": "int64",  # true class; −1 for noise, which has none
    "kind": "string",  # clean, calibration, attack, probe
    "aim": "int64",  # class that the attack was to make of it, −1 where it was free to choose
    "defense": "string",  # label of the defense with its parameters, unique in a run
    "attack": "string",  # label of the attack with its parameters, unique in a run together with the norm
    "norm": "string",  # linf, l2, l0, unrestricted, fooling; "none" where kind is "clean" or "calibration"
    "eps": "float64",  # perturbation size that was allowed; 0 for clean answers, inf where there is none
    "seed": "int64",  # seed of the attack
    "protocol": "string",  # deterministic, or how a randomized defense was judged: single-shot, worst-of-5
    "clean_label": "int64",  # class that the defense named for the clean input, also where it rejected it
    "clean_rejected": "bool",  # whether it rejected the clean input
    "clean_score": "float64",  # how suspicious it looked, larger is more so; > 0 exactly where a rejecting defense
    # rejects (up to rounding); NaN where the defense doesn't say
    "adv_label": "int64",  # as clean_label, of what was judged
    "adv_rejected": "bool",  # as clean_rejected, of what was judged
    "adv_score": "float64",  # as clean_score, of what was judged
    "linf": "float64",  # distance in L∞ of what was judged at this ε, measured by the harness
    "l2": "float64",  # the same in L2
    "l0": "float64",  # the same in L0: number of changed pixels
    "distance": "float64",  # smallest distance, in the cell's norm, at which the attack beat this input in its whole
    # ε ladder: 0 where the clean answer is a success already, inf where there was none
    "valid": "bool",  # the attack's output was finite, in the box and within ε
    "success": "bool",  # valid, accepted and wrong, whatever the aim; of noise: valid, accepted, and as the aim if any
    "forwards": "float64",  # forward passes that this input cost in this cell
    "backwards": "float64",  # backward passes that it cost
    "unreturned": "bool",  # what was judged is a point that the attack met on a query and did not return, or its output
    # rounded to whole grey levels
    "blind": "float64",  # before its first success: share of its gradients that were exactly zero or not finite; NaN
    # where the attack asked for none
    "moved": "bool",  # some query, or the output, was another image than the input; true where it was not attacked
    "improved": "bool",  # some query with scores came nearer to success than the first; true with fewer than two
    "seconds": "float64",  # share of the cell's wall time
    "status": "string",  # ok, failed, skipped
    "reason": "string",  # why it failed or was skipped; empty where ok
}
"""One row per input, cell and ε; one for each class aimed at, where the attack aims. A failed or skipped cell has its
rows too, with the columns from clean_label to backwards at their zero values (scores: NaN): they mean nothing there
and no figure may read them.

An output that is not valid is judged as the clean input in its place: its answer and score are the clean ones, the
distances are those of what the attack returned, and it is never a success.
A minimal-distance attack's row at an ε below the distance it found holds the clean input (distances 0).
"""


IMAGE_COLUMNS = ("image_original", "image_adversarial", "image_seen")
"""Images [C,H,W] as bytes for the first few samples of a cell, null elsewhere; the shape is in the file's metadata.

`original` and `adversarial` are the float32 images themselves, pixels spanning 0 to 1, so that their difference is the
perturbation. `seen` is what the defense made of the adversarial image, its projection or reconstruction, in uint8
pixels. Older records hold uint8 pixels in all three; the number of bytes tells the two apart."""


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every column of the schema in its type and order; image columns stay behind them."""
    images = [column for column in IMAGE_COLUMNS if column in frame]
    return frame[[*DTYPES, *images]].astype(DTYPES)


def as_stored(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of a frame that was read, in order; raises ValueError where one is missing or of another type."""
    for column, kind in DTYPES.items():
        if column not in frame:
            raise ValueError(f"column {column}: missing")
        if frame.dtypes[column] != kind:
            raise ValueError(f"column {column}: {frame.dtypes[column]}, not {kind}")
    images = [column for column in IMAGE_COLUMNS if column in frame]
    if 0 < len(images) < len(IMAGE_COLUMNS):
        raise ValueError(f"columns of images: only {', '.join(images)}")
    return frame[[*DTYPES, *images]]


def protocol(randomized: bool, draws: int) -> str:
    """How answers were asked for, as it stands in the records."""
    if not randomized:
        return "deterministic"
    return "single-shot" if draws == 1 else f"worst-of-{draws}"


NORMS = ("linf", "l2", "l0", "unrestricted", "fooling", "none")

KINDS = (CLEAN, CALIBRATION, ATTACK, PROBED)

STATUSES = ("ok", "failed", "skipped")

ROUNDING = 1e-5
"""By what share, and by how much, a stored distance may exceed ε; `attacks.threat.within` allows no more."""


class Contradiction(NamedTuple):
    """A row that no harness can have written. row: its position. fault: what is wrong with it."""

    row: int
    fault: str


def contradiction(rows: pd.DataFrame) -> Contradiction | None:
    """The first row, if any, that cannot be what a run wrote.

    Refused are values outside their column's range, texts that could steer a terminal, kinds and norms that exclude
    each other and, of rows that are ok: a valid output farther away than ε, an unchanged input with another answer (of
    a deterministic defense), and a success that is not what valid, accepted and wrong make it.
    """
    for fault, found in _faults(rows):
        if found.any():
            row = int(found.to_numpy().argmax())
            return Contradiction(row, f"sample {rows['sample'].iloc[row]} under {rows['attack'].iloc[row]!r}: {fault}")
    return None


def _faults(rows: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    texts = [column for column, kind in DTYPES.items() if kind == "string" and column != "reason"]
    for column in (*texts, "reason"):
        values = rows[column].unique()
        # a reason may quote an exception with any characters: whoever shows it escapes them
        bad = [value for value in values if pd.isna(value) or (column in texts and not is_printable(value))]
        if bad:
            yield f"{column} is missing or holds control characters", rows[column].isin(bad) | rows[column].isna()
    known = {"status": STATUSES, "kind": KINDS, "norm": NORMS}
    for column, allowed in known.items():
        yield f"{column} is none of {', '.join(allowed)}", ~rows[column].isin(allowed)
    unperturbed = rows["kind"].isin([CLEAN, CALIBRATION])
    probed = rows["kind"] == PROBED
    yield "kind and norm exclude each other", unperturbed != (rows["norm"] == "none")
    yield "kind and ε exclude each other", unperturbed != (rows["eps"] == 0)
    yield (
        "kind and attack exclude each other",
        (
            (unperturbed & (rows["attack"] != rows["kind"]))
            | (~unperturbed & rows["attack"].isin([CLEAN, CALIBRATION, WORST_CASE]))
            | (rows["attack"].str.startswith(PROBE) != probed)
        ),
    )
    for column in ("eps", "linf", "l2", "l0", "distance", "forwards", "backwards", "seconds"):
        yield f"{column} is negative or no number", ~(rows[column] >= 0)
    for column in ("forwards", "backwards", "seconds"):
        yield f"{column} is infinite", rows[column] == float("inf")
    ok, noise = rows["status"] == "ok", rows["norm"] == "fooling"
    size = rows["l2"].mask(rows["norm"] == "linf", rows["linf"]).mask(rows["norm"] == "l0", rows["l0"])
    yield "valid, but farther away than ε", ok & rows["valid"] & (size > rows["eps"] * (1 + ROUNDING) + ROUNDING)
    unchanged = (rows["linf"] == 0) & (rows["l2"] == 0) & (rows["l0"] == 0) & (rows["protocol"] == "deterministic")
    differs = (rows["clean_label"] != rows["adv_label"]) | (rows["clean_rejected"] != rows["adv_rejected"])
    yield "the input is unchanged, but has another answer", ok & unchanged & differs
    as_aimed = ~noise | (rows["aim"] < 0) | (rows["aim"] == rows["adv_label"])
    beaten = rows["valid"] & ~rows["adv_rejected"] & (rows["adv_label"] != rows["label"]) & as_aimed
    yield "success is not what valid, accepted and wrong make it", ok & (rows["success"] != beaten)
