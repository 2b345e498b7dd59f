"""TEMI: clustering of frozen embeddings by teacher-ensemble weighted mutual information.

Adaloglou, Michels, Kalisch and Kollmann, "Exploring the Limits of Deep Image Clustering using
Pretrained Models" (BMVC 2023), as used by ELFS (Zheng et al., ICLR 2025, Section 3).

H heads, each a student and an EMA teacher, learn side by side as one batched module. Heads
number their clusters independently, so they are aligned before they are averaged: first to the
head of lowest loss, then to what the heads agree on, until that no longer changes. No label is read
anywhere: heads are compared by their own loss and by their agreement.

Choices as made here: the learning rate stays constant after the warm-up, as in ELFS's released
command; the last layer's weights have length 1 (weight normalisation with a fixed gain, which that
code learns), so that logits are cosines; weights w carry no gradient; the teacher labels the
images; the batch that would be incomplete at the end of an epoch is left out, and each epoch
shuffles anew.

One file: the algorithm reads from top to bottom, from the heads' loss to what they agree on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from elfs_lib.clustering.metrics import collapse_notes
from elfs_lib.clustering.spectral import spectral_labels
from elfs_lib.clustering.temi_config import TemiConfig
from elfs_lib.compute import (
    Replayed,
    own_stream,
    replays,
    resolve_device,
    resolve_precision,
    upload,
)
from elfs_lib.embedding.pca import principal_axes
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track

# How heads learn the clustering that they start from: passes, and AdamW's learning rate.
START_EPOCHS, START_RATE = 3, 2e-3
# Smallest probability whose logarithm is taken, and smallest length that divides.
SMALLEST = 1e-12
# Heads count in the consensus by this power of their agreement with it: enough that poor heads
# count little, and too little for a single head to be followed.
AGREEMENT_POWER = 3
# Most rounds of the consensus, if it does not converge earlier.
ROUNDS = 20
# Floats of one layer that a group of heads may fill on CPU: about the cache of a core.
GROUP_FLOATS = 1 << 20
# Floats of one layer when all heads label a block of images.
BLOCK_FLOATS = 1 << 24


@dataclass(frozen=True)
class TemiHeads:
    """Trained heads; H heads, T epochs.

    Attributes:
        head_losses: float64 [H], mean over the last epochs; lower is better.
        loss_curves: float32 [T, H], mean of each epoch.
        state: The teacher heads that label the images and the inputs' preprocessing, on CPU;
            :func:`consensus` reads it.
    """

    head_losses: np.ndarray
    loss_curves: np.ndarray
    state: dict[str, Tensor]


@dataclass(frozen=True)
class TemiResult(TemiHeads):
    """Trained heads and the labels that they agree on; N images, C clusters.

    Attributes:
        assignments: int16 [H, N], each head's own cluster numbers (not aligned).
        reference: The head of lowest loss among those with the fewest empty clusters, 0..H-1.
        weights: float64 [H], share of each head in the aligned mean; they sum to 1.
        pseudo: "lowest_loss", "plain_mean" and "aligned_mean", each int64 [N] in 0..C-1, the last
            numbered after the first.
        probabilities: float32 [N, C], aligned mean over the heads; rows sum to 1.
        confidence: float32 [N] in (0, 1], the probability of the aligned mean's label.
        notes: Sentences about empty, nearly empty or merged clusters; empty if all is well.
    """

    assignments: np.ndarray
    reference: int
    weights: np.ndarray
    pseudo: dict[str, np.ndarray]
    probabilities: np.ndarray
    confidence: np.ndarray
    notes: list[str]


class Heads(NamedTuple):
    """Weights of H heads: Linear(D, hidden), GELU, Linear(hidden, bottleneck), unit length,
    Linear(bottleneck, C) with unit-length weights and no bias."""

    weight1: Tensor  # [H, D, hidden]
    bias1: Tensor  # [H, 1, hidden]
    weight2: Tensor  # [H, hidden, bottleneck]
    bias2: Tensor  # [H, 1, bottleneck]
    weight3: Tensor  # [H, C, bottleneck], used at unit length


def fit_temi(
    embeddings: np.ndarray,
    neighbors: np.ndarray,
    config: TemiConfig,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "off",
) -> TemiResult:
    """Cluster embeddings by TEMI: :func:`fit_heads`, then :func:`consensus`."""
    where = {"device": device, "precision": precision}
    heads = fit_heads(embeddings, neighbors, config, seed=seed, compile=compile, **where)
    return consensus(heads, embeddings, keep_heads=config.keep_heads, **where)


def fit_heads(
    embeddings: np.ndarray,
    neighbors: np.ndarray,
    config: TemiConfig,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "off",
) -> TemiHeads:
    """Train TEMI's heads.

    Args:
        embeddings: float32 [N, D], finite, no row all zero; rows are L2-normalised first.
        neighbors: int [N, K], nearest neighbours of each row, itself left out.
        config: Sizes and schedules.
        seed: Seeds weights, order and the choice of neighbours; the same seed gives the same
            bits on CPU.
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "float32" or "bfloat16" for the matrix products.
        compile: With "auto" and "on" a GPU gets the steps as CUDA graphs, "off" leaves that out;
            the result is the same.

    Raises:
        ElfsError: if the inputs do not fit each other or the configuration, or the loss is not
            finite.
    """
    rows = unit_rows(embeddings)
    neighbors = _checked_neighbors(neighbors, len(rows))
    if config.classes > len(rows):
        raise ElfsError(f"classes is {config.classes} but there are only {len(rows)} images.")
    if config.pca is not None and config.pca > min(rows.shape):
        raise ElfsError(
            f"pca is {config.pca}: at most {min(rows.shape)} components exist here, "
            "use fewer or null."
        )
    place = resolve_device(device)
    dtype = resolve_precision(precision, place)
    preparation = fit_preparation(torch.from_numpy(rows), config)
    inputs = prepare(torch.from_numpy(rows), preparation).to(place)
    starts = None
    if config.start == "spectral":
        labels = spectral_labels(neighbors, config.classes, count=config.heads, seed=seed)
        starts = torch.from_numpy(labels).to(place)
    near = torch.from_numpy(neighbors).to(place)
    graphs = replays(compile, place)
    teacher, curves = train_heads(inputs, near, config, seed, dtype, starts, graphs=graphs)
    head_losses = curves[-config.loss_epochs :].mean(axis=0)
    state = {f"head.{k}": v.cpu() for k, v in teacher._asdict().items()}
    state["temperature"] = torch.tensor(config.teacher_temperature)
    state |= {f"input.{k}": v for k, v in preparation.items()}
    return TemiHeads(head_losses.astype(np.float64), curves, state)


def consensus(
    heads: TemiHeads,
    embeddings: np.ndarray,
    *,
    keep_heads: float = 1.0,
    device: str = "auto",
    precision: str = "auto",
) -> TemiResult:
    """Label images by what the heads agree on.

    The clusters of each head are matched to those of the head of lowest loss, and the heads vote.
    Then they are matched to the outcome of the vote, and each head votes with the cube of the share
    of images on which it agreed with the previous vote, until the labels no longer change. So the
    labels depend little on how good the one reference happened to be, and heads that disagree with
    most others count little. The aligned mean is the weighted mean of the probabilities after the
    last matching.

    Args:
        heads: Of :func:`fit_heads`.
        embeddings: float32 [N, D] that the heads were fitted on.
        keep_heads: See :class:`TemiConfig`.
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "float32" or "bfloat16" for the matrix products.

    Raises:
        ElfsError: if the embeddings do not fit the heads.
    """
    labeller = _labeller(heads.state, embeddings, device, precision)
    assignments = _assign(labeller)
    count, classes = len(assignments), heads.state["head.weight3"].shape[1]
    # A head that lost clusters can show a low loss: its batches hop between clusters faster than
    # the marginal follows. So heads with the fewest empty clusters come first, then the loss.
    missing = np.array([classes - len(np.unique(own)) for own in assignments])
    order = np.lexsort((heads.head_losses, missing))
    best = int(order[0])
    sound = order[missing[order] == missing[best]]
    kept = sound[: max(1, round(keep_heads * count))]
    mapping, weights = agree(assignments, best, kept, classes)
    # inverse[h, c] is the cluster of head h that is called c.
    inverse = torch.from_numpy(mapping.argsort(axis=1))
    share = torch.from_numpy(weights).float()
    plain = np.empty(assignments.shape[1], dtype=np.int64)
    aligned = np.empty((assignments.shape[1], classes), dtype=np.float32)
    for part, probabilities in _label(labeller):
        plain[part] = probabilities.mean(dim=0).argmax(dim=0).cpu().numpy()
        names = inverse.to(probabilities.device)[:, :, None].expand_as(probabilities)
        renamed = probabilities.gather(1, names)
        mean = torch.einsum("h,hcn->nc", share.to(probabilities.device), renamed)
        aligned[part] = mean.cpu().numpy()
    aligned /= aligned.sum(axis=1, keepdims=True)
    pseudo = {
        "lowest_loss": assignments[best].astype(np.int64),
        "plain_mean": plain,
        "aligned_mean": aligned.argmax(axis=1),
    }
    notes = []
    if len(sound) < count:
        notes.append(
            f"{count - len(sound)} of {count} heads have more empty clusters than the "
            "others and are left out of the aligned mean."
        )
    notes += collapse_notes(pseudo["lowest_loss"], classes, name="lowest-loss head")
    notes += collapse_notes(pseudo["aligned_mean"], classes, name="aligned mean")
    return TemiResult(
        **vars(heads),
        assignments=assignments,
        reference=best,
        weights=weights,
        pseudo=pseudo,
        probabilities=aligned,
        confidence=aligned.max(axis=1),
        notes=notes,
    )


def agree(
    assignments: np.ndarray, reference: int, kept: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Names [H, C] and weights [H] of the heads once their vote no longer changes."""
    equal = np.zeros(len(assignments))
    equal[kept] = 1
    # The first vote gives every head the same weight: the reference agrees with itself entirely
    # and would outvote the others.
    names = align_heads(assignments, reference, classes=classes)
    labels = vote(_renamed(names, assignments), equal, classes)
    for _ in range(ROUNDS):
        every = np.concatenate([labels[None], assignments])
        names = align_heads(every, 0, classes=classes)[1:]
        renamed = _renamed(names, assignments)
        weights = equal * (renamed == labels).mean(axis=1) ** AGREEMENT_POWER
        voted = vote(renamed, weights, classes)
        if (voted == labels).all():
            break
        labels = voted
    return names, weights / weights.sum()


