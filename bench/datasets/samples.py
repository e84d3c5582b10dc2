"""Twenty images each of CIFAR-10 and ImageNet, which the Foolbox package carries with their labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from manifold_bench.bench.datasets.base import OnlyTestImages, as_images
from manifold_bench.bench.errors import InputError
from manifold_bench.defenses.base import LabelledImages


class FoolboxSamples(OnlyTestImages):
    """The base of both. `prefix` is how the names of their files begin; `sha256` is that of all files together."""

    prefix: ClassVar[str]
    sha256: ClassVar[str]

    @cached_property
    def test(self) -> LabelledImages:  # type: ignore[override]
        package = find_spec("foolbox")
        assert package and package.submodule_search_locations
        folder = Path(package.submodule_search_locations[0]) / "data"
        paths = sorted(folder.glob(f"{self.prefix}_*"))
        found = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        if found != self.sha256:
            raise InputError(
                f"data set {self.name!r}: the images in {folder} are not those of Foolbox 3.3.4; "
                "install it again with `pip install --force-reinstall foolbox`"
            )
        pixels = []
        for path in paths:
            with Image.open(path) as image:
                pixels.append(np.asarray(self.fitted(image.convert("RGB"))))
        labels = np.array([int(path.stem.rpartition("_")[2]) for path in paths])
        return as_images(np.stack(pixels), labels, 255.0)

    def fitted(self, image: Image.Image) -> Image.Image:
        """Return the image in the size of the data set."""
        return image


@dataclass(frozen=True)
class Cifar10Samples(FoolboxSamples):
    """Twenty test images of CIFAR-10, which come with Foolbox; needs no file."""

    paper = "rauber2020"
    name = "cifar10-samples"
    shape = (3, 32, 32)
    num_classes = 10
    revision = "foolbox-20"
    zoo = "cifar10"
    prefix = "cifar10"
    sha256 = "43cf17f53f8817b58c2d157181a0cc1cdf6a0f1f2f368d7bab27ddc24167221d"


@dataclass(frozen=True)
class ImageNetSamples(FoolboxSamples):
    """Twenty photographs of ImageNet, which come with Foolbox; needs no file.

    The shorter side is scaled to 256 pixels, and the central 224×224 pixels are used.
    """

    paper = "rauber2020"
    name = "imagenet-samples"
    shape = (3, 224, 224)
    num_classes = 1000
    revision = "foolbox-20/center-224"
    zoo = "imagenet"
    prefix = "imagenet"
    sha256 = "d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe"

    def fitted(self, image: Image.Image) -> Image.Image:
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return image.crop((left, top, left + 224, top + 224))
