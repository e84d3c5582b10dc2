"""The style of plots: colours, line styles, legends, and new figures."""

from __future__ import annotations

import io
import textwrap
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that people with any kind of colour vision can distinguish (Okabe and Ito 2008), without the pale yellow."""

COLOURED = len(OKABE_ITO) - 1
"""Number of these colours without black."""

COLOURS = colormaps["viridis"]
"""Colour map of heat maps: perceptually uniform, also in grey and for people with any kind of colour vision."""

Style = dict[str, Any]
"""Keyword arguments of matplotlib's functions, which say how something looks."""

LINE_STYLES = ("-", "--", ":")

REFERENCE = "undefended"
"""Label of the defense that plots show as the reference, grey and dashed."""

PLACES = (
    *("pgd-training", "gmvae", "inc", "magnet", "defense-gan", "trades"),  # the first six have colours of their own
    *("enhanced-inc", "abs", "feature-squeezing", "smoothing", "auxiliary-detector", "interval-training"),
    *("purifier", "distillation", "pixel-defend", "inc-dip", "flow-gmm", "fgsm-training", "pretrained", "art"),
)
"""Labels of registered defenses, whose place decides their colour, dashes and marker; new ones come last."""

WIDTH, HEIGHT = 4.0, 3.2
"""Width and height in inches of a plot without its legend: readable on a phone, which shows it at its full width."""


TITLE = 52
"""Number of characters of a title that fit above a plot."""


MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[Any, Any] = {  # matplotlib has a type of its own for the keys
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.titley": 1.0,  # nothing else is above the axes, so matplotlib need not search for a free place
    "svg.hashsalt": "manifold-bench",  # so that the same records give the same file
}


def shade(share: float) -> tuple[str, str]:
    """Return the colour of a share in [0, 1] in a heat map, and that of text on it: black or white, both as #rrggbb.

    The text has the one with the higher contrast as WCAG 2 defines it.
    """
    colour = COLOURS(share)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return to_hex(colour), "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def line_style(number: int) -> Style:
    """Return colour, dashes and marker of the line with that number, counted from 0; the first 126 all differ.

    None is black, which is the colour of what the user named.
    """
    turn, colour = divmod(number, COLOURED)
    return {
        "color": OKABE_ITO[colour],
        "ls": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[(colour + turn) % len(MARKERS)],
    }


def defense_styles(defenses: Iterable[str], own: Collection[str] = ()) -> dict[str, Style]:
    """Return colour, dashes and marker of the line of each defense, which depend on its name and not on the others.

    own: the defenses that the user named. They are black, unless they are registered, and come first, so that they are
    bold and do not hide others. `undefended` is grey. A defense that is not registered has a place that follows from
    its label; where its colour is taken, it has the next free one.
    """
    named, others = sorted({*defenses} & {*own}), sorted({*defenses} - {*own})
    found: dict[str, Style] = {}
    places = {name: PLACES.index(name) for name in (*named, *others) if name in PLACES}
    black = 0
    for name in (*named, *others):
        if name == REFERENCE:
            found[name] = {"color": "#767676", "ls": "--", "marker": "o"}
        elif name in named and name not in places:
            marker, dashes = MARKERS[black % len(MARKERS)], LINE_STYLES[black % len(LINE_STYLES)]
            found[name] = {"color": OKABE_ITO[-1], "ls": dashes, "marker": marker}
            black += 1
        else:
            place = places.setdefault(name, _free_place(name, places.values()))
            found[name] = line_style(place)
    return found


def _free_place(label: str, taken: Collection[int]) -> int:
    """Return the place of a defense that is not registered: one of a colour that is not taken, if there is any."""
    colours = {place % COLOURED for place in taken}
    place = len(PLACES) + zlib.crc32(label.encode(errors="replace")) % COLOURED
    while place in taken or (place % COLOURED in colours and len(colours) < COLOURED):
        place += 1
    return place


def legend_below(axes: Axes, title: str | None = None, gap: float = 0.5) -> None:
    """Draw the legend below a plot, where it covers nothing and leaves the whole width of a small screen to the plot.

    gap: distance from the axes in inches, which leaves room for the labels of the x axis.
    """
    handles, labels = axes.get_legend_handles_labels()
    below = axes.transAxes + ScaledTranslation(0, -gap, axes.figure.dpi_scale_trans)
    placement: Style = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below}
    look: Style = {"borderaxespad": 0, "frameon": False, "ncols": _columns(labels), "handlelength": 2.8}
    legend = axes.legend(handles, list(map(wrapped, labels)), title=title and wrapped(title), **placement | look)
    legend.set_alignment("left")


def wrapped(label: str) -> str:
    """Break the lines of a label after 36 characters, so that it leaves room for the plot."""
    return "\n".join(textwrap.fill(line, 36) for line in label.split("\n"))


def _columns(labels: Sequence[str]) -> int:
    return 2 if max((len(line) for label in labels for line in label.split("\n")), default=0) <= 19 else 1


def legend_height(labels: Iterable[object]) -> float:
    """Return the height in inches of the legend that `legend_below` draws of these labels under a title."""
    texts = list(map(str, labels))
    heights = [0.07 + 0.15 * len(wrapped(text).splitlines()) for text in texts]
    return 0.4 + sum(heights) / _columns(texts)


def titled(axes: Axes, title: str) -> None:
    """Write the title above a plot, in several lines where it is wider than the plot."""
    axes.set_title(textwrap.fill(title, TITLE), loc="left", fontsize=9)


def weights(lines: int) -> np.ndarray:
    """Return factors of line width, [lines]: the first lines are the widest, so that they show beneath later ones."""
    return np.linspace(1 + 0.25 * min(lines - 1, 4), 1, lines)


def folded(label: str) -> str:
    """Break a label of 20 characters or more before its parameters in parentheses."""
    name, bracket, parameters = label.partition("(")
    return label if len(label) < 20 or not bracket else f"{name}\n({parameters}"


class Plot(NamedTuple):
    """A plot. name: parts of its file's name. section: that of report.html which shows it; "" for none."""

    name: tuple[str, ...]
    figure: Figure
    section: str = ""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches, and the axes of the one plot in it."""
    figure = blank_figure(width, height)
    return figure, figure.subplots()


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches.

    It is not registered with pyplot, so it needs no display and need not be closed.
    """
    figure = Drawing(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


class Drawing(Figure):
    """A figure that a notebook displays, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()
