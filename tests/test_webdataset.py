"""Tar files in the WebDataset layout: samples, splits, labels, and what is wrong with some."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, gradient
from PIL import Image

from elfs_lib.data import decoding
from elfs_lib.data.base import MissingDataset, Source
from elfs_lib.data.datasets import check_dataset, labelled_splits, load_images, load_labels
from elfs_lib.errors import ElfsError


def shard(file: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def samples(shades: list[int], labels: list[object] | None = None) -> list[tuple[str, bytes]]:
    """A picture and a caption each, and a label."""
    found = []
    for number, shade in enumerate(shades):
        found.append((f"{number:04}.jpg.json", b"{}"))
        found.append((f"{number:04}.png", encoded(gradient(16, 16, shade=shade))))
        if labels is not None:
            found.append((f"{number:04}.cls", str(labels[number]).encode()))
    return found


def shades(images: np.ndarray) -> list[int]:
    return images[:, 2, 0, 0].tolist()


def test_shards_are_read_in_order_with_their_labels(tmp_path):
    shard(tmp_path / "set-0001.tar", samples([30, 40], [1, 0]))
    shard(tmp_path / "set-0000.tar", samples([10, 20, 25], [2, 1, 7]))
    images = load_images(Source("webdataset", path=tmp_path))
    assert shades(images.train) == [10, 20, 25, 30, 40] and images.test is None
    assert images.train.shape == (5, 3, 16, 16) and images.report == {}
    assert images.paths[0] == "set-0000.tar#0000.png" and images.paths[3] == "set-0001.tar#0000.png"
    assert labelled_splits(Source("webdataset", path=tmp_path)) == ("train",)
    assert load_labels(Source("webdataset", path=tmp_path), "train").tolist() == [2, 1, 7, 1, 0]
    one = load_images(Source("webdataset", path=tmp_path / "set-0001.tar"))
    assert shades(one.train) == [30, 40]
    disk = load_images(Source("webdataset", path=tmp_path), scratch=tmp_path / "scratch")
    np.testing.assert_array_equal(disk.train, images.train)


def test_splits_go_by_the_names_of_files(tmp_path):
    shard(tmp_path / "imagenet-train-0.tar", samples([10, 20]))
    shard(tmp_path / "imagenet-validation-0.tar", samples([30], [1]))
    images = load_images(Source("webdataset", path=tmp_path))
    assert shades(images.train) == [10, 20] and shades(images.test) == [30]
    assert labelled_splits(Source("webdataset", path=tmp_path)) == ("test",)


def test_what_is_no_image_of_the_layout_is_left_out(tmp_path, monkeypatch):
    members = [
        ("a/1.txt", b"a sample without an image"),
        ("a/2.left.png", encoded(gradient(16, 16, shade=10))),
        ("a/2.right.png", encoded(gradient(16, 16, shade=99))),  # the same sample
        ("b/2.png", encoded(gradient(16, 16, shade=20))),  # another folder, another sample
        ("b/3.png", b"broken"),
        ("b/4.PNG", encoded(gradient(16, 16, shade=30))),
        ("b/5.bmp", encoded(Image.new("RGB", (64, 64)), "BMP")),
    ]
    file = shard(tmp_path / "x.tar", members)
    with tarfile.open(file, "a") as archive:
        link = tarfile.TarInfo("b/6.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    monkeypatch.setattr(decoding, "MAX_BYTES", 10_000)
    images = load_images(Source("webdataset", path=file))
    assert shades(images.train) == [10, 20, 30]
    assert images.report == {
        "damaged": ["x.tar#b/3.png"],
        "too_large": ["x.tar#b/5.bmp"],
        "unused": ["x.tar#a/2.right.png"],
    }
    assert images.left_out == {"train": [2, 4]}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["0", "cat"], "the label 'cat' for 0001.png"),
        (["0", "-1"], "the label '-1'"),
        (["0", "1" * 200], "a label of more than 100 bytes"),
    ],
)
def test_labels_that_are_none_are_one_sentence(tmp_path, labels: list[str], words: str):
    file = shard(tmp_path / "x.tar", samples([1, 2], labels))
    load_images(Source("webdataset", path=file))  # which reads no label
    with pytest.raises(ElfsError, match=words):
        load_labels(Source("webdataset", path=file), "train")
    shard(file, [*samples([1], [0]), ("1.png", encoded(gradient()))])
    with pytest.raises(ElfsError, match="no label for 1.png"):
        load_labels(Source("webdataset", path=file), "train")


def test_members_that_begin_with_a_dot_are_not_read(tmp_path):
    members = [(f"a/._{name}", b"clutter of macOS") for name, _ in samples([10, 20], [1, 0])]
    pairs = zip(members, samples([10, 20], [1, 0]), strict=True)
    file = shard(tmp_path / "x.tar", [member for pair in pairs for member in pair])
    images = load_images(Source("webdataset", path=file))
    assert shades(images.train) == [10, 20] and images.report == {}
    assert load_labels(Source("webdataset", path=file), "train").tolist() == [1, 0]


@pytest.mark.parametrize("order", ["labels first", "images first", "turned back"])
def test_a_tar_that_is_not_grouped_by_sample_is_refused(tmp_path, order: str):
    members = samples([10, 20, 30], [1, 0, 2])
    images = [member for member in members if member[0].endswith(".png")]
    labels = [member for member in members if member[0].endswith(".cls")]
    ordered = {
        "labels first": labels + images,
        "images first": images + labels,
        "turned back": images + labels[::-1],  # the last image has its label beside it
    }
    file = shard(tmp_path / "x.tar", ordered[order])
    with pytest.raises(ElfsError, match=r"x\.tar.*sort"):
        load_images(Source("webdataset", path=file))


def test_archives_that_cannot_be_read_are_one_sentence(tmp_path):
    with pytest.raises(MissingDataset, match="has no .tar file"):
        check_dataset(Source("webdataset", path=tmp_path))
    file = shard(tmp_path / "x.tar", [("1.txt", b"words")])
    with pytest.raises(ElfsError, match="x.tar has no image"):
        check_dataset(Source("webdataset", path=file))
    shard(file, samples([1, 2]), "w:gz")
    with pytest.raises(ElfsError, match="x.tar is not a whole tar file"):
        check_dataset(Source("webdataset", path=file))
    shard(file, [("1.png", encoded(gradient())), ("2.png", bytes(50_000))])
    os.truncate(file, 20_000)
    with pytest.raises(ElfsError, match="x.tar is not a whole tar file"):
        load_images(Source("webdataset", path=file))
