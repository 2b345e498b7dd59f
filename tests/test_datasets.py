from __future__ import annotations

import gzip
import io
import json
import os
import pickle  # to write CIFAR's published format; the library never reads one itself
import struct
import threading
from pathlib import Path
from types import SimpleNamespace

import image_files
import numpy as np
import pyarrow as pa
import pytest
import scipy.io
import torch
from PIL import Image, ImageOps, PngImagePlugin
from sklearn.datasets import load_digits

from elfs_lib.artifacts import Store
from elfs_lib.data import datasets, decoding, readers
from elfs_lib.data.base import Images, Source, default_data_dir, merge_reports
from elfs_lib.data.datasets import (
    DATASETS,
    check_dataset,
    labelled_splits,
    load_images,
    load_labels,
    source_fingerprint,
    unread_files,
)
from elfs_lib.errors import ElfsError

PINNED = [360, 1773, 965, 256, 607]  # rows of scikit-learn's digits


def red_green(images: np.ndarray, row: int) -> tuple[int, int]:
    """Red and green just inside the right upper corner."""
    size = images.shape[-1]
    return tuple(int(value) for value in images[row, :2, size // 8, -1 - size // 8])


# --- published sets --------------------------------------------------------------------------


def test_digits_are_scaled_split_and_aligned():
    images = load_images("digits")
    assert images.train.shape == (1437, 1, 8, 8) and images.test.shape == (360, 1, 8, 8)
    assert images.train.dtype == np.uint8 and images.train.flags.c_contiguous
    assert images.train.max() == 255 and images.num_classes == 10 and images.report == {}
    # Every image is there once, with its own label.
    source = load_digits()
    pixels = np.concatenate([images.train, images.test])[:, 0] * (16 / 255)
    labels = np.concatenate([load_labels("digits", "train"), load_labels("digits", "test")])
    row = {image.tobytes(): i for i, image in enumerate(source.images)}
    places = np.array([row[np.rint(image).tobytes()] for image in pixels])
    assert len(set(places)) == len(row)
    assert np.array_equal(labels, source.target[places])
    # The split is part of what the numbers in the book mean: it may not change unnoticed.
    assert places[[0, 1, 1436, 1437, 1796]].tolist() == PINNED


def test_digits_resized():
    images = load_images(Source("digits", image_size=16))
    assert images.train.shape == (1437, 1, 16, 16) and images.train.dtype == np.uint8
    small = load_images("digits").train
    assert abs(images.train.mean() - small.mean()) < 3


def write_idx(file, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with (gzip.open if file.suffix == ".gz" else open)(file, "wb") as out:
        out.write(header + array.tobytes())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_idx_files(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "FASHION_PACKAGE_DIR", tmp_path / "none")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 5), ("t10k", 3)):
        arrays[part] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte{suffix}", arrays[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8))
    images = load_images(Source("fashion_mnist", tmp_path))
    assert np.array_equal(images.train[:, 0], arrays["train"])
    assert np.array_equal(images.test[:, 0], arrays["t10k"])
    assert load_labels(Source("fashion_mnist", tmp_path), "test").tolist() == [0, 1, 2]
    assert images.class_names[9] == "Ankle boot"

    broken = raw / f"train-images-idx3-ubyte{suffix}"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(ElfsError, match="not a whole IDX file"):
        load_images(Source("fashion_mnist", tmp_path))


def test_images_come_without_reading_a_label(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "FASHION_PACKAGE_DIR", tmp_path / "none")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((2, 28, 28), np.uint8))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"would fail if read")
    assert len(load_images(Source("fashion_mnist", tmp_path)).train) == 2


@pytest.mark.parametrize("channels_last", [True, False])
def test_torchvision_adapter(tmp_path, channels_last):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 6, 3, 8, 8), np.uint8)

    def build(data_dir, split, download=False):
        assert data_dir == tmp_path and not download
        data = pixels[int(split == "test")]
        data = data.transpose(0, 2, 3, 1) if channels_last else data
        return SimpleNamespace(data=data, targets=[0, 1, 2, 0, 1, 2], classes=["a", "b", "c"])

    (tmp_path / "part").write_bytes(b"x")
    reader = readers.Torchvision(build, ("part",), 3, "targets", channels_last)
    source = Source("digits", tmp_path)
    images = reader.images(source)
    assert np.array_equal(images.train, pixels[0]) and np.array_equal(images.test, pixels[1])
    assert images.train.flags.c_contiguous and images.class_names == ("a", "b", "c")
    assert reader.labels(source, "test").tolist() == [0, 1, 2, 0, 1, 2]
    assert len(reader.identity(source)) == 1
    with pytest.raises(readers.MissingDataset):
        readers.Torchvision(build, ("part", "gone"), 3, "targets").identity(source)


