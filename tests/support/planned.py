"""Jobs as far as estimates and the screen look at them."""

from __future__ import annotations

from types import SimpleNamespace


def job(defense, attack=None, label="clean", n=1000, passes=None, steps=0, system=None, data="digits", cls=object):
    """A job as far as estimates look at it; the attack's passes are those of 50 steps."""
    each = 1 if attack is None else passes or 101
    return SimpleNamespace(
        dataset=SimpleNamespace(name=data),
        defense=SimpleNamespace(name=system or defense, label=defense, cls=cls),
        attack=attack,
        label=label,
        norm="linf",
        passes=float(each * n),
        forwards=each / 2,
        backwards=each / 2,
        inference_steps=steps,
        device="cpu",
    )
