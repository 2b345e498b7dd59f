"""``elfs doctor`` says what is there, what is missing and what will be slow."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple

import pytest
import torch
from typer.testing import CliRunner

from elfs_lib import compute
from elfs_lib.cli import doctor
from elfs_lib.cli.shared import app
from elfs_lib.embedding.networks import stored_weights


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine that has everything but data, at a rate that is always the same."""
    monkeypatch.setenv("ELFS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ELFS_ENCODER_DIR", str(tmp_path / "encoders"))
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "store"))
    monkeypatch.setattr(compute, "matmul_peak", lambda *arguments: 1e12)


def found(**looked) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(**looked)}


def test_every_line_has_a_verdict_and_nothing_is_left_behind(tmp_path):
    lines = found()
    assert list(lines) == [
        "packages", "device", "training", "cores and memory", "compiler", "notebooks", "data",
        "weights", "artifacts",
    ]  # fmt: skip
    assert all(finding.verdict in ("ok", "slow", "missing") for finding in lines.values())
    assert "digits" in lines["data"].found and "efficientnet_lite0" in lines["weights"].found
    assert not list(tmp_path.iterdir())


def test_the_exit_code_says_whether_something_is_missing(monkeypatch):
    good = CliRunner().invoke(app, ["doctor"])
    assert good.exit_code == 0, good.output
    monkeypatch.setattr(
        "jupyter_client.kernelspec.KernelSpecManager.find_kernel_specs", lambda self: {}
    )
    bad = CliRunner().invoke(app, ["doctor"])
    assert bad.exit_code == 1 and "ipykernel" in bad.output
    assert len(bad.output.split("artifacts")) == 2  # what comes after is looked at all the same


def test_a_missing_package_is_named_as_it_is_installed(monkeypatch):
    there = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "faiss" else there(name)
    )
    line = found()["packages"]
    assert line.verdict == "missing" and line.found == "pip install faiss-cpu"


@pytest.mark.parametrize("rate, verdict", [(1e11, "slow"), (1e14, "ok")])
def test_the_papers_training_is_slow_where_it_takes_long(monkeypatch, rate: float, verdict: str):
    monkeypatch.setattr(compute, "matmul_peak", lambda *arguments: rate)
    line = found()["training"]
    hours = float(re.search(r"takes (\S+) h", line.found)[1])
    # 0.56 G multiply-adds an image, each two FLOP, and backward twice forward
    assert hours == pytest.approx(3 * 2 * 0.56e9 * 50_000 * 200 / rate / 3600, rel=0.03)
    assert line.verdict == verdict


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nand more"),
        RuntimeError("The driver is too old"),
    ],
)
@pytest.mark.parametrize("line, name", [("training", "matmul_peak"), ("device", "resolve_device")])
def test_a_gpu_that_does_not_work_is_a_line_like_others(monkeypatch, line, name, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(compute, name, fails)
    lines = found()
    assert lines[line].verdict == "missing"
    assert lines[line].found == str(error).splitlines()[0]
    assert lines["artifacts"].verdict == "ok"


def test_a_torch_that_cannot_be_imported_is_a_line_like_others(monkeypatch):
    def fails():
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(doctor.platform, "python_version", fails)
    line = found()["packages"]
    assert line.verdict == "missing" and "libcudart.so" in line.found


def test_little_room_for_artifacts_is_missing(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**39, 2**30))
    assert found()["artifacts"].verdict == "missing"


def test_threads_that_stand_idle_are_slow(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("dask.system.CPU_COUNT", 4)
    line = found()["cores and memory"]
    assert line.verdict == "slow" and "OMP_NUM_THREADS=4" in line.found


def test_downloaded_weights_are_found_where_they_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert stored_weights("swav_resnet50") is None
    file = tmp_path / "hub" / "checkpoints" / "swav_800ep_pretrain.pth.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert stored_weights("swav_resnet50") == file
    here, later = found()["weights"].found.split("downloaded when used")
    assert "swav_resnet50" in here and "swav_resnet50" not in later


@pytest.mark.parametrize(
    "text, verdict, words",
    [
        ("dataset: digits\nencoder: pixels", "ok", "are there"),
        ("dataset: cifar10\nencoder: pixels", "missing", "'cifar10' is not in data_dir"),
        ("dataset: digits\nbudgte: 1", "missing", "did you mean 'budget'"),
    ],
)
def test_a_run_is_checked_as_well(tmp_path, text: str, verdict: str, words: str):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    line = found(params_file=file)["run"]
    assert line.verdict == verdict and words in line.found
