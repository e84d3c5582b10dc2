"""The schema of the per-input records, from which every figure is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from manifold_bench.bench.text import is_printable
from manifold_bench.defenses.identity import JsonObject

REVISION = 5
"""Revision of the schema below and of the rules by which outputs are judged. It is part of every job's identity, so
that records of another revision are not used."""

Kind = Literal["clean", "calibration", "attack", "probe"]
"""Kind of a row: an unperturbed test input, an unperturbed calibration input, an attacked input, or an input attacked
by one of the diagnosis' own attacks."""

Row = Mapping[Any, Any]
"""A row of records or of a table, as pandas returns it: column → value."""

CLEAN: Literal["clean"] = "clean"
"""Kind of rows with answers to unperturbed test inputs, and their name in the column `attack`; norm "none", ε = 0."""

UNSTEADY = "its answers "
"""Beginning of the remark, in the `reason` of a clean pass, that answers change although the input does not."""

UNDECLARED = f"{UNSTEADY}to the same images differ from call to call"
"""Beginning of the remark that a defense is randomized and does not say so."""

DIVERTED = f"{UNSTEADY}differ "
"""Beginning of the remark that attacks climb another model than the one that is judged."""

GUESSES = "as guesses are"
"""Part of the remark that a defense's answers to clean images are no better than guesses."""

CALIBRATION: Literal["calibration"] = "calibration"
"""Kind of rows with answers to unperturbed validation images, and their name in the column `attack`; norm and ε as for
CLEAN. Thresholds that a figure needs are set on these, never on test images."""

ATTACK: Literal["attack"] = "attack"

STORED = "StoredImages"
"""Name, in identities, of the attack that returns images made elsewhere, which the command `judge` reads from files."""

PROBED: Literal["probe"] = "probe"
"""Kind of the records of the diagnosis' own attacks. Only the diagnosis uses them; figures, tables and comparisons do
not."""

PROBE = "diagnosis:"
"""Prefix of the names of the diagnosis' own attacks and inspections."""


LARGE = (0.5, 1.0)
"""L∞ sizes of one of the diagnosis' attacks, at which no defense can be robust: every image can become grey, or any
other image."""


GIVEN = "data"
"""Name of a data set that a Python program handed over without a name."""


WORST_CASE = "worst-case"
"""Name of the worst case over all attacks of a norm, which is always computed and never stored."""

DTYPES: dict[str, str] = {
    "dataset": "string",  # name of the data set
    "split": "string",  # test; validation where kind is "calibration"; noise where norm is "fooling"
    "sample": "int64",  # index in the data set's split; for noise the number of the image
    "input_sha256": "string",  # hash of the clean image as float32, so that two runs can be matched by input
    "label": "int64",  # true class; −1 for noise, which has none
    "kind": "string",  # clean, calibration, attack, probe
    "aim": "int64",  # target class of the attack, −1 for an untargeted attack
    "defense": "string",  # label of the defense with its parameters, unique in a run
    "attack": "string",  # label of the attack with its parameters, unique in a run together with the norm
    "norm": "string",  # linf, l2, l1, l0, unrestricted, fooling; "none" where kind is "clean" or "calibration"
    "eps": "float64",  # perturbation size that was allowed; 0 for clean answers, inf where there is none
    "seed": "int64",  # seed of the attack
    "protocol": "string",  # deterministic, or how a randomized defense was judged: single-shot, worst-of-5
    "clean_label": "int64",  # the defense's answer to the clean input, also where it is rejected
    "clean_rejected": "bool",  # whether the defense rejected the clean input
    "clean_score": "float64",  # how suspicious the input looks to the defense, larger is more so; > 0 exactly where a
    # rejecting defense rejects (up to rounding); NaN where the defense gives no score
    "adv_label": "int64",  # as clean_label, for the judged output
    "adv_rejected": "bool",  # as clean_rejected, for the judged output
    "adv_score": "float64",  # as clean_score, for the judged output
    "linf": "float64",  # L∞ distance of the output at this ε from the input, as the benchmark measures it
    "l2": "float64",  # L2 distance of the output from the input
    "l1": "float64",  # L1 distance of the output from the input; NaN in records from before this column
    "l0": "float64",  # L0 distance of the output from the input: number of changed pixels
    "distance": "float64",  # smallest distance, in the cell's norm, at which the attack beat this input at any ε: 0
    # where the clean answer is a success already, inf where the attack never beat it
    "valid": "bool",  # the attack's output was finite, in the box and within ε
    "success": "bool",  # valid, accepted and wrong (for any target class); noise: accepted (as the target class)
    "forwards": "float64",  # number of forward passes for this input in this cell
    "backwards": "float64",  # number of backward passes
    "unreturned": "bool",  # the judged image is one that the attack queried but did not return, or its output
    # rounded to whole grey levels
    "blind": "float64",  # share of the gradients before the first success that were exactly zero or not finite; NaN
    # where the attack computed none
    "moved": "bool",  # a query or the output differed from the input; true for an input that was not attacked
    "improved": "bool",  # a query with scores came nearer to success than the first; true for fewer than two queries
    "seconds": "float64",  # share of the cell's wall time
    "status": "string",  # ok, failed, skipped
    "reason": "string",  # why it failed or was skipped; empty where ok
}
"""Column → type. There is a row for each input, cell and ε, and for each target class of a targeted attack.

A failed or skipped cell has rows, too; their columns from clean_label to backwards are zero (scores: NaN), have no
meaning, and must not be used in figures. An output that is not valid is never a success; it is judged as the clean
input, so answer and score are the clean ones, while the distances are those of the returned output. For a
minimal-distance attack, a row at an ε below the distance that it found holds the clean input (distances 0).
"""

ANSWERS: dict[str, str] = {
    "answers": "int64",  # number n of answers to the judged output; in clean rows to the input
    "answers_right": "int64",  # number of these that are accepted and right
    "answers_wrong": "int64",  # number of these that are accepted and wrong, or for noise successes as in `success`
    "first_answer": "int64",  # class that the first answer names, −1 for a rejection
    "majority_answer": "int64",  # class that most answers name, −1 for a rejection; of several the one named first
}
"""Column → type, for columns that the records of randomized defenses have too.

The figures of four protocols follow from them (`metrics.protocols`). Where an output is not valid, they are about the
clean input. Cells that failed or were skipped, and records of earlier versions, do not have these columns.
"""

ADDED = ("l1",)
"""Columns of DTYPES that older records of the same revision do not have. They are read as NaN, and nothing that such
records are about depends on them."""

COUNTING = 1
"""Revision of the columns ANSWERS, and of the rule that an input is attacked until every answer is a success. It is
part of the identity of a randomized defense's jobs alone."""

IMAGE_COLUMNS = ("image_original", "image_adversarial", "image_seen")
"""Columns with images [C,H,W] as bytes, for the first samples of a cell, null elsewhere; the shape is in the metadata.

`original` and `adversarial` are float32 images with pixels in [0, 1], so that their difference is the perturbation.
`seen` is the defense's projection or reconstruction of the adversarial image in uint8 pixels. Older records hold uint8
pixels in all three; the number of bytes shows which it is."""


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with the columns of the schema in their types and order, then those that not all records have."""
    answers = {column: kind for column, kind in ANSWERS.items() if column in frame and frame[column].notna().all()}
    images = [column for column in IMAGE_COLUMNS if column in frame]
    return frame[[*DTYPES, *answers, *images]].astype(DTYPES | answers)


STORED_AS = {
    "string": (pa.large_string(), pa.string()),
    "int64": (pa.int64(),),
    "float64": (pa.float64(),),
    "bool": (pa.bool_(),),
}
"""Type of a column → the types that it may have in a file."""


def as_stored(table: pa.Table) -> pa.Table:
    """Return the columns of a stored table in order; raises ValueError where one is missing or has another type.

    Columns that were added later (`ADDED`) may be missing.
    """
    found = dict(zip(table.column_names, table.schema.types, strict=True))
    for column in (one for one in ADDED if one not in found):
        table, found[column] = table.append_column(column, pa.array(np.full(len(table), np.nan))), pa.float64()
    answers = ANSWERS if any(column in found for column in ANSWERS) else {}
    for column, kind in (DTYPES | answers).items():
        if column not in found:
            raise ValueError(f"column {column}: missing")
        if found[column] not in STORED_AS[kind]:
            raise ValueError(f"column {column}: {found[column]}, not {kind}")
        if kind in ("int64", "bool") and table[column].null_count:
            raise ValueError(f"column {column}: a value is missing")
    images = [column for column in IMAGE_COLUMNS if column in found]
    if 0 < len(images) < len(IMAGE_COLUMNS):
        raise ValueError(f"columns of images: only {', '.join(images)} of {', '.join(IMAGE_COLUMNS)}")
    if images and table[images[0]].is_valid() != table[images[1]].is_valid():
        raise ValueError("columns of images: an original without its adversarial image, or the other way round")
    return table.select([*DTYPES, *answers, *images])


def as_frame(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Return the rows of several tables, one below the other, with the types of the schema.

    Columns that not all tables have (`ANSWERS`, `IMAGE_COLUMNS`) have missing values in the rows of the others.
    """
    table = pa.concat_tables(tables, promote_options="permissive")
    texts = dict.fromkeys(STORED_AS["string"], pd.StringDtype())
    return table.to_pandas(types_mapper=texts.get, ignore_metadata=True)


