"""Training dynamics, streamed: every score of every image in O(N) memory.

The recorder sees each image once an epoch, with the logits of the training step as it passes
(train mode, augmented view). It keeps 50 bytes an image whatever the number of epochs or
classes; storing every logit, as the released code does, takes 2 x T x C bytes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from elfs_lib.errors import ElfsError

# Over the first ten epochs of one run, as CCS does; Paul et al. (2021) take one early epoch and
# average over ten networks
EL2N_EPOCHS = 10
DUAL_WINDOW = 10  # Cho et al. (2025), J = 10


def margin(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Probability margin ``p_y - max_{c != y} p_c`` (Pleiss et al. 2020, on softmax outputs).

    Args:
        probabilities: float [B, C], rows sum to 1.
        targets: int64 [B].

    Returns:
        float [B] in [-1, 1]; low means hard.
    """
    own = probabilities.gather(1, targets[:, None])
    others = probabilities.scatter(1, targets[:, None], -1.0).amax(1)
    return own.squeeze(1) - others


def el2n(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Error norm ``||p - onehot(y)||_2`` (Paul et al. 2021): [B], 0 to sqrt 2; high is hard."""
    # not ||p||^2 - 2 p_y + 1, which cancels for easy images and ranks them by rounding error
    own = probabilities.gather(1, targets[:, None])
    return torch.linalg.vector_norm(probabilities.scatter(1, targets[:, None], own - 1), dim=1)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Shannon entropy in nats: float [B] in [0, log C]; high is hard."""
    return torch.special.entr(probabilities).sum(1)


class DynamicsRecorder:
    """Accumulates the scores of N images over a training run.

    Args:
        targets: int64 [N], the labels that the model is trained on.
        device: Where the accumulators live (the training device); None: where the targets are.
        watch: How many images keep their margin of every epoch, for learning curves.
        seed: Chooses the watched images.
    """

    def __init__(
        self,
        targets: torch.Tensor,
        device: torch.device | str | None = None,
        *,
        watch: int = 300,
        seed: int = 0,
    ):
        n = len(targets)
        device = targets.device if device is None else torch.device(device)
        self.targets = targets.to(device)
        self.epochs = 0

        def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(n, *shape, dtype=dtype, device=device)

        self._aum, self._el2n, self._entropy, self._own = (zeros(torch.float32) for _ in range(4))
        self._correct, self._forgotten = zeros(torch.int16), zeros(torch.int16)
        self._was_correct, self._seen = zeros(torch.bool), zeros(torch.bool)
        self._dual = zeros(torch.float32)
        self._window = zeros(torch.float16, DUAL_WINDOW)  # p_y to 3 decimals is plenty here
        order = np.random.default_rng(seed).permutation(n)[:watch]
        self.watched = torch.as_tensor(np.sort(order), device=device)
        self._watched_now = zeros(torch.float32)
        self._curves: list[torch.Tensor] = []
        self._mean_margins: list[float] = []

    @property
    def bytes_per_image(self) -> float:
        """Size of the accumulators divided by N (targets and watched curves left out)."""
        tensors = [v for k, v in vars(self).items() if k.startswith("_") and torch.is_tensor(v)]
        return sum(t.element_size() * t.numel() for t in tensors) / len(self.targets)

    @torch.no_grad()
    def update(self, indices: torch.Tensor, logits: torch.Tensor) -> None:
        """Take in one training batch.

        Args:
            indices: int64 [B], positions in 0..N-1, each at most once an epoch.
            logits: float [B, C], of the training step itself, on the recorder's device.
        """
        indices = indices.to(self.targets.device)  # those of a data loader are on the CPU
        targets = self.targets[indices]
        probabilities = logits.detach().float().softmax(1)
        own = probabilities.gather(1, targets[:, None]).squeeze(1)
        batch_margin = margin(probabilities, targets)
        correct = batch_margin > 0
        self._aum[indices] += batch_margin
        self._watched_now[indices] = batch_margin
        self._own[indices] += own
        self._entropy[indices] += entropy(probabilities)
        self._correct[indices] += correct
        # Toneva et al. (2019): learnt at the last presentation and wrong at this one
        self._forgotten[indices] += self._was_correct[indices] & ~correct
        self._was_correct[indices] = correct
        self._seen.index_fill_(0, indices, True)  # = True would make the host wait for a GPU
        if self.epochs < EL2N_EPOCHS:
            self._el2n[indices] += el2n(probabilities, targets)
        self._window[indices, self.epochs % DUAL_WINDOW] = own.half()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Close an epoch: windows move on and the mean margin is noted.

        Raises:
            ElfsError: if some image was not presented; its scores would not be comparable.
        """
        if not bool(self._seen.all()):
            raise ElfsError(
                f"Dynamics need every image once an epoch: {int((~self._seen).sum())} of "
                f"{len(self.targets)} were not presented in epoch {self.epochs + 1}."
            )
        self._seen.zero_()
        self.epochs += 1
        self._mean_margins.append(float(self._watched_now.mean()))
        self._curves.append(self._watched_now[self.watched].cpu())
        if self.epochs >= DUAL_WINDOW:
            self._dual += self._window_score(self._window)

    @staticmethod
    def _window_score(window: torch.Tensor) -> torch.Tensor:
        window = window.float()
        return window.std(1, correction=1) * (1 - window.mean(1))

    def curves(self) -> np.ndarray:
        """Margin of the watched images at every epoch: float32 [T, watch]."""
        return torch.stack(self._curves).numpy()

    def mean_margins(self) -> np.ndarray:
        """Mean margin of all images at every epoch: float32 [T]."""
        return np.asarray(self._mean_margins, dtype=np.float32)

    def table(self) -> pd.DataFrame:
        """The scores, one row an image.

        Columns: ``index``; ``aum`` in [-T, T], low is hard; ``margin_mean`` = aum / T;
        ``forgetting`` = times forgotten, high is hard, images never learnt count T + 1;
        ``el2n`` mean over the first 10 epochs, high is hard; ``correctness`` = share of epochs
        predicted right, low is hard; ``entropy`` mean in nats, high is hard; ``dual`` = mean over
        windows of 10 epochs (fewer when training was shorter) of std x (1 - mean) of p_y (Cho et
        al. 2025, eq. 3), high is informative; ``dual_mean`` = mean of p_y over the epochs, in
        [0, 1], low is hard.
        """
        epochs = self.epochs
        if epochs == 0:
            raise ElfsError("No epoch was recorded: train for at least one epoch.")
        if epochs >= DUAL_WINDOW:
            dual = self._dual / (epochs - DUAL_WINDOW + 1)
        elif epochs > 1:
            dual = self._window_score(self._window[:, :epochs])
        else:
            dual = torch.zeros_like(self._dual)
        never_learnt = self._correct == 0
        forgetting = torch.where(never_learnt, epochs + 1, self._forgotten.to(torch.int32))
        columns = {
            "aum": self._aum,
            "margin_mean": self._aum / epochs,
            "forgetting": forgetting.to(torch.int16),
            "el2n": self._el2n / min(epochs, EL2N_EPOCHS),
            "correctness": self._correct.float() / epochs,
            "entropy": self._entropy / epochs,
            "dual": dual,
            "dual_mean": self._own / epochs,
        }
        frame = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
        frame.insert(0, "index", np.arange(len(frame), dtype=np.int64))
        return frame
