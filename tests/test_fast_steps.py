"""CUDA graphs and torch.compile without a GPU: what is replayed trains as the plain loop does.

``recorded`` stands for a CUDA graph. As one, it does nothing while it records; a replay runs the
same operations on the same memory with the numbers of that time, and no Python around them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elfs_lib import compute
from elfs_lib.clustering.temi import TemiConfig, Trainer
from elfs_lib.compute import Replayed, compiled, compiles
from elfs_lib.embedding.embed import Embedder
from elfs_lib.embedding.self_supervised import (
    PreparedNetwork,
    SelfSupervisedConfig,
    train_encoder,
)
from elfs_lib.errors import ElfsError
from elfs_lib.training import loop
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loop import Length, Seeds, Trained, train
from elfs_lib.training.models import build_network
from elfs_lib.training.recipes import find_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Recorder(TorchDispatchMode):
    """Operations as they are run, and what they wrote over."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        names = [argument.name for argument in func._schema.arguments]
        values = dict(zip(names, args)) | kwargs
        written = [
            tensor
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in (
                values[argument.name]
                if isinstance(values[argument.name], list)
                else [values[argument.name]]
            )
        ]
        for tensor in written:
            whole = tensor.detach().untyped_storage()
            self.before.setdefault(whole.data_ptr(), (whole, whole.clone()))
        found = func(*args, **kwargs)
        made = [] if written else [t for t in _flat(found) if torch.is_tensor(t)]
        self.operations.append((func, args, kwargs, made))
        return found


def _flat(found) -> list:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def recorded(work: Callable[[], tuple]) -> tuple[tuple, Callable[[], None]]:
    with Recorder() as recorder:
        found = work()
    for whole, before in recorder.before.values():
        whole.copy_(before)

    @torch.no_grad()
    def replay() -> None:
        for func, args, kwargs, made in recorder.operations:
            again = [t for t in _flat(func(*args, **kwargs)) if torch.is_tensor(t)] if made else []
            if not made:
                func(*args, **kwargs)
            for mine, new in zip(made, again, strict=True):
                if mine.data_ptr() != new.data_ptr():  # a view shows what it always showed
                    mine.copy_(new)

    return found, replay


def images_and_labels(n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n) % 2


@pytest.fixture
def graphs(monkeypatch):
    """Graphs on the CPU. Counts the captures."""
    captures = []

    def capture(work):
        captures.append(work)
        return recorded(work)

    monkeypatch.setattr(compute, "_Capture", lambda: capture)
    monkeypatch.setattr(loop, "replays", lambda choice, device: choice != "off")
    return captures


def trained(name: str, compile: str, **options) -> Trained:
    images, labels = images_and_labels()
    recipe = find_recipe(name)
    options = {"seeds": Seeds.all(3), "crop_pad": 1, "device": "cpu", **options}
    # a batch that cuts 50 images in parts of two sizes
    recipe = type(recipe)(**vars(recipe) | {"batch": 8})
    return train(images, labels, 2, recipe, Length(epochs=6), compile=compile, **options)


@pytest.mark.parametrize(
    "name, precision", [("speedrun", "bfloat16"), ("speedrun_tiny", "float32")]
)
def test_replayed_steps_train_what_plain_steps_train(name: str, precision: str, graphs):
    weights = 1 + np.arange(50) / 50
    plain, fast = (
        trained(name, choice, precision=precision, weights=weights) for choice in ("off", "auto")
    )
    assert len(graphs) == 2  # for batches of 8 and of 7 images
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "float32" else {"rtol": 0.05}
    np.testing.assert_allclose(fast.losses, plain.losses, **tolerance)
    assert fast.flops == plain.flops


def test_a_graph_is_for_one_set_of_shapes_and_reads_what_it_is_given():
    total = torch.zeros(2)

    def work(x: torch.Tensor, y: torch.Tensor) -> tuple:
        return (total.add_(x.sum()).clone() + y,)

    captures = []
    replayed = Replayed(work, lambda work: captures.append(0) or recorded(work))
    found = [float(replayed(torch.full((size,), 1.0), torch.zeros(2))[0][0]) for size in [3, 2] * 5]
    np.testing.assert_array_equal(found, np.cumsum([3, 2] * 5))
    assert len(captures) == 2


