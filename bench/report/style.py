"""How plots look: colours, line styles, and figures outside pyplot's registry."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
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
    "text.parse_math": False,  # a label with dollars is no formula
    "svg.hashsalt": "manifold-bench",  # the same records give the same file
}


def shade(share: float) -> tuple[str, str]:
    """The colour of a share in a heat map, and black or white, whichever reads better on it (contrast as in WCAG 2)."""
    colour = colormaps[COLOURS](share)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return to_hex(colour), "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of a plot's lines, so that the first 21 look different."""
    turn = number // len(OKABE_ITO)
    return {
        "color": OKABE_ITO[number % len(OKABE_ITO)],
        "ls": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
    }


def legend_beside(axes: Axes, title: str | None = None, **style: Any) -> None:
    """The legend to the right of a plot, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False, title=title, **style)


def weights(lines: int) -> np.ndarray:
    """How much bolder each of so many lines is: what lies beneath another shows at its edges."""
    return np.linspace(1 + 0.25 * min(lines - 1, 4), 1, lines)


def folded(label: str) -> str:
    """A long label on several lines, broken before its parameters."""
    name, bracket, parameters = label.partition("(")
    return label if len(label) < 20 or not bracket else f"{name}\n({parameters}"


class Plot(NamedTuple):
    """A plot. name: parts of its files' name. section: of report.html, where it is shown there."""

    name: tuple[str, ...]
    figure: Figure
    section: str = ""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches with one plot in it."""
    figure = blank_figure(width, height)
    return figure, figure.subplots()


def blank_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, outside pyplot's registry: nothing has to be closed, no display is asked for."""
    figure = Drawing(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Drawing(Figure):
    """A figure that shows itself in a notebook, where pyplot shows only its own."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()
