"""The attack that follows the optimum of a projection, on generators whose optima and gradients are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from projecting import IN_PLANE, NEAR_PLANE, RANGE, Part, Projects, classifier, generator
from torch import Tensor, nn
from toys import Linear

from manifold_bench.attacks.contract import Verdict
from manifold_bench.attacks.gradient import PGD
from manifold_bench.attacks.latent import CONFIRMATIONS, RangeProblem
from manifold_bench.attacks.queries import Queries
from manifold_bench.attacks.target import Target
from manifold_bench.attacks.threat import inside, random_in_ball
from manifold_bench.attacks.tracking import AscentState, Expansion, Tracking
from manifold_bench.bench.datasets.digits import Digits
from manifold_bench.bench.datasets.mnist import Mnist5k
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.running.judge import verdict
from manifold_bench.defenses.base import Trainable
from manifold_bench.defenses.defense_gan import PAPER, DefenseGAN
from manifold_bench.defenses.solvers import MomentumSolver
from manifold_bench.defenses.weights import fill_from_zoo, freeze, from_zoo

LABELS = Projects().verdict(IN_PLANE).labels
ATTACK = Tracking(norm="l2", steps=40, refresh=5, targets=2)


class Curved(nn.Module):
    """z [N,2] → images [N,1,2,4] of a surface that bends in every direction."""

    latent = 2

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.matrix = torch.randn(8, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(2 * torch.sin(z @ self.matrix.T)).view(-1, 1, 2, 4)


SEARCH = MomentumSolver(steps=200, rate=1.0, momentum=0.8)


class Surface(nn.Module):
    """Projects on that surface from z = 0; the class says on which side of a plane G(z*) lies. Accepts everything."""

    num_classes = 2
    rejects = False
    randomized = False
    detectors = ()
    gradient_modes = ("default",)
    inference_steps = SEARCH.steps
    eta = torch.tensor(torch.inf)

    def __init__(self, normal: Tensor | None = None, threshold: float = 0.0) -> None:
        super().__init__()
        self.generator = Curved()
        normal = torch.zeros(8) if normal is None else normal
        self.classifier = Part(lambda x: torch.stack([torch.zeros(len(x)), x.flatten(1) @ normal - threshold], dim=1))

    def inverter(self, x: Tensor) -> Tensor:
        return SEARCH.solve(self.generator, x, x.new_zeros(len(x), 1, 2), SEARCH.steps)[:, 0]

    def verdict(self, x: Tensor) -> Verdict:
        labels = self.classifier(self.generator(self.inverter(x))).argmax(1)
        return Verdict(labels, torch.zeros(len(x), dtype=torch.bool))


def on_the_surface(n: int) -> Tensor:
    """Images [n,1,2,4] near it."""
    random = torch.Generator().manual_seed(3)
    images = Curved()(0.4 * torch.randn(n, 2, generator=random))
    return (images + 0.05 * torch.randn(images.shape, generator=random)).clamp(0, 1)


def test_the_chart_of_a_plane_is_its_projection():
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expansion = Expansion.at(generator, torch.zeros(5, 4), x)
    unit = RANGE / 0.5
    gradient = torch.randn(5, 16, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(expansion.image_gradient(gradient), gradient @ unit @ unit.T, atol=1e-5)
    assert torch.allclose(expansion.latent_change((x - 0.5).flatten(1)), Projects().inverter(x), atol=1e-5)


def test_the_gradient_is_that_of_a_search_unrolled_to_its_end():
    """dG(z*(x))/dx of plain autograd through 200 steps in float64, which bends with the surface."""
    curved, x = Curved(torch.float64), on_the_surface(6).double().requires_grad_(True)
    gradient = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    z = SEARCH.solve(curved, x, x.new_zeros(6, 1, 2), SEARCH.steps, unroll=True)[:, 0]
    (unrolled,) = torch.autograd.grad((curved(z).flatten(1) * gradient).sum(), x)
    expansion = Expansion.at(curved, z.detach(), x.detach())
    assert torch.allclose(expansion.image_gradient(gradient), unrolled.flatten(1), atol=1e-6)


def test_where_the_search_has_no_minimum_the_chart_still_leads_downhill():
    """At a saddle or a maximum of the distance the Hessian has negative eigenvalues."""
    curved = Curved()
    z, x = torch.randn(40, 2, generator=torch.Generator().manual_seed(7)) * 2, on_the_surface(40)
    with torch.no_grad():
        residual = (x - curved(z)).flatten(1)
    expansion = Expansion.at(curved, z, x)
    downhill = (expansion.jacobian @ residual[:, :, None])[:, :, 0]
    assert ((expansion.latent_change(residual) * downhill).sum(1) > 0).all()


def test_what_is_followed_stays_at_the_optimum_of_the_deployed_search():
    defense, x = Surface(), on_the_surface(8)
    problem = RangeProblem(Target(defense, 8), x, torch.zeros(8, dtype=torch.long), "linf", 0.1)
    state = AscentState.begin(problem, problem.rows, problem.start[:, None])
    goal = random_in_ball(x, "linf", 0.1, 0)
    for step in range(1, 11):
        state.update_expansions(problem, torch.ones(8, dtype=torch.bool))
        state.point = x + (goal - x) * step / 10
        state.newton_step(problem)
    assert torch.allclose(state.z, defense.inverter(goal), atol=1e-3)
    assert not torch.allclose(state.z, problem.start, atol=0.03)


def test_the_smallest_ball_that_holds_another_class_is_enough():
    defense = Projects()
    distance = defense.distance(IN_PLANE, LABELS)
    for row in (0, 5, 16):
        x, y, eps = IN_PLANE[row : row + 1], LABELS[row : row + 1], float(distance[row])
        for share, fooled in ((1.02, True), (0.98, False)):
            out = ATTACK.run(Target(defense, 1), x, y, share * eps, 0)
            assert inside(out, x, "l2", share * eps).all()
            assert defense.verdict(out).wrong(y).item() is fooled


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_outputs_stay_in_the_ball_and_what_is_rejected_is_no_success(norm):
    eps = {"l2": 1.0, "linf": 0.25}[norm]
    open_, tight = Projects(), Projects(eta=0.15)
    y = open_.verdict(NEAR_PLANE).labels
    assert not tight.verdict(NEAR_PLANE).rejected.any()
    for defense in (open_, tight):
        out = replace(ATTACK, norm=norm).run(Target(defense, 24), NEAR_PLANE, y, eps, 0)
        assert inside(out, NEAR_PLANE, norm, eps).all()
        assert defense.verdict(out).wrong(y).float().mean() > (0.9 if defense is open_ else 0.4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_planted_example_is_found(norm):
    """The boundary is where G(z*) of a random image of the ball lies: the attack has to come as far as that."""
    eps = {"l2": 0.3, "linf": 0.1}[norm]
    x, open_ = on_the_surface(4), Surface()
    planted = random_in_ball(x, norm, eps, 1)
    images = [open_.generator(open_.inverter(which)).flatten(1) for which in (x, planted)]
    for row in range(4):
        clean, reached = images[0][row], images[1][row]
        normal = reached - clean
        defense = Surface(normal, float(normal @ (clean + 0.999 * normal)))
        one, label = x[row : row + 1], torch.zeros(1, dtype=torch.long)
        assert not defense.verdict(one).wrong(label) and defense.verdict(planted[row : row + 1]).wrong(label)
        out = replace(ATTACK, norm=norm).run(Target(defense, 1), one, label, eps, 0)
        assert inside(out, one, norm, eps).all() and defense.verdict(out).wrong(label)


class Elsewhere(Projects):
    """Its search ends where G(z) is classified rightly, whatever is nearest, once the image has left the plane's z."""

    def inverter(self, x: Tensor) -> Tensor:
        return super().inverter(IN_PLANE[: len(x)])

    def verdict(self, x: Tensor) -> Verdict:
        return Projects.verdict(self, IN_PLANE[: len(x)])


