"""The images of a page: small PNG files inside it, each stored once however often it is shown."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow


@dataclass(frozen=True)
class Image:
    """A reference to a stored image, and what it shows in words."""

    id: str
    alt: str


class Images:
    """Stored images: data URIs by id."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self._ids: dict[tuple[tuple[int, ...], bytes], str] = {}

    def add(self, image: np.ndarray, alt: str) -> Image:
        """image: uint8 [H,W] or [H,W,3]."""
        key = (image.shape, image.tobytes())
        if key not in self._ids:
            self._ids[key] = f"i{len(self._ids)}"
            self.stored[self._ids[key]] = png(image)
        return Image(self._ids[key], alt)

    @property
    def size(self) -> int:
        """Characters of all that is stored."""
        return sum(map(len, self.stored.values()))


def png(image: np.ndarray) -> str:
    """A data URI of uint8 [H,W] or [H,W,3]."""
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