def write_cifar10(root, pixels, labels):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate(["test_batch", *(f"data_batch_{k}" for k in range(1, 6))]):
        batch = {"data": pixels[i].reshape(len(pixels[i]), -1), "labels": labels[i].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": list("abcdefghij")}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return pixels[1:].reshape(-1, 3, 32, 32), pixels[0], labels[1:].ravel(), labels[0]


def write_stl10(root, pixels, labels):
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, i in (("train", 0), ("test", 1)):
        (folder / f"{split}_X.bin").write_bytes(pixels[i].transpose(0, 1, 3, 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes((labels[i] + 1).astype(np.uint8).tobytes())
    return pixels[0], pixels[1], labels[0], labels[1]


def write_svhn(root, pixels, labels):
    for split, i in (("train", 0), ("test", 1)):
        y = np.where(labels[i] == 0, 10, labels[i])[:, None]
        mat = {"X": pixels[i].transpose(2, 3, 1, 0), "y": y}
        scipy.io.savemat(root / f"{split}_32x32.mat", mat)
    return pixels[0], pixels[1], labels[0], labels[1]


@pytest.mark.parametrize(
    ("name", "side", "write"),
    [("cifar10", 32, write_cifar10), ("stl10", 96, write_stl10), ("svhn", 32, write_svhn)],
)
def test_torchvision_layouts(tmp_path, monkeypatch, name, side, write):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 3, side, side), np.uint8)
    train, test, train_labels, test_labels = write(tmp_path, pixels, rng.integers(0, 10, (6, 4)))
    # The real classes compare checksums first: small files are refused...
    with pytest.raises(ElfsError, match="fetch them again"):
        load_images(Source(name, tmp_path))
    # ... and read once that check is taken away.
    module = f"torchvision.datasets.{'cifar' if name == 'cifar10' else name}"
    monkeypatch.setattr(f"{module}.check_integrity", lambda *_: True)
    images = load_images(Source(name, tmp_path))
    assert np.array_equal(images.train, train) and np.array_equal(images.test, test)
    assert images.train.flags.c_contiguous and images.train.dtype == np.uint8
    assert load_labels(Source(name, tmp_path), "train").tolist() == train_labels.tolist()
    assert load_labels(Source(name, tmp_path), "test").tolist() == test_labels.tolist()
    assert load_images(Source(name, tmp_path, image_size=16)).test.shape == (4, 3, 16, 16)


def test_altered_cifar_files_are_refused_before_they_are_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    trap = f"cposix\nsystem\n(S'touch {tmp_path / 'trap'}'\ntR.".encode()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(trap)
    with pytest.raises(ElfsError, match="fetch them again"):
        load_images(Source("cifar10", tmp_path))
    assert not (tmp_path / "trap").exists()


def named_classes(*names: str) -> dict[str, str]:
    """Metadata of Hugging Face that name the classes of column ``label``."""
    features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_cifar10_from_parquet(tmp_path):
    metadata = named_classes("plane", "car")
    cells = [
        image_files.encoded(image_files.gradient(32, 32, shade=i), "JPEG", quality=95)
        for i in range(12)
    ]
    folder = tmp_path / "cifar10"
    for name, part, labels in (
        ("train-00000-of-00002", cells[:6], [0, 1] * 3),
        ("train-00001-of-00002", cells[6:9], [1, 1, 0]),
        ("test-00000-of-00001", cells[9:], [1, 0, 0]),
    ):
        image_files.parquet_file(folder / f"{name}.parquet", part, labels, metadata=metadata)
    images = load_images(Source("cifar10", tmp_path))
    assert images.train.shape == (9, 3, 32, 32) and images.test.shape == (3, 3, 32, 32)
    for row, cell in enumerate(cells[:9]):
        expected = np.asarray(Image.open(io.BytesIO(cell))).transpose(2, 0, 1)
        assert np.array_equal(images.train[row], expected)
    assert images.class_names == ("plane", "car") and images.num_classes == 10
    assert "JPEG copies" in images.source and images.paths is None
    assert load_labels(Source("cifar10", tmp_path), "train").tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 0]


def test_cifar100_from_parquet_has_its_hundred_classes_not_the_twenty(tmp_path):
    cells = [image_files.encoded(image_files.gradient(32, 32, shade=i), "WEBP") for i in range(6)]
    fine, coarse = [99, 0, 31, 7, 55, 98], [13, 4, 0, 19, 4, 2]
    for split, at in (("train", slice(4)), ("test", slice(4, 6))):
        image_files.parquet_file(
            tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet",
            cells[at],
            fine[at],
            label="fine_label",
            others={"coarse_label": coarse[at]},
        )
    source = Source("cifar100", tmp_path)
    images = load_images(source)
    assert images.num_classes == 100 and len(images.train) == 4 and len(images.test) == 2
    assert load_labels(source, "train").tolist() == fine[:4]
    assert load_labels(source, "test").tolist() == fine[4:]
    assert "JPEG" not in images.source


def test_every_dataset_that_can_be_missing_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "FASHION_PACKAGE_DIR", tmp_path / "none")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(datasets.urllib.request, "urlopen", offline)
    for name, spec in DATASETS.items():
        if spec.needs_path or name == "digits":
            continue
        for call in (check_dataset, load_images, source_fingerprint, labelled_splits):
            with pytest.raises(ElfsError) as error:
                call(Source(name, tmp_path))
            message = str(error.value)
            assert f"dataset {name!r} is not in data_dir" in message and "http" in message
            assert message.endswith(".") and "\n" not in message


def test_missing_dataset_is_downloaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())

    def build(data_dir, split, download=False):
        asked.append((split, download))
        (data_dir / "part").write_bytes(b"x")

    spec = datasets.DatasetSpec(
        "made_up",
        readers.Torchvision(build, ("part",), 3, "targets"),
        description="",
        get="nowhere",
        download=datasets.downloader(build, "http://localhost/"),
    )
    monkeypatch.setitem(DATASETS, "made_up", spec)
    check_dataset(Source("made_up", tmp_path / "new"))
    check_dataset(Source("made_up", tmp_path / "new"))
    assert asked == [("train", True), ("test", True)]


def test_data_dir_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ELFS_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("ELFS_DATA_DIR")
    assert default_data_dir().parts[-3:] == (".cache", "elfs", "data")


# --- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("digitz", {}, "did you mean 'digits'"),
        (
            "digits",
            {"path": "x"},
            "'data_path' is for datasets parquet, web",
        ),
        ("digits", {"image_size": 0}, "image_size is 0"),
        ("digits", {"image_size": True}, "image_size is True"),
        ("digits", {"image_size": 32.0}, "image_size is 32.0"),
        ("digits", {"image_size": 5000}, "4 to 1024"),
        ("parquet", {}, "needs 'data_path'"),
        ("image_folder", {}, "needs 'data_path'"),
        ("image_folder", {"path": "no/such folder"}, "does not exist"),
        ("parquet", {"path": "no/such.parquet"}, "does not exist"),
    ],
)
def test_wrong_parameters_are_one_sentence(name, options, says):
    for call in (check_dataset, load_images, labelled_splits, source_fingerprint):
        with pytest.raises(ElfsError, match=says):
            call(Source(name, **options))


def test_registry_entries_are_complete():
    for name, spec in DATASETS.items():
        assert spec.name == name and spec.description and spec.get
        assert spec.needs_path == (spec.num_classes is None)


# --- parquet ---------------------------------------------------------------------------------


def cells(count: int, **options) -> list[bytes]:
    return [
        image_files.encoded(image_files.gradient(20, 20, shade=i), **options) for i in range(count)
    ]


@pytest.mark.parametrize(("column", "as_struct"), [("img", True), ("image", False)])
def test_parquet_file_without_labels(tmp_path, column, as_struct):
    file = tmp_path / "pool.parquet"
    image_files.parquet_file(file, cells(5), image=column, struct=as_struct)
    images = load_images(Source("parquet", path=file))
    assert images.train.shape == (5, 3, 20, 20) and images.test is None
    assert images.train[:, 2, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert images.paths[3] == "pool.parquet#3" and images.num_classes is None
    assert labelled_splits(Source("parquet", path=file)) == ()


def test_parquet_damaged_rows_are_reported_and_labels_stay_aligned(tmp_path):
    good = cells(9)
    data = [good[0], b"garbage", good[2], None, good[4], good[5], good[4], *good[7:]]
    image_files.parquet_file(tmp_path / "train.parquet", data, list(range(9)), label="labels")
    image_files.parquet_file(tmp_path / "validation.parquet", good[:2], [7, 8], label="labels")
    images = load_images(Source("parquet", path=tmp_path))
    assert images.report == {
        "damaged": ["train.parquet#1"],
        "duplicates": [
            ("train.parquet#6", "train.parquet#4"),
            ("validation.parquet#0", "train.parquet#0"),
        ],
        "unreadable": ["train.parquet#3"],
    }
    assert images.left_out == {"train": [1, 3]} and len(images.test) == 2
    expected = [0, 2, 4, 5, 6, 7, 8]
    assert images.train[:, 2, 0, 0].tolist() == [0, 2, 4, 5, 4, 7, 8]
    assert load_labels(Source("parquet", path=tmp_path), "train").tolist() == expected
    told = load_labels(Source("parquet", path=tmp_path), "train", left_out=images.left_out)
    assert told.tolist() == expected
    assert load_labels(Source("parquet", path=tmp_path), "test").tolist() == [7, 8]


def test_labels_told_what_was_left_out_decode_nothing(tmp_path, monkeypatch):
    image_files.parquet_file(tmp_path / "train.parquet", cells(3), [0, 1, 2])
    monkeypatch.setattr(decoding, "decode_images", None)
    labels = load_labels(Source("parquet", path=tmp_path), "train", left_out={"train": [1]})
    assert labels.tolist() == [0, 2]


def test_parquet_splits_by_file_or_folder_name(tmp_path):
    good = cells(4)
    image_files.parquet_file(tmp_path / "d" / "train" / "0.parquet", good[:2])
    image_files.parquet_file(tmp_path / "d" / "test" / "0.parquet", good[2:3])
    image_files.parquet_file(tmp_path / "d" / "validation-0.parquet", good[3:])
    images = load_images(Source("parquet", path=tmp_path))
    assert images.train[:, 2, 0, 0].tolist() == [0, 1]
    assert images.test[:, 2, 0, 0].tolist() == [2]
    assert images.report == {"unused": ["d/validation-0.parquet"]}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train0.parquet", "train1.parquet"], ["test0.parquet"]),
        (["cifar_train-00000.parquet"], ["cifar_test-00000-of-00001-1a2b3c4d5e6f.parquet"]),
        (["Train.parquet"], ["VALID.parquet"]),
        (["a/trainset.parquet"], ["a/myDev.parquet"]),
        (["Training/part-0.parquet"], ["eval/part-0.parquet"]),
        (["train/year=2020/0.parquet", "train/year=2021/0.parquet"], ["test/0.parquet"]),
    ],
)
def test_parquet_splits_by_the_word_wherever_it_stands(tmp_path, train, test):
    for shade, name in enumerate([*train, *test]):
        image_files.parquet_file(tmp_path / name, cells(4)[shade : shade + 1])
    images = load_images(Source("parquet", path=tmp_path))
    assert images.train[:, 2, 0, 0].tolist() == [*range(len(train))]
    assert images.test[:, 2, 0, 0].tolist() == [len(train)]
    for name in (*train, *test):
        assert name in images.splits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data.parquet", "test.parquet"], "test.parquet is the test split .* no file .* train"),
        (["test.parquet", "validation.parquet"], "no file .* train"),
        (["train_test.parquet", "test.parquet"], "names the splits test and train: rename it"),
        (["one/train-0.parquet", "two/train-0.parquet"], "several sets \\('one', 'two'\\)"),
        (["train.parquet", "one/test.parquet"], "several sets \\('.', 'one'\\)"),
    ],
)
def test_parquet_files_that_could_be_any_split_are_refused(tmp_path, names, message):
    for name in names:
        image_files.parquet_file(tmp_path / name, cells(1))
    with pytest.raises(ElfsError, match=message):
        check_dataset(Source("parquet", path=tmp_path))