def test_a_capture_that_fails_is_said_once_and_the_work_goes_on(capsys):
    tries = []

    def broken(work):
        tries.append(0)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    replayed = Replayed(lambda x: (x + 1,), broken)
    assert [float(replayed(torch.tensor(float(i)))[0]) for i in range(8)] == list(range(1, 9))
    assert len(tries) == 1
    assert capsys.readouterr().err.count("operation not permitted") == 1


def test_temi_replayed_is_temi(monkeypatch):
    monkeypatch.setattr(compute, "_Capture", lambda: recorded)
    config = TemiConfig(classes=3, heads=2, hidden=16, bottleneck=8, batch=20)
    pairs = torch.randn(10, 40, 12, generator=torch.Generator().manual_seed(0))
    plain, fast = (
        Trainer(12, config, torch.Generator().manual_seed(1), CPU, torch.float32, graphs=graphs)
        for graphs in (False, True)
    )
    for number, rows in enumerate(pairs, 1):
        expected = plain.step(rows, number / 10)
        torch.testing.assert_close(fast.step(rows, number / 10), expected)
    torch.testing.assert_close(list(fast.teacher), list(plain.teacher))


def test_auto_compiles_long_trainings_on_cuda_and_nothing_else():
    assert compiles("auto", GPU, 3e16)
    assert not compiles("auto", GPU, 3e14)
    assert not compiles("auto", CPU, 3e16)
    assert compiles("on", CPU, 1.0)
    assert not compiles("off", GPU, 3e16)
    with pytest.raises(ElfsError, match="compile"):
        compiles("always", CPU, 1.0)


