"""The 1,797 handwritten digits of 8×8 pixels that scikit-learn carries: small enough for tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bench.datasets.base import Dataset, LabelledImages, as_images, select, split_rows


@dataclass(frozen=True)
class Digits(Dataset):
    """500 test images (50 of each class), 200 for validation, 1,097 to train on."""

    name = "digits"
    shape = (1, 8, 8)
    num_classes = 10
    revision = "scikit-learn-1797/split-1"
    zoo = "digits"

    @cached_property
    def _splits(self) -> dict[str, LabelledImages]:
        from sklearn.datasets import load_digits

        raw = load_digits()
        whole = as_images(raw.images, raw.target, 16.0)
        test, rest = split_rows(raw.target, 50, seed=1)
        validation, train = split_rows(raw.target[rest], 20, seed=2)
        return {
            "test": select(whole, test),
            "validation": select(whole, rest[validation]),
            "train": select(whole, rest[train]),
        }

    @property
    def test(self) -> LabelledImages:
        return self._splits["test"]

    @property
    def train(self) -> LabelledImages:
        return self._splits["train"]

    @property
    def validation(self) -> LabelledImages:
        return self._splits["validation"]
