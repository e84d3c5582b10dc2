"""Prints texts and grids on a terminal, without letting them control it: labels and messages may come from anybody."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from manifold_bench.bench.text import is_printable, printable

LOG_WIDTH = 110
"""Width in columns of an output that is not a terminal, unless COLUMNS is set."""

LABEL = 18
"""Smallest width in columns that a grid keeps for its labels, if they are not shorter."""


class Terminal(Console):
    """A console that writes escapes in place of control characters in labels, names and messages."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text.rstrip("\n")
            if segment.control or is_printable(text):
                yield segment
            else:
                lines = "\n".join(map(printable, text.split("\n")))
                yield Segment(lines + segment.text[len(text) :], segment.style)


def terminal() -> Terminal:
    """Return the console of a command, as wide as the terminal or as COLUMNS > 0 says, else LOG_WIDTH columns."""
    console = Terminal()
    chosen = console.is_terminal or "COLUMNS" in os.environ
    return console if chosen and console.width > 0 else Terminal(width=LOG_WIDTH)


class Line(NamedTuple):
    """A line of a grid: a label, figures to its right, and a note below. An empty line separates groups.

    style: a style of rich, such as "bold red".
    """

    label: str = ""
    figures: Sequence[str] = ()
    note: str = ""
    style: str = ""


def print_grid(console: Console, title: str, header: Sequence[str], lines: Sequence[Line]) -> None:
    """Print figures in columns within the width of the console, without breaking a word.

    header: heads of the columns, first that of the labels. A label that is too long is printed on a line of its own
    above its figures, a note below them. Columns that do not fit are printed in a further grid below.
    """
    width = console.width
    sizes = [
        max(map(cell_len, (head, *(line.figures[i] for line in lines if line.figures))))
        for i, head in enumerate(header[1:])
    ]
    wanted = max((cell_len(line.label) for line in lines if line.figures), default=0)
    for columns in _blocks(sizes, width - min(LABEL, wanted)):
        room = min(max(wanted, cell_len(header[0])), width - sum(sizes[i] + 2 for i in columns))
        if title:
            print_text(console, title)
        heads = [_right(header[i + 1], sizes[i]) for i in columns]
        print_text(console, "".join([_left(header[0], room), *heads]))
        print_text(console, "─" * (room + sum(sizes[i] + 2 for i in columns)))
        for line in lines:
            figures = [_right(line.figures[i], sizes[i]) for i in columns] if line.figures else []
            label = line.label
            if figures and cell_len(label) > room:
                print_text(console, label, line.style)
                label = ""
            print_text(console, "".join([_left(label, room), *figures]), line.style)
            if line.note:
                print_text(console, line.note, line.style, indent="    ")
        console.print()


def print_text(console: Console, text: str, style: str = "", indent: str = "") -> None:
    """Print a text within the width of the console, broken only between words; all its lines keep its indentation."""
    indent += " " * (len(text) - len(text.lstrip()))
    for part in text.splitlines() or [""]:
        for line in _wrapped(part.strip(), console.width, indent):
            console.print(Text(line, style=style), soft_wrap=True)


def print_line(console: Console, line: str) -> None:
    """Print a line: wrapped between words on a terminal, as one line elsewhere."""
    if console.is_terminal:
        print_text(console, line)
    else:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    if cell_len(indent + text) <= width:
        return [indent + text if text else ""]
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _blocks(sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield the numbers of the columns that fit next to each other; every block has at least one.

    sizes: width of each column. room: width of a block.
    """
    block: list[int] = []
    left = room
    for number, size in enumerate(sizes):
        if block and size + 2 > left:
            yield block
            block, left = [], room
        block.append(number)
        left -= size + 2
    yield block


def _left(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _right(text: str, width: int) -> str:
    return " " * (2 + width - cell_len(text)) + text
