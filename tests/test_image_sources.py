"""Images as people have them in Python, and lists from what they have already computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData

import elfs_lib
from elfs_lib.artifacts import Store
from elfs_lib.errors import ElfsError
from elfs_lib.photos import choosing as own_images
from elfs_lib.photos.choice import pick
from elfs_lib.photos.choosing import choose_images
from elfs_lib.photos.image_sources import as_pixels, read_source
from elfs_lib.photos.request import Request
from elfs_lib.selection import SelectionInputs, select_by
from elfs_lib.selection.by_class import class_quantile
from elfs_lib.stages import Run

RGB = np.random.default_rng(0).integers(0, 256, (15, 3, 9, 9), np.uint8)
RGB[0, 0, 0, :2] = 0, 255
DIGITS = (load_digits().images[:60, None] * 15.9375).astype(np.uint8)
TINY = {
    "encoder": "pixels",
    "flip": False,
    "crop_pad": 1,
    "temi_heads": 2,
    "temi_epochs": 3,
    "proxy_epochs": 2,
    "hard_prune_ratios": [0.0, 0.4],
    "search_steps": 2,
}


class Rows:
    """A dataset as Hugging Face's look: items are mappings, with a label that nobody may read."""

    column = "image"

    def __len__(self) -> int:
        return len(RGB)

    def __getitem__(self, row: int) -> dict:
        image = Image.fromarray(RGB[row].transpose(1, 2, 0))
        return {self.column: image, "label": row}


@pytest.mark.parametrize(
    "source",
    [
        RGB,
        RGB.transpose(0, 2, 3, 1),
        RGB.astype(np.int64),
        RGB / 255,
        (RGB / 255).astype(np.float32).transpose(0, 2, 3, 1),
        torch.tensor(RGB),
        torch.tensor(RGB).float() / 255,
        list(RGB),
        TensorDataset(torch.tensor(RGB), torch.arange(15)),
        [Image.fromarray(image.transpose(1, 2, 0)) for image in RGB],
        Rows(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_the_same_images_in_each_form(source: object):
    found = read_source(source)
    assert found.pixels.dtype == np.uint8 and found.pixels.flags.c_contiguous
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.paths is None


def test_grey_images_need_no_channel():
    np.testing.assert_array_equal(as_pixels(DIGITS[:, 0]), DIGITS)
    np.testing.assert_array_equal(as_pixels(DIGITS.transpose(0, 2, 3, 1)), DIGITS)
    assert read_source(FakeData(6, (3, 20, 20), 2)).pixels.shape == (6, 3, 20, 20)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB / 127.5 - 1, r"float64 from -1 to 1.*x \* std \+ mean"),
        (RGB.astype(np.float32), "float32 from 0 to 255"),
        (RGB.astype(np.int32) * 200, "int32 from 0 to 5.1e"),
        (np.zeros((3, 2, 9, 9), np.uint8), r"uint8 \(3, 2, 9, 9\)"),
        (np.full((2, 3, 9, 9), np.nan), "from nan to nan"),
        (np.zeros((2, 3, 9, 9), bool), "bool from 0 to 0"),
    ],
)
def test_what_could_mean_two_things_is_refused_with_the_conversion(array, message: str):
    with pytest.raises(ElfsError, match=message):
        as_pixels(array)


def test_a_list_of_files_keeps_its_order_and_names(tmp_path: Path):
    paths = []
    for number, image in enumerate(RGB[:5]):
        paths.append(tmp_path / f"{9 - number}.png")
        Image.fromarray(image.transpose(1, 2, 0)).save(paths[-1])
    found = read_source(paths)
    np.testing.assert_array_equal(found.pixels, RGB[:5])
    assert found.paths == [str(path) for path in paths] and found.files
    assert read_source(paths, 16).pixels.shape == (5, 3, 16, 16)
    with pytest.raises(ElfsError, match="twice"):
        read_source([paths[0], paths[0]])
    with pytest.raises(ElfsError, match="gone.png"):
        read_source([*paths, tmp_path / "gone.png"])
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ElfsError, match=r"bad.png cannot be read"):
        read_source([*paths, tmp_path / "bad.png"])


@pytest.mark.parametrize("source", [3, {"a": 1}, [], object(), iter([1])])
def test_what_holds_no_images_is_refused(source: object):
    with pytest.raises(ElfsError, match="images"):
        read_source(source)


