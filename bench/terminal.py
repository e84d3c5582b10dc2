"""What commands show on a terminal: every text of a report passes here, and none of it can steer the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from manifold_bench.bench.text import is_printable, printable


class Terminal(Console):
    """A console that writes control characters as escapes, those of labels, names and messages of any origin."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text.rstrip("\n")
            if segment.control or is_printable(text):
                yield segment
            else:
                lines = "\n".join(map(printable, text.split("\n")))
                yield Segment(lines + segment.text[len(text) :], segment.style)
