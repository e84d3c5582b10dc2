"""Training steps that are captured as CUDA graphs, since a small network's step is too short to keep a GPU busy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Number of times that each kind of step runs before it is captured, so that all lazy set-up lies behind it."""


class CapturedSteps:
    """Training steps of a few kinds, each captured once as a CUDA graph and replayed from then on.

    A replay repeats the GPU's work alone, with new images, labels and random numbers: what Python decides in a step is
    decided once. So the steps of a kind have to differ in nothing else.
    """

    def __init__(self, learn: Callable[[Tensor, Tensor, float], Tensor], kinds: int, device: torch.device) -> None:
        """learn: function that makes one step with images [N,C,H,W], labels [N] and the share of the training that is
        done, and returns the loss []. kinds: number of steps after which their kinds repeat.
        """
        self.learn, self.kinds, self.device = learn, kinds, device
        self.stream = torch.cuda.Stream(device)
        self.runs = 0
        self.inputs: tuple[Tensor, Tensor] | None = None
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, number: int, images: Tensor, labels: Tensor, done: float) -> Tensor:
        """Make the step of that number with images and labels on the device, and return the loss []."""
        with torch.cuda.device(self.device):
            if self.inputs is None:
                self.inputs = images.clone(), labels.clone()
            if images.shape != self.inputs[0].shape:  # the last batch of an epoch may be smaller
                return self.learn(images, labels, done)
            for own, given in zip(self.inputs, (images, labels), strict=True):
                own.copy_(given)
            if self.runs < WARM_UP * self.kinds:
                self.runs += 1
                return self.step_without_graph(done)
            kind = number % self.kinds
            if kind not in self.graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    loss = self.learn(*self.inputs, done)
                self.graphs[kind] = graph, loss
            graph, loss = self.graphs[kind]
            graph.replay()
            return loss

    def step_without_graph(self, done: float) -> Tensor:
        """Make a step without a graph, on a stream of its own, as captures need it beforehand."""
        assert self.inputs is not None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.learn(*self.inputs, done)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss
