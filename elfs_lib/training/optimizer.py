"""The optimiser that a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from elfs_lib.training.recipes import Recipe

# Coefficients of the odd polynomial that pulls singular values towards 1 (Jordan et al., 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


class Muon(torch.optim.SGD):
    """SGD, but groups with a ``matrix_momentum`` take a step of one size in all directions.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): the gradient of a
    convolution, read as a matrix [outputs, inputs x height x width], is replaced by the nearest
    matrix with orthogonal rows, so that rare directions are learnt as fast as common ones. The
    weights are brought back to one length before each step, and the learning rate is the share of
    it that a step covers.

    Args:
        groups: Parameters with their options; ``matrix_momentum`` in [0, 1) marks those of Muon.
        dtype: Of the matrix products.
    """

    def __init__(self, groups: list[dict], *, dtype: torch.dtype, **options):
        super().__init__(groups, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            momentum = group.get("matrix_momentum")
            for weight in group["params"] if momentum is not None else ():
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(momentum).add_(weight.grad)
                ahead = weight.grad.add(state["momentum"], alpha=momentum)  # Nesterov
                matrix = orthogonalised(ahead.flatten(1).to(self.dtype))
                weight.grad.copy_(matrix.view_as(weight))
                weight.mul_(len(weight) ** 0.5 / weight.norm())
        super().step(closure)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """About the matrix of the same singular vectors whose singular values are 1, [n, m].

    Three rounds of a Newton-Schulz iteration: singular values from a twentieth of the matrix's norm
    on end between 0.68 and 1.21. Smaller ones are raised and not to 1, which is enough for a step
    and needs no decomposition.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=b, alpha=c), wide, beta=a)
    return wide.T if len(matrix) > matrix.shape[1] else wide


class Lars(torch.optim.SGD):
    """SGD with Nesterov momentum whose step is limited, for each weight matrix, by its own length.

    LARS (You, Gitman, Ginsburg 2017, arXiv:1708.03888): the learning rate of a matrix w with the
    gradient g is trust |w| / (|g| + weight_decay |w|), but here at most that of the group, as
    LARC of NVIDIA's Apex has it. Vectors (biases, norms) take plain steps without weight decay.

    Args:
        weights: To be trained.
        lr: Peak learning rate, in the group's ``peak`` as well.
        momentum: Above 0.
        trust: Largest step relative to a matrix's length.
        weight_decay: Of matrices.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        trust: float,
        weight_decay: float,
    ):
        matrices = [w for w in weights if w.ndim > 1]
        groups = [
            # the decay is part of what is scaled, so SGD must not apply it again
            {"params": matrices, "trust": trust, "decay": weight_decay},
            {"params": [w for w in weights if w.ndim <= 1]},
        ]
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=True)
        for group in self.param_groups:
            group["peak"] = lr

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if "trust" not in group:
                continue
            decay = group["decay"]
            for weight in group["params"]:
                length, slope = weight.norm(), weight.grad.norm()
                share = group["trust"] * length / ((slope + decay * length) * group["lr"])
                # a matrix of zeros, or without a gradient, has no length to go by
                share = torch.where(length * slope > 0, share.clamp_max(1), 1)
                weight.grad.add_(weight, alpha=decay).mul_(share)
        super().step(closure)


def build_optimizer(
    model: nn.Module, recipe: Recipe, dtype: torch.dtype = torch.float32, *, fused: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum; normalisation biases get ``bias_lr_factor`` x the rate.

    Args:
        model: Its trained parameters are those that require a gradient.
        recipe: If it has a ``matrix_lr``, Muon trains the convolutions.
        dtype: Of Muon's matrix products.
        fused: One kernel for the step of all weights of a group, and learning rates as float32 []
            on the weights' device, where a CUDA graph reads them.
    """
    norms = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    biases = {norm.bias for norm in norms}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = {p for p in trained if p.ndim == 4} if recipe.matrix_lr is not None else set()
    apart = biases | matrices
    factor = recipe.bias_lr_factor
    groups = [
        {"params": [p for p in trained if p not in apart], "peak": recipe.lr},
        {
            "params": [p for p in trained if p in biases],
            "peak": recipe.lr * factor,
            # the decay of a step is lr x weight_decay: keep it the same for both groups
            "weight_decay": recipe.weight_decay / factor,
        },
    ]
    if matrices:
        own = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        own |= {"peak": recipe.matrix_lr, "matrix_momentum": recipe.matrix_momentum}
        groups.append({"params": [p for p in trained if p in matrices], **own})
    options = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    options |= {"nesterov": recipe.nesterov, "fused": fused or None}
    optimizer = (
        Muon(groups, dtype=dtype, **options) if matrices else torch.optim.SGD(groups, **options)
    )
    for group in optimizer.param_groups if fused else ():
        group["lr"] = torch.full((), recipe.lr, device=trained[0].device)
    return optimizer


def decay_groups(
    parts: Iterable[tuple[nn.Module, float]], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: modules with their peak learning rates, and weight decay for what
    has more than one dimension."""
    groups = []
    for module, peak in parts:
        weights = [w for w in module.parameters() if w.requires_grad]
        decayed = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
        for group, decay in zip(decayed, (weight_decay, 0.0)):
            groups.append({"params": group, "weight_decay": decay, "lr": peak, "peak": peak})
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to ``share`` of its peak learning rate."""
    for group in optimizer.param_groups:
        rate = group["peak"] * share
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
