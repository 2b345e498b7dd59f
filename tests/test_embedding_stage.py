"""The embeddings stage: from the files where there are files, and never whole in memory."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import image_files
import numpy as np
import pytest
import torch
from test_encoder_file import Flat, noise

from elfs_lib.artifacts import Artifact, Draft, Store, write_rows
from elfs_lib.data.base import Source
from elfs_lib.data.datasets import load_images
from elfs_lib.embedding import embed as embedding
from elfs_lib.embedding.embed import Embedder, Views, batch_for, concatenate, embed
from elfs_lib.embedding.encoder_file import PreparedNetwork
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages import Run
from elfs_lib.stages import embedding as stages_embedding
from elfs_lib.stages.graph import given_stage

# --- from the files -------------------------------------------------------------------------------


def files_of(dataset: str, folder: Path) -> tuple[dict, Source]:
    """Files of 120 px with a test split and a damaged file in each, and their parameters."""
    root = folder / "imagenet"
    for split, count in (("train", 7), ("val", 4)):
        image_files.class_folders(root / split, {"n01": count, "n02": count}, size=120)
        (root / split / "n01" / "001.png").write_bytes(b"no image")
    if dataset == "imagenet":
        return {"dataset": dataset}, Source(dataset, folder)
    return {"dataset": dataset, "data_path": str(root)}, Source(dataset, path=root)


@pytest.fixture
def pixels_of_any_size(monkeypatch: pytest.MonkeyPatch) -> list:
    """Encoders whose embeddings are an image's pixels; the sides of those that were loaded."""
    loaded = []

    def frozen_embedder(name, size, *, count, **options):
        loaded.append((size, count))
        return lambda images: images.reshape(len(images), -1).astype(np.float32)

    def stored(images, name, *, keep, **options):
        loaded.append("stored")
        return keep(len(images), iter([images.reshape(len(images), -1).astype(np.float32)]))

    monkeypatch.setattr(embedding, "frozen_embedder", frozen_embedder)
    monkeypatch.setattr(embedding, "embed", stored)
    monkeypatch.setattr(stages_embedding, "FILES_AT_ONCE", 3)
    return loaded


@pytest.mark.parametrize("dataset", ["image_folder", "imagenet"])
@pytest.mark.parametrize(
    "stored, encoder_size, side",
    [(32, None, 120), (32, 64, 64), (100, 64, 64), (64, 64, None), (120, 64, None)],
)
def test_both_splits_are_embedded_from_their_files(
    tmp_path: Path, monkeypatch, pixels_of_any_size, dataset, stored, encoder_size, side
):
    """At the encoder's size, unless the stored squares are no shrunk copies or of that size."""
    monkeypatch.setenv("ELFS_DATA_DIR", str(tmp_path))
    values, source = files_of(dataset, tmp_path)
    changes = {"image_size": stored, "encoder_size": encoder_size, "encoder": "dino_vits16"}
    run = Run(Params.make(values | changes), Store(tmp_path / "store"))
    want = load_images(Source(source.dataset, source.data_dir, side or stored, source.path))
    assert len(want.train) == 13 and len(want.test) == 7
    for stage, images in (("embeddings", want.train), ("test_embeddings", want.test)):
        found = run.artifact(stage).array("embeddings")
        np.testing.assert_array_equal(found, images.reshape(len(images), -1))
        assert run.call(stage).key_params.get("view") == side
    counts = [((side, side), 13), ((side, side), 7)]
    assert pixels_of_any_size == (2 * ["stored"] if side is None else counts)


def test_a_file_that_goes_while_it_is_read_is_named(tmp_path: Path, pixels_of_any_size):
    values, _ = files_of("image_folder", tmp_path)
    params = Params.make(values | {"image_size": 32, "encoder": "dino_vits16"})
    run = Run(params, Store(tmp_path / "store"))
    gone = Path(params.data_path) / run.images.json("about")["paths"][5]
    gone.unlink()
    with pytest.raises(ElfsError, match=f"{gone} changed while it was read"):
        run.embeddings  # noqa: B018
    assert not list((tmp_path / "store" / "embeddings").glob("[!.]*"))


def test_files_without_a_test_split_have_no_test_embeddings(tmp_path: Path, pixels_of_any_size):
    image_files.class_folders(tmp_path / "photos", {"a": 3, "b": 3}, size=120)
    values = {"dataset": "image_folder", "data_path": str(tmp_path / "photos"), "image_size": 32}
    params = Params.make(values | {"encoder": "dino_vits16"})
    with pytest.raises(ElfsError, match="no test split"):
        Run(params, Store(tmp_path / "store")).test_embeddings  # noqa: B018


# --- to disk --------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Run:
    """20,000 images of 192 features, whose embeddings by pixels take 15 MB."""
    images = np.random.default_rng(0).integers(0, 256, (20_000, 3, 8, 8), np.uint8)

    def build(draft: Draft) -> None:
        draft.array("train", images)
        draft.json("about", {"class_names": None, "num_classes": 2, "paths": None})

    stage = given_stage("images", build, "images", {"seed": 0})
    params = Params.make({"encoder": "pixels", "loader": "streamed"})
    return Run(params, Store(tmp_path / "store"), substitutes=(stage,))


def traced(run: Run) -> tuple[Artifact, int]:
    """The embeddings, and the most bytes that NumPy held while they were made."""
    run.ensure("images")
    tracemalloc.start()
    try:
        return run.embeddings, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_embeddings_go_to_disk_as_they_are_made(many: Run):
    made, peak = traced(many)
    found = made.array("embeddings")
    assert found.nbytes == 20_000 * 192 * 4 and peak < found.nbytes / 3
    want = embed(many.images.array("train"), "pixels")
    np.testing.assert_array_equal(found, want)
    np.save(made.folder.parent / "plain.npy", want)
    plain = (made.folder.parent / "plain.npy").read_bytes()
    assert (made.folder / "embeddings.npy").read_bytes() == plain  # so the same key as before