def _renamed(names: np.ndarray, assignments: np.ndarray) -> np.ndarray:
    """Each head's clusters [H, N] under their names [H, C], in the small type of the clusters."""
    return np.take_along_axis(names.astype(assignments.dtype), assignments, axis=1)


def vote(renamed: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Label of the heaviest vote for each image, of equal ones the lowest: int16 [N]."""
    count = renamed.shape[1]
    labels = np.empty(count, dtype=np.int16)
    block = max(1, BLOCK_FLOATS // classes)  # memory does not grow with N
    for start in range(0, count, block):
        part = renamed[:, start : start + block]
        votes = np.zeros((part.shape[1], classes))
        for own, weight in zip(part, weights, strict=True):
            votes[np.arange(len(own)), own] += weight
        labels[start : start + block] = votes.argmax(axis=1)
    return labels


def align_heads(assignments: np.ndarray, reference: int, *, classes: int) -> np.ndarray:
    """Renumber the clusters of each head like those of a reference head.

    Each head's clusters are matched one to one to the reference's so that the most images fall
    together (Hungarian algorithm on the co-occurrence counts).

    Args:
        assignments: int [H, N] in 0..classes-1.
        reference: The head, 0..H-1, whose numbering all get.
        classes: Number of clusters C.

    Returns:
        int64 [H, C]: cluster c of head h becomes cluster ``result[h, c]``, a permutation of 0..C-1
        for each head and the identity for the reference.

    Raises:
        ElfsError: if the reference or an assignment is out of range.
    """
    assignments = np.asarray(assignments)
    if assignments.ndim != 2 or not assignments.size:
        raise ElfsError(f"assignments must be [H, N], not shape {assignments.shape}.")
    if not 0 <= reference < len(assignments):
        raise ElfsError(f"reference is {reference}: it must be from 0 to {len(assignments) - 1}.")
    if assignments.min() < 0 or assignments.max() >= classes:
        raise ElfsError(f"assignments must lie in 0..{classes - 1}.")
    target = assignments[reference].astype(np.int64)
    mapping = np.empty((len(assignments), classes), dtype=np.int64)
    for head, own in enumerate(assignments):
        together = np.bincount(own.astype(np.int64) * classes + target, minlength=classes**2)
        clusters, names = linear_sum_assignment(together.reshape(classes, classes), maximize=True)
        mapping[head, clusters] = names
    mapping[reference] = np.arange(classes)
    return mapping


def plain_losses(
    student: Tensor, teacher: Tensor, marginal: Tensor, *, beta: float, weighting: str
) -> Tensor:
    """The definition of :func:`temi_losses`, as the paper writes it; arguments as there. Losses
    [H], whose gradient is autograd's."""
    q_s, q_t = student.softmax(dim=1), teacher.softmax(dim=1)
    q_t_near = q_t.roll(q_t.shape[2] // 2, dims=2)  # of each image's partner in its pair
    pmi = ((q_s * q_t_near) ** beta / marginal[:, :, None]).sum(dim=1).log()
    judge = q_t if weighting == "teacher" else q_s.detach()
    weight = (judge * q_t_near).sum(dim=1).mean(dim=0)  # over the heads: [2B]
    return -(weight * pmi).mean(dim=1)


def temi_losses(
    student: Tensor, teacher: Tensor, marginal: Tensor, *, beta: float, weighting: str
) -> tuple[Tensor, Tensor]:
    """Loss of each head on a batch of pairs, with its gradient (Adaloglou et al., 2023, Eq. 9).

    ``pmi(x, x') = log sum_c (q_s(c|x) q_t(c|x'))^beta / q_t(c)`` and
    ``loss_h = -1/2 mean_x [w(x,x') pmi(x,x') + w(x',x) pmi(x',x)]``, w averaged over the heads
    and constant for the gradient.

    Args:
        student: Logits over temperature, whose softmax is q_s, float [H, C, 2B]: B images x,
            then the neighbour x' of each.
        teacher: The same of the teacher, float [H, C, 2B].
        marginal: Cluster marginals q_t(c) of the teacher, float [H, C], positive.
        beta: Exponent in (0, 1].
        weighting: "teacher" or "student_teacher", see :class:`TemiConfig`.

    Returns:
        Losses [H], lower is better, and the gradient of their sum by ``student``, [H, C, 2B].
        With p_c the share of cluster c in the sum inside the pmi's logarithm, the gradient is
        ``w beta / 2B (q_s - p)``.
    """
    heads, classes, size = student.shape
    groups = _groups(heads, 2 * classes * size, student.device)  # own and terms are both in use
    taught, gradient = torch.empty_like(teacher), torch.empty_like(student)
    agreement, pmi = torch.empty_like(student[:, 0]), torch.empty_like(student[:, 0])
    for g in groups:
        taught[g] = F.log_softmax(teacher[g], dim=1)
        q_t = taught[g].exp()
        judge = q_t
        if weighting == "student_teacher":
            judge = F.log_softmax(student[g], dim=1).exp_()
        # Rolled by B, the teacher's output for x' lines up with x, and vice versa
        agreement[g] = (judge * q_t.roll(size // 2, dims=2)).sum(dim=1)
    weight = agreement.mean(dim=0)
    scale = weight * (beta / size)
    for g in groups:
        own = F.log_softmax(student[g], dim=1)
        terms = torch.add(own, taught[g].roll(size // 2, dims=2)).mul_(beta)
        terms.sub_(marginal[g].log()[:, :, None])
        pmi[g] = torch.logsumexp(terms, dim=1)
        p = terms.sub_(pmi[g, None]).exp_()
        torch.mul(own.exp_().sub_(p), scale, out=gradient[g])
    return -(pmi @ weight) / size, gradient


def _groups(heads: int, floats: int, device: torch.device) -> list[slice]:
    """Heads to handle at once, each of them with so many ``floats``: on CPU as many as stay in the
    cache, on a GPU all."""
    size = max(1, GROUP_FLOATS // floats) if device.type == "cpu" else heads
    return [slice(i, i + size) for i in range(0, heads, size)]


def _checked_neighbors(neighbors: np.ndarray, count: int) -> np.ndarray:
    neighbors = np.asarray(neighbors)
    if neighbors.ndim != 2 or neighbors.shape[0] != count or neighbors.shape[1] < 1:
        raise ElfsError(f"neighbors must be [{count}, K] with K >= 1, not {neighbors.shape}.")
    if neighbors.dtype.kind not in "iu":
        raise ElfsError(f"neighbors must be integers, not {neighbors.dtype}.")
    if neighbors.min() < 0 or neighbors.max() >= count:
        raise ElfsError(
            f"neighbors must lie in 0..{count - 1}: search them on the same embeddings."
        )
    return neighbors.astype(np.int32)


def fit_preparation(rows: Tensor, config: TemiConfig) -> dict[str, Tensor]:
    """What :func:`prepare` does to unit rows: mean [D], features [D] or [D, P]."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    features = torch.ones_like(mean)
    if config.standardize:
        deviation = centred.square().mean(dim=0).sqrt()
        # A constant feature carries no information: it becomes 0, not 0 / 0.
        constant = deviation <= 1e-6 * deviation.max()
        features = torch.where(constant, 0.0, 1.0 / deviation)
        centred *= features
    if config.pca is not None:
        components = principal_axes(centred, torch.zeros_like(mean), config.pca)
        centred = centred @ components
        features = features[:, None] * components
    # Unit rows of many features are tiny numbers, and first layers as commonly initialised
    # expect numbers around 1: without this the heads need several times the epochs.
    size = centred.square().mean().sqrt()
    if not size > 0:
        raise ElfsError("embeddings are all alike: there is nothing to cluster, check the encoder.")
    return {"mean": mean, "features": (features / size).contiguous()}


def prepare(rows: Tensor, preparation: dict[str, Tensor]) -> Tensor:
    """Inputs of the heads, float32 [N, P], of mean 0 and mean square 1 where they were fitted."""
    mean, features = preparation["mean"], preparation["features"]
    return (rows - mean) @ features if features.ndim == 2 else (rows - mean) * features


def new_heads(width: int, config: TemiConfig, generator: torch.Generator) -> Heads:
    def uniform(*shape: int, fan_in: int) -> Tensor:
        bound = fan_in**-0.5
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound

    heads, hidden, bottleneck = config.heads, config.hidden, config.bottleneck
    return Heads(
        weight1=uniform(heads, width, hidden, fan_in=width),
        bias1=uniform(heads, 1, hidden, fan_in=width),
        weight2=uniform(heads, hidden, bottleneck, fan_in=hidden),
        bias2=uniform(heads, 1, bottleneck, fan_in=hidden),
        weight3=uniform(heads, config.classes, bottleneck, fan_in=bottleneck),
    )


class Activations(NamedTuple):
    """What the backward pass of G heads on M inputs needs."""

    before: Tensor  # [G, M, hidden], before the GELU
    after: Tensor  # [G, M, hidden], after the GELU
    feature: Tensor  # [G, M, bottleneck], not yet of unit length
    scale: Tensor  # float32 [G, 1, M], 1 / (length of the feature * temperature)
    logits: Tensor  # float32 [G, C, M], cosine / temperature


def forward(inputs: Tensor, heads: Heads, temperature: float) -> Activations:
    """Run G heads on inputs [M, P]; all of one dtype."""
    count = len(heads.weight1)
    before = torch.baddbmm(heads.bias1, inputs.expand(count, *inputs.shape), heads.weight1)
    after = F.gelu(before)
    feature = torch.baddbmm(heads.bias2, after, heads.weight2)
    wide = torch.promote_types(feature.dtype, torch.float32)
    length = torch.linalg.vector_norm(feature, dim=2, dtype=wide).clamp_(min=SMALLEST)
    scale = length.mul_(temperature).reciprocal_()[:, None]
    # Cluster before sample: a softmax over the middle dimension runs along whole vectors.
    logits = torch.bmm(F.normalize(heads.weight3, dim=2), feature.transpose(1, 2)) * scale
    return Activations(before, after, feature, scale, logits)


def backward(
    inputs: Tensor, heads: Heads, seen: Activations, gradient: Tensor, temperature: float
) -> Heads:
    """Gradients of the weights from the gradient by the logits, float32 [G, C, M]."""
    dtype = inputs.dtype
    unit = F.normalize(heads.weight3, dim=2)
    scaled = (gradient * seen.scale).to(dtype)
    by_unit = torch.bmm(scaled, seen.feature)
    # The logits do not change with the feature's length: that part of the gradient is removed.
    along = (gradient * seen.logits).sum(dim=1) * (seen.scale[:, 0] * temperature).square_()
    by_feature = torch.bmm(scaled.transpose(1, 2), unit)
    by_feature.addcmul_(seen.feature, along.to(dtype)[:, :, None], value=-1)
    by_before = torch.ops.aten.gelu_backward(
        torch.bmm(by_feature, heads.weight2.transpose(1, 2)), seen.before
    )
    by_unit, unit, weight3 = (w.to(gradient.dtype) for w in (by_unit, unit, heads.weight3))
    by_weight3 = by_unit - unit * (by_unit * unit).sum(dim=2, keepdim=True)
    length = torch.linalg.vector_norm(weight3, dim=2, keepdim=True)
    by_weight3 /= length.clamp_(min=SMALLEST)
    return Heads(
        weight1=torch.bmm(inputs.T.expand(len(unit), *inputs.T.shape), by_before),
        bias1=by_before.sum(dim=1, keepdim=True),
        weight2=torch.bmm(seen.after.transpose(1, 2), by_feature),
        bias2=by_feature.sum(dim=1, keepdim=True),
        weight3=by_weight3,
    )


class Trainer:
    """Student, teacher, optimiser and marginals of H heads, on one device.

    The matrix products run in ``dtype``; weights, teacher, marginals and losses are float32.
    Heads pass through the network in groups: on CPU so that a group's activations stay in the
    cache, on a GPU all at once.
    """

    def __init__(
        self,
        width: int,
        config: TemiConfig,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        *,
        graphs: bool = False,
    ) -> None:
        self.config, self.dtype = config, dtype
        fresh = new_heads(width, config, generator)
        self.student = Heads(*(w.to(device).requires_grad_() for w in fresh))
        self.teacher = Heads(*(w.detach().clone() for w in self.student))
        shape = (config.heads, config.classes)
        self.marginal = torch.full(shape, 1.0 / config.classes, device=device)
        self.rate = config.learning_rate * config.batch / 256
        self.optimizer = torch.optim.AdamW(
            list(self.student),
            # a tensor, which a CUDA graph reads
            lr=torch.tensor(self.rate, device=device) if graphs else self.rate,
            weight_decay=config.weight_decay,
            fused=device.type != "mps",  # not every version of torch has it there
            capturable=graphs,
        )
        self._learn = Replayed(self._update) if graphs else self._update
        self.groups = _groups(config.heads, 2 * config.batch * config.hidden, device)

    @torch.no_grad()
    def step(self, inputs: Tensor, lr_share: float) -> Tensor:
        """Learn from the pairs ``inputs`` [2B, P]; returns the loss of each head, float32 [H].

        Args:
            inputs: B images, then the neighbour of each, of the trainer's dtype.
            lr_share: Share of the learning rate to use, in (0, 1].
        """
        for group in self.optimizer.param_groups:
            if torch.is_tensor(group["lr"]):
                group["lr"].fill_(self.rate * lr_share)
            else:
                group["lr"] = self.rate * lr_share
        return self._learn(inputs)[0]

    def _update(self, inputs: Tensor) -> tuple[Tensor]:
        config = self.config
        teacher = Heads(*(w.to(self.dtype) for w in self.teacher))
        student = Heads(*(w.detach().to(self.dtype) for w in self.student))
        taught, seen = [], []
        for group in self.groups:
            part = Heads(*(w[group] for w in teacher))
            taught.append(forward(inputs, part, config.teacher_temperature).logits)
            part = Heads(*(w[group] for w in student))
            seen.append(forward(inputs, part, config.student_temperature))
        taught = _joined(taught)
        share = F.softmax(taught, dim=1).mean(dim=2)
        self.marginal.lerp_(share, 1 - config.marginal_momentum)
        losses, gradient = temi_losses(
            _joined([s.logits for s in seen]),
            taught,
            self.marginal.clamp(min=SMALLEST),
            beta=config.beta,
            weighting=config.weighting,
        )
        # Heads share no weights, so each follows the gradient of its own loss.
        grads = []
        for group, activations in zip(self.groups, seen, strict=True):
            part = Heads(*(w[group] for w in student))
            grads.append(
                backward(inputs, part, activations, gradient[group], config.student_temperature)
            )
        for i, weight in enumerate(self.student):
            weight.grad = _joined([g[i] for g in grads]).float()
        self.optimizer.step()
        torch._foreach_lerp_(list(self.teacher), list(self.student), 1 - config.teacher_momentum)
        return (losses,)

    @torch.no_grad()
    def imitate(self, inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One step of cross-entropy towards ``targets`` int64 [H, B] of ``inputs`` [B, P]."""
        student = Heads(*(w.detach().to(self.dtype) for w in self.student))
        grads = []
        for group in self.groups:
            part = Heads(*(w[group] for w in student))
            seen = forward(inputs, part, self.config.student_temperature)
            wanted = F.one_hot(targets[group], self.config.classes).transpose(1, 2)
            gradient = F.softmax(seen.logits, dim=1) - wanted
            gradient /= len(inputs)
            grads.append(backward(inputs, part, seen, gradient, self.config.student_temperature))
        for i, weight in enumerate(self.student):
            weight.grad = _joined([g[i] for g in grads]).float()
        optimizer.step()

    @torch.no_grad()
    def start_from(self, inputs: Tensor, starts: Tensor, generator: torch.Generator) -> None:
        """Have the heads learn one labelling each, int64 [H, N], and the teacher copy them."""
        decay = self.config.weight_decay
        optimizer = torch.optim.AdamW(list(self.student), lr=START_RATE, weight_decay=decay)
        for _ in range(START_EPOCHS):
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            for part in order.split(self.config.batch):
                self.imitate(inputs[part], starts[:, part], optimizer)
        torch._foreach_copy_(list(self.teacher), list(self.student))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def train_heads(
    inputs: Tensor,
    neighbors: Tensor,
    config: TemiConfig,
    seed: int,
    dtype: torch.dtype,
    starts: Tensor | None = None,
    *,
    graphs: bool = False,
) -> tuple[Heads, np.ndarray]:
    """Train on ``inputs`` [N, P], from the labellings ``starts`` int64 [H, N] if they are given;
    returns the teacher and the loss curves float32 [T, H]."""
    device = inputs.device
    count = len(inputs)
    batch = min(config.batch, count)
    config = replace(config, batch=batch)  # the learning rate depends on it
    steps = count // batch
    warm = max(1, config.warmup_epochs * steps)
    # Random numbers are drawn on CPU, so that every device trains on the same batches.
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(inputs.shape[1], config, generator, device, dtype, graphs=graphs)
    inputs = inputs.to(dtype)
    if starts is not None:
        trainer.start_from(inputs, starts, generator)
    curves = np.empty((config.epochs, config.heads), dtype=np.float32)
    progress = track(range(config.epochs), "TEMI")
    with own_stream(device, wanted=graphs):
        for epoch in progress:
            order = upload(torch.randperm(count, generator=generator), device)
            picks = torch.randint(neighbors.shape[1], (count,), generator=generator)
            partner = neighbors[order, upload(picks, device)]
            total = torch.zeros(config.heads, device=device)
            for step in range(steps):
                part = slice(step * batch, (step + 1) * batch)
                pairs = inputs[torch.cat((order[part], partner[part]))]
                total += trainer.step(pairs, min(1.0, (epoch * steps + step + 1) / warm))
            curves[epoch] = (total / steps).cpu().numpy()
            if not np.isfinite(curves[epoch]).all():
                raise ElfsError(
                    f"TEMI's loss is not finite in epoch {epoch + 1}: lower the learning_rate."
                )
            progress.set_postfix_str(f"loss {curves[epoch].mean():.4f}", refresh=False)
    return trainer.teacher, curves


class _Labeller(NamedTuple):
    """Trained heads and the inputs that they are to label, on the device and ready."""

    inputs: Tensor
    heads: Heads
    temperature: float


def _labeller(
    state: dict[str, Tensor], embeddings: np.ndarray, device: str, precision: str
) -> _Labeller:
    rows = unit_rows(embeddings)
    preparation = {k[6:]: v for k, v in state.items() if k.startswith("input.")}
    if rows.shape[1] != len(preparation["mean"]):
        raise ElfsError(
            f"embeddings have {rows.shape[1]} features but TEMI was fitted on "
            f"{len(preparation['mean'])}: use the same encoder."
        )
    place = resolve_device(device)
    dtype = resolve_precision(precision, place)
    inputs = prepare(torch.from_numpy(rows), preparation).to(place)
    heads = Heads(*(state[f"head.{name}"].to(place, dtype) for name in Heads._fields))
    return _Labeller(inputs, heads, float(state["temperature"]))


@torch.no_grad()
def _label(labeller: _Labeller) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice, probabilities [H, C, b]) block by block: memory does not grow with N."""
    inputs, heads, temperature = labeller
    count, classes, bottleneck = heads.weight3.shape
    block = max(1, BLOCK_FLOATS // (count * (heads.weight2.shape[1] + bottleneck + classes)))
    for start in range(0, len(inputs), block):
        part = slice(start, start + block)
        logits = forward(inputs[part].to(heads.weight1.dtype), heads, temperature).logits
        yield part, F.softmax(logits, dim=1)


def _assign(labeller: _Labeller) -> np.ndarray:
    """Cluster of each image by each head, int16 [H, N]."""
    parts = [
        probabilities.argmax(dim=1).to(torch.int16).cpu() for _, probabilities in _label(labeller)
    ]
    return torch.cat(parts, dim=1).numpy()
