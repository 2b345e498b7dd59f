"""Images that are read as they are needed: the training of resident ones, in memory that stays."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import image_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from PIL import Image

from elfs_lib import compute
from elfs_lib.artifacts import Draft, Store
from elfs_lib.data import datasets, decoding, growing
from elfs_lib.data.base import Images, Source
from elfs_lib.data.datasets import load_images
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages import Run
from elfs_lib.training import loader as loader_module
from elfs_lib.training import loop
from elfs_lib.training.distributed import Ranks
from elfs_lib.training.dynamics import DynamicsRecorder
from elfs_lib.training.loader import ResidentLoader, StreamedLoader, block_order, streams
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


def test_blocks_are_shuffled_and_so_is_what_is_inside_a_window():
    layout = torch.arange(1000).flip(0)  # the images may lie on disk in any order
    order = block_order(layout, 10, 5, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(1000))
    windows = [part.tolist() for part in order.split(50)]
    for part in windows:
        blocks = {place // 10 for place in part}
        assert len(blocks) == 5 and part != sorted(part) and part != sorted(part)[::-1]
        assert max(blocks) - min(blocks) > 5  # they are not neighbours
        first = [place // 10 for place in part[:10]]
        assert len(set(first)) > 1  # blocks are mixed
    again = block_order(layout, 10, 5, torch.Generator().manual_seed(0))
    other = block_order(layout, 10, 5, torch.Generator().manual_seed(1))
    assert torch.equal(order, again) and not torch.equal(order, other)


def in_small_blocks(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    """Blocks of 3 images, windows of 2 blocks."""
    monkeypatch.setattr(loader_module, "BLOCK", 3 * images[0].nbytes)
    monkeypatch.setattr(loader_module, "WINDOW", 2)


@pytest.mark.parametrize("subset", [None, [50, 3, 7, 59, 0, 8, 31, 4, 5, 6]])
@pytest.mark.parametrize("kind", ["map", "array"])
def test_training_in_blocks_is_the_same_streamed_and_resident(
    tmp_path, monkeypatch, kind: str, subset: list[int] | None
):
    images = stored(tmp_path)
    images = images if kind == "map" else np.array(images)
    in_small_blocks(monkeypatch, images)
    subset = None if subset is None else np.array(subset)
    targets = np.arange(len(images if subset is None else subset)) % 3
    found = {}
    for choice, shuffle in (("resident", "full"), ("resident", "blocks"), ("streamed", "blocks")):
        trained = train(
            images, targets, 3, find_recipe("speedrun_tiny", batch=4), Length(epochs=2),
            seeds=Seeds.all(0), crop_pad=1, device="cpu", loader=choice, shuffle=shuffle,
            subset=subset,
        )  # fmt: skip
        found[choice, shuffle] = trained.losses
    np.testing.assert_array_equal(found["streamed", "blocks"], found["resident", "blocks"])
    assert (found["resident", "blocks"] != found["resident", "full"]).any()
    with pytest.raises(ElfsError, match="did you mean 'blocks'"):
        train(
            images, targets, 3, find_recipe("speedrun_tiny"), Length(steps=1), seeds=Seeds.all(0),
            subset=subset, crop_pad=1, shuffle="block",
        )  # fmt: skip


@pytest.mark.parametrize("subset", [None, [50, 3, 7, 59, 0, 8, 31, 4, 5, 6]])
def test_windows_are_read_in_a_row_before_their_images(tmp_path, monkeypatch, subset):
    images = stored(tmp_path)
    in_small_blocks(monkeypatch, images)
    monkeypatch.setattr(loader_module, "READERS", 1)  # so that batches are read in order
    size, read, asked = images[0].nbytes, [], []

    class Watched(StreamedLoader):
        def _read(self, positions):
            asked.append(set(self.subset[positions.numpy()].tolist()))
            return super()._read(positions)

    def pread(file: int, count: int, place: int) -> bytes:
        first = (place - images.offset) // size
        assert count % size == 0 and count <= 3 * size and (place - images.offset) % size == 0
        read.append({*range(first, first + count // size)})
        return b"0" * count

    rows = np.arange(60) if subset is None else np.array(subset)
    layout = torch.from_numpy(np.argsort(rows))
    loader = Watched(images, rows, CPU, batch=2, layout=layout)
    asked.clear()
    monkeypatch.setattr(loader_module.os, "pread", pread)
    assert len(list(loader.epoch(0))) == len(rows) // 2
    assert set().union(*asked) == {*rows.tolist()}
    assert set().union(*read) == {*rows.tolist()}  # nothing that is not asked for
    assert len(read) < len(rows) / 1.4  # neighbours at once
    assert set().union(*asked[:3]) <= set().union(*read[:6])  # the first window comes first


def test_several_processes_do_not_shuffle_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "here", classmethod(lambda cls: cls(0, 2)))
    with pytest.raises(ElfsError, match="shuffle: blocks is for one process"):
        train(
            stored(tmp_path), np.arange(60) % 3, 3, find_recipe("speedrun_tiny"), Length(steps=1),
            seeds=Seeds.all(0), crop_pad=1, device="cpu", shuffle="blocks",
        )  # fmt: skip


def test_a_run_streams_from_its_store_and_gets_the_same_scores(
    tiny_params: Params, tmp_path, monkeypatch
):
    tables, streamed = [], []

    class Watched(StreamedLoader):
        def __init__(self, images, *arguments, **options):
            streamed.append(Path(images.filename).parent.parent.parent.name)
            super().__init__(images, *arguments, **options)

    monkeypatch.setattr(loop, "StreamedLoader", Watched)
    for choice in ("resident", "streamed"):
        params = tiny_params.model_copy(update={"loader": choice})
        run = Run(params, Store(tmp_path / choice))
        tables.append((run.proxies[0].key, run.proxies[0].table("scores")))
    assert set(streamed) == {"streamed"}
    assert tables[0][0] == tables[1][0]  # where images are read from is no part of the result
    np.testing.assert_array_equal(tables[0][1], tables[1][1])


def test_auto_streams_what_takes_more_than_half_of_the_free_memory(monkeypatch, tmp_path, capsys):
    images, cuda = stored(tmp_path), torch.device("cuda")
    own, size = np.array(images), images[0].nbytes
    free = {"cpu": 2 * 50 * size, "cuda": 2 * 20 * size}
    monkeypatch.setattr(loader_module, "available", lambda device: free[device.type])
    assert not streams("auto", images, 50, CPU) and not streams("auto", images, 20, cuda)
    assert not capsys.readouterr().err
    assert streams("auto", images, 51, CPU) and streams("auto", images, 21, cuda)
    assert capsys.readouterr().err.count("more than half") == 2
    # what is in memory already takes no more of it, but all of it on a GPU
    assert not streams("auto", own, 60, CPU) and streams("auto", own, 21, cuda)
    assert not streams("resident", images, 60, CPU) and streams("streamed", own, 1, CPU)
    with pytest.raises(ElfsError, match="loader"):
        streams("disk", images, 1, CPU)


@pytest.mark.parametrize("chosen, streamed", [(None, True), (50, False)])
def test_a_part_that_fits_is_kept_though_the_whole_does_not(
    monkeypatch, tmp_path, chosen: int | None, streamed: bool
):
    images = stored(tmp_path)
    monkeypatch.setattr(loader_module, "available", lambda device: 2 * 50 * images[0].nbytes)
    trained = train(
        images, np.arange(chosen or 60) % 3, 3, find_recipe("speedrun_tiny"), Length(steps=1),
        seeds=Seeds.all(0), subset=chosen and np.arange(chosen), crop_pad=0, device="cpu",
    )  # fmt: skip
    assert isinstance(trained.loader, StreamedLoader) == streamed


def test_a_search_for_beta_tests_on_a_few_images_at_a_time(tiny_run: Run, monkeypatch):
    """The held-out images of ImageNet are 25 GB."""
    taken = []

    class Watched(np.memmap):
        def __getitem__(self, key):
            found = super().__getitem__(key)
            taken.append(len(found))
            return found

    run = dataclasses.replace(tiny_run, params=tiny_run.params.model_copy(update={"seed": 1}))
    assert run.proxies  # what is before the search reads the images in parts of other sizes
    vars(run)["train_images"] = tiny_run.images.array("train").view(Watched)
    monkeypatch.setattr(compute, "HELD", 8 * run.train_images[0].nbytes)
    assert run.artifact("search", budget=0.2, score="aum").json("search")["ratios"]
    assert max(taken) <= 8 and taken.count(8) > 20


def test_changes_that_are_not_in_the_file_are_trained_on(tmp_path):
    stored(tmp_path)
    images = np.load(tmp_path / "images.npy", mmap_mode="c")
    images[:] = 255 - images
    found = StreamedLoader(images, None, CPU, batch=8)
    expected = ResidentLoader(torch.from_numpy(np.array(images)), batch=8)
    assert torch.equal(found._some(torch.arange(60)), expected._some(torch.arange(60)))


def test_a_file_that_is_gone_is_one_sentence(tmp_path):
    images = stored(tmp_path)
    (tmp_path / "images.npy").unlink()
    with pytest.raises(ElfsError, match="images.npy.*cannot be read"):
        StreamedLoader(images, None, CPU, batch=8)


@pytest.mark.parametrize("n", [300, 9999, 12_000])
@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_moments_are_of_a_sample_that_is_small_where_images_are_large(
    tmp_path, monkeypatch, n: int, kind: str
):
    images = stored(tmp_path, n, side=6)
    tensor = torch.from_numpy(np.array(images)).permute(0, 2, 3, 1)
    for held, most in ((compute.HELD, 5000), (100 * images[0].nbytes, 100)):
        monkeypatch.setattr(compute, "HELD", held)
        if kind == "streamed":
            loader = StreamedLoader(images, None, CPU, batch=8)
        else:
            loader = ResidentLoader(torch.from_numpy(np.array(images)), batch=8)
        sample = tensor[:: max(1, n // most)].float()
        assert len(sample) < 2 * most  # and the moments are its to the bit
        assert torch.equal(loader.mean, sample.mean((0, 1, 2)))
        assert torch.equal(loader.std, sample.std((0, 1, 2)))
        assert len(loader.sample(2000)) == min(n, 2000, most if held < 2**20 else n)


LARGE = """
import resource, sys
import numpy as np
from elfs_lib.compute import configure_runtime
from elfs_lib.training.loop import Length, Seeds, train
from elfs_lib.training.recipes import find_recipe

