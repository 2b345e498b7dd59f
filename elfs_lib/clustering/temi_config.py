"""TEMI's hyperparameters and their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elfs_lib.bounds import bounded, check_bounds

Weighting = Literal["teacher", "student_teacher"]
Start = Literal["random", "spectral"]


@dataclass(frozen=True, kw_only=True)
class TemiConfig:
    """Hyperparameters of TEMI; the defaults are the paper's values.

    Attributes:
        classes: Number of clusters C per head, at least 2.
        heads: Number of heads H.
        epochs: Passes over the images.
        warmup_epochs: Epochs over which the learning rate rises linearly from 0.
        batch: Images per step, each with one neighbour; at most N are used.
        learning_rate: Per 256 images; the optimiser gets ``learning_rate * batch / 256``.
        weight_decay: AdamW's.
        hidden: Width of the first layer.
        bottleneck: Width of the layer before the clusters.
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's logits.
        teacher_momentum: Share of the old teacher kept at each step, in [0, 1).
        marginal_momentum: Share of the old cluster marginal kept at each step, in [0, 1).
        beta: Exponent in the PMI, in (0, 1]; below 1 spreads the clusters evenly.
        weighting: "teacher" weighs a pair by sum_c q_t(c|x) q_t(c|x'), as the released code
            does; "student_teacher" by sum_c q_s(c|x) q_t(c|x'). The teacher is the default: the
            published results come from it, and the average of a slow teacher over heads is the
            steadier judge of whether two images belong together.
        start: "random" weights, or "spectral": each head first learns a spectral clustering of the
            neighbour graph by cross-entropy, and TEMI goes on from there. From random weights the
            heads end in poorer optima of TEMI's own loss.
        pca: Project the embeddings on this many principal components first; None keeps all.
        standardize: Scale each input feature to variance 1 first; constant features become 0.
            In any case the inputs are centred, and scaled by one number to mean square 1.
        loss_epochs: A head's loss is its mean over this many last epochs.
        keep_heads: Share of the heads, those of lowest loss, that enter the aligned mean; heads
            with more empty clusters than others never do.
    """

    classes: int = bounded(ge=2, le=32767)  # labels are int16
    heads: int = bounded(50, ge=1)
    epochs: int = bounded(200, ge=1)
    warmup_epochs: int = bounded(20, ge=0)
    batch: int = bounded(1024, ge=2)
    learning_rate: float = bounded(1e-4, gt=0)
    weight_decay: float = bounded(1e-4, ge=0)
    hidden: int = bounded(512, ge=1)
    bottleneck: int = bounded(256, ge=1)
    student_temperature: float = bounded(0.1, gt=0)
    teacher_temperature: float = bounded(0.1, gt=0)
    teacher_momentum: float = bounded(0.996, ge=0, lt=1)
    marginal_momentum: float = bounded(0.9, ge=0, lt=1)
    beta: float = bounded(0.6, gt=0, le=1)
    weighting: Weighting = "teacher"
    start: Start = "random"
    pca: int | None = bounded(None, ge=2)
    standardize: bool = False
    loss_epochs: int = bounded(1, ge=1)
    keep_heads: float = bounded(1.0, gt=0, le=1)

    def __post_init__(self) -> None:
        check_bounds(self)
