"""The projection family on colour images of other sizes: the same code, trained a little, answers and is attacked."""

from __future__ import annotations

import pytest
import torch

from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.latent import Latent
from manifold_bench.attacks.target import Target
from manifold_bench.bench.planning.reading import read_matrix
from manifold_bench.defenses.base import LabelledImages, Progress, Trainable
from manifold_bench.defenses.defense_gan import DefenseGAN
from manifold_bench.defenses.enhanced_inc import EnhancedInvertAndClassify
from manifold_bench.defenses.invert_and_classify import InvertAndClassify
from manifold_bench.defenses.solvers import QuasiNewtonSolver
from manifold_bench.defenses.wasserstein_gan import WassersteinGANSettings
from manifold_bench.defenses.weights import freeze

GAN = WassersteinGANSettings(latent=4, width=2, epochs=1, encoder_width=2, encoder_hidden=8, encoder_epochs=1)
FAST = QuasiNewtonSolver(steps=8)


def fitted(module: Trainable, data: LabelledImages) -> None:
    """Its parts first, then itself; each for the shortest training there is."""
    for part in module.parts:
        fitted(getattr(module, part), data)
    module.fit(data, data, 1e-9, 0, Progress())


@pytest.mark.parametrize(("shape", "classes"), [((3, 64, 64), 2), ((3, 32, 32), 10)], ids=["celeba", "cifar10"])
@pytest.mark.parametrize("cls", [InvertAndClassify, DefenseGAN, EnhancedInvertAndClassify])
def test_trained_answered_and_attacked(cls, shape, classes):
    random = torch.Generator().manual_seed(0)
    # as many as one epoch of the shortest training goes through; fewer would be gone through more often
    images = torch.rand(64, *shape, generator=random)
    data = LabelledImages(images, torch.arange(64) % classes)
    more = {"network": "strided"} if cls is DefenseGAN else {}
    defense = cls(cls.Spec(shape=shape, num_classes=classes, generator=GAN, solver=FAST, **more))
    fitted(defense, data)
    freeze(defense)
    x, y = images[:4], data.labels[:4]
    assert defense(x).shape == (4, classes + defense.rejects) and defense.inverter(x).shape == (4, 4)
    for attack in (PGD(steps=2, gradient="implicit", inner_steps=2), Latent(norm="l2", steps=5)):
        found = attack.run(Target(defense, 4), x, y, 0.1, 0)
        assert found.shape == x.shape and found.isfinite().all()


@pytest.mark.parametrize("name", ["ilyas2017-celeba", "ilyas2017-cifar10"])
def test_their_matrix_files_name_the_whole_family(name):
    matrix = read_matrix(name)
    assert {choice.name for choice in matrix.defenses} >= {"inc", "enhanced-inc", "defense-gan", "inc-dip"}