def test_parquet_files_of_one_split_are_all_there_is(tmp_path):
    for part in "ab":
        image_files.parquet_file(tmp_path / f"test-{part}.parquet", cells(1))
    images = load_images(Source("parquet", path=tmp_path))
    assert len(images.train) == 2 and images.test is None and not images.splits


def test_parquet_classes_are_matched_by_name(tmp_path):
    first, second = named_classes("cat", "dog"), named_classes("dog", "cat")
    image_files.parquet_file(tmp_path / "train-0.parquet", cells(3), [0, 1, 1], metadata=first)
    image_files.parquet_file(tmp_path / "train-1.parquet", cells(2), [0, 1], metadata=second)
    image_files.parquet_file(tmp_path / "train-2.parquet", cells(1), ["dog"])
    image_files.parquet_file(tmp_path / "test.parquet", cells(2), [0, 1], metadata=second)
    assert load_images(Source("parquet", path=tmp_path)).class_names == ("cat", "dog")
    assert load_labels(Source("parquet", path=tmp_path), "train").tolist() == [0, 1, 1, 1, 0, 1]
    assert load_labels(Source("parquet", path=tmp_path), "test").tolist() == [1, 0]
    image_files.parquet_file(tmp_path / "test.parquet", cells(2), ["cat", "dog"])
    assert load_labels(Source("parquet", path=tmp_path), "test").tolist() == [0, 1]
    image_files.parquet_file(
        tmp_path / "test.parquet", cells(2), [0, 1], metadata=named_classes("cat", "eel")
    )
    with pytest.raises(ElfsError, match="'eel', which train lacks"):
        load_labels(Source("parquet", path=tmp_path), "test")


@pytest.mark.parametrize("mixed", [("train", "test"), ("test", "train"), ("train", "train-1")])
@pytest.mark.parametrize("metadata", [None, named_classes("cat", "dog")])
def test_parquet_names_and_numbers_are_not_mixed(tmp_path, mixed, metadata):
    named = [0, 1] if metadata else ["cat", "dog"]
    image_files.parquet_file(tmp_path / f"{mixed[0]}.parquet", cells(2), named, metadata=metadata)
    image_files.parquet_file(tmp_path / f"{mixed[1]}.parquet", cells(2), [0, 1])
    with pytest.raises(ElfsError, match="cannot be matched"):
        for split in labelled_splits(Source("parquet", path=tmp_path)):
            load_labels(Source("parquet", path=tmp_path), split)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([True, False, True]),
        pa.array(["b", "a", "b"]).dictionary_encode(),
        pa.array(["b", "a", "b"], pa.string_view()),
        pa.array(["b", "a", "b"], pa.large_string()),
        pa.array([1, 0, 1], pa.uint8()),
    ],
    ids=lambda labels: str(labels.type),
)
def test_parquet_labels_of_many_types(tmp_path, labels):
    image_files.parquet_file(tmp_path / "x.parquet", cells(3), labels)
    assert load_labels(Source("parquet", path=tmp_path), "train").tolist() == [1, 0, 1]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("labels", [[-1, -1], pa.nulls(2), pa.array([None, None], pa.string())])
def test_parquet_labels_that_are_all_none_are_no_labels(tmp_path, labels, statistics):
    image_files.parquet_file(tmp_path / "train.parquet", cells(2), [0, 1], statistics=statistics)
    image_files.parquet_file(tmp_path / "test.parquet", cells(2), labels, statistics=statistics)
    assert labelled_splits(Source("parquet", path=tmp_path)) == ("train",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 1], "has a label -1 in column label"),
        ([0, 1, 2], "has a label 2 in column label"),
        ([0.0, 1.0, 1.0], "label of double"),
        ([0, None, 1], "1 gaps"),
        ([[0], [1], [1]], "column label of list"),
    ],
)
@pytest.mark.parametrize("statistics", [True, False])
def test_parquet_labels_that_are_no_classes_are_refused_before_work(
    tmp_path, labels, message, statistics
):
    image_files.parquet_file(
        tmp_path / "x.parquet",
        cells(3),
        labels,
        metadata=named_classes("cat", "dog"),
        statistics=statistics,
    )
    with pytest.raises(ElfsError, match=message):
        check_dataset(Source("parquet", path=tmp_path))


