from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from elfs_lib import compute
from elfs_lib.embedding import self_supervised
from elfs_lib.embedding.embed import embed
from elfs_lib.embedding.emp_ssl import EmpSslConfig, train_emp_ssl
from elfs_lib.embedding.encoders import describe
from elfs_lib.embedding.self_supervised import (
    PreparedNetwork,
    SelfSupervisedConfig,
    decoupled_contrastive,
    train_encoder,
)
from elfs_lib.errors import ElfsError
from elfs_lib.stages import Run
from elfs_lib.training import loader as loader_module

TINY = SelfSupervisedConfig(epochs=1, batch=16, network="convnet_tiny", projection=8)

EMP = EmpSslConfig(epochs=1, batch=16, crops=2, network="convnet_tiny", expander=8, projection=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, channels: int = 3, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def stamps(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One of four 6 x 6 patterns anywhere in a noisy image: alike, but far apart in pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:6, :6]
    patterns = np.stack([x % 3 == 1, y % 3 == 1, (x + y) % 3 == 1, (x // 2 + y // 2) % 2 == 1])
    kinds = rng.integers(0, 4, count)
    images = rng.integers(0, 130, (count, 1, 16, 16))
    for image, kind, (top, left) in zip(images, kinds, rng.integers(0, 11, (count, 2))):
        image[0, top : top + 6, left : left + 6] += 120 * patterns[kind]
    return images.astype(np.uint8), kinds


def knn_accuracy(embeddings: np.ndarray, labels: np.ndarray, k: int = 10) -> float:
    unit = F.normalize(torch.from_numpy(embeddings), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(k).indices
    return float((torch.from_numpy(labels)[near].mode(1).values.numpy() == labels).mean())


# --- the loss -------------------------------------------------------------------------------------


def test_loss_equals_the_plain_loop():
    z = torch.randn(10, 4, generator=generator(), dtype=torch.float64)
    unit, total = z / z.norm(dim=1, keepdim=True), 0.0
    for i in range(10):
        pair = (i + 5) % 10
        others = [j for j in range(10) if j not in (i, pair)]
        total -= float(unit[i] @ unit[pair]) / 0.3
        total += math.log(sum(math.exp(float(unit[i] @ unit[j]) / 0.3) for j in others))
    assert float(decoupled_contrastive(z, 0.3)) == pytest.approx(total / 10)


def test_loss_in_closed_form_and_its_invariances():
    # two images, views equal, images orthogonal: -1/t + log(2 exp(0))
    z = torch.eye(2).repeat(2, 1)
    assert float(decoupled_contrastive(z, 0.5)) == pytest.approx(-2 + math.log(2))
    z = torch.randn(12, 5, generator=generator())
    loss = decoupled_contrastive(z, 0.2)
    torch.testing.assert_close(decoupled_contrastive(7 * z, 0.2), loss)
    torch.testing.assert_close(decoupled_contrastive(z.roll(6, 0), 0.2), loss)  # views swapped
    order = torch.randperm(6, generator=generator())
    torch.testing.assert_close(decoupled_contrastive(z[torch.cat([order, order + 6])], 0.2), loss)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [train_encoder, train_emp_ssl])
def test_an_encoder_trains_alike_on_images_that_are_read_as_needed(tmp_path, monkeypatch, training):
    images = noise(48)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    config = EMP if training is train_emp_ssl else TINY
    kept = training(images, config, device="cpu", precision="float32", loader="resident")
    monkeypatch.setattr(loader_module, "resident", None)  # nothing is to be kept
    read = training(mapped, config, device="cpu", precision="float32", loader="streamed")
    np.testing.assert_array_equal(read.losses, kept.losses)
    for a, b in zip(read.network.parameters(), kept.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_encoder_of_a_run_streams_as_the_run_does(tiny_run, monkeypatch):
    changes = {"encoder": "self_supervised", "encoder_epochs": 1, "loader": "streamed"}
    run = Run(tiny_run.params.model_copy(update=changes), tiny_run.store)
    monkeypatch.setattr(loader_module, "resident", None)
    assert np.isfinite(run.encoder.array("losses")).all()


def test_the_sample_of_large_images_is_small(monkeypatch):
    seen, build = [], self_supervised.build_network

    def watched(name, images, *arguments, **options):
        seen.append(len(images))
        return build(name, images, *arguments, **options)

    monkeypatch.setattr(self_supervised, "build_network", watched)
    images = noise(40)
    for held, expected in ((2**26, 40), (9 * images[0].nbytes, 9)):
        monkeypatch.setattr(compute, "HELD", held)
        train_encoder(images, TINY, device="cpu")
        assert seen.pop() == expected


def test_it_finds_structure_that_pixels_do_not_show():
    images, kinds = stamps(240, seed=0)
    config = replace(TINY, epochs=16, batch=40, flip=False, projection=32)
    found = embed(images, "self_supervised", self_supervised=config, device="cpu")
    assert knn_accuracy(found, kinds) > knn_accuracy(embed(images, "pixels"), kinds) + 0.2


def test_same_seed_same_bits():
    images = noise(48)
    first, again = (train_encoder(images, TINY, seed=3, device="cpu") for _ in range(2))
    for a, b in zip(first.network.state_dict().values(), again.network.state_dict().values()):
        assert torch.equal(a, b)
    assert np.array_equal(first.losses, again.losses) and first.losses.shape == (1,)
    other = train_encoder(images, TINY, seed=4, device="cpu")
    assert not np.array_equal(first.losses, other.losses)


def test_embedding_does_not_depend_on_the_batch():
    images = noise(24, channels=1)
    kwargs = {"self_supervised": TINY, "device": "cpu", "precision": "float32"}
    a, b = (embed(images, "self_supervised", batch=batch, **kwargs) for batch in (5, 24))
    assert a.dtype == np.float32 and len(a) == 24
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_larger_images_use_resnet18():
    assert self_supervised.default_network((2, 3, 48, 48)) == "resnet18"
    device = torch.device("cpu")
    seeds = self_supervised.Streams.of(0, device)
    start = self_supervised.fresh_network(noise(2, side=48), "resnet18", seeds, device)
    assert start.network(torch.zeros(1, 3, 48, 48)).shape == (1, 512)


def test_a_start_is_adapted_at_its_own_learning_rate():
    images = noise(32, channels=1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 8, bias=False))
    before = network[1].weight.detach().clone()
    start = PreparedNetwork(network, lambda x: 2 * x - 1)
    config = replace(TINY, lr=1e-1, start_lr=1e-4, weight_decay=0, warmup=0)
    trained = train_encoder(images, config, start=start, device="cpu")
    assert trained.network is network and trained.prepare is start.prepare
    moved = (network[1].weight.detach() - before).abs()
    # two steps of AdamW, each of at most the learning rate; the projection's is 1,000 times that
    assert 0 < moved.max() <= 2.1e-4


def test_no_labels_and_blank_images():
    assert "labels" not in inspect.signature(train_encoder).parameters
    assert describe("self_supervised")["saw_labels"] is False
    blank = np.zeros((32, 1, 8, 8), dtype=np.uint8)
    assert np.isfinite(train_encoder(blank, TINY, device="cpu").losses).all()


def test_errors_are_one_sentence():
    with pytest.raises(ElfsError, match="too few"):
        train_encoder(noise(3), TINY)
    with pytest.raises(ElfsError, match="temperature is 0"):
        replace(TINY, temperature=0)
    with pytest.raises(ElfsError, match="min_crop is 2"):
        replace(TINY, min_crop=2)
    with pytest.raises(ElfsError, match="did you mean 'convnet'"):
        train_encoder(noise(20), replace(TINY, network="convnett"))
