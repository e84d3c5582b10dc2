"""How plots look: colours, line styles, and figures outside pyplot's registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that every kind of colour vision tells apart (Okabe and Ito 2008), without the yellow that white swallows."""


COLOURS = "viridis"
"""Of heat maps: even to every kind of colour vision, and in grey."""


LINE_STYLES = ("-", "--", ":")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.bbox": "tight",
    "svg.hashsalt": "manifold-bench",  # the same records give the same file
}


def shade(share: float) -> tuple[str, str]:
    """The colour of a share in a heat map, and black or white, whichever reads better on it (contrast as in WCAG 2)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colour = colormaps[COLOURS](share)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return to_hex(colour), "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def weights(lines: int) -> np.ndarray:
    """How much bolder each of so many lines is: what lies beneath another shows at its edges."""
    return np.linspace(1 + 0.25 * min(lines - 1, 4), 1, lines)


def folded(label: str) -> str:
    """A long label on several lines, broken before its parameters."""
    name, bracket, parameters = label.partition("(")
    return label if len(label) < 20 or not bracket else f"{name}\n({parameters}"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches with one plot in it."""
    figure = blank_figure(width, height)
    return figure, figure.subplots()


def blank_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, outside pyplot's registry: nothing has to be closed, no display is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