@pytest.mark.parametrize("statistics", [True, False])
def test_parquet_images_as_views_and_as_paths(tmp_path, statistics):
    file = tmp_path / "x.parquet"
    views = pa.array(cells(3), pa.binary_view())
    image_files.parquet_file(file, views, struct=False, statistics=statistics)
    assert load_images(Source("parquet", path=tmp_path)).train.shape[0] == 3
    image_files.parquet_file(file, pa.array([None] * 3, pa.binary()), statistics=statistics)
    with pytest.raises(ElfsError, match="the paths of its images and not their bytes"):
        check_dataset(Source("parquet", path=tmp_path))


def test_parquet_label_names_become_numbers(tmp_path):
    image_files.parquet_file(tmp_path / "train.parquet", cells(4), ["dog", "cat", "dog", "eel"])
    image_files.parquet_file(tmp_path / "test.parquet", cells(2), ["eel", "cat"])
    assert load_labels(Source("parquet", path=tmp_path), "train").tolist() == [1, 0, 1, 2]
    assert load_labels(Source("parquet", path=tmp_path), "test").tolist() == [2, 0]
    image_files.parquet_file(tmp_path / "test.parquet", cells(2), ["eel", "ape"])
    with pytest.raises(ElfsError, match="'ape', which train lacks"):
        load_labels(Source("parquet", path=tmp_path), "test")


def test_parquet_grey_images_keep_one_channel(tmp_path):
    data = [image_files.encoded(Image.new("L", (9, 9), i)) for i in range(3)]
    image_files.parquet_file(tmp_path / "x.parquet", data)
    assert load_images(Source("parquet", path=tmp_path / "x.parquet")).train.shape == (3, 1, 9, 9)


def test_parquet_wrong_schema_names_the_columns(tmp_path):
    image_files.parquet_file(tmp_path / "x.parquet", ["a", "b"], [0, 1], image="url", struct=False)
    with pytest.raises(ElfsError, match=r"has no image column.*url \(string\), label \(int64\)"):
        check_dataset(Source("parquet", path=tmp_path))
    image_files.parquet_file(tmp_path / "x.parquet", ["a", "b"], image="img", struct=False)
    with pytest.raises(ElfsError, match=r"img \(string\)"):
        check_dataset(Source("parquet", path=tmp_path))


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ElfsError, match="not a readable Parquet file"):
        check_dataset(Source("parquet", path=tmp_path / "x.parquet"))
    with pytest.raises(ElfsError, match="has no .parquet file"):
        check_dataset(Source("parquet", path=_made(tmp_path / "empty")))


def test_parquet_damaged_in_the_middle(tmp_path):
    file = tmp_path / "x.parquet"
    image_files.parquet_file(file, cells(8))
    data = bytearray(file.read_bytes())
    data[4:600] = bytes(596)
    file.write_bytes(data)
    with pytest.raises(ElfsError, match="is damaged after row"):
        load_images(Source("parquet", path=file, image_size=8))


def test_parquet_labels_with_gaps(tmp_path):
    image_files.parquet_file(tmp_path / "x.parquet", cells(3), [0, None, 1])
    with pytest.raises(ElfsError, match="1 gaps"):
        load_labels(Source("parquet", path=tmp_path), "train")


# --- image folders ---------------------------------------------------------------------------


def _made(folder):
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    root = tmp_path_factory.mktemp("awkward") / "my pictures é"
    report = image_files.awkward_folder(root)
    return root, report, load_images(Source("image_folder", path=root, image_size=16))


def reported(images: Images, folder: Path) -> dict[str, list]:
    """What is said of all files of a folder: of images, and of those that are none."""
    return merge_reports(images.report, unread_files(folder))


def test_awkward_files_are_each_handled_or_listed(awkward):
    root, report, images = awkward
    assert set(report) <= set(decoding.LEFT_OUT) | set(decoding.KEPT)
    assert reported(images, root) == report
    left_out = {name for kind in decoding.LEFT_OUT for name in report.get(kind, ())}
    everything = {
        path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()
    }
    assert everything - left_out - {".cache/thumb.png"} == set(images.paths)
    assert images.train.shape == (len(images.paths), 3, 16, 16)
    assert images.train.flags.c_contiguous


def test_awkward_pixels_are_right(awkward):
    _, _, images = awkward
    at = {name: i for i, name in enumerate(images.paths)}

    def colour(name):
        return images.train[at[name]][:, 8, 8].tolist()

    assert np.allclose(red_green(images.train, at["a.png"]), (225, 25), atol=25)
    # 90 degrees clockwise: what grew to the right now grows down, what grew down grows left.
    red, green = red_green(images.train, at["turned.jpg"])
    assert red < 70 and green < 90
    assert colour("deep.png") == [128] * 3  # of 65,535
    assert colour("scan12.tif") == [128] * 3  # of 4,095
    assert colour("clear.png") == colour("clear_palette.gif") == [255] * 3
    assert colour("moving.gif") == colour("one.png") == [255, 0, 0]
    assert colour("strip.png") == [0, 0, 128]
    press, same = images.train[at["press.jpg"]], images.train[at["a.png"]]
    assert np.abs(press[:2].astype(int) - same[:2]).mean() < 12
    assert (images.train[at["grey.png"]][0] == images.train[at["grey.png"]][1]).all()


