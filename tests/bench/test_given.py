"""Data that a program hands over: what is read, and the line that says what to write instead of what cannot be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SubsetRandomSampler, TensorDataset

from manifold_bench.bench.datasets.given import labelled_images
from manifold_bench.bench.errors import InputError

X = torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Pictures(Dataset):
    """Pictures of PIL with their labels, as a data set of torchvision without a transform has them."""

    def __init__(self, mode: str = "RGB") -> None:
        self.mode = mode

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int):
        pixels = (255 * X[number]).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels).convert(self.mode), int(Y[number])


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], 0


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X.double().requires_grad_(), Y.to(torch.int32)),
        [X.tolist(), Y.tolist()],
        (list(X), list(Y)),
        (X, pd.Series(Y.numpy(), index=range(100, 106))),
        (X.numpy()[::-1][::-1], Y.numpy()),
        *((X, Y.numpy().astype(kind)) for kind in ("uint8", "uint16", "uint32", "uint64", "int8", "int16")),
        (X.numpy(), torch.tensor(Y.tolist(), dtype=torch.uint16)),
        (list(X), [torch.tensor(label, dtype=torch.uint32) for label in Y.tolist()]),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    ],
)
def test_the_same_data_in_any_form(data):
    found = labelled_images(data)
    assert torch.equal(found.images, X) and torch.equal(found.labels, Y)
    assert found.images.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert not found.images.requires_grad


def test_pictures_become_floats_with_channels_first():
    found = labelled_images(Pictures())
    assert (found.images - X).abs().max() <= 0.5 / 255 + 1e-6 and torch.equal(found.labels, Y)
    assert labelled_images(Pictures("L")).images.shape == (6, 1, 4, 5)


class Arrays(Dataset):
    """Arrays with channels first, as PyTorch has them, or in another order."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int):
        return self.images[number], int(Y[number])


def test_arrays_of_a_dataset_are_taken_as_torch_takes_them():
    assert torch.equal(labelled_images(Arrays(X.numpy())).images, X)
    square = torch.rand(6, 1, 5, 5)
    assert torch.equal(labelled_images(Arrays(square.numpy())).images, square)


@pytest.mark.parametrize("mode", ["P", "YCbCr", "HSV", "RGBA", "CMYK"])
def test_pictures_of_any_mode_become_rgb(mode):
    found = labelled_images(Pictures(mode)).images
    expected = [np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255 for picture, _ in Pictures(mode)]
    assert np.allclose(found.numpy(), np.stack(expected))


def test_what_rounds_to_1_is_1():
    images = torch.full((6, 3, 4, 5), 1 + 1e-12, dtype=torch.float64)
    assert (labelled_images((images, Y)).images == 1).all()


def test_arrays_of_the_other_byte_order_are_data_too():
    given = labelled_images((X.numpy().astype(">f4"), Y.numpy().astype(">i8")))
    assert torch.equal(given.images, X) and torch.equal(given.labels, Y)


def test_a_read_only_array_is_not_changed():
    images = X.numpy().copy()
    images.flags.writeable = False
    labelled_images((images, Y)).images.zero_()
    assert np.array_equal(images, X.numpy())


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ((X.permute(0, 2, 3, 1), Y), "permute(0, 3, 1, 2)"),
        ((X[:, 0], Y), "images[:, None]"),
        ((torch.rand(6, 784), Y), "reshape(-1, 1, 28, 28)"),
        ((torch.rand(6, 3072), Y), "reshape(-1, 3, 32, 32)"),
        ((torch.rand(6, 17), Y), "reshape(-1, C, H, W)"),
        ((torch.rand(6), Y), "[N,C,H,W]"),
        (((255 * X).to(torch.uint8), Y), "images / 255"),
        ((255 * X, Y), "images / 255"),
        ((X - 0.5, Y), "normalize=(mean, std)"),
        ((X * torch.nan, Y), "finite"),
        ((X[:0], Y[:0]), "at least one image"),
        ((X, torch.nn.functional.one_hot(Y)), "labels.argmax(1)"),
        ((X, Y[:, None]), "labels[:, 0]"),
        ((X, Y.numpy().astype("uint64") + 2**63), "9223372036854775807"),
        ((X.clamp_max(0.9) + 0.1000001, Y), "1.0000001"),
        ((X, Y[:3]), "[6]"),
        ((X, Y.float()), "labels.long()"),
        ((X, Y > 0), "labels.long()"),
        ((X, Y - 1), "from 0 on"),
        ((X, ["a", "b", "c", "a", "b", "c"]), "numpy.unique(labels, return_inverse=True)[1]"),
        ((X, pd.Series(["a", "b", "c", "a", "b", "c"])), "numpy.unique(labels, return_inverse=True)[1]"),
        (([X[0], X[1, :, :2]], [0, 1]), "the same shape"),
        (([X[0].tolist(), X[1, :, :2].tolist()], [0, 1]), "the same shape"),
        (X, "labels [N]"),
        ({"x": X, "y": Y}, "labels [N]"),
        (None, "labels [N]"),
        (Endless(), "length"),
        (TensorDataset(X), "(image, label)"),
        (DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([1, 2])), "Subset"),
        (DataLoader(TensorDataset(X, Y), sampler=RandomSampler(X, num_samples=2)), "Subset"),
        (DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1]]), "Subset"),
        (DataLoader(TensorDataset(X, Y), collate_fn=list), "collate_fn"),
        (TensorDataset(X[:0], Y[:0]), "empty"),
        (Arrays(X.permute(0, 2, 3, 1).numpy()), "[N,C,H,W]"),
        (Pictures("I;16"), "8 bits"),
        ((X.to_sparse(), Y), "to_dense()"),
        ((X, Y.to_sparse()), "to_dense()"),
        ((np.ma.masked_less(X.numpy(), 0.5), Y), "filled(value)"),
    ],
)
def test_a_line_says_what_to_write(data, advice):
    with pytest.raises(InputError) as caught:
        labelled_images(data)
    assert advice in str(caught.value) and "\n" not in str(caught.value)
