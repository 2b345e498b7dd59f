"""Self-labelling: who is trained on, and what a round gives back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elfs_lib.clustering import self_training
from elfs_lib.clustering.self_training import FineTuning, fine_tune, most_confident, relabel
from elfs_lib.embedding.encoder_file import PreparedNetwork
from elfs_lib.embedding.self_supervised import Streams, fresh_network
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages import Run
from elfs_lib.training.loop import Length
from elfs_lib.training.recipes import find_recipe

TINY = find_recipe("speedrun_tiny")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40),
    keep=st.floats(0.01, 1.0),
)
def test_the_most_confident_of_each_class_are_kept(rows: list, keep: float):
    labels = np.array([label for label, _ in rows])
    confidence = np.array([value / 5 for _, value in rows])
    chosen = most_confident(labels, confidence, keep)
    assert (np.diff(chosen) > 0).all()
    for label in set(labels.tolist()):
        members = [i for i in range(len(rows)) if labels[i] == label]
        kept = [i for i in members if i in set(chosen.tolist())]
        ranked = sorted(members, key=lambda i: (-confidence[i], i))
        assert sorted(kept) == sorted(ranked[: max(1, round(keep * len(members)))])


def test_ties_break_by_index():
    assert most_confident(np.zeros(4, int), np.ones(4), 0.5).tolist() == [0, 1]


def test_all_are_kept_when_all_are_asked_for():
    labels = np.random.default_rng(0).integers(0, 5, 30)
    assert most_confident(labels, np.arange(30.0), 1.0).tolist() == list(range(30))


def two_kinds(n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bright and dark images, pseudo-labels of which the doubtful quarter is wrong."""
    rng = np.random.default_rng(0)
    true = np.arange(n) % 2
    images = rng.integers(0, 60, (n, 1, 8, 8)) + 150 * true[:, None, None, None]
    doubtful = np.arange(n) % 4 == 3
    pseudo = np.where(doubtful, 1 - true, true)
    confidence = np.where(doubtful, 0.4, 0.9) + rng.uniform(0, 0.05, n)
    return images.astype(np.uint8), true, (pseudo, confidence)


def run(images: np.ndarray, pseudo: np.ndarray, confidence: np.ndarray, **changes):
    options = {"keep": 0.5, "seed": 0, "flip": False, "crop_pad": 1, "device": "cpu"}
    options |= {"precision": "float32"} | changes
    return relabel(images, pseudo, confidence, 2, TINY, Length(epochs=12), **options)


def test_a_round_mends_doubtful_labels_and_says_how_many_changed():
    images, true, (pseudo, confidence) = two_kinds()
    found = run(images, pseudo, confidence)
    assert found.labels.dtype == np.int64 and found.labels.shape == pseudo.shape
    assert (found.labels == true).mean() > 0.95 > (pseudo == true).mean()
    assert found.changed == pytest.approx((found.labels != pseudo).mean())
    assert found.confidence.dtype == np.float32
    assert (found.confidence >= 0.5 - 1e-6).all() and (found.confidence <= 1).all()


def test_the_same_seed_gives_the_same_bits():
    images, _, (pseudo, confidence) = two_kinds()
    first, again = run(images, pseudo, confidence), run(images, pseudo, confidence)
    assert (first.labels == again.labels).all() and (first.confidence == again.confidence).all()


def test_only_the_confident_share_is_trained_on(monkeypatch):
    seen = {}
    real = self_training.train

    def spy(images, targets, *args, **options):
        seen.update(targets=targets, subset=options["subset"])
        return real(images, targets, *args, **options)

    monkeypatch.setattr(self_training, "train", spy)
    images, _, (pseudo, confidence) = two_kinds()
    before = pseudo.copy()
    run(images, pseudo, confidence, keep=0.25)
    assert (seen["subset"] == most_confident(pseudo, confidence, 0.25)).all()
    assert (seen["targets"] == pseudo[seen["subset"]]).all()
    assert (pseudo == before).all()


QUICK = FineTuning(epochs=6, batch=16, lr=0.05, encoder_lr=0.01, area=(0.8, 1.0), views=2)


def encoder(images: np.ndarray) -> PreparedNetwork:
    """A network with random weights in place of one that was trained without labels."""
    seeds = Streams.of(0, torch.device("cpu"))
    return fresh_network(images, "convnet_tiny", seeds, torch.device("cpu"))