def test_principal_components_are_taken_of_features_on_disk(many: Run, tmp_path: Path):
    reduced = Run(many.params.model_copy(update={"encoder_pca": 4}), many.store, substitutes=())
    made, peak = traced(reduced.with_stages(*many.substitutes))
    features = embed(many.images.array("train"), "pixels")
    assert peak < 0.9 * features.nbytes  # a block of 16,384 rows is most of these
    want = embedding.fit_reduction(features, 4)(features)
    np.testing.assert_array_equal(made.array("embeddings"), want)
    names = {file.name for file in made.folder.iterdir()}
    assert names == {"embeddings.npy", "pca_mean.npy", "pca_axes.npy", "manifest.json"}


def test_a_network_embeds_in_parts(tmp_path: Path):
    images = noise(11)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    network = PreparedNetwork(Flat(), lambda x: x)
    embedder = Embedder("flat", network, torch.device("cpu"), torch.float32, 4)
    parts = [*embedder.parts(mapped)]
    assert [len(part) for part in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(parts), embedder(images))


def test_several_encoders_are_joined_in_parts_and_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(embedding, "BLOCK", 4)
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(9, width)).astype(np.float32) for width in (3, 5)]
    blocks[0][2] = 0
    before = [block.copy() for block in blocks]
    parts = [*concatenate(blocks)]
    assert [len(part) for part in parts] == [4, 4, 1]
    for block, old in zip(blocks, before, strict=True):
        np.testing.assert_array_equal(block, old)
    lengths = [np.linalg.norm(block, axis=1, keepdims=True) for block in blocks]
    want = np.concatenate([b / np.where(n, n, 1) for b, n in zip(blocks, lengths)], axis=1)
    np.testing.assert_allclose(np.concatenate(parts), want, rtol=1e-6)


def test_rows_in_parts_are_written_as_a_whole_array_would_be(tmp_path: Path):
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    found = write_rows(tmp_path / "rows.npy", 7, iter([rows[:5], rows[5:]]))
    np.testing.assert_array_equal(found, rows)
    np.save(tmp_path / "plain.npy", rows)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()
    for count in (6, 8):
        with pytest.raises(ValueError, match=f"to have {count} rows and got 7"):
            write_rows(tmp_path / "rows.npy", count, iter([rows]))


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process():
    with pytest.raises(OSError, match="No space left"):
        write_rows(Path("/dev/full"), 9000, iter([np.zeros((9000, 9), np.float32)]))


# --- on a GPU -------------------------------------------------------------------------------------


class Counted(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return super().forward(x)


def test_a_gpu_takes_all_crops_of_some_images_in_one_pass(monkeypatch):
    monkeypatch.setattr(embedding, "for_inference", lambda network, device: network)
    images, views = noise(17, side=16), Views(10, 0.25)

    def embedder(device: str, batch: int) -> Embedder:
        network = PreparedNetwork(Counted(), lambda x: x - 0.3)
        made = Embedder("flat", network, torch.device(device), torch.float32, batch, views)
        made.device = torch.device("cpu")  # where the test runs
        return made

    plain, fast, tight = embedder("cpu", 8), embedder("cuda", 40), embedder("cuda", 4)
    want = plain(images)
    np.testing.assert_allclose(fast(images), want, atol=1e-6)
    np.testing.assert_allclose(tight(images), want, atol=1e-6)
    assert plain.network.sizes == [8] * 20 + [1] * 10
    assert fast.network.sizes == [40] * 4 + [10]
    assert tight.network.sizes == [10] * 17  # an image at least


def test_all_crops_of_a_batch_are_the_shape_that_is_compiled(monkeypatch):
    monkeypatch.setattr(embedding, "for_inference", lambda network, device: network)
    monkeypatch.setattr(embedding, "compiles", lambda *arguments: True)
    fast, slow = Counted(), Counted()

    def compiled(network, run):
        run(fast)
        return fast

    monkeypatch.setattr(embedding, "compiled", compiled)
    device, views = torch.device("cuda"), Views(5, 0.25)
    network = PreparedNetwork(slow, lambda x: x)
    made = Embedder("flat", network, device, torch.float32, 20, views, compile="on")
    made.device = torch.device("cpu")
    made(noise(9, side=16))
    assert fast.sizes == [20, 20, 20]  # tried once, then the full batches
    assert slow.sizes == [5, 5]  # the image that tells the work, and what is left over


def test_whether_to_compile_is_decided_by_all_images_that_will_come(monkeypatch):
    asked = []
    monkeypatch.setattr(embedding, "compiles", lambda how, device, flops: asked.append(flops))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    for count in (None, 700):
        prepared = PreparedNetwork(network, torch.nn.Identity())
        cpu = torch.device("cpu")
        made = Embedder("x", prepared, cpu, torch.float32, 8, compile="auto", count=count)
        for _ in made.parts(noise(7)):
            pass
    assert asked[0] > 0 and asked[1] == 100 * asked[0]


@pytest.mark.parametrize("device, pinned", [("cuda", True), ("cpu", False)])
def test_what_goes_to_a_gpu_is_pinned(tmp_path: Path, monkeypatch, device: str, pinned: bool):
    asked, empty = [], torch.empty

    def recorded(*shape, pin_memory, **options):
        asked.append(pin_memory)
        return empty(*shape, **options)

    images = noise(3)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.setattr(torch, "empty", recorded)
    found = batch_for(torch.device(device), np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert asked == [pinned] and found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), images)
