"""A GPU trains, clusters, embeds and searches as the CPU does, and is not waited for.

    python -m pytest tests/test_cuda.py -rs

Each test runs on the CPU, and on a GPU where torch finds one. On the CPU ``recorded`` stands for a
CUDA graph, and an operation whose result Python would have to wait for is found by its name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_fast_steps import recorded
from test_neighbors import check_promises, random_rows
from torch.utils._python_dispatch import TorchDispatchMode

from elfs_lib import compute
from elfs_lib.clustering.temi import TemiConfig, Trainer, train_heads
from elfs_lib.embedding import neighbors
from elfs_lib.embedding.embed import Embedder, Views
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.embedding.rows import unit_rows
from elfs_lib.embedding.self_supervised import PreparedNetwork
from elfs_lib.training import loop
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loader import Loader, ResidentLoader, StreamedLoader
from elfs_lib.training.loop import Length, Seeds, Trained, train
from elfs_lib.training.recipes import find_recipe

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
# What a host waits for: a number that is read, a shape that depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    compute.configure_runtime()
    return torch.device(request.param)


@pytest.fixture
def captures(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have steps replayed on the CPU, too; one entry for each capture that did not fail."""
    made, real = [], compute._Capture

    class Counted:
        def __init__(self) -> None:
            self.capture = recorded if device.type == "cpu" else real()

        def __call__(self, work: Callable[[], tuple]) -> tuple:
            found = self.capture(work)
            made.append("captured")
            return found

    monkeypatch.setattr(compute, "_Capture", Counted)
    monkeypatch.setattr(loop, "replays", lambda choice, device: choice != "off")
    return made


def noise(folder, count: int = 62, side: int = 8) -> np.ndarray:
    """Random images as a memory map that cannot be written to."""
    images = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


def trained(images: np.ndarray, device: torch.device, name: str = "speedrun_tiny", **options):
    """Five epochs of four batches, two of 16 images and two of 15."""
    return train(
        images, np.arange(len(images)) % 3, 3, find_recipe(name, batch=16), Length(epochs=5),
        seeds=Seeds.all(0), crop_pad=1, device=str(device), precision="float32", **options,
    )  # fmt: skip


def alike(found: Trained, expected: Trained, name: str = "speedrun_tiny") -> None:
    """Losses that differ by rounding. Weights that differ by 1e-6 at the start gave losses that
    differed by 4e-6 with speedrun_tiny, and by 2e-2 with the large steps of speedrun."""
    tolerance = {"speedrun_tiny": 2e-3, "speedrun": 0.1}[name]
    np.testing.assert_allclose(found.losses, expected.losses, rtol=tolerance)


@pytest.mark.parametrize("name", ["speedrun", "speedrun_tiny"])
def test_replayed_steps_train_as_plain_ones(tmp_path, device, captures, name: str):
    images = noise(tmp_path)
    plain = trained(images, device, name)
    assert not captures
    fast = trained(images, device, name, compile="auto")
    assert len(captures) == 2  # of both sizes of a batch
    alike(fast, plain, name)


def test_replayed_steps_of_temi_are_plain_ones(device, captures):
    config = TemiConfig(classes=3, heads=2, hidden=16, bottleneck=8, batch=20)
    pairs = torch.randn(10, 40, 12, generator=torch.Generator().manual_seed(0)).to(device)
    plain, fast = (
        Trainer(12, config, torch.Generator().manual_seed(1), device, torch.float32, graphs=graphs)
        for graphs in (False, True)
    )
    with compute.own_stream(device, wanted=True):
        for number, rows in enumerate(pairs, 1):
            expected = plain.step(rows, number / 10)
            torch.testing.assert_close(fast.step(rows, number / 10), expected, rtol=1e-4, atol=1e-5)
    assert captures == ["captured"]
    torch.testing.assert_close(list(fast.teacher), list(plain.teacher), rtol=1e-4, atol=1e-5)


class Waits(TorchDispatchMode):
    """Notes each operation that Python would have to wait for; raises at once if it is told to."""

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        self.strict, self.found = strict, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITS or by_mask:
            self.found.append(name)
            if self.strict:
                raise RuntimeError(f"{name} inside an epoch")
        return func(*args, **(kwargs or {}))


class Guarded(DynamicsRecorder):
    """Has waiting raise from the first batch of an epoch to its last, from the fourth epoch on: by
    then steps are captured."""

    def __init__(self, count: int, batches: int, device: torch.device) -> None:
        super().__init__(torch.arange(count) % 3, device)
        self.batches, self.batch, self.guarded, self.mode = batches, 0, 0, None

    def update(self, indices: torch.Tensor, logits: torch.Tensor) -> None:
        super().update(indices, logits)
        self.batch += 1
        self.guard(self.epochs >= 3 and self.batch < self.batches)

    def end_epoch(self) -> None:
        assert self.batch == self.batches
        self.batch = 0
        super().end_epoch()

    def guard(self, wanted: bool) -> None:
        self.guarded += wanted
        if self.targets.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if wanted else "default")
        elif wanted and self.mode is None:
            self.mode = Waits(strict=True)
            self.mode.__enter__()
        elif self.mode is not None and not wanted:
            self.mode.__exit__(None, None, None)
            self.mode = None


