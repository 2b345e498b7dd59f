"""The optimiser that a recipe asks for."""

from __future__ import annotations

import torch
from torch import nn

from elfs_lib.training.recipes import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; normalisation biases get ``bias_lr_factor`` x the rate."""
    norm_types = (nn.BatchNorm2d,)
    biases = {
        parameter
        for module in model.modules()
        if isinstance(module, norm_types)
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias"
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    factor = recipe.bias_lr_factor
    groups = [
        {"params": [p for p in trained if p not in biases], "peak": recipe.lr},
        {
            "params": [p for p in trained if p in biases],
            "peak": recipe.lr * factor,
            # the decay of a step is lr x weight_decay: keep it the same for both groups
            "weight_decay": recipe.weight_decay / factor,
        },
    ]
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to ``share`` of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