def test_listed_files_are_read_again_at_the_encoders_size(tmp_path: Path, monkeypatch):
    from elfs_lib.embedding import embed as embedding

    paths = []
    for number in range(12):
        paths.append(f"{number:02}.png")
        noise = np.random.default_rng(number).integers(0, 256, (120, 120, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / paths[-1])
    sides = []

    def embedder(encoder, size, **options):
        sides.append(size)
        return lambda images: images.reshape(len(images), -1)[:, :40].astype(np.float32) + 1

    monkeypatch.setattr(embedding, "frozen_embedder", embedder)
    monkeypatch.chdir(tmp_path)
    request = Request(2, 4, method="max_herding", cluster=False, compare=False)
    choice = choose_images(paths, request, Store(tmp_path / "store"))
    assert sides == [(120, 120)] and choice.run.train_images.shape[-1] == 64
    assert set(choice.listed["path"]) <= set(paths)


# --- steps that are given ------------------------------------------------------------------------


def no_training(monkeypatch) -> None:
    monkeypatch.setattr(Run, "temi", property(lambda self: pytest.fail("clustered")))
    monkeypatch.setattr("elfs_lib.training.loop.train", lambda *a, **k: pytest.fail("trained"))


def test_embeddings_alone_are_enough_for_methods_that_train_nothing(monkeypatch):
    no_training(monkeypatch)
    rows = np.random.default_rng(0).normal(size=(80, 20)).astype(np.float32)
    found = elfs_lib.select(embeddings=rows, budget=9, method="typiclust", seed=3)
    direct = select_by("typiclust", SelectionInputs(n=80, embeddings=rows), 9, seed=3)
    assert found["index"].tolist() == direct.indices.tolist()
    np.testing.assert_allclose(found["score"], direct.scores)
    assert list(found.columns) == ["rank", "index", "path", "score", "reason"]
    assert found["rank"].tolist() == [*range(1, 10)]
    assert found.attrs["method"] == "typiclust" and found.attrs["classes"] is None
    assert found.attrs["versions"]["elfs"] == elfs_lib.__version__
    rows[40:] = rows[:40]  # exact copies: at most one of each is listed
    copies = elfs_lib.select(embeddings=rows, budget=30, method="max_herding")
    assert len(set(copies["index"] % 40)) == 30
    with pytest.raises(ElfsError, match="elfs trains on the images: give images="):
        elfs_lib.select(embeddings=rows, budget=30, classes=2, method="elfs")


def test_scores_and_pseudo_labels_that_are_given_are_not_computed(monkeypatch):
    no_training(monkeypatch)
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=60), rng.integers(0, 3, 60)
    given = {"embeddings": rng.normal(size=(60, 5)), "scores": scores, "pseudo_labels": labels}
    for hard, ascending in (("low", scores), ("high", -scores)):
        found = elfs_lib.select(**given, hard=hard, budget=12, hard_prune_ratio=0.25)
        order = class_quantile(ascending, labels)
        assert found["index"].tolist() == pick(order, np.arange(60), 0.25, 12).tolist()
        np.testing.assert_array_equal(found["score"], scores[found["index"]])
        assert found.attrs["method"] == "elfs" and found.attrs["classes"] == 3
        assert found["pseudo_class"].tolist() == labels[found["index"]].tolist()
    with pytest.raises(ElfsError, match="searches its beta by training"):
        elfs_lib.select(**given, budget=12)
    with pytest.raises(ElfsError, match="for each of the 60 images"):
        elfs_lib.select(**given | {"scores": scores[1:]}, budget=12, hard_prune_ratio=0.25)
    with pytest.raises(ElfsError, match="hard end 'lowest'"):
        elfs_lib.select(**given, hard="lowest", budget=12)
    with pytest.raises(ElfsError, match="one finite number"):
        elfs_lib.select(**given | {"scores": scores * np.inf}, budget=12)


def test_embeddings_beside_images_take_the_place_of_the_encoder(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    changes = {name: value for name, value in TINY.items() if name != "encoder"}
    seen, made = [], own_images.choice_of

    def look(chooser, *others):
        seen.append(np.array(chooser.run.embeddings.array("embeddings")))
        return made(chooser, *others)

    monkeypatch.setattr(own_images, "choice_of", look)
    found = elfs_lib.select(DIGITS, embeddings=rows, classes=3, budget=12, method="elfs", **changes)
    assert len(found) == 12 and {"pseudo_class", "confidence"} <= {*found.columns}
    np.testing.assert_array_equal(seen[0], rows)
    assert {row["beta"] for row in found.attrs["search"]} == {0.0, 0.4}
    with pytest.raises(ElfsError, match="one row for each of the 60 images"):
        elfs_lib.select(DIGITS, embeddings=rows[:50], classes=3, budget=12, **changes)


def test_embeddings_are_not_guessed_to_be_in_the_order_of_a_folder(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(RGB):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "photos" / f"{number}.png")
    with pytest.raises(ElfsError, match="which has no order"):
        elfs_lib.select(tmp_path / "photos", embeddings=RGB.reshape(15, -1), budget=3)
    with pytest.raises(ElfsError, match="neither images nor embeddings"):
        elfs_lib.select(budget=3)


def test_every_field_of_what_is_provided_is_optional():
    assert all(field.default is None for field in dataclasses.fields(own_images.Provided))
