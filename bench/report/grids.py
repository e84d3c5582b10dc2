"""Draws grids of images: attacked inputs with what the defense saw, and the pictures of a measurement."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from manifold_bench.bench.metrics.robustness import FOOLING
from manifold_bench.bench.records.schema import IMAGE_COLUMNS
from manifold_bench.bench.report.pictures import (
    answer_text,
    difference,
    levels,
    pixels,
    shown_inputs,
    size_text,
    truth_text,
)
from manifold_bench.bench.report.style import OKABE_ITO, folded, new_figure, wrapped
from manifold_bench.bench.text import eps_text, norm_text
from manifold_bench.defenses.identity import JsonObject

NO_IMAGE = 230
"""Grey level of the square drawn where the defense makes no image, 0 to 255."""

SHOWN_INPUTS = 3
"""Number of inputs in a row of an image grid."""


def image_grid(dataset: str, rows: list[pd.DataFrame], identities: dict[str, JsonObject]) -> Figure:
    """Return a plot of attacked inputs: in each row one defense under one attack, and of each input four images.

    These are the original image, the adversarial image, their difference, and what the defense sees. rows: records of
    one cell at one ε each, only inputs with images. identities: job's key → identity, for the images' shapes. The
    captions give the true label, the defense's answer (with a cross and in orange where the attack succeeded), and the
    largest difference of a pixel, which is drawn black or white, with the factor by which it is scaled. A light grey
    square means that the defense makes no image.
    """
    sizes = [identities[cell.iloc[0]["key"]]["shape"] for cell in rows]
    high, wide = max(size[1] for size in sizes), max(size[2] for size in sizes)
    gap, row = math.ceil(0.05 * wide), math.ceil(1.45 * high)  # pixels
    group = max(math.ceil(4.4 * wide), 4 * (wide + gap))
    figure, axes = new_figure(2 + 0.75 * 4.4 * SHOWN_INPUTS, 0.4 + 0.75 * 1.45 * len(rows))
    # one large image, because hundreds of small ones are slow to draw
    canvas = np.full((row * len(rows), group * SHOWN_INPUTS, 3), 255, dtype=np.uint8)
    for i, (cell, shape) in enumerate(zip(rows, sizes, strict=True)):
        first = cell.iloc[0]
        strength = "" if first["norm"] == FOOLING else f", ε = {eps_text(first['eps'])}"
        where = f"{first['defense']}\n{folded(first['attack'])}\n{norm_text(first['norm'])}{strength}"
        axes.text(-0.15 * wide, row * i + 0.5 * high, wrapped(where), ha="right", va="center", fontsize=7.5)
        for j, record in enumerate(shown_inputs(cell, SHOWN_INPUTS)):
            original, adversarial, seen = (pixels(record[column], shape) for column in IMAGE_COLUMNS)
            assert original is not None and adversarial is not None
            change, largest = difference(original, adversarial)
            images = (levels(original), levels(adversarial), change, None if seen is None else levels(seen))
            titles = (truth_text(record), answer_text(record), size_text(largest).replace(", ", "\n"), "sees")
            for k, (title, image) in enumerate(zip(titles, images, strict=True)):
                left, top = group * j + (wide + gap) * k, row * i
                colour = OKABE_ITO[1] if k == 1 and record["success"] else "black"
                # constrained layout need not measure captions, because they lie within the axes
                look: JsonObject = {"ha": "center", "va": "bottom", "fontsize": 7, "color": colour, "in_layout": False}
                axes.text(left + 0.5 * wide, top - 0.04 * high, title, **look)
                shown = np.full(shape[1:], NO_IMAGE, dtype=np.uint8) if image is None else image
                canvas[top : top + shape[1], left : left + shape[2]] = shown if shown.ndim == 3 else shown[:, :, None]
    axes.imshow(canvas, extent=(0, canvas.shape[1], canvas.shape[0], 0), interpolation="none")
    axes.set(xlim=(0, canvas.shape[1]), ylim=(canvas.shape[0], -0.4 * high), aspect="equal")
    axes.set_axis_off()
    title = f"{dataset}: original, adversarial, difference, and what the defense saw"
    axes.set_title(title, loc="left", fontsize=9)
    return figure


def picture_grid(title: str, pixels: np.ndarray) -> Figure:
    """Return a plot of images, uint8 [rows, columns, C, H, W], side by side with a gap of one pixel."""
    rows, columns, channels, height, width = pixels.shape
    tiled = np.full((rows * (height + 1), columns * (width + 1), channels), 255, dtype=np.uint8)
    for i, j in np.ndindex(rows, columns):
        top, left = i * (height + 1), j * (width + 1)
        tiled[top : top + height, left : left + width] = pixels[i, j].transpose(1, 2, 0)
    figure, axes = new_figure(6.0, 0.4 + 6.0 * tiled.shape[0] / tiled.shape[1])
    axes.imshow(tiled.squeeze(2) if channels == 1 else tiled, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=9)
    return figure
