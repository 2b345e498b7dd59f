"""TURTLE: the labels that a linear classifier learns best (Gadetsky, Jiang and Brbić, ICML 2024,
arXiv:2406.07236), on the embeddings of one encoder.

A labelling is itself linear in the embeddings. A classifier follows it step by step, and the
labelling moves to where the classifier's cross-entropy is lower, which is where its classes lie
far apart. The entropy of the mean label keeps all classes in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from elfs_lib.embedding.rows import unit_rows
from elfs_lib.progress import track


@dataclass(frozen=True)
class TurtleConfig:
    """How a labelling is found; what is not as in the released code says so.

    Attributes:
        steps: Of the labelling; 6,000 there.
        inner_steps: Of the classifier for each of them.
        batch: Images a step, or all where there are fewer; 10,000 there.
        learning_rate: Of Adam, for the labelling and for the classifier.
        entropy: Weight of the entropy of the mean label.
        length: Of the embeddings. Longer ones sharpen the labels sooner; there as they are.
    """

    steps: int = 2000
    inner_steps: int = 10
    batch: int = 4000
    learning_rate: float = 0.001
    entropy: float = 10.0
    length: float = 4.0


@dataclass(frozen=True)
class Turtle:
    """A labelling.

    Attributes:
        labels: int64 [N] in 0..C-1.
        confidence: float32 [N] in [0, 1], the largest probability of each image.
        loss: Mean cross-entropy in nats of the classifier under the labelling, over all images: the
            lower, the better does a linear model learn it. It needs no true label, and compares
            seeds of one setting; longer embeddings, or classes that are lost, lower it by
            themselves.
    """

    labels: np.ndarray
    confidence: np.ndarray
    loss: float


def fit_turtle(
    embeddings: np.ndarray, classes: int, config: TurtleConfig | None = None, *, seed: int = 0
) -> Turtle:
    """Find a labelling of embeddings.

    Args:
        embeddings: float32 [N, D]; only their directions count.
        classes: C, the number of classes.
        config: How.
        seed: Of the first weights and of the batches.
    """
    config = config or TurtleConfig()
    rows = torch.from_numpy(unit_rows(embeddings)) * config.length
    draw = torch.Generator().manual_seed(seed)
    shape, rate = (classes, rows.shape[1]), config.learning_rate
    labelling, classifier = Labelling(shape, rate, draw), _Linear(shape, rate, draw)
    count = min(config.batch, len(rows))
    for _ in track(range(config.steps), "TURTLE"):
        batch = rows[torch.randperm(len(rows), generator=draw)[:count]]
        target = F.softmax(labelling(batch), 1)
        for _ in range(config.inner_steps):
            classifier.step(F.cross_entropy(classifier(batch), target.detach()))
        labelling.step(objective(target, classifier(batch).detach(), config.entropy))
    with torch.no_grad():
        target = F.softmax(labelling(rows), 1)
        loss = F.cross_entropy(classifier(rows), target)
    confidence, labels = target.max(1)
    return Turtle(labels.numpy(), confidence.numpy(), float(loss))


def objective(target: torch.Tensor, logits: torch.Tensor, entropy: float) -> torch.Tensor:
    """What the labelling minimises (equation 12): the cross-entropy of the classifier's logits
    [B, C] under the labels [B, C], less the weighted entropy of their mean."""
    mean = target.mean(0)
    spread = -(mean * mean.clamp_min(1e-12).log()).sum()
    return F.cross_entropy(logits, target) - entropy * spread


class _Linear:
    """Logits linear in the rows, trained by Adam."""

    def __init__(self, shape: tuple[int, int], rate: float, draw: torch.Generator):
        self.weight = (torch.randn(shape, generator=draw) / shape[1] ** 0.5).requires_grad_()
        self.bias = torch.zeros(shape[0], requires_grad=True)
        self.adam = torch.optim.Adam(self.parameters(), lr=rate)

    def parameters(self) -> list[torch.Tensor]:
        return [self.weight, self.bias]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, self.weight, self.bias)

    def step(self, loss: torch.Tensor) -> None:
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()


class Labelling(_Linear):
    """Logits linear in the rows, with a length of its own for the weights of each class: it grows
    slowly, so that labels stay soft while the directions are found (weight normalisation)."""

    def __init__(self, shape: tuple[int, int], rate: float, draw: torch.Generator):
        self.length = torch.ones(shape[0], 1, requires_grad=True)
        super().__init__(shape, rate, draw)

    def parameters(self) -> list[torch.Tensor]:
        return [*super().parameters(), self.length]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, self.length * F.normalize(self.weight, dim=1), self.bias)