def protocol(randomized: bool, draws: int) -> str:
    """Return the value of the column `protocol`. draws: number of answers of a randomized defense to each input."""
    if not randomized:
        return "deterministic"
    return "single-shot" if draws == 1 else f"worst-of-{draws}"


DISTANCES = ("linf", "l2", "l1", "l0")
"""Columns with distances; a norm with ε has the name of its column."""

NORMS = (*DISTANCES, "unrestricted", "fooling", "none")

KINDS = (CLEAN, CALIBRATION, ATTACK, PROBED)

STATUSES = ("ok", "failed", "skipped")

OF_A_JOB = ("dataset", "split", "kind", "defense", "attack", "norm", "seed", "protocol")
"""Columns that have one value in all rows of a job."""

ROUNDING = 1e-5
"""Relative and absolute tolerance by which a stored distance may exceed ε, at least that of `attacks.threat.within`."""


def identity_mismatch(rows: pa.Table, identity: JsonObject) -> str | None:
    """Return how the rows of a file differ from those of the job with that identity; None where they do not.

    They have to be about its split, defense, attack, norm, seed and protocol, and to hold each of its inputs (with each
    target class) once for each of its ε.
    """
    dataset = identity["dataset"]
    own = {name: identity[name] for name in ("norm", "seed", "protocol")}
    own |= {name: identity[name]["label"] for name in ("defense", "attack")}
    own["split"] = dataset["split"]
    for column, value in own.items():
        if rows[column].unique().to_pylist() != [value]:
            return f"column {column}: not {value!r}, as in its identity"
    sizes, size = np.unique(rows["eps"].to_numpy(), return_inverse=True)
    if set(sizes) != {float(eps) for eps in identity["eps"]}:
        return "column eps: not the sizes in its identity"
    samples, sample = np.unique(rows["sample"].to_numpy(), return_inverse=True)
    place = size * len(samples) + sample
    aims = np.bincount(place, minlength=len(sizes) * len(samples))
    if ((aims.reshape(len(sizes), -1) > 0).sum(1) != dataset["n"]).any():
        return f"column sample: not {dataset['n']} inputs for each ε, as in its identity"
    classes, aim = np.unique(rows["aim"].to_numpy(), return_inverse=True)
    if len(set(aims[aims > 0])) > 1 or len(np.unique(place * len(classes) + aim)) < len(rows):
        return "column aim: a target class of an input is missing or there twice"
    return None


class Contradiction(NamedTuple):
    """A row that contradicts itself, so that no run can have written it. row: its position. fault: what is wrong."""

    row: int
    fault: str


