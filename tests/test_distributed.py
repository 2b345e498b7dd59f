"""Several processes give the training of one, up to the order of summation: real ranks, gloo."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import TINY
from torch import nn

from elfs_lib.artifacts import Store
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages import Run
from elfs_lib.training.distributed import Ranks, SyncedBatchNorm, joined
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loop import Length, Seeds, Trained, _help, _Job, train
from elfs_lib.training.recipes import find_recipe

CPU = torch.device("cpu")
# The slope of a ReLU hangs on the last bit of an input near 0: here it is smooth, everywhere
SMOOTH = "torch.nn.functional.relu = lambda x, inplace=False: torch.nn.functional.gelu(x)"
FOLLOWER = f"import torch; {SMOOTH}; from elfs_lib.training.loop import together; together(None)"
# 67 images in batches of 34 and 33: parts of a batch differ in size, and so do batches
IMAGES = np.random.default_rng(0).integers(0, 256, (80, 1, 8, 8), dtype=np.uint8)
SUBSET = np.random.default_rng(1).permutation(80)[:67]
TARGETS = np.random.default_rng(2).integers(0, 3, 67)
WEIGHTS = {"convnet_tiny": np.random.default_rng(3).random(67), "resnet18": None}
CALM = {"batch": 34, "average_every": 3}
CASES = {
    "convnet_tiny": dataclasses.replace(find_recipe("speedrun_tiny"), **CALM, lr=0.02),
    "resnet18": dataclasses.replace(find_recipe("resnet18"), **CALM, lr=0.001),
}
CASES["muon"] = dataclasses.replace(CASES["convnet_tiny"], matrix_lr=0.01, matrix_momentum=0.5)
WILD = dataclasses.replace(CASES["convnet_tiny"], lr=1e12)


def fit(recipe, **options) -> tuple[Trained, DynamicsRecorder]:
    recorder = DynamicsRecorder(torch.as_tensor(TARGETS), CPU)
    options = {"weights": WEIGHTS[recipe.network], **options}
    options = {"subset": SUBSET, "crop_pad": 1, "device": "cpu", "precision": "float32", **options}
    epochs = 12 if recipe.network == "convnet_tiny" else 1
    options = {"length": Length(epochs=epochs), "recorder": recorder, **options}
    trained = train(IMAGES, TARGETS, 3, recipe, seeds=Seeds.all(0), **options)
    return trained, recorder


def environment(rank: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return place | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}


@pytest.fixture(scope="module")
def results():
    """For each case what one process and what two give; this one is rank 0 of the two."""
    ours = environment(0)
    theirs = ours | {"RANK": "1", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "relu", lambda x, inplace=False: nn.functional.gelu(x))
        alone = {name: fit(recipe) for name, recipe in CASES.items()}
        follower = subprocess.Popen([sys.executable, "-c", FOLLOWER], env=os.environ | theirs)
        for name, value in ours.items():
            patch.setenv(name, value)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        try:
            with joined() as ranks:
                with pytest.raises(ElfsError, match="diverged"):  # and the other rank goes on
                    fit(WILD)
                with pytest.raises(ElfsError, match="A batch has 1 images for 2 processes"):
                    fit(dataclasses.replace(WILD, batch=1))
                with pytest.raises(ElfsError, match="'device' is 'cpu:0' for 2 processes"):
                    fit(WILD, device="cpu:0")
                both = {name: fit(recipe) for name, recipe in CASES.items()}
                steps = fit(CASES["convnet_tiny"], length=Length(steps=3), recorder=None)[0]
                ranks.stop()
                assert follower.wait(60) == 0
        finally:
            follower.kill()
    return alone, both, steps


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_the_model_of_one(results, name: str):
    (one, _), (two, _) = results[0][name], results[1][name]
    states = one.model.state_dict(), two.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        expected, found = states[0][key].float(), states[1][key].float()
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), key
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-4)
    torch.testing.assert_close(two.logits(IMAGES), one.logits(IMAGES), rtol=1e-3, atol=1e-4)
    assert two.steps == one.steps and two.flops == pytest.approx(one.flops)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_record_the_dynamics_of_one(results, name: str):
    (_, one), (_, two) = results[0][name], results[1][name]
    expected, found = one.table(), two.table()
    counted = ["forgetting", "correctness", "index"]
    pd.testing.assert_frame_equal(found[counted], expected[counted])
    rest = expected.columns.difference(counted)
    np.testing.assert_allclose(found[rest], expected[rest], atol=1e-3)  # one float16 in the window
    np.testing.assert_allclose(found["aum"], expected["aum"], atol=1e-4)
    np.testing.assert_allclose(two.curves(), one.curves(), atol=1e-4)
    assert expected["forgetting"].nunique() > 1


def test_without_a_recorder_and_in_steps(results):
    assert results[2].steps == 3 and len(results[2].losses) == 2


def test_every_row_is_one_ranks_share_and_weights_average_to_the_mean():
    rows, loss = torch.arange(7), torch.rand(7)
    ranks = [Ranks(rank, 3) for rank in range(3)]
    assert torch.cat([r.share(rows) for r in ranks]).tolist() == rows.tolist()
    means = [float(r.share(loss).mean()) * r.weight(rows) for r in ranks]
    assert sum(means) / 3 == pytest.approx(float(loss.mean()))
    assert Ranks().share(rows) is not None and Ranks().weight(rows) == 1.0


def test_alone_nothing_is_done():
    ranks, model, rows = Ranks.here(), nn.BatchNorm2d(2), torch.rand(4, 3)
    assert ranks == Ranks(0, 1) and not dist.is_initialized()
    assert ranks.parallel(model) is model and type(model) is nn.BatchNorm2d
    assert ranks.join(rows, rows) is rows and ranks.mean(rows) is rows
    ranks.check("cuda:1", CPU, 1)


def test_the_images_of_one_training_are_gone_before_those_of_the_next_come():
    """Two sets of ImageNet do not fit on one GPU."""
    sent = []

    class Leader(Ranks):
        def receive(self):
            gc.collect()
            assert [images() for images in sent] == [None] * len(sent)
            if len(sent) == 2:
                return None
            images = torch.from_numpy(IMAGES.copy())
            sent.append(weakref.ref(images))
            job = _Job(
                3,
                CASES["convnet_tiny"],
                Length(steps=1),
                Seeds.all(0),
                True,
                1,
                "auto",
                "off",
                False,
            )
            return dataclasses.asdict(job), [images, torch.arange(80) % 3]

    assert _help(Leader()) and _help(Leader()) and not _help(Leader())
    assert len(sent) == 2


def test_apples_gpu_cannot_be_shared():
    with pytest.raises(ElfsError, match="mps: use device: cpu"):
        Ranks(0, 2).check("auto", torch.device("mps"), 100)


def test_synced_batch_norm_is_the_plain_one_when_not_training():
    norm, x = nn.BatchNorm2d(3).eval(), torch.rand(2, 3, 4, 4)
    expected = norm(x)
    norm.__class__ = SyncedBatchNorm
    assert torch.equal(norm(x), expected)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ElfsError, match="2 GPUs: start at most 2 processes"), joined():
        pass


@pytest.mark.slow
def test_the_documented_command_writes_the_artifacts_of_one_process(tmp_path: Path):
    """A whole run on digits under torchrun; then its proxy again, by one process."""
    values = TINY | {"budgets": (0.1,), "budget": 0.1, "methods": ("elfs",), "eval_seeds": (0,)}
    # One epoch: max pooling among near ties hangs on the last bit, and on some processors a second
    # one carries that to 0.008 of AUM, between one thread and two of a single process as well.
    values |= {"precision": "float32", "hard_prune_ratio": 0.1, "proxy_epochs": 1}
    lists = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(lists))
    (tmp_path / "_toc.yml").touch()
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "elfs_lib", "run", "tiny.yaml", "--no-notebooks"],
        cwd=tmp_path,
        env=os.environ | {"ELFS_ARTIFACTS_DIR": "two", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        check=False,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Stages done") == 1  # rank 0 says it, and nobody else
    two = Store(tmp_path / "two", look=True)
    assert two.damaged() == []
    shutil.copytree(two.root, tmp_path / "one", ignore=lambda *_: ["proxy"])
    params = Params.make(values)
    (found,) = Run(params, two).proxies
    (expected,) = Run(params, Store(tmp_path / "one")).proxies
    assert found.key == expected.key
    assert found.manifest["device"].startswith("2 x cpu")
    assert expected.manifest["device"].startswith("cpu")
    scores = found.table("scores")["aum"], expected.table("scores")["aum"]
    assert np.abs(scores[0] - scores[1]).max() < 1e-3
