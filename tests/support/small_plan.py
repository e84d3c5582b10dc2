"""A small matrix, its jobs and its references."""

from __future__ import annotations

from pathlib import Path

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.planning.refs import DatasetRef, DefenseRef, defense_ref
from manifold_bench.bench.running.training import Training, train

MATRIX = {
    "datasets": [{"name": "digits", "n": 10}],
    "defenses": ["tiny:Coin"],
    "attacks": [{"name": "pgd", "eps": [0.1, 0.2], "steps": 10}],
}
WIDTH = {"name": "tiny:Deployed", "width": 3}
GAN = {"name": "defense-gan", "network": "strided", "generator": {"model": "wgan-gp", "latent": 2, "width": 2}}


def planned(options: Options | None = None, **changes) -> list[Job]:
    """The jobs of MATRIX with those changes."""
    return make_plan(parse_matrix(MATRIX | changes, "test.toml"), options or Options()).jobs


def key(options: Options | None = None, **changes) -> str:
    """The key of the attack's job."""
    return planned(options, **changes)[1].key


def attack(**changes) -> list[dict]:
    return [MATRIX["attacks"][0] | changes]


def refs(*entries) -> list[DefenseRef]:
    """Defenses for the digits."""
    matrix = parse_matrix(MATRIX | {"defenses": list(entries)}, "test.toml")
    return [defense_ref(choice, DatasetRef("digits", None).load()) for choice in matrix.defenses]


def trained(entry, path: Path | None = None) -> Path:
    """The weights of a short training of it."""
    (ref,) = refs(entry)
    assert not ref.trained and ref.weights is not None
    train(Training(ref, DatasetRef("digits", None), path or ref.weights, seed=0, budget=0.25))
    return path or ref.weights
