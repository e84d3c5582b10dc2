"""The table of randomized defenses: a single answer, the mean over answers, the worst and the majority of n."""

from __future__ import annotations

import numpy as np
import pandas as pd

from manifold_bench.bench.metrics.protocols import PROTOCOLS
from manifold_bench.bench.records.schema import CLEAN, WORST_CASE
from manifold_bench.bench.report.order import by_norm
from manifold_bench.bench.report.table import Table
from manifold_bench.bench.report.tables import Doubts, Marks, rows_by
from manifold_bench.bench.text import NOT_RUN, eps_text, norm_text

LEGEND = (
    "Percent of inputs, with 95 % Wilson intervals, which are conservative for the mean. Single: the first of n "
    "answers to each image; mean: over the n answers; worst: all n answers have to hold, as in the other tables; "
    "majority: the vote of the n answers. A clean answer holds if it is accepted and right, one under attack if it is "
    "not accepted and wrong, where a rejection counts only as far as the clean image is accepted. The attacks look for "
    "images that some answer gets wrong, so single, mean and majority are upper bounds. † some outputs invalid; ‖ the "
    "attack stopped trying."
)


def protocol_tables(summary: pd.DataFrame, figures: pd.DataFrame, doubts: Doubts) -> list[Table]:
    """Return a table for each data set with randomized defenses: a row for each of their cells.

    summary: result of metrics.summary.summary. figures: result of metrics.protocols.protocols. doubts: result of
    `tables.doubts_of`.
    """
    made = []
    for dataset, own in figures.groupby("dataset"):
        cells = summary[(summary["dataset"] == dataset) & (summary["kind"] != WORST_CASE)]
        found, marks = rows_by(own, "defense", "attack", "norm", "eps"), Marks(cells, doubts)
        rows = []
        for cell in (cell for _, same in by_norm(cells, "defense") for cell in same.to_dict("records")):
            figure = found.get((cell["defense"], cell["attack"], cell["norm"], cell["eps"]))
            if figure is None:
                continue
            size = "" if cell["kind"] == CLEAN else f", {norm_text(cell['norm'])} ε = {eps_text(cell['eps'])}"
            answers = NOT_RUN if np.isnan(figure["answers"]) else f"{figure['answers']:.0f}"
            shown = (marks.cell({**cell, **figure}, name) for name in PROTOCOLS)
            rows.append([cell["defense"], f"{cell['attack']}{size}", str(figure["n"]), answers, *shown])
        title = f"{dataset}: randomized defenses, four protocols"
        header = ["defense", "attack", "inputs", "answers", *PROTOCOLS]
        made.append(Table((str(dataset), "randomized", "protocols"), title, header, rows, marks.notes, LEGEND))
    return made