def contradiction(rows: pd.DataFrame) -> Contradiction | None:
    """Return a row that no run can have written, with what is wrong with it; None where there is none.

    rows: those of one job, or of several jobs with a column `key`. Faults are values outside their column's range,
    texts with control characters, kinds and norms that exclude each other, rows of a job that differ in a column of
    `OF_A_JOB`, and an input with different images or labels. Rows that are ok must not have a valid output farther away
    than ε, a smallest distance that contradicts the successes or the answer to the clean input, another answer to an
    unchanged input (of a deterministic defense), or a success that does not follow from their other columns.
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
        # a reason may quote an exception with any characters, which are escaped when it is shown
        bad = [value for value in values if pd.isna(value) or (column in texts and not is_printable(value))]
        if bad:
            yield f"{column} is missing or holds control characters", rows[column].isin(bad) | rows[column].isna()
    known = {"status": STATUSES, "kind": KINDS, "norm": NORMS}
    for column, allowed in known.items():
        yield f"{column} is not one of {', '.join(allowed)}", ~rows[column].isin(allowed)
    job, _ = pd.factorize(rows["key"] if "key" in rows else np.zeros(len(rows)))
    first = np.unique(job, return_index=True)[1][job]
    for column in OF_A_JOB:
        values = rows[column].to_numpy()
        yield f"{column} differs within one job", pd.Series(values != values[first], rows.index)
    unperturbed = rows["kind"].isin([CLEAN, CALIBRATION])
    probed = rows["kind"] == PROBED
    place = [rows["dataset"], rows["split"], rows["sample"], rows["seed"].where(rows["split"] == "noise", 0)]
    inputs = rows[["input_sha256", "label"]]
    yield "another image or label than in other rows of this input", _differ(inputs, place)
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
    for column in ("eps", *DISTANCES, "distance", "forwards", "backwards", "seconds"):
        unknown = rows[column].isna() & (rows["norm"] != "l1") if column in ADDED else False
        yield f"{column} is negative or not a number", ~((rows[column] >= 0) | unknown)
    for column in ("forwards", "backwards", "seconds"):
        yield f"{column} is infinite", rows[column] == float("inf")
    ok, noise = rows["status"] == "ok", rows["norm"] == "fooling"
    size = rows["l2"]
    for norm in DISTANCES:
        size = size.mask(rows["norm"] == norm, rows[norm])
    yield "valid, but farther away than ε", ok & rows["valid"] & (size > rows["eps"] * (1 + ROUNDING) + ROUNDING)
    yield "some of its distances are 0 and others are not", ok & _some_zero(rows)
    distance, deterministic = rows["distance"], rows["protocol"] == "deterministic"
    reached = rows["success"] & ok & ~unperturbed
    yield "distance is larger than that of its success", reached & (distance > size * (1 + ROUNDING) + ROUNDING)
    wrong = ~rows["clean_rejected"] & (rows["clean_label"] != rows["label"])
    yield "distance is 0, but the input is not wrong when clean", ok & deterministic & ~noise & (distance == 0) & ~wrong
    yield "distance is within ε, but nothing succeeded", ok & _unexplained(rows, job)
    unchanged = (rows["linf"] == 0) & (rows["l2"] == 0) & (rows["l0"] == 0) & (rows["protocol"] == "deterministic")
    differs = (rows["clean_label"] != rows["adv_label"]) | (rows["clean_rejected"] != rows["adv_rejected"])
    yield "the input is unchanged, but has another answer", ok & unchanged & differs
    as_aimed = ~noise | (rows["aim"] < 0) | (rows["aim"] == rows["adv_label"])
    beaten = rows["valid"] & ~rows["adv_rejected"] & (rows["adv_label"] != rows["label"]) & as_aimed
    yield "success contradicts valid, adv_rejected and adv_label", ok & (rows["success"] != beaten)
    if "answers" in rows:
        counted, right, wrong = (rows[name] for name in ("answers", "answers_right", "answers_wrong"))
        impossible = (right < 0) | (wrong < 0) | (right + wrong > counted)
        impossible |= rows["valid"] & (rows["success"] != (wrong > 0))
        yield "the numbers of answers contradict each other or success", ok & counted.notna() & impossible


def _some_zero(rows: pd.DataFrame) -> pd.Series:
    """Return for each row whether it has a distance of 0 and another one that is larger; l1 may be missing."""
    known = rows[list(DISTANCES)]
    return (known == 0).any(axis=1) & (known > 0).any(axis=1)


def _unexplained(rows: pd.DataFrame, job: np.ndarray) -> pd.Series:
    """Return for each row whether its distance is within ε although its input fell at no ε. job: number of its job.

    Without a ladder an input may fall at a small ε alone, so that other rows of the input have to be looked at.
    """
    distance = rows["distance"]  # 0 where the input is wrong when clean, whatever an attack without a ladder does to it
    within = (distance > 0) & (distance < rows["eps"] * (1 - ROUNDING)) & ~rows["success"]
    if not within.any():
        return within
    return within & ~rows["success"].groupby([job, rows["sample"], rows["aim"]]).transform("any")


def _differ(values: pd.DataFrame, groups: list[pd.Series]) -> pd.Series:
    """Return for each row whether its values differ from those of the first row of its group."""
    first = values.groupby(groups, sort=False, dropna=False).transform("first")
    return (values != first).any(axis=1)
