"""What a clean pass says of a defense: remarks on its figures, and failures by name."""

from __future__ import annotations

import handed
import pandas as pd
import pytest
import torch
from handed import GOOD, PERCEIVED, Honest, logits
from torch import Tensor, nn
from torch.nn import functional as F

import manifold_bench as mb
from manifold_bench.attacks.contract import Verdict
from manifold_bench.bench.planning.plan import Options, make_plan
from manifold_bench.bench.planning.reading import parse_matrix
from manifold_bench.bench.records.schema import UNSTEADY
from manifold_bench.bench.records.store import Store
from manifold_bench.bench.running.job import run_job
from manifold_bench.defenses.base import DefenseSpec, append_reject_score
from manifold_bench.defenses.checks import in_train_mode
from manifold_bench.defenses.defense_gan import DefenseGAN


def ran(monkeypatch: pytest.MonkeyPatch, folder, it: type, draws: int = 1) -> pd.DataFrame:
    """The stored rows of the clean pass of a defense."""
    monkeypatch.setenv("MANIFOLD_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setattr(handed, "It", it, raising=False)
    plan = make_plan(parse_matrix(GOOD | {"defenses": ["handed:It"], "draws": draws}, "test.toml"), Options())
    run_job(plan.jobs[0], folder)
    store = Store(folder)
    return store.read(store.path(plan.jobs[0]))[0]


def remark(monkeypatch: pytest.MonkeyPatch, folder, it: type, draws: int = 1) -> str:
    """What the rows of a clean pass that went well say."""
    rows = ran(monkeypatch, folder, it, draws)
    assert set(rows["status"]) == {"ok"}
    (text,) = set(rows["reason"])
    return text


def failure(monkeypatch: pytest.MonkeyPatch, folder, it: type) -> str:
    """Why a clean pass failed: one line that names the class."""
    rows = ran(monkeypatch, folder, it)
    assert set(rows["status"]) == {"failed"}
    text = rows["reason"].iloc[0]
    assert "It." in text and "expected" in text and "\n" not in text
    return text


class Rejecting(Honest):
    """Rejects dark images."""

    rejects = True

    def forward(self, x: Tensor) -> Tensor:
        return append_reject_score(logits(x), 0.3 - x.mean((1, 2, 3)))


def test_of_an_honest_defense_nothing_is_said(monkeypatch, tmp_path):
    assert remark(monkeypatch, tmp_path, Honest) == remark(monkeypatch, tmp_path, Rejecting) == ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_type_of_float_is_an_answer(monkeypatch, tmp_path, dtype):
    class It(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return logits(x).to(dtype)

    rows = ran(monkeypatch, tmp_path, It)
    assert set(rows["status"]) == {"ok"} and set(rows["reason"]) == {""} and rows["success"].mean() < 0.1


OUTPUTS = {
    "K+1 outputs without rejects": (lambda x: append_reject_score(logits(x), -x.mean((1, 2, 3))), "rejects = True"),
    "one output too few": (lambda x: logits(x)[:, 1:], "[24, 3]"),
    "no batch": (lambda x: logits(x)[0], "[24, 3]"),
    "labels": (lambda x: logits(x).argmax(1), "[24, 3]"),
    "whole numbers": (lambda x: logits(x).long(), "float"),
    "complex numbers": (lambda x: logits(x) + 0j, "float"),
    "a tuple": (lambda x: (logits(x), x), "tensor"),
    "an array": (lambda x: logits(x).numpy(), "tensor"),
    "nothing": (lambda x: None, "tensor"),
    "NaN": (lambda x: logits(x) * torch.nan, "NaN"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_are_no_answer_fail_by_name(monkeypatch, tmp_path, case):
    outputs, says = OUTPUTS[case]
    it = type("It", (Honest,), {"forward": lambda self, x: outputs(x)})
    assert says in failure(monkeypatch, tmp_path, it)


def test_an_infinite_logit_is_an_answer(monkeypatch, tmp_path):
    class It(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([logits(x)[:, :2], torch.full((len(x), 1), -torch.inf)], 1)

    assert remark(monkeypatch, tmp_path, It) == ""


VERDICTS = {
    "a label beyond the classes": (lambda v: Verdict(v.labels + 99, v.rejected), "0…2"),
    "one more than the last": (lambda v: Verdict(torch.full_like(v.labels, 3), v.rejected), "0…2"),
    "a label of −1": (lambda v: Verdict(v.labels - 1, v.rejected), "0…2"),
    "labels of NaN": (lambda v: Verdict(v.labels * torch.nan, v.rejected), "int64"),
    "float labels": (lambda v: Verdict(v.labels.float(), v.rejected), "int64"),
    "bool labels": (lambda v: Verdict(v.labels > 0, v.rejected), "int64"),
    "labels as columns": (lambda v: Verdict(v.labels[:, None], v.rejected), "[24]"),
    "a label too few": (lambda v: Verdict(v.labels[1:], v.rejected), "[24]"),
    "labels as a list": (lambda v: Verdict(v.labels.tolist(), v.rejected), "tensor"),
    "rejected as numbers": (lambda v: Verdict(v.labels, v.rejected.float()), "bool"),
    "rejected as one flag": (lambda v: Verdict(v.labels, torch.tensor(False)), "[24]"),
    "rejected is None": (lambda v: Verdict(v.labels, None), "tensor"),
    "scores as whole numbers": (lambda v: Verdict(v.labels, v.rejected, v.labels), "floats"),
    "scores of another shape": (lambda v: Verdict(v.labels, v.rejected, v.scores[:, None]), "[24]"),
    "a tuple": (lambda v: (v.labels, v.rejected, v.scores), "Verdict"),
    "logits": (lambda v: v.labels, "Verdict"),
    "nothing": (lambda v: None, "Verdict"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_a_verdict_that_is_none_fails_by_name(monkeypatch, tmp_path, case):
    change, says = VERDICTS[case]

    class It(Honest):
        def verdict(self, x: Tensor) -> Verdict:
            return change(super().verdict(x))

    assert says in failure(monkeypatch, tmp_path, It)


def test_labels_in_fewer_bits_and_no_scores_are_a_verdict(monkeypatch, tmp_path):
    class It(Honest):
        def verdict(self, x: Tensor) -> Verdict:
            found = super().verdict(x)
            return Verdict(found.labels.to(torch.uint8), found.rejected)

    assert remark(monkeypatch, tmp_path, It) == ""


@pytest.mark.parametrize("case", PERCEIVED)
def test_what_is_perceived_has_to_be_an_image(monkeypatch, tmp_path, case):
    it = type("It", (Honest,), {"perceived": lambda self, x: PERCEIVED[case](x)})
    assert "perceived" in failure(monkeypatch, tmp_path, it)


def normalised(x: Tensor) -> Tensor:
    """The images, standardised where they lie."""
    return x.sub_(0.5).div_(0.25)


@pytest.mark.parametrize("where", ["forward", "verdict", "perceived"])
def test_a_defense_may_change_its_images_in_place_and_nobody_sees_it(monkeypatch, tmp_path, where):
    class Inside(Honest):
        if where == "forward":

            def forward(self, x: Tensor) -> Tensor:
                return logits(normalised(x))

        if where == "verdict":

            def verdict(self, x: Tensor) -> Verdict:
                return Verdict(logits(normalised(x)).argmax(1), torch.zeros(len(x), dtype=torch.bool))

            def forward(self, x: Tensor) -> Tensor:
                return logits((x - 0.5) / 0.25)

        if where == "perceived":

            def perceived(self, x: Tensor) -> Tensor:
                return normalised(x)

    class Outside(Honest):
        if where != "perceived":

            def forward(self, x: Tensor) -> Tensor:
                return logits((x - 0.5) / 0.25)

    for it in (Inside, Outside):
        (tmp_path / it.__name__).mkdir()
    inside, outside = (ran(monkeypatch, tmp_path / it.__name__, it) for it in (Inside, Outside))
    assert set(inside["status"]) == {"ok"} and set(inside["reason"]) == {""}
    for column in ("clean_label", "image_original", "image_adversarial", "success"):
        assert inside[column].tolist() == outside[column].tolist()


def test_the_gradient_of_a_defense_that_works_in_place_is_that_of_one_that_does_not():
    class It(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return logits(normalised(x))

    x = torch.rand(8, 1, 2, 2, requires_grad=True)
    defense = It(DefenseSpec(shape=(1, 2, 2), num_classes=3))
    (gradient,) = torch.autograd.grad(defense(x).square().sum(), x)
    (expected,) = torch.autograd.grad(logits((x - 0.5) / 0.25).square().sum(), x)
    assert torch.allclose(gradient, expected)


class Dropped(Honest):
    """Dropout before `logits`; nothing learns here."""

    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.drop(x))


class InEvalMode(Dropped):
    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.eval()


class DropsAgain(Dropped):
    """Its forward switches dropout on."""

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        return super().forward(x)


class Normed(Honest):
    def __init__(self, spec: DefenseSpec) -> None:
        super().__init__(spec)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.norm(x))


class Noisy(Honest):
    def forward(self, x: Tensor) -> Tensor:
        return logits(x + 0.01 * torch.randn_like(x))


class Counting(Honest):
    """Its answers change with every call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return logits(x) * self.calls


class NoisyNearby(Honest):
    """Answers clean images as they are, and others with noise."""

    def forward(self, x: Tensor) -> Tensor:
        clean = torch.isin(x, handed.images().images).flatten(1).all(1)
        return logits(x + 0.01 * torch.randn_like(x) * ~clean.view(-1, 1, 1, 1))


class Relative(Honest):
    """Its answers depend on the other images of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return logits((x - x.mean()).abs())


def with_column(value: float):
    return lambda self, x: torch.cat([logits(x), torch.full((len(x), 1), value)], 1)


REMARKS: dict[str, tuple[type, str]] = {
    "softmax": (type("It", (Honest,), {"forward": lambda self, x: logits(x).softmax(1)}), "probabilities"),
    "softmax in half": (
        type("It", (Honest,), {"forward": lambda self, x: logits(x).softmax(1).bfloat16()}),
        "probabilities",
    ),
    "softmax with rejection": (
        type("It", (Rejecting,), {"forward": lambda self, x: Rejecting.forward(self, x).softmax(1)}),
        "probabilities",
    ),
    "one-hot": (
        type("It", (Honest,), {"forward": lambda self, x: F.one_hot(logits(x).argmax(1), 3).float()}),
        "probabilities",
    ),
    "classes in another order": (
        type("It", (Honest,), {"forward": lambda self, x: logits(x).roll(1, 1)}),
        "as guesses are; 100.0 % would be right if it numbered the classes otherwise",
    ),
    "never rejects": (type("It", (Honest,), {"rejects": True, "forward": with_column(-1e9)}), "never wins"),
    "always rejects": (type("It", (Honest,), {"rejects": True, "forward": with_column(1e9)}), "every image"),
    "rejects by a decision": (
        type(
            "It",
            (Honest,),
            {
                "rejects": True,
                "forward": lambda self, x: mb.append_reject_score(logits(x), (x.mean((1, 2, 3)) < 0.4).float() - 0.5),
            },
        ),
        "its reject score has no gradient",
    ),
    "rejects behind attacks' backs": (
        type(
            "It",
            (Honest,),
            {"verdict": lambda self, x: Verdict(logits(x).argmax(1), x.mean((1, 2, 3)) < 0.4)},
        ),
        "rejects is False",
    ),
    "dropout in train mode": (Dropped, "Dropout"),
    "batch norm in train mode": (Normed, "BatchNorm2d"),
    "train mode by its forward": (DropsAgain, "train mode"),
    "noise": (Noisy, "randomized is False"),
    "noise on images that are not clean": (NoisyNearby, "randomized is False"),
    "dropout by its forward": (DropsAgain, "randomized is False"),
    "a counter": (Counting, "randomized is False"),
    "the batch": (Relative, "batch"),
    "gradients": (
        type("It", (Honest,), {"forward": lambda self, x: logits(1 - x if x.requires_grad else x)}),
        "judged",
    ),
}


@pytest.mark.parametrize("case", REMARKS)
def test_what_is_odd_is_said(monkeypatch, tmp_path, case):
    it, says = REMARKS[case]
    assert says in remark(monkeypatch, tmp_path, it)


def test_a_randomized_defense_gets_a_remark_on_its_draws(monkeypatch, tmp_path):
    it = type("It", (Noisy,), {"randomized": True})
    assert "one draw" in remark(monkeypatch, tmp_path, it)
    assert remark(monkeypatch, tmp_path, it, draws=3) == ""
    always = type("It", (InEvalMode,), {"randomized": True})
    assert "are the same" in remark(monkeypatch, tmp_path, always, draws=3)


def test_layers_that_were_set_to_eval_mode_are_no_remark(monkeypatch, tmp_path):
    assert remark(monkeypatch, tmp_path, InEvalMode) == ""


@pytest.mark.parametrize("network", ["A", "strided"])
def test_layers_of_parts_that_are_trained_by_themselves_are_no_remark(network):
    spec = DefenseGAN.Spec(shape=(1, 8, 8), num_classes=10, network=network)
    assert not in_train_mode(DefenseGAN(spec))


class Tiring(nn.Module):
    """Gives other answers from its 31st call on; its copies have counters of their own unless they share one."""

    def __init__(self, shared: list[int] | None = None) -> None:
        super().__init__()
        self.shared, self.calls = shared, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.shared is not None:
            self.shared[0] += 1
            self.calls = self.shared[0]
        return logits(x) if self.calls <= 30 else logits(x).roll(1, 1)


def attacked_by_pgd(model) -> mb.Results:
    given = handed.images()
    return mb.evaluate(model, (given.images, given.labels), attacks=["pgd"], eps=0.01)


def said_of_the_attack(result: mb.Results) -> str:
    (text,) = set(result.records.loc[result.records["kind"] != "clean", "reason"])
    return text


def test_answers_that_change_during_an_attack_are_marked():
    counter = [0]
    assert said_of_the_attack(honest := attacked_by_pgd(logits)) == "" and "¶" not in honest.table["marks"].iloc[0]
    mine = Tiring()
    assert "copy that it attacked" in said_of_the_attack(attacked_by_pgd(mine))
    shared = attacked_by_pgd(lambda x: Tiring(counter)(x))
    assert said_of_the_attack(shared).startswith(UNSTEADY) and "¶" in shared.table["marks"].iloc[0]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (torch.sigmoid, ""),  # as good as linear here
        (lambda z: (5 * z).sigmoid(), "sigmoids"),
        (lambda z: (20 * z - 4).exp(), "likelihoods"),
        (lambda z: z, ""),
        (lambda z: 5 + 9 * z.relu(), ""),
        (lambda z: z.softmax(1), "probabilities"),
    ],
)
def test_outputs_in_another_form_than_logits_are_noted(monkeypatch, tmp_path, form, said):
    it = type("It", (Honest,), {"forward": lambda self, x: form(logits(x))})
    text = remark(monkeypatch, tmp_path, it)
    assert said in text and bool(text) == bool(said)
