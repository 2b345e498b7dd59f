"""EMP-SSL: its loss, its optimiser, and that it learns."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_self_supervised import knn_accuracy, noise, stamps

from elfs_lib.embedding.embed import embed, train_named
from elfs_lib.embedding.emp_ssl import EmpSslConfig, coding_rate, emp_ssl_loss, train_emp_ssl
from elfs_lib.embedding.encoders import TRAINING, describe
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.training.optimizer import Lars, set_learning_rate

TINY = EmpSslConfig(epochs=2, batch=16, crops=4, network="convnet_tiny", expander=24, projection=12)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- the coding rate ------------------------------------------------------------------------------


def plain_rate(z: np.ndarray, eps: float) -> float:
    n, d = z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * eps) * z.T @ z)[1]


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_the_coding_rate_and_its_gradient_equal_the_plain_ones(shape):
    z, eps = random(*shape), 0.3
    z.requires_grad_()
    rate = coding_rate(z, eps)
    assert float(rate.detach()) == pytest.approx(plain_rate(z.detach().numpy(), eps), rel=1e-12)
    (found,) = torch.autograd.grad(rate, z)
    # d/dZ of 1/2 logdet(I + a Z^T Z) is a Z (I + a Z^T Z)^-1
    n, d = shape
    table, a = z.detach().numpy(), d / (n * eps)
    want = a * table @ np.linalg.inv(np.eye(d) + a * table.T @ table)
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-9, atol=1e-12)


def test_the_coding_rate_in_float32_and_of_many_tables():
    z = torch.nn.functional.normalize(random(3, 20, 30), dim=2)
    found = coding_rate(z.float(), 0.2)
    want = [plain_rate(table, 0.2) for table in z.numpy()]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5)


def test_the_coding_rate_in_closed_form():
    # four orthogonal rows of length 1 in 8 dimensions: four eigenvalues 1 + 8 / (4 eps)
    assert float(coding_rate(torch.eye(8)[:4], 0.5)) == pytest.approx(0.5 * 4 * np.log(5))
    # four equal rows: one eigenvalue 1 + 8 / (4 eps) x 4
    same = torch.eye(8)[:1].repeat(4, 1)
    assert float(coding_rate(same, 0.5)) == pytest.approx(0.5 * np.log(17))
    assert float(coding_rate(torch.zeros(4, 8), 0.5)) == 0


def test_the_coding_rate_does_not_change_with_rotations_and_orders():
    z = random(12, 7)
    rotation = torch.linalg.qr(random(7, 7, seed=1)).Q
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for other in (z @ rotation, z[order], -z):
        torch.testing.assert_close(coding_rate(other, 0.2), coding_rate(z, 0.2))


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_equals_the_plain_loop():
    z = random(3, 5, 4)
    unit = z.numpy() / np.linalg.norm(z.numpy(), axis=2, keepdims=True)
    cosines = []
    for image in range(5):
        mean = sum(unit[crop, image] for crop in range(3)) / 3
        for crop in range(3):
            cosines.append(unit[crop, image] @ mean / np.linalg.norm(mean))
    rates = [plain_rate(unit[crop], 0.2) for crop in range(3)]
    want = -200 * np.mean(cosines) - np.mean(rates)
    assert float(emp_ssl_loss(z)) == pytest.approx(want)
    assert float(emp_ssl_loss(z, invariance=0)) == pytest.approx(-np.mean(rates))


def test_the_loss_does_not_change_with_the_order_of_images_or_crops():
    z, generator = random(6, 8, 5), torch.Generator().manual_seed(0)
    loss = emp_ssl_loss(z)
    torch.testing.assert_close(emp_ssl_loss(z[:, torch.randperm(8, generator=generator)]), loss)
    torch.testing.assert_close(emp_ssl_loss(z[torch.randperm(6, generator=generator)]), loss)
    torch.testing.assert_close(emp_ssl_loss(3 * z), loss)  # only directions count
    # within one image the mean term does not ask which crop is which
    mixed = z.clone()
    mixed[:, 2] = z[torch.randperm(6, generator=generator), 2]
    terms = [emp_ssl_loss(x) - emp_ssl_loss(x, invariance=0) for x in (z, mixed)]
    torch.testing.assert_close(*terms)


def test_the_loss_falls_as_crops_agree_and_as_images_part():
    base = random(1, 6, 8)
    scattered = base + random(4, 6, 8, seed=1)
    together = base + 0.1 * random(4, 6, 8, seed=1)
    collapsed = torch.ones(4, 6, 8, dtype=torch.float64)
    assert emp_ssl_loss(together) < emp_ssl_loss(scattered)
    assert emp_ssl_loss(together, invariance=1) < emp_ssl_loss(collapsed, invariance=1)


# --- LARS -----------------------------------------------------------------------------------------


def test_lars_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    shapes = [(6, 4), (3, 2, 3, 3), (5,), (4, 4), (2, 3)]
    start = [rng.normal(size=shape) for shape in shapes]
    start[3][:] = 0  # has no length
    start[4] *= 1e4  # is limited by the learning rate and not by its length
    lr, momentum, trust, decay = 0.3, 0.9, 0.005, 0.01
    weights = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    optimizer = Lars(weights, lr=lr, momentum=momentum, trust=trust, weight_decay=decay)
    moments = [np.zeros(shape) for shape in shapes]
    limited = set()
    for step in range(4):
        share = (step + 1) / 4
        set_learning_rate(optimizer, share)
        for i, (weight, w) in enumerate(zip(weights, start)):
            g = rng.normal(size=w.shape)
            weight.grad = torch.from_numpy(g.copy())
            if w.ndim > 1:
                length, slope = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                rate = trust * length / (slope + decay * length) if length > 0 else np.inf
                limited |= {(i, rate > share * lr)}
                g = (g + decay * w) * min(rate / (share * lr), 1)
            moments[i] = momentum * moments[i] + g
            start[i] = w - share * lr * (g + momentum * moments[i])
        optimizer.step()
    for weight, w in zip(weights, start):
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-10, atol=1e-12)
    assert {(0, False), (4, True)} <= limited  # both branches were taken


def test_a_step_of_lars_is_a_share_of_the_weights_length():
    weight = torch.nn.Parameter(random(20, 30))
    length = float(weight.detach().norm())
    optimizer = Lars([weight], lr=0.3, momentum=0.9, trust=0.005, weight_decay=0)
    before = weight.detach().clone()
    weight.grad = 1e6 * random(20, 30, seed=1)  # of any size
    optimizer.step()
    moved = float((weight.detach() - before).norm())
    assert moved == pytest.approx(0.005 * length * 1.9)  # Nesterov's first step is 1 + momentum


# --- training -------------------------------------------------------------------------------------


def test_it_finds_structure_that_pixels_do_not_show():
    images, kinds = stamps(240, seed=0)
    config = replace(
        TINY, epochs=16, batch=40, crops=6, crop_area=0.5, flip=False, expander=64, projection=32
    )
    found = embed(images, "self_supervised", self_supervised=config, device="cpu")
    assert found.shape == (240, 64)
    assert knn_accuracy(found, kinds) > knn_accuracy(embed(images, "pixels"), kinds) + 0.1


def test_same_seed_same_bits():
    images = noise(48)
    first, again = (train_emp_ssl(images, TINY, seed=3, device="cpu") for _ in range(2))
    for a, b in zip(first.network.state_dict().values(), again.network.state_dict().values()):
        assert torch.equal(a, b)
    assert np.array_equal(first.losses, again.losses) and first.losses.shape == (2,)
    other = train_emp_ssl(images, TINY, seed=4, device="cpu")
    assert not np.array_equal(first.losses, other.losses)


def test_it_says_how_it_was_made_and_that_no_label_was_involved():
    trained = train_named(noise(20), "self_supervised", TINY, device="cpu")
    assert not trained.network.training
    assert trained.about["method"] == "EMP-SSL, 4 crops an image"
    assert trained.about["network"] == "convnet_tiny" and trained.about["size"] == [12, 12]
    assert trained.about["recipe"]["eps"] == 0.2
    assert "labels" not in inspect.signature(train_emp_ssl).parameters
    facts = describe("self_supervised", method="emp_ssl")
    assert facts["saw_labels"] is False and EmpSslConfig().method in facts["pretraining"]
    assert TRAINING["emp_ssl"] == EmpSslConfig().method
    assert describe("pixels", method="emp_ssl") == describe("pixels")


def test_grey_and_blank_images():
    blank = np.zeros((32, 1, 8, 8), dtype=np.uint8)
    assert np.isfinite(train_emp_ssl(blank, TINY, device="cpu").losses).all()


def test_errors_are_one_sentence():
    with pytest.raises(ElfsError, match="too few"):
        train_emp_ssl(noise(3), TINY)
    for name, value, told in (
        ("crops", 1, "crops is 1"),
        ("crop_area", 0, "crop_area is 0"),
        ("eps", 0, "eps is 0"),
        ("momentum", 1, "momentum is 1"),
    ):
        with pytest.raises(ElfsError, match=told):
            replace(TINY, **{name: value})
    with pytest.raises(ElfsError, match="not finite in epoch"):
        train_emp_ssl(noise(20), replace(TINY, invariance=1e38), device="cpu")
    told = "'emp_ssl' but encoder 'adapted_efficientnet_lite0' adapts pretrained weights"
    with pytest.raises(ElfsError, match=told):
        train_named(noise(20), "adapted_efficientnet_lite0", TINY)
    for encoder in ("adapted_efficientnet_lite0", "pixels+adapted_efficientnet_lite0"):
        with pytest.raises(ElfsError, match=told):
            Params.make({"encoder": encoder, "encoder_method": "emp_ssl"})