def test_a_failing_compiler_is_one_sentence_and_changes_nothing(monkeypatch, capsys):
    def compile(network, **options):
        def fails(batch):
            network(batch)  # half of the work is done, and the running moments have moved
            raise RuntimeError("no compiler\nand much more")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    plain, fast = (trained("speedrun_tiny", choice) for choice in ("off", "on"))
    said = [line for line in capsys.readouterr().err.splitlines() if "compile" in line]
    assert len(said) == 1 and "no compiler" in said[0] and "much more" not in said[0]
    np.testing.assert_array_equal(fast.losses, plain.losses)
    pairs = zip(fast.model.state_dict().values(), plain.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_compiler_that_fails_at_the_second_size_of_batch_changes_nothing(monkeypatch, capsys):
    sizes = []

    def compile(network, **options):
        def fails(batch):
            sizes.append(len(batch))
            if len(sizes) == 2:
                raise RuntimeError("not this shape")
            return network(batch)

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    plain, fast = (trained("speedrun_tiny", choice) for choice in ("off", "on"))
    assert sorted(sizes) == [7, 8]  # 50 images in 7 batches: both were tried, and neither used
    assert capsys.readouterr().err.count("not this shape") == 1
    np.testing.assert_array_equal(fast.losses, plain.losses)


class Waits(TorchDispatchMode):
    """Counts what would make a GPU's queue run empty: reading a number, or a size."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        self.count += masks or name in ("_local_scalar_dense", "nonzero", "masked_select")
        return func(*args, **kwargs or {})


def train_three_epochs(batch: int, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = images_and_labels(40)
    recipe = find_recipe("speedrun_tiny", batch=batch)
    recipe = dataclasses.replace(recipe, matrix_lr=0.05, matrix_momentum=0.5, cutout=3)
    train(
        images, labels, 2, recipe, Length(epochs=3), seeds=Seeds.all(0), crop_pad=1, device="cpu",
        precision="float32", weights=1 + np.arange(40) / 40, loader=loader,
        recorder=DynamicsRecorder(torch.as_tensor(labels), CPU),
    )  # fmt: skip


def encode_three_epochs(batch: int, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # it counts steps on the CPU
    config = SelfSupervisedConfig(epochs=3, batch=batch, network="convnet_tiny", projection=8)
    images, _ = images_and_labels(40)
    train_encoder(images, config, device="cpu", precision="float32", loader=loader)


@pytest.mark.parametrize("loader", ["resident", "streamed"])
@pytest.mark.parametrize("work", [train_three_epochs, encode_three_epochs])
def test_nothing_waits_for_a_gpu_within_an_epoch(work: Callable, loader: str, monkeypatch):
    counts = []
    for batch in (20, 2):  # 2 batches an epoch, and 20: what is read is read at its end
        with Waits() as waits:
            work(batch, loader, monkeypatch)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_a_compiled_network_trains_as_a_plain_one(monkeypatch, capsys):
    # traced forwards and backwards as always, but run by torch: a C++ compiler takes a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, fast = (
        trained("speedrun_tiny", choice, precision="float32") for choice in ("off", "on")
    )
    assert "torch.compile failed" not in capsys.readouterr().err
    np.testing.assert_allclose(fast.losses, plain.losses, rtol=1e-3, atol=1e-4)


def test_a_network_is_compiled_once_with_its_moments_left_alone():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    before = [buffer.clone() for buffer in network.buffers()]
    calls = []

    def run(fast):
        calls.append(fast)
        network(torch.randn(5, 3)).sum().backward()

    assert compiled(network, run) is calls[0] is not network
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), before))
    assert all(weight.grad is None for weight in network.parameters())


def test_a_compiled_network_whose_gradient_is_not_finite_is_not_used(capsys):
    network = torch.nn.Linear(3, 4)

    def run(fast):
        (network(torch.randn(5, 3)).sum() * torch.inf).backward()

    assert compiled(network, run) is network
    assert "the gradient is not finite" in capsys.readouterr().err
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.slow
def test_the_compiler_itself_gives_the_gradient_of_the_plain_network():
    """In bfloat16, where torch's compiler once found no value equal to the channel's maximum."""
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = build_network("convnet_tiny", images, 10, seed=0).train()

    def gradient(run) -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(images)
        torch.nn.functional.cross_entropy(logits.float(), torch.arange(16) % 10).backward()
        return [weight.grad.clone() for weight in network.parameters() if weight.requires_grad]

    for plain, fast in zip(gradient(network), gradient(torch.compile(network)), strict=True):
        assert (plain - fast).norm() < 0.3 * plain.norm()


def test_a_compiled_encoder_embeds_as_a_plain_one(monkeypatch):
    seen = []

    def compile(network, **options):
        def fast(batch):
            seen.append(len(batch))
            return network(batch)

        return fast

    monkeypatch.setattr(torch, "compile", compile)
    images, _ = images_and_labels(20)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    plain, fast = (
        Embedder(
            "test", PreparedNetwork(network, torch.nn.Identity()), CPU, torch.float32, 8, compile=c
        )
        for c in ("off", "on")
    )
    np.testing.assert_allclose(fast(images), plain(images), rtol=1e-5)
    assert seen == [
        8,
        8,
        8,
    ]  # tried once, then the full batches, and not the four images at the end


def test_each_step_goes_by_its_own_gradient(monkeypatch):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self):
            seen.append(torch.cat([w.grad.flatten() for w in self.param_groups[0]["params"]]))

    def build(model, *arguments, **options):
        weights = [w for w in model.parameters() if w.requires_grad]
        return Watched([{"params": weights, "peak": 0.1}], lr=0.1)

    monkeypatch.setattr(loop, "build_optimizer", build)
    images, labels = images_and_labels()
    options = {"seeds": Seeds.all(0), "crop_pad": 0, "flip": False, "device": "cpu"}
    train(
        images, labels, 2, find_recipe("resnet18"), Length(steps=2), precision="float32", **options
    )
    first, second = seen  # of all images, and nothing was learnt in between
    assert (second - first).norm() < 0.1 * first.norm()
