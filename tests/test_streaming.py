"""Images that are read as they are needed: the training of resident ones, in memory that stays."""

from __future__ import annotations

import os
import threading
from collections import namedtuple

import image_files
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from elfs_lib.artifacts import Store
from elfs_lib.data import decoding, readers
from elfs_lib.data.base import Source
from elfs_lib.data.datasets import load_images
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages import Run
from elfs_lib.training import loader as loader_module
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loader import ResidentLoader, StreamedLoader, streams
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

CPU = torch.device("cpu")


def stored(folder, n: int = 60, channels: int = 3, side: int = 8) -> np.ndarray:
    """A memory map of random images."""
    shape = (n, channels, side, side)
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return np.load(folder / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("subset", [None, [50, 3, 7, 59, 0, 8, 31]])
@pytest.mark.parametrize("kind", ["map", "part of a map", "array"])
def test_the_same_seeds_give_the_same_batches_bit_for_bit(tmp_path, kind: str, subset):
    images = stored(tmp_path)
    images = {"map": images, "part of a map": images[1:], "array": np.array(images)}[kind]
    subset = None if subset is None else np.array(subset) % len(images)
    chosen = np.array(images if subset is None else images[subset])
    options = {"batch": 8, "crop_pad": 2, "flip": True, "cutout": 3, "order_seed": 1}
    resident = ResidentLoader(torch.from_numpy(chosen), **options)
    streamed = StreamedLoader(images, subset, CPU, **options)
    assert torch.equal(streamed.sample(5), resident.sample(5))
    for epoch in range(2):
        pairs = zip(streamed.epoch(epoch), resident.epoch(epoch), strict=True)
        for (positions, batch), (expected, wanted) in pairs:
            assert torch.equal(positions, expected) and torch.equal(batch, wanted)
            assert batch.stride() == wanted.stride()


def test_training_streamed_is_training_resident(tmp_path):
    images, targets = stored(tmp_path), np.arange(60) % 3
    found = []
    for choice in ("resident", "streamed"):
        recorder = DynamicsRecorder(torch.as_tensor(targets), CPU)
        trained = train(
            images, targets, 3, find_recipe("speedrun_tiny"), Length(epochs=3),
            seeds=Seeds.all(0), crop_pad=1, device="cpu", loader=choice, recorder=recorder,
        )  # fmt: skip
        found.append((trained.losses, trained.logits(images).numpy(), recorder.table()))
    assert isinstance(trained.loader, StreamedLoader)
    for resident, streamed in zip(*found, strict=True):
        np.testing.assert_array_equal(streamed, resident)


def test_a_run_streams_from_its_store_and_gets_the_same_scores(tiny_params: Params, tmp_path):
    tables = []
    for choice in ("resident", "streamed"):
        params = tiny_params.model_copy(update={"loader": choice})
        run = Run(params, Store(tmp_path / choice))
        assert isinstance(run.train_images, np.memmap) == (choice == "streamed")
        assert run.training["loader"] == choice
        tables.append((run.proxies[0].key, run.proxies[0].table("scores")))
    assert tables[0][0] == tables[1][0]  # where images are read from is no part of the result
    np.testing.assert_array_equal(tables[0][1], tables[1][1])


def test_auto_streams_what_takes_more_than_half_of_the_free_memory(monkeypatch, tmp_path, capsys):
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 10**9))
    cuda = torch.device("cuda")
    assert not streams("auto", 500, CPU) and streams("auto", 501, CPU)
    assert not streams("auto", 200, cuda) and streams("auto", 201, cuda)
    assert not streams("resident", 10**9, CPU) and streams("streamed", 1, CPU)
    with pytest.raises(ElfsError, match="loader"):
        streams("disk", 1, CPU)
    options = {"seeds": Seeds.all(0), "crop_pad": 0, "device": "cpu"}
    images = stored(tmp_path)
    train(images, np.arange(60) % 3, 3, find_recipe("speedrun_tiny"), Length(steps=1), **options)
    assert "read from disk" in capsys.readouterr().err


def test_a_file_that_is_cut_off_is_one_sentence(tmp_path):
    images = stored(tmp_path)
    loader = StreamedLoader(images, None, CPU, batch=8)
    file = tmp_path / "images.npy"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ElfsError, match="images.npy is cut off"):
        list(loader.epoch(0))


def test_an_epoch_that_is_left_early_leaves_no_reader_behind(tmp_path):
    before = threading.active_count()
    loader = StreamedLoader(stored(tmp_path), None, CPU, batch=2)
    for _ in loader.epoch(0):
        break
    assert threading.active_count() == before


def test_no_more_than_a_few_batches_are_read_ahead(tmp_path, monkeypatch):
    read = []

    class Watched(StreamedLoader):
        def _read(self, positions):
            read.append(len(positions))
            return super()._read(positions)

    loader = Watched(stored(tmp_path), None, CPU, batch=2)
    read.clear()
    epoch = loader.epoch(0)
    next(epoch)
    epoch.close()
    assert 1 <= len(read) <= loader_module.AHEAD + 1


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.bench_streaming import peak, write_images

    streamed = []
    for mib in (20, 100, 400):
        file = write_images(tmp_path / "images.npy", mib)
        streamed.append(peak(file, "streamed"))
    assert max(streamed) - min(streamed) < 150  # MiB; two runs of one size are up to 70 apart
    assert peak(file, "resident") - max(streamed) > 300


@pytest.mark.parametrize("kind", ["good", "one is broken", "grey"])
def test_what_memory_does_not_hold_is_decoded_to_the_store(tmp_path, monkeypatch, kind: str):
    folder = tmp_path / "photos"
    image_files.class_folders(folder, {"a": 5, "b": 4}, size=20)
    files = sorted(folder.rglob("*.*"))
    if kind == "one is broken":
        files[2].write_bytes(b"no image")
    if kind == "grey":
        for file in files:
            Image.open(file).convert("L").save(file.with_suffix(".png"))
            if file.suffix != ".png":
                file.unlink()
    values = {"dataset": "image_folder", "data_path": str(folder), "image_size": 12, "classes": 2}
    found = []
    for large in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(readers, "is_large", lambda size, large=large: large)
            run = Run(
                Params.make({**values, "encoder": "pixels"}), Store(tmp_path / f"store{large}")
            )
            found.append(run.images)
    inside, outside = found
    assert outside.array("train").shape == (
        8 if "broken" in kind else 9,
        1 if kind == "grey" else 3,
        12,
        12,
    )
    np.testing.assert_array_equal(outside.array("train"), inside.array("train"))
    names = [sorted(file.name for file in artifact.folder.iterdir()) for artifact in found]
    assert names[0] == names[1]


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    image_files.class_folders(tmp_path / "photos", {"a": 5}, size=20)
    monkeypatch.setattr(readers, "is_large", lambda size: True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda folder: usage(9000, 8000, 2000))
    monkeypatch.setattr(decoding, "decode_images", None)
    with pytest.raises(ElfsError, match="ELFS_ARTIFACTS_DIR"):
        load_images(
            Source("image_folder", path=tmp_path / "photos", image_size=12), scratch=tmp_path
        )