@pytest.mark.parametrize("loader", ["resident", "streamed"])
@pytest.mark.parametrize("compile", ["off", "auto"])
def test_nothing_waits_for_a_gpu_inside_an_epoch(tmp_path, device, captures, compile, loader):
    images = noise(tmp_path)
    recorder = Guarded(len(images), 4, device)
    try:
        trained(images, device, "speedrun", compile=compile, loader=loader, recorder=recorder)
    finally:
        recorder.guard(False)
    assert recorder.guarded == 6 and len(captures) == (2 if compile == "auto" else 0)


@pytest.mark.parametrize("dynamics", [False, True])
def test_an_epoch_waits_as_often_whatever_its_batches(tmp_path, device, dynamics: bool):
    found = []
    for batches in (2, 20):
        images = noise(tmp_path, 8 * batches)
        targets = np.arange(len(images)) % 3
        with Waits() as waits:
            train(
                images, targets, 3, find_recipe("speedrun", batch=8), Length(epochs=2),
                seeds=Seeds.all(0), crop_pad=1, device=str(device),
                recorder=DynamicsRecorder(torch.as_tensor(targets), device) if dynamics else None,
            )  # fmt: skip
        found.append(waits.found)
    assert found[0] == found[1]


def test_temi_waits_as_often_whatever_its_batches(device, captures):
    found = []
    config = TemiConfig(classes=3, heads=2, hidden=16, bottleneck=8, batch=8, epochs=3)
    for batches in (2, 20):
        inputs = torch.randn(8 * batches, 12, generator=torch.Generator().manual_seed(0)).to(device)
        near = torch.arange(1, 8 * batches + 1, device=device)[:, None] % (8 * batches)
        with Waits() as waits:
            train_heads(inputs, near, config, 0, torch.float32, graphs=True)
        found.append(waits.found)
    assert found[0] == found[1] and len(captures) == 2


def batches(loader: Loader) -> list[torch.Tensor]:
    return [tensor.cpu() for epoch in range(2) for pair in loader.epoch(epoch) for tensor in pair]


@pytest.mark.parametrize("subset", [None, [50, 3, 7, 59, 0, 8, 31]])
def test_streamed_batches_are_resident_ones(tmp_path, device, subset: list[int] | None):
    images = noise(tmp_path)
    rows = np.arange(len(images)) if subset is None else np.array(subset)
    options = {"batch": 8, "crop_pad": 2, "flip": True, "cutout": 3, "order_seed": 1}
    resident = ResidentLoader(torch.from_numpy(images[rows]).to(device), **options)
    streamed = StreamedLoader(images, None if subset is None else rows, device, **options)
    for own, expected in zip(batches(streamed), batches(resident), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_training_streamed_is_training_resident(tmp_path, device, captures, compile: str):
    images = noise(tmp_path)
    resident, streamed = (
        trained(images, device, loader=choice, compile=compile)
        for choice in ("resident", "streamed")
    )
    assert isinstance(streamed.loader, StreamedLoader)
    assert isinstance(resident.loader, ResidentLoader)
    alike(streamed, resident)


@pytest.mark.parametrize("rows", ["random", "equal"])
def test_exact_neighbours_do_not_depend_on_the_device(device, rows: str):
    embeddings = random_rows(400, 24)
    if rows == "equal":
        embeddings[50:350:2] = embeddings[7]
    expected = nearest_neighbors(embeddings, 10)
    if device.type == "cpu":  # by the path of a GPU
        found = neighbors._exact_on(device, unit_rows(embeddings), 10)
    else:
        found = nearest_neighbors(embeddings, 10, device=str(device))
    check_promises(found, embeddings, 10)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.similarities, expected.similarities)


@pytest.mark.parametrize("views", [None, Views(3)])
def test_embeddings_do_not_depend_on_the_device(tmp_path, device, views: Views | None):
    images = noise(tmp_path, 20)
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(), torch.nn.Flatten())
    weights = torch.nn.Sequential(*layers).state_dict()

    def embed(where: torch.device, batch: int) -> np.ndarray:
        network = torch.nn.Sequential(*layers)
        network.load_state_dict(weights)
        prepared = PreparedNetwork(network, lambda x: x * 2 - 1)
        return Embedder("test", prepared, where, torch.float32, batch, views)(images)

    expected = embed(torch.device("cpu"), 20)
    assert np.std(expected, axis=0).min() > 0
    np.testing.assert_allclose(embed(device, 8), expected, rtol=1e-3, atol=1e-4)