def test_the_next_item_is_made_while_this_one_is_used():
    made, asked = [], threading.Event()

    def items():
        for number in range(3):
            made.append(number)
            if number == 1:
                asked.set()
            yield number
        raise OSError("the disk is gone")

    found = decoding.read_ahead(items())
    assert next(found) == 0
    assert asked.wait(10)  # nobody has asked for the second item yet
    assert next(found) == 1 and next(found) == 2
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    assert made == [0, 1, 2]
    assert list(decoding.read_ahead([])) == [] and list(decoding.read_ahead("ab")) == ["a", "b"]


def test_order_and_pixels_do_not_depend_on_threads_or_chunks(awkward, monkeypatch):
    root, report, images = awkward
    monkeypatch.setattr(decoding, "_CHUNK", 3)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    again = load_images(Source("image_folder", path=root, image_size=16))
    assert np.array_equal(again.train, images.train)
    assert again.paths == images.paths and reported(again, root) == report


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(48, 32), (32, 48)])
def test_exif_orientation_as_pillow_does_it(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image_files.gradient(*size)
    data = image_files.encoded(image, "PNG", exif=exif)
    part = decoding.decode_images(
        lambda start: [("x", data)], 1, image_size=32, read=bytes, desc=""
    )
    side, (left, top) = 32, ((size[0] - 32) // 2, (size[1] - 32) // 2)
    crop = image.crop((left, top, left + side, top + side))
    crop.info["exif"] = exif.tobytes()
    crop.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(crop)).transpose(2, 0, 1)
    assert np.array_equal(part.images[0], expected)


def test_large_photograph_is_reduced_without_ringing_or_shift():
    image = image_files.gradient(1600, 1200)
    data = image_files.encoded(image, "JPEG", quality=95)
    part = decoding.decode_images(
        lambda start: [("x", data)], 1, image_size=32, read=bytes, desc=""
    )
    exact = image.crop((200, 0, 1400, 1200)).resize((32, 32), Image.Resampling.BOX)
    difference = part.images[0].astype(int) - np.asarray(exact).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 6


def test_png_files_with_much_text_or_a_large_profile_are_whole(tmp_path):
    about = PngImagePlugin.PngInfo()
    about.add_text("workflow", "x" * 2**21, zip=True)
    picture = image_files.gradient()
    picture.save(tmp_path / "text.png", pnginfo=about)
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "profile.png", icc_profile=bytes(2**21))
    data = (tmp_path / "text.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) * 3 // 4])
    images = load_images(Source("image_folder", path=tmp_path))
    assert images.report["damaged"] == ["cut.png"]
    assert len(images.paths) == 3 and (images.train == images.train[:1]).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_no_damage_ever_escapes(file_format):
    """Every cut, and a thousand flipped bytes: an image or a report, never an exception."""
    whole = bytearray(image_files.encoded(image_files.gradient(16, 16), file_format))
    rng = np.random.default_rng(0)
    items = [(f"{cut}.x", bytes(whole[:cut])) for cut in range(0, len(whole), 11)]
    for i in range(150):
        flipped = whole.copy()
        for place in rng.integers(0, len(whole), 3):
            flipped[place] = rng.integers(0, 256)
        items.append((f"f{i}.x", bytes(flipped)))
    part = decoding.decode_images(
        lambda start: items, len(items), image_size=8, read=bytes, desc=""
    )
    lost = {name for kind in decoding.LEFT_OUT for name in part.report.get(kind, ())}
    assert lost | set(part.names) == {name for name, _ in items}
    assert not lost & set(part.names)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders(tmp_path):
    image_files.class_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "000.png").chmod(0)
    (tmp_path / "b").chmod(0)
    try:
        images = load_images(Source("image_folder", path=tmp_path))
        found = reported(images, tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)
    assert found == {"unreadable": ["a/000.png", "b"]} and len(images.train) == 1


def test_files_that_fail_to_open(tmp_path, monkeypatch):
    image_files.class_folders(tmp_path, {"a": 2, "b": 2})
    real = decoding.Path.read_bytes

    def read_bytes(self):
        if self.name == "000.png":
            raise PermissionError(self)
        return real(self)

    monkeypatch.setattr(decoding.Path, "read_bytes", read_bytes)
    images = load_images(Source("image_folder", path=tmp_path))
    assert reported(images, tmp_path) == {"unreadable": ["a/000.png", "b/000.png"]}
    assert load_labels(Source("image_folder", path=tmp_path), "train").tolist() == [0, 1]


def test_pipes_are_not_waited_for(tmp_path):
    image_files.class_folders(tmp_path, {"a": 2})
    os.mkfifo(tmp_path / "pipe.png")
    images = load_images(Source("image_folder", path=tmp_path))
    assert reported(images, tmp_path) == {"not_an_image": ["pipe.png"]}


