"""The images inside report.html: small PNG files, each stored once, however often it is shown."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow


@dataclass(frozen=True)
class Image:
    """A reference to a stored image. id: of its element in the page; alt: description for screen readers."""

    id: str
    alt: str


class Images:
    """The images of a page. stored: id → data URI."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self._ids: dict[tuple[tuple[int, ...], bytes], str] = {}

    def add(self, image: np.ndarray, alt: str) -> Image:
        """Store an image, uint8 [H,W] or [H,W,3], unless it is stored already, and return a reference to it."""
        key = (image.shape, image.tobytes())
        if key not in self._ids:
            self._ids[key] = f"i{len(self._ids)}"
            self.stored[self._ids[key]] = png(image)
        return Image(self._ids[key], alt)

    @property
    def size(self) -> int:
        """Number of characters of all stored images."""
        return sum(map(len, self.stored.values()))


def png(image: np.ndarray) -> str:
    """Return an image, uint8 [H,W] or [H,W,3], as the data URI of a PNG file."""
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