def test_passes_are_counted_and_estimated():
    """Nothing is claimed of a constant classifier; nothing that is claimed of the other one is confirmed."""
    steps, latent, expansions = 20, 4, 4
    attack = replace(ATTACK, steps=steps, refresh=5, targets=1)
    constant = Projects()
    constant.classifier = Part(lambda x: torch.tensor([0.0, 1.0, 0.0]).expand(len(x), 3) + 0 * x.flatten(1)[:, :1])
    target = Target(constant, 8)
    attack.run(target, IN_PLANE[:8], torch.ones(8, dtype=torch.long), 1.0, 0)
    assert target.forwards.tolist() == [1 + 2 * (steps + 1) + latent * expansions] * 8
    assert target.backwards.tolist() == [steps + 1 + latent * expansions] * 8

    target = Target(Elsewhere(), 8)
    attack.run(target, IN_PLANE[:8], LABELS[:8], 1.0, 0)
    assert (target.forwards > 1 + 2 * (steps + 1) + latent * expansions).any()
    assert target.forwards.max() <= attack.passes()[0] and target.backwards.max() <= attack.passes()[1]
    assert steps >= CONFIRMATIONS


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_output_is_the_same_alone_and_in_a_batch(norm):
    attack, eps = replace(ATTACK, norm=norm), {"l2": 0.3, "linf": 0.08}[norm]
    whole = attack.run(Target(Projects(0.2), 24), NEAR_PLANE, LABELS, eps, 0)
    for row in (0, 13):
        alone = attack.run(Target(Projects(0.2), 1), NEAR_PLANE[row : row + 1], LABELS[row : row + 1], eps, 0)
        assert torch.equal(alone[0], whole[row])