def tune(images: np.ndarray, pseudo: np.ndarray, confidence: np.ndarray, **changes):
    options = {"keep": 0.5, "flip": False, "device": "cpu", "precision": "float32"} | changes
    return fine_tune(encoder(images), images, pseudo, confidence, 2, QUICK, **options)


def test_a_round_from_the_encoder_mends_doubtful_labels():
    images, true, (pseudo, confidence) = two_kinds()
    found = tune(images, pseudo, confidence)
    assert found.labels.dtype == np.int64 and found.labels.shape == pseudo.shape
    assert (found.labels == true).mean() > 0.95 > (pseudo == true).mean()
    assert found.changed == pytest.approx((found.labels != pseudo).mean())
    assert (found.confidence >= 0.5 - 1e-6).all() and (found.confidence <= 1 + 1e-6).all()


def test_a_round_from_the_encoder_is_given_by_its_seed():
    images, _, (pseudo, confidence) = two_kinds()
    first, again, other = (tune(images, pseudo, confidence, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.confidence, again.confidence)
    assert (first.confidence != other.confidence).any()


def test_a_round_from_the_encoder_learns_the_confident_alone():
    images, _, (pseudo, confidence) = two_kinds()
    chosen = most_confident(pseudo, confidence, 0.5)
    others = np.setdiff1d(np.arange(len(pseudo)), chosen)
    noisy = images.copy()
    noisy[others] = 255 - noisy[others]
    options = {"keep": 0.5, "flip": False, "device": "cpu", "precision": "float32"}
    one, other = (
        fine_tune(encoder(images), shown, pseudo, confidence, 2, QUICK, **options)
        for shown in (images, noisy)
    )
    np.testing.assert_array_equal(one.confidence[chosen], other.confidence[chosen])
    assert (one.confidence[others] != other.confidence[others]).any()


def test_rare_classes_count_as_much_as_frequent_ones():
    """Of equal images, 1 in 10 of them in class 1, a loss without balance is 90% sure."""
    labels = (np.arange(200) % 10 == 0).astype(np.int64)
    images = np.tile(two_kinds()[0][:1], (200, 1, 1, 1))
    assert tune(images, labels, np.ones(200), keep=1.0).confidence.mean() < 0.75


def test_an_empty_pseudo_class_stays_empty():
    images, true, (pseudo, confidence) = two_kinds()
    options = {"keep": 0.5, "flip": False, "device": "cpu", "precision": "float32"}
    found = fine_tune(encoder(images), images, pseudo, confidence, 6, QUICK, **options)
    assert found.labels.max() == 1 and (found.labels == true).mean() > 0.95


def test_streamed_images_are_fine_tuned_on_as_resident_ones_are(tmp_path):
    images, _, (pseudo, confidence) = two_kinds()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    one, other = (
        tune(images, pseudo, confidence),
        fine_tune(
            encoder(images), mapped, pseudo, confidence, 2, QUICK, loader="streamed",
            keep=0.5, flip=False, device="cpu", precision="float32",
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(one.confidence, other.confidence)


def test_given_embeddings_have_no_encoder_to_fine_tune(tiny_run):
    changes = {"relabel_rounds": 1, "relabel_start": "encoder", "encoder": "self_supervised"}
    run = Run(tiny_run.params.model_copy(update=changes), tiny_run.store)
    rows = np.random.default_rng(0).normal(size=(run.n, 5)).astype(np.float32)
    with pytest.raises(ElfsError, match="'relabel_start'.* given"):
        run.with_embeddings(rows, "mine").check()


def test_a_run_fine_tunes_the_encoder_that_it_trained(tiny_run):
    own = {"encoder": "self_supervised", "encoder_network": "convnet_tiny", "encoder_epochs": 1}
    tuned = own | {"relabel_rounds": 1, "relabel_start": "encoder", "relabel_keep": 0.5}
    plain, relabelled = (
        Run(tiny_run.params.model_copy(update=changes), tiny_run.store) for changes in (own, tuned)
    )
    before, after = (run.pseudo.table("pseudo")["label"] for run in (plain, relabelled))
    assert relabelled.pseudo.manifest["inputs"]["encoder"] == plain.artifact("encoder").key
    assert relabelled.pseudo.manifest["changed_by_round"] == [
        pytest.approx((before != after).mean())
    ]


def test_only_a_network_can_be_fine_tuned():
    with pytest.raises(ElfsError, match="'relabel_start'"):
        Params.make({"dataset": "digits", "encoder": "pixels", "relabel_start": "encoder"})
