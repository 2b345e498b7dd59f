"""Streamed dynamics against a slow reference that stores every logit of every step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elfs_lib.errors import ElfsError
from elfs_lib.selection import SCORES, easiness
from elfs_lib.training.dynamics import DynamicsRecorder, el2n, entropy, margin

CPU = torch.device("cpu")


def reference(logits: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    """Every score by its definition, image by image: float64 logits [T, N, C], int [N]."""
    epochs, n, classes = logits.shape
    table: dict[str, list[float]] = {name: [] for name in SCORES}
    for image in range(n):
        label = int(targets[image])
        margins, errors, entropies, right, own = [], [], [], [], []
        for epoch in range(epochs):
            exponentials = [math.exp(v) for v in logits[epoch, image]]
            p = [v / sum(exponentials) for v in exponentials]
            rest = max(p[c] for c in range(classes) if c != label)
            margins.append(p[label] - rest)
            right.append(p[label] > rest)
            own.append(p[label])
            onehot = [float(c == label) for c in range(classes)]
            errors.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(p, onehot, strict=True))))
            entropies.append(-sum(v * math.log(v) for v in p if v > 0))
        table["aum"].append(sum(margins))
        table["margin_mean"].append(sum(margins) / epochs)
        table["el2n"].append(sum(errors[:10]) / len(errors[:10]))
        table["entropy"].append(sum(entropies) / epochs)
        table["correctness"].append(sum(right) / epochs)
        table["dual_mean"].append(sum(own) / epochs)
        forgotten = sum(right[t - 1] and not right[t] for t in range(1, epochs))
        table["forgetting"].append(forgotten if any(right) else epochs + 1)
        width = min(10, epochs)
        windows = [own[t - width : t] for t in range(width, epochs + 1)]
        table["dual"].append(sum(map(_dual, windows)) / len(windows))
    return table


def _dual(window: list[float]) -> float:
    if len(window) < 2:
        return 0.0
    mean = sum(window) / len(window)
    deviation = math.sqrt(sum((p - mean) ** 2 for p in window) / (len(window) - 1))
    return deviation * (1 - mean)


def record(
    logits: np.ndarray, targets: np.ndarray, *, batch: int = 7, order_seed: int = 0, **options
) -> DynamicsRecorder:
    recorder = DynamicsRecorder(torch.as_tensor(targets), CPU, **options)
    rng = np.random.default_rng(order_seed)
    for epoch in logits:
        for rows in np.array_split(rng.permutation(len(targets)), -(-len(targets) // batch)):
            recorder.update(torch.as_tensor(rows), torch.as_tensor(epoch[rows]))
        recorder.end_epoch()
    return recorder


def training_like(epochs: int, n: int = 23, classes: int = 5, seed: int = 0) -> tuple:
    """Logits that learn some images and not others: float64 [T, N, C], int64 [N]."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    logits = rng.normal(0, 1.5, (epochs, n, classes))
    pull = np.linspace(0, 6, epochs)[:, None] * rng.normal(0.5, 1, n)
    logits[:, np.arange(n), targets] += pull
    return logits, targets


@pytest.mark.parametrize("epochs", [1, 2, 9, 10, 11, 24])
def test_every_score_equals_the_reference(epochs: int):
    logits, targets = training_like(epochs)
    table = record(logits, targets).table()
    expected = reference(logits, targets)
    assert set(table.columns) == {"index", *SCORES}
    assert table["index"].tolist() == list(range(len(targets)))
    for name, values in expected.items():
        # the window of DUAL keeps p_y in half precision
        tolerance = 1e-3 if name == "dual" else 2e-6 * epochs
        np.testing.assert_allclose(table[name], values, rtol=0, atol=tolerance, err_msg=name)