configure_runtime()
for file in sys.argv[1:]:
    images = np.load(file, mmap_mode="r", allow_pickle=False)
    train(
        images, np.arange(len(images)) % 10, 10, find_recipe("speedrun_tiny", batch=4),
        Length(steps=1), seeds=Seeds.all(0), device="cpu", precision="float32", loader="streamed",
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_large_images(tmp_path):
    """At 256 px, where the few thousand images that moments are taken over would be gigabytes."""
    files = []
    for n in (700, 1500, 3000):
        files.append(tmp_path / f"{n}.npy")
        np.lib.format.open_memmap(files[-1], "w+", np.uint8, (n, 3, 256, 256))  # of no blocks
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LARGE, *files],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = [int(line) / unit for line in done.stdout.split()]
    assert len(peaks) == 3 and peaks[-1] - peaks[0] < 200  # MiB; a float copy of 800 images is 600


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
    for mib in (20, 100, 400):  # each image is read, once
        file = write_images(tmp_path / "images.npy", mib)
        streamed.append(peak(file, "streamed"))
    streamed.append(peak(file, "streamed", "blocks"))
    assert max(streamed) - min(streamed) < 150  # MiB; two runs of one size are up to 70 apart
    assert peak(file, "resident") - max(streamed) > 300


def test_images_of_the_benchmark_are_not_one_another(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.bench_streaming import write_images

    images = np.load(write_images(tmp_path / "images.npy", 20), mmap_mode="r")
    assert images.shape == (20 * 2**20 // 3072, 3, 32, 32) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == len(images)
    assert np.mean(images[::100]) == pytest.approx(127.5, abs=1)


FORK = multiprocessing.get_context("fork")
KINDS = ["good", "one is broken", "grey"]


def photos(folder: Path, kind: str = "good") -> Source:
    """Nine files in two folders and a copy of one; where they are."""
    image_files.class_folders(folder, {"a": 5, "b": 4}, size=20)
    files = sorted(folder.rglob("*.*"))
    shutil.copy(files[0], folder / "a" / f"copy{files[0].suffix}")
    if kind == "one is broken":
        files[2].write_bytes(b"no image")
    if kind == "grey":
        for file in sorted(folder.rglob("*.*")):
            Image.open(file).convert("L").save(file.with_suffix(".png"))
            if file.suffix != ".png":
                file.unlink()
    return Source("image_folder", path=folder, image_size=12)


def same_images(found: Images, expected: Images) -> None:
    for field in dataclasses.fields(Images):
        own, wanted = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(own, wanted)
        else:
            assert own == wanted, field.name


def kill_after(monkeypatch: pytest.MonkeyPatch, files: int) -> list[str]:
    """Let a process die of SIGKILL when it is to decode one file more; the files that it reads."""
    decode, done = decoding._decode_one, []

    def counted(name: str, *rest: object) -> object:
        if len(done) == files:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(name)
        return decode(name, *rest)

    monkeypatch.setattr(decoding, "_CHUNK", 1)
    monkeypatch.setattr(growing, "BLOCK", 2)
    monkeypatch.setattr(decoding, "_decode_one", counted)
    return done


def killed(work: Callable[[], object]) -> None:
    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoding_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch, kind: str):
    source, store = photos(tmp_path / "photos", kind), tmp_path / "store"
    values = {"dataset": "image_folder", "data_path": str(source.path), "image_size": 12}
    params = Params.make({**values, "classes": 2, "encoder": "pixels"})
    expected = load_images(source)
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        killed(lambda: Run(params, Store(store)).images)
    assert list(store.glob("images/.*.unfinished/train.npy")) and not Store(store).artifacts()
    with monkeypatch.context() as patch:
        read = kill_after(patch, 99)
        images = Run(params, Store(store)).images
    assert 0 < len(read) <= 10 - 2  # not those of a block that was finished
    np.testing.assert_array_equal(images.array("train"), expected.train)
    plain = io.BytesIO()
    np.save(plain, expected.train)
    assert (images.folder / "train.npy").read_bytes() == plain.getvalue()
    about = images.json("about")
    assert about["paths"] == list(expected.paths) and about["left_out"] == expected.left_out
    assert about["report"] == json.loads(json.dumps(expected.report))
    assert not list(store.glob("images/.*.unfinished"))
    whole = Run(params, Store(tmp_path / "other")).images
    assert whole.content == images.content  # the same files byte for byte


def write_shards(folder: Path, kind: str) -> Source:
    """Ten images in two files, in Parquet with row groups of two."""
    folder.mkdir()
    data = [image_files.encoded(image_files.gradient(20, 20, shade=20 * i)) for i in range(10)]
    for number in range(2):
        part = data[5 * number : 5 * number + 5]
        if kind == "parquet":
            table = pa.table({"image": pa.array(part, pa.binary())})
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
            continue
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for row, image in enumerate(part):
                member = tarfile.TarInfo(f"{row}.png")
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
    return Source(kind, path=folder, image_size=12)


def count_images_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images' bytes are read out of Parquet and tar files at a time."""
    read: list[int] = []
    batches, member = pq.ParquetFile.iter_batches, tarfile.TarFile.extractfile

    def counted(*arguments: object, **options: object):
        for batch in batches(*arguments, **options):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    opened = lambda *args: read.append(1) or member(*args)  # noqa: E731
    monkeypatch.setattr(tarfile.TarFile, "extractfile", opened)
    return read


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_decoding_of_shards_goes_on_without_reading_what_is_decoded(
    tmp_path, monkeypatch, kind: str
):
    source, scratch = write_shards(tmp_path / "shards", kind), tmp_path / "scratch"
    expected = load_images(source)
    assert len(expected.train) == 10
    with monkeypatch.context() as patch:
        kill_after(patch, 9)
        killed(lambda: load_images(source, scratch=scratch))
    with monkeypatch.context() as patch:
        decoded, read = kill_after(patch, 99), count_images_read(patch)
        found = load_images(source, scratch=scratch)
    assert 1 <= len(decoded) <= 4
    assert sum(read) <= len(decoded) + (1 if kind == "parquet" else 0)  # the rest of a row group
    same_images(found, expected)


def test_what_was_decoded_to_a_folder_is_not_decoded_again(tmp_path, monkeypatch):
    source, scratch = photos(tmp_path / "photos", "one is broken"), tmp_path / "scratch"
    expected = load_images(source)
    same_images(load_images(source, scratch=scratch), expected)
    monkeypatch.setattr(decoding, "_decode_one", None)
    again = load_images(source, scratch=scratch)
    same_images(again, expected)
    assert isinstance(again.train, np.memmap)


@pytest.mark.parametrize("damage", ["log", "pixels", "no log", "no pixels", "zeros in the log"])
def test_unfinished_work_that_is_damaged_is_done_again(tmp_path, damage: str):
    source, scratch = photos(tmp_path / "photos"), tmp_path / "scratch"
    load_images(source, scratch=scratch)
    file = scratch / ("train.log" if "log" in damage else "train.npy")
    if damage.startswith("no"):
        file.unlink()
    elif damage.startswith("zeros"):
        first = file.read_bytes().partition(b"\n")[0]
        file.write_bytes(first + b"\n" + bytes(100) + b"\n")
    else:
        os.truncate(file, file.stat().st_size - 5)
    same_images(load_images(source, scratch=scratch), load_images(source))


@pytest.mark.parametrize("change", ["a file", "the size", "Pillow"])
def test_a_source_that_changed_is_decoded_anew(tmp_path, monkeypatch, change: str):
    source, scratch = photos(tmp_path / "photos"), tmp_path / "scratch"
    load_images(source, scratch=scratch)
    if change == "a file":
        file = min(source.path.rglob("*.*"))
        Image.new("RGB", (20, 20), "red").save(file)
        os.utime(file, (1, 1))
    elif change == "the size":
        source = dataclasses.replace(source, image_size=10)
    else:
        monkeypatch.setattr("PIL.__version__", "0")
    expected = load_images(source)
    read = kill_after(monkeypatch, 99)
    same_images(load_images(source, scratch=scratch), expected)
    assert len(read) == 10


def test_what_is_left_of_a_source_that_changed_goes(tmp_path):
    def stop(draft: Draft) -> None:
        draft.unfinished("place").mkdir()
        draft.unfinished("elsewhere").mkdir()
        raise KeyboardInterrupt

    def left() -> tuple[int, int]:
        return len(list(tmp_path.glob("images/.place.*"))), len(list(tmp_path.glob("images/.e*")))

    store = Store(tmp_path)
    for source in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.run("images", stop, version=1, params={"source": source})
    assert left() == (1, 2)
    store.run("images", lambda draft: None, version=1, params={"source": 1})
    assert left() == (0, 1)


def test_what_another_build_is_writing_stays(tmp_path):
    store, kept = Store(tmp_path), []

    def other(draft: Draft) -> None:
        draft.unfinished("place").mkdir()

    def write(draft: Draft) -> None:
        work = draft.unfinished("place")
        work.mkdir()
        store.run("images", other, version=1, params={"source": 1})
        kept.append(work.exists())

    store.run("images", write, version=1, params={"source": 0})
    assert kept == [True]


def test_a_decoding_is_of_a_place_however_that_is_spelled(tmp_path, monkeypatch):
    places = []

    def place(data_path: object, data_dir: str) -> str:
        monkeypatch.setenv("ELFS_DATA_DIR", data_dir)
        params = Params.make({**values, "data_path": str(data_path)})
        with pytest.raises(ElfsError, match="stop"):
            _ = Run(params, Store(tmp_path / "store")).images
        return places[-1]

    def stop(source: Source, *, scratch: Path) -> None:
        places.append(scratch.name.split(".")[1])
        raise ElfsError("stop.")

    monkeypatch.setattr(datasets, "load_images", stop)
    monkeypatch.chdir(tmp_path)
    values = {"dataset": "image_folder", "classes": 2, "encoder": "pixels"}
    path = photos(tmp_path / "photos").path
    (tmp_path / "link").symlink_to(path)
    first = place(path, "data")
    assert place(path.relative_to(tmp_path), "./data") == first
    assert place("link", str(tmp_path / "data")) == first
    assert place(path, "other data") != first
    shutil.copytree(path, tmp_path / "copy")
    assert place("copy", "data") != first


def test_a_folder_without_an_image_is_one_sentence_when_it_is_decoded_to_disk(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.png").write_bytes(b"no image")
    with pytest.raises(ElfsError, match="no usable train image"):
        load_images(Source("image_folder", path=tmp_path / "photos"), scratch=tmp_path / "scratch")


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    source, scratch = photos(tmp_path / "photos"), tmp_path / "scratch"
    usage, decode = namedtuple("usage", "total used free"), decoding.decode_images
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda folder: usage(9000, 8000, 2000))
    monkeypatch.setattr(decoding, "decode_images", None)
    with pytest.raises(ElfsError, match="ELFS_ARTIFACTS_DIR"):
        load_images(source, scratch=scratch)
    (scratch / "train.npy").write_bytes(b"0" * 3000)  # what is there already takes no more room
    monkeypatch.setattr(decoding, "decode_images", decode)
    load_images(source, scratch=scratch)