class Drawn(Projects):
    """Each answer begins anew; a third of them find another latent than the nearest one."""

    randomized = True

    def inverter(self, x: Tensor) -> Tensor:
        return super().inverter(x) + 0.1 * (torch.rand(len(x), 1) < 1 / 3)

    def verdict(self, x: Tensor) -> Verdict:
        labels = classifier(generator(self.inverter(x))).argmax(1)
        return Verdict(labels, torch.zeros(len(x), dtype=torch.bool))


def test_of_a_randomized_defense_several_optima_are_followed():
    torch.manual_seed(0)
    defense = Drawn()
    target = Target(defense, 24)
    out = replace(ATTACK, optima=3).run(target, IN_PLANE, LABELS, 1.0, 0)
    answers = torch.stack([defense.verdict(out).wrong(LABELS) for _ in range(9)]).float().mean(0)
    assert inside(out, IN_PLANE, "l2", 1.0).all() and (answers > 0.8).float().mean() > 0.8
    assert (target.forwards >= 3 * 2).all()


def test_what_follows_no_optimum_is_skipped_with_the_reason():
    assert "a generator's range" in str(ATTACK.unsuited(Linear(2))) and ATTACK.unsuited(Projects()) is None
    matrix = parse_matrix(
        {
            "datasets": [{"name": "digits", "n": 4}],
            "defenses": ["undefended", "inc", "gmvae"],
            "attacks": [{"name": "tracking", "norm": "linf", "eps": [0.1]}],
        },
        "test",
    )
    skipped = {job.defense.label: bool(job.skip) for job in make_plan(matrix, Options()).jobs if job.attack}
    assert skipped == {"undefended": True, "inc": False, "gmvae": True}


def of_the_zoo(name: str, n: int) -> tuple[Trainable, Tensor, Tensor]:
    """A defense of the zoo, and the first n test images and labels of its data set.

    Defense-GAN has a shorter search than the paper's, from as many random starts.
    """
    data = Digits() if name.startswith("digits") else Mnist5k()
    rows = torch.from_numpy(data.chosen(n))
    if name == "mnist--defense-gan":
        solver = replace(PAPER, steps=25)
        defense: Trainable = DefenseGAN(DefenseGAN.Spec(shape=data.shape, num_classes=10, network="A", solver=solver))
        for part in defense.named_parts.values():
            fill_from_zoo(part, "mnist")
        freeze(defense)
    else:
        defense = from_zoo(name.partition("--")[2], name.partition("--")[0])
    return defense, data.test.images[rows], data.test.labels[rows]


@pytest.mark.parametrize(
    ("name", "n", "steps"),
    [
        ("mnist--inc-l-bfgs", 4, 10),
        ("mnist--enhanced-inc-l-bfgs", 4, 10),
        pytest.param("digits--inc", 4, 10, marks=pytest.mark.slow),
        pytest.param("mnist--inc", 4, 10, marks=pytest.mark.slow),
        pytest.param("mnist--enhanced-inc", 4, 10, marks=pytest.mark.slow),
        pytest.param("mnist--defense-gan", 2, 3, marks=pytest.mark.slow),
    ],
)
def test_it_attacks_the_trained_defenses_that_project(name, n, steps):
    defense, x, y = of_the_zoo(name, n)
    attack = Tracking(norm="linf", steps=steps, refresh=5, targets=1, optima=2)
    # What it declares is for 32 latents and one optimum
    more = max(1.0, defense.generator.latent / 32 * (attack.optima if defense.randomized else 1))
    spent = {}
    for eps in (1e-3, 1.0):
        queries = Queries(x, y, None, "linf", eps)
        target = Target(defense, n, queries=queries)
        torch.manual_seed(0)
        out = attack.run(target, x, y, eps, 0)
        assert inside(out, x, "linf", eps).all() and inside(queries.point, x, "linf", eps).all()
        assert target.forwards.max() <= more * attack.passes()[0]
        assert target.backwards.max() <= more * attack.passes()[1]
        beaten, claimed = verdict(defense, out, y, 3, 0).wrong(y), queries.distance.isfinite()
        assert defense.randomized or torch.equal(beaten, claimed), "the judge confirms what it claims"
        assert not beaten.any() if eps < 0.01 else beaten.any()
        spent[eps] = target.forwards + target.backwards
    assert spent[1.0].sum() < spent[1e-3].sum(), "what is beaten leaves the batch"


@pytest.mark.slow
def test_no_fewer_fall_than_by_bpda_with_as_many_steps():
    defense, x, y = of_the_zoo("mnist--inc-l-bfgs", 4)
    fallen = [
        verdict(defense, attack.run(Target(defense, 4), x, y, 0.2, 0), y, 1, 0).wrong(y).sum()
        for attack in (Tracking(norm="linf", steps=10, refresh=5, targets=2), PGD(norm="linf", steps=10))
    ]
    assert fallen[0] > 0 and fallen[0] >= fallen[1]