def test_dual_slides_over_the_last_ten_epochs_and_over_every_ten_before():
    # p_y climbs in epoch 12 of 25: windows that end before it see nothing move
    own = np.where(np.arange(25) < 12, 0.2, 0.8)
    logits = np.log(np.stack([own, 1 - own], 1))[:, None, :]
    table = record(logits, np.array([0]), batch=1).table()
    windows = [own[t - 10 : t] for t in range(10, 26)]
    value = np.mean([w.std(ddof=1) * (1 - w.mean()) for w in windows])
    assert table["dual"][0] == pytest.approx(value, abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(
    batches=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    epochs=st.integers(1, 13),
)
def test_the_stream_does_not_depend_on_batches_or_order(batches: tuple, seeds: tuple, epochs: int):
    logits, targets = training_like(epochs, seed=epochs)
    first, second = (
        record(logits.astype(np.float32), targets, batch=batch, order_seed=seed)
        for batch, seed in zip(batches, seeds, strict=True)
    )
    # the same bits but for the vector width of the softmax, which a batch's shape may change
    for name, values in first.table().items():
        np.testing.assert_allclose(values, second.table()[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(first.curves(), second.curves(), atol=1e-6)
    np.testing.assert_allclose(first.mean_margins(), second.mean_margins(), atol=1e-6)


def test_polarity_an_image_that_is_learnt_is_easier_than_one_that_is_not():
    epochs = 12
    logits = np.zeros((epochs, 2, 4))
    logits[:, 0, 1] = np.linspace(0.5, 9, epochs)  # learnt from the first epoch on
    logits[:, 1, 2] = np.where(np.arange(epochs) % 2, 3.0, -3.0)  # learnt and forgotten in turn
    table = record(logits, np.array([1, 2])).table()
    for name in SCORES:
        if name != "dual":  # high where p_y still moves, whichever way
            learnt, wavering = easiness(table, name)
            assert learnt > wavering, name
    assert table["dual"][1] > table["dual"][0]


def test_closed_form_cases():
    # sure and right, sure and wrong, undecided between 4 classes
    logits = torch.tensor([[50.0, 0, 0, 0], [50.0, 0, 0, 0], [0.0, 0, 0, 0]])
    targets = torch.tensor([0, 3, 2])
    probabilities = logits.softmax(1)
    assert margin(probabilities, targets).tolist() == pytest.approx([1, -1, 0])
    expected = [0, math.sqrt(2), math.sqrt(0.75)]
    assert el2n(probabilities, targets).tolist() == pytest.approx(expected, abs=1e-6)
    assert entropy(probabilities).tolist() == pytest.approx([0, 0, math.log(4)], abs=1e-6)


def test_el2n_of_easy_images_keeps_its_digits():
    gap = torch.tensor([9.0, 10.0, 11.0, 12.0], dtype=torch.float32)
    probabilities = torch.stack([torch.zeros(4), -gap], 1).softmax(1)
    wrong = 1 / (1 + torch.exp(gap.double()))  # two classes: the norm is sqrt 2 x p of the other
    found = el2n(probabilities, torch.zeros(4, dtype=torch.int64)).double()
    torch.testing.assert_close(found, math.sqrt(2) * wrong, rtol=0.01, atol=0)


def test_constant_logits_give_closed_form_tables():
    epochs = 15
    logits = np.broadcast_to(np.log([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]), (epochs, 2, 3))
    table = record(logits, np.array([0, 2])).table()
    np.testing.assert_allclose(table["aum"], [epochs * 0.5, epochs * -0.6], rtol=1e-5)
    np.testing.assert_allclose(table["correctness"], [1, 0])
    assert table["forgetting"].tolist() == [0, epochs + 1]
    np.testing.assert_allclose(table["dual"], 0, atol=1e-6)
    np.testing.assert_allclose(table["dual_mean"], [0.7, 0.1], rtol=1e-5)


def test_el2n_looks_at_the_first_ten_epochs_only():
    logits, targets = training_like(14)
    changed = logits.copy()
    changed[10:] *= -1
    np.testing.assert_array_equal(
        record(logits, targets).table()["el2n"], record(changed, targets).table()["el2n"]
    )


def test_margin_of_two_classes_is_the_difference_of_the_two():
    p = torch.rand(50, generator=torch.Generator().manual_seed(0))
    probabilities = torch.stack([p, 1 - p], 1)
    own = margin(probabilities, torch.zeros(50, dtype=torch.int64))
    torch.testing.assert_close(own, 2 * p - 1)
    torch.testing.assert_close(margin(probabilities, torch.ones(50, dtype=torch.int64)), -own)


def test_memory_is_a_few_bytes_an_image_whatever_the_epochs_and_classes():
    small = record(*training_like(2, classes=3))
    large = record(*training_like(30, classes=40))
    assert small.bytes_per_image == large.bytes_per_image <= 64


def test_watched_images_are_chosen_by_the_seed_and_keep_every_epoch():
    logits, targets = training_like(6, n=40)
    recorder = record(logits, targets, watch=9, seed=3)
    watched = recorder.watched.numpy()
    assert len(set(watched)) == 9 and (np.diff(watched) > 0).all()
    assert (record(logits, targets, watch=9, seed=3).watched.numpy() == watched).all()
    assert (record(logits, targets, watch=9, seed=4).watched.numpy() != watched).any()
    assert recorder.curves().shape == (6, 9)
    aum = record(logits, targets).table()["aum"].to_numpy()[watched]
    np.testing.assert_allclose(recorder.curves().sum(0), aum, atol=1e-5)
    everyone = record(logits, targets, watch=1000)
    np.testing.assert_allclose(everyone.mean_margins(), everyone.curves().mean(1), atol=1e-6)


def test_a_missed_image_is_an_error():
    recorder = DynamicsRecorder(torch.zeros(5, dtype=torch.int64), CPU)
    recorder.update(torch.arange(4), torch.zeros(4, 2))
    with pytest.raises(ElfsError, match="1 of 5 were not presented in epoch 1"):
        recorder.end_epoch()


def test_an_image_missed_in_a_later_epoch_is_an_error():
    recorder = DynamicsRecorder(torch.zeros(3, dtype=torch.int64), CPU)
    recorder.update(torch.arange(3), torch.zeros(3, 2))
    recorder.end_epoch()
    recorder.update(torch.tensor([2]), torch.zeros(1, 2))
    with pytest.raises(ElfsError, match="2 of 3 were not presented in epoch 2"):
        recorder.end_epoch()


def test_no_epoch_no_table():
    with pytest.raises(ElfsError, match="at least one epoch"):
        DynamicsRecorder(torch.zeros(3, dtype=torch.int64), CPU).table()


def test_half_precision_logits_are_scored_in_single_precision():
    logits, targets = training_like(3)
    recorder = DynamicsRecorder(torch.as_tensor(targets), CPU)
    for epoch in torch.as_tensor(logits):
        recorder.update(torch.arange(len(targets)), epoch.bfloat16())
        recorder.end_epoch()
    rounded = torch.as_tensor(logits).bfloat16().double().numpy()
    expected = reference(rounded, targets)
    np.testing.assert_allclose(recorder.table()["aum"], expected["aum"], atol=1e-5)


def test_probabilities_go_to_disk_as_the_model_gives_them(tiny_params, tmp_path, monkeypatch):
    from elfs_lib.artifacts import Store
    from elfs_lib.stages import Run
    from elfs_lib.training.loop import Trained

    asked, logits, trained = [], Trained.logits, []

    def counted(self, images, rows):
        asked.append(len(rows))
        trained.append(self)
        return logits(self, images, rows)

    monkeypatch.setattr(Trained, "logits", counted)
    run = Run(tiny_params, Store(tmp_path))
    made = run.with_pseudo_labels(np.arange(run.n) % 10, "by turns").proxies[0]
    assert sum(asked) == run.n == 1437 and max(asked) <= 1000
    found = made.array("probabilities")
    np.testing.assert_array_equal(found, logits(trained[0], run.train_images).softmax(1).numpy())