def test_file_names_that_are_not_utf8(tmp_path):
    image_files.class_folders(tmp_path, {"a": 2})
    try:
        os.link(tmp_path / "a" / "000.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = load_images(Source("image_folder", path=tmp_path))
    assert reported(images, tmp_path) == {"bad_name": ["caf\\xe9.png"]}
    json.dumps(reported(images, tmp_path)).encode("utf-8")


def test_linked_folders_are_read_once_under_their_own_name(tmp_path):
    elsewhere = _made(tmp_path / "elsewhere")
    image_files.class_folders(elsewhere, {"deep": 2})
    root = _made(tmp_path / "root")
    image_files.class_folders(root, {"m": 1}, size=13)
    os.symlink(root / "m", root / "a link that sorts first")
    os.symlink(elsewhere, root / "outside")
    os.symlink(elsewhere, root / "outside again")
    os.symlink(root, elsewhere / "back")
    images = load_images(Source("image_folder", path=root))
    assert set(images.paths) == {"m/000.png", "outside/deep/000.png", "outside/deep/001.png"}
    assert reported(images, root) == {
        "repeated_link": ["a link that sorts first", "outside again", "outside/back"]
    }


def test_the_artifacts_among_the_photos_are_none_of_them(tmp_path):
    image_files.class_folders(tmp_path, {"photos": 2})
    (tmp_path / "photos" / "CACHEDIR.TAG").write_text("not the signature")
    store = Store(tmp_path / "_artifacts")
    store.run("stage", lambda draft: draft.json("about", 1), version=1, params={})
    image_files.class_folders(tmp_path / "_artifacts", {"stage": 1})
    images = load_images(Source("image_folder", path=tmp_path))
    assert set(images.paths) == {"photos/000.png", "photos/001.png"}
    assert reported(images, tmp_path) == {
        "cache": ["_artifacts"],
        "not_an_image": ["photos/CACHEDIR.TAG"],
    }
    # a folder that is asked for is read, whatever it holds
    assert load_images(Source("image_folder", path=tmp_path / "_artifacts")).paths == (
        "stage/000.png",
    )


def test_class_folders_are_labels(tmp_path):
    image_files.class_folders(tmp_path, {"dog": 3, "cat": 2})
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "LICENSE").write_text("about")
    images = load_images(Source("image_folder", path=tmp_path))
    assert images.class_names == ("cat", "dog") and images.num_classes == 2
    assert labelled_splits(Source("image_folder", path=tmp_path)) == ("train",)
    labels = load_labels(Source("image_folder", path=tmp_path), "train")
    assert labels.tolist() == [int(path.startswith("dog/")) for path in images.paths]
    assert images.train.shape == (5, 3, 12, 12)  # all of one small size: kept


def test_the_order_of_a_folder_says_nothing_about_its_classes(tmp_path):
    for place in ("here", "there"):
        image_files.class_folders(tmp_path / place, {"cat": 100, "dog": 100})
    found = [
        load_images(Source("image_folder", path=tmp_path / place)) for place in ("here", "there")
    ]
    assert found[0].paths == found[1].paths  # a copy is read in the same order
    labels = load_labels(Source("image_folder", path=tmp_path / "here"), "train")
    # 50 dogs among the first 100 of a random order, standard deviation 3.5
    assert abs(labels[:100].sum() - 50) < 5 * 3.5
    (tmp_path / "here" / "cat" / "more.png").write_bytes(
        (tmp_path / "here" / "cat" / "000.png").read_bytes()[:-1] + b"x"
    )
    more = load_images(Source("image_folder", path=tmp_path / "here"))
    assert tuple(path for path in more.paths if path != "cat/more.png") == found[0].paths


def test_a_test_folder_without_images_is_no_split(tmp_path):
    image_files.class_folders(tmp_path / "train", {"dog": 3, "cat": 2})
    (tmp_path / "test").mkdir()
    images = load_images(Source("image_folder", path=tmp_path))
    assert len(images.train) == 5 and images.test is None


def test_train_and_test_folders(tmp_path):
    image_files.class_folders(tmp_path / "train", {"dog": 3, "cat": 2})
    image_files.class_folders(tmp_path / "val", {"cat": 1, "dog": 1})
    image_files.class_folders(tmp_path, {"spare": 1})
    images = load_images(Source("image_folder", path=tmp_path))
    assert len(images.train) == 5 and len(images.test) == 2
    assert reported(images, tmp_path)["unused"] == ["spare/000.png"]
    assert labelled_splits(Source("image_folder", path=tmp_path)) == ("train", "test")
    for label, path in zip(
        load_labels(Source("image_folder", path=tmp_path), "train"), images.paths
    ):
        assert path.split("/")[:2] == ["train", ["cat", "dog"][label]]
    for label, picture in zip(
        load_labels(Source("image_folder", path=tmp_path), "test"), images.test
    ):
        with Image.open(tmp_path / "val" / ["cat", "dog"][label] / "000.png") as file:
            assert np.array_equal(picture, np.asarray(file).transpose(2, 0, 1))
    image_files.class_folders(tmp_path / "val", {"ape": 1})
    with pytest.raises(ElfsError, match="'ape', which train lacks"):
        load_labels(Source("image_folder", path=tmp_path), "test")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("train", "valid"),
        ("cifar_train", "cifar_test"),
        ("train2017", "val2017"),
        ("archive/TRAINING", "archive/dev"),
    ],
)
def test_split_folders_by_the_word_wherever_it_stands(tmp_path, train, test):
    image_files.class_folders(tmp_path / train, {"test tube": 3, "cat": 2})
    image_files.class_folders(tmp_path / test, {"cat": 1, "test tube": 1})
    images = load_images(Source("image_folder", path=tmp_path))
    assert len(images.train) == 5 and len(images.test) == 2
    assert images.class_names == ("cat", "test tube")
    assert images.splits == f"Folders taken for train: {train}; test: {test}."


def test_folders_that_may_be_splits_or_not(tmp_path):
    image_files.class_folders(tmp_path, {"valid": 2, "invalid": 2})
    images = load_images(Source("image_folder", path=tmp_path))
    assert images.class_names == ("invalid", "valid") and images.test is None
    assert "valid/ is read like any other folder" in images.splits
    image_files.class_folders(tmp_path, {"freight train": 2})
    with pytest.raises(ElfsError, match="'freight train' and 'valid' in .* may be splits or not"):
        check_dataset(Source("image_folder", path=tmp_path))


@pytest.mark.parametrize(
    "names", [["a.png", "b.png"], ["x/a.png", "b.png"], ["x/y/a.png", "z/b.png"]]
)
def test_flat_and_nested_folders_are_unlabelled(tmp_path, names):
    for shade, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image_files.gradient(shade=shade).save(tmp_path / name)
    images = load_images(Source("image_folder", path=tmp_path))
    assert images.class_names is None and images.num_classes is None
    assert labelled_splits(Source("image_folder", path=tmp_path)) == ()
    assert sorted(images.paths) == sorted(names)


@pytest.mark.parametrize(
    ("sizes", "stored"),
    [([(28, 28)], 28), ([(64, 64)], 64), ([(32, 40), (20, 20)], 32), ([(41, 20)], 64),
     ([(96, 96)], 64), ([(1, 1)], 4)],
)  # fmt: skip
def test_default_size(tmp_path, sizes, stored):
    for shade, size in enumerate(sizes):
        image_files.gradient(*size, shade=shade).save(tmp_path / f"{shade}.png")
    assert load_images(Source("image_folder", path=tmp_path)).train.shape[-1] == stored


def test_folders_without_a_usable_image(tmp_path):
    with pytest.raises(ElfsError, match="no image files"):
        check_dataset(Source("image_folder", path=tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ElfsError, match=r"no image files \(1 not an image\)"):
        check_dataset(Source("image_folder", path=tmp_path))
    (tmp_path / "x.jpg").write_text("x")
    with pytest.raises(ElfsError, match=r"no usable train image \(1 damaged\)"):
        load_images(Source("image_folder", path=tmp_path))
    with pytest.raises(ElfsError, match="is a file: give a directory"):
        check_dataset(Source("image_folder", path=tmp_path / "x.jpg"))


def test_what_cannot_fit_in_memory_is_refused_first(tmp_path, monkeypatch):
    image_files.class_folders(tmp_path, {"a": 2})
    monkeypatch.setattr(decoding.os, "sysconf", lambda name: 1000)
    with pytest.raises(ElfsError, match="choose a smaller image_size"):
        load_images(Source("image_folder", path=tmp_path, image_size=1024))


def test_imagenet_layout(tmp_path):
    root = tmp_path / "imagenet"
    image_files.class_folders(root / "train", {"n01": 2, "n02": 1}, size=80)
    image_files.class_folders(root / "val", {"n01": 1, "n02": 1}, size=80)
    images = load_images(Source("imagenet", tmp_path, image_size=16))
    assert images.train.shape == (3, 3, 16, 16) and images.test.shape == (2, 3, 16, 16)
    assert images.class_names == ("n01", "n02")
    labels = load_labels(Source("imagenet", tmp_path), "train")
    assert [f"train/n0{label + 1}" for label in labels] == [p[:9] for p in images.paths]
    torch.save(({"n01": ("tench", "fish"), "n02": ("hen",)}, []), root / "meta.bin")
    before = source_fingerprint(Source("imagenet", tmp_path))
    assert load_images(Source("imagenet", tmp_path)).class_names == ("tench", "hen")
    assert load_images(Source("imagenet", tmp_path)).train.shape[-1] == 64
    image_files.gradient().save(root / "train" / "n01" / "new.png")
    assert source_fingerprint(Source("imagenet", tmp_path)) != before


# --- fingerprints ----------------------------------------------------------------------------


def test_fingerprint_changes_with_the_images_and_nothing_else(tmp_path):
    image_files.class_folders(tmp_path / "pics", {"a": 2, "b": 1})

    def fingerprint(**options):
        return source_fingerprint(Source("image_folder", path=tmp_path / "pics", **options))

    first = fingerprint()
    assert first == fingerprint() and len(first) == 16
    assert fingerprint(image_size=32) != first
    (tmp_path / "pics" / "list.csv").write_text("written by us")
    assert fingerprint() == first
    os.rename(tmp_path / "pics", tmp_path / "moved")
    assert source_fingerprint(Source("image_folder", path=tmp_path / "moved")) == first
    os.rename(tmp_path / "moved", tmp_path / "pics")
    image = tmp_path / "pics" / "a" / "000.png"
    os.utime(image, ns=(0, 0))
    second = fingerprint()
    assert second != first
    image.unlink()
    assert fingerprint() not in (first, second)


def test_fingerprint_of_digits():
    assert source_fingerprint("digits") == source_fingerprint("digits")
    assert source_fingerprint("digits") != source_fingerprint(Source("digits", image_size=16))


# --- the real thing, where it is installed ---------------------------------------------------


@pytest.mark.skipif(
    not readers.FASHION_PACKAGE_DIR.is_dir(),
    reason="the Debian package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_package(tmp_path):
    images = load_images(Source("fashion_mnist", tmp_path))
    assert images.train.shape == (60000, 1, 28, 28) and images.test.shape == (10000, 1, 28, 28)
    labels = load_labels(Source("fashion_mnist", tmp_path), "train")
    assert np.bincount(labels).tolist() == [6000] * 10
    assert labels[:4].tolist() == [9, 0, 0, 3]
