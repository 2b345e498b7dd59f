"""The store: keys, atomic folders, checksums, several processes, disks that fail."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import elfs_lib
from elfs_lib import artifacts
from elfs_lib.artifacts import (
    MANIFEST,
    Artifact,
    Draft,
    NotBuilt,
    Store,
    canonical_json,
    package_versions,
    stage_key,
    write_text_atomic,
)
from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import LabelOracle

FORK = multiprocessing.get_context("fork")


def numbers(draft: Draft) -> None:
    draft.array("numbers", np.arange(12, dtype=np.float32).reshape(3, 4))
    draft.table("rows", pd.DataFrame({"index": [0, 1], "score": [0.5, -1.0]}))
    draft.json("about", {"names": ["a", "b"]})


def run(store: Store, build=numbers, **changes) -> Artifact:
    return store.run("stage", build, **{"version": 1, "params": {"a": 1}, **changes})


def must_not_build(draft: Draft) -> None:
    raise AssertionError("the stage was built again")


def nothing_left(root: Path) -> bool:
    """No finished folder and no draft: locks are all that may be there."""
    return all(path.name.endswith(".lock") for path in root.glob("stage/*"))


# --- keys ------------------------------------------------------------------------------------

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-100, 100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
VALUES = st.dictionaries(st.text(min_size=1, max_size=4), PLAIN, max_size=5)


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES)
def test_keys_are_equal_exactly_when_the_canonical_texts_are(first: dict, second: dict):
    same = canonical_json(first) == canonical_json(second)
    assert (stage_key("s", 1, first, {}) == stage_key("s", 1, second, {})) == same


@settings(max_examples=30, deadline=None)
@given(VALUES, st.randoms())
def test_keys_do_not_depend_on_the_order_of_names(values: dict, random):
    shuffled = list(values.items())
    random.shuffle(shuffled)
    inputs = {name: str(value) for name, value in values.items()}
    moved = dict(reversed(list(inputs.items())))
    assert stage_key("s", 1, values, inputs) == stage_key("s", 1, dict(shuffled), moved)


def test_keys_change_with_everything_that_decides_the_output():
    base = ("stage", 1, {"a": 1, "b": [1, 2]}, {"x": "k"})
    others = [
        ("other", 1, {"a": 1, "b": [1, 2]}, {"x": "k"}),
        ("stage", 2, {"a": 1, "b": [1, 2]}, {"x": "k"}),
        ("stage", 1, {"a": 2, "b": [1, 2]}, {"x": "k"}),
        ("stage", 1, {"a": 1, "b": [2, 1]}, {"x": "k"}),
        ("stage", 1, {"a": 1, "b": [1, 2], "c": None}, {"x": "k"}),
        ("stage", 1, {"a": 1, "b": [1, 2]}, {"x": "l"}),
        ("stage", 1, {"a": 1, "b": [1, 2]}, {"y": "k"}),
        ("stage", 1, {"a": 1, "b": [1, 2]}, {}),
    ]
    keys = {stage_key(*arguments) for arguments in (base, *others)}
    assert len(keys) == 1 + len(others)
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)
    assert stage_key("stage", 1, {"b": (1, 2), "a": 1}, {"x": "k"}) in keys  # as lists in YAML


def test_a_key_is_the_same_in_every_version_of_this_library():
    assert stage_key("stage", 1, {"a": 0.1, "b": None}, {"x": "k"}) == "2deb59094a947f5c"


# --- building and finding ----------------------------------------------------------------------


def test_a_stage_is_built_once_and_reads_back_what_was_written(tmp_path: Path):
    built = run(Store(tmp_path))
    found = run(Store(tmp_path), must_not_build)
    assert built.folder == found.folder and built.manifest == found.manifest
    array = found.array("numbers")
    np.testing.assert_array_equal(array, np.arange(12, dtype=np.float32).reshape(3, 4))
    assert array.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    assert found.table("rows")["score"].tolist() == [0.5, -1.0]
    assert found.json("about") == {"names": ["a", "b"]}


def test_other_parameters_versions_or_inputs_are_other_artifacts(tmp_path: Path):
    store = Store(tmp_path)
    base = run(store)
    others = [
        run(store, params={"a": 2}),
        run(store, version=2),
        run(store, inputs={"x": base}),
    ]
    assert len({artifact.folder for artifact in (base, *others)}) == 4
    assert len(store.artifacts()) == 4


def test_a_store_that_looks_never_builds(tmp_path: Path):
    with pytest.raises(NotBuilt, match="'stage' has not been run"):
        run(Store(tmp_path / "none", look=True), must_not_build)
    assert not (tmp_path / "none").exists()
    run(Store(tmp_path))
    assert run(Store(tmp_path, look=True), must_not_build).key


def test_the_manifest_holds_what_made_the_artifact(tmp_path: Path):
    store = Store(tmp_path)
    source = run(store)

    def build(draft: Draft) -> None:
        numbers(draft)
        LabelOracle(lambda split: np.zeros(3, np.int64), ("train",)).open(
            "train", purpose="analysis"
        )
        draft.fact(device="cpu (1 threads)", train_flops=1.5)

    made = run(store, build, inputs={"source": source}, seed=7, labels="analysis")
    manifest = json.loads((made.folder / MANIFEST).read_text())
    assert manifest == made.manifest
    assert manifest["stage"] == "stage" and manifest["key"] == made.folder.name
    assert manifest["version"] == 1 and manifest["params"] == {"a": 1} and manifest["seed"] == 7
    assert manifest["inputs"] == {"source": source.key}
    assert manifest["contents"] == {"source": source.content}
    assert manifest["labels"] == {"policy": "analysis", "opened": ["train:analysis"]}
    assert manifest["device"] == "cpu (1 threads)" and manifest["train_flops"] == 1.5
    assert {"elfs", "torch", "numpy", "faiss-cpu"} <= set(manifest["packages"])
    assert manifest["wall_s"] >= 0 and manifest["finished"].endswith("Z")
    assert set(manifest["sha256"]) == {"numbers.npy", "rows.parquet", "about.json"}
    key = stage_key("stage", 1, manifest["params"], manifest["contents"])
    assert key == manifest["key"]


def test_later_stages_are_keyed_by_what_their_inputs_hold(tmp_path: Path):
    store = Store(tmp_path)
    sources = {
        name: store.run(
            "source",
            lambda draft, v=v: draft.array("x", np.array(v)),
            version=1,
            params={"of": name},
        )
        for name, v in {"first": [1, 2], "copy": [1, 2], "other": [1, 3]}.items()
    }
    assert len({source.key for source in sources.values()}) == 3
    made = run(store, inputs={"source": sources["first"]})
    assert run(Store(tmp_path, look=True), inputs={"source": sources["copy"]}).folder == made.folder
    with pytest.raises(NotBuilt):
        run(Store(tmp_path, look=True), inputs={"source": sources["other"]})


def test_the_same_work_gives_the_same_checksums(tmp_path: Path):
    first, second = run(Store(tmp_path / "a")), run(Store(tmp_path / "b"))
    assert first.manifest["sha256"] == second.manifest["sha256"]


def test_nothing_is_pickled(tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(ValueError, match="allow_pickle"):
        run(Store(tmp_path), lambda draft: draft.array("a", np.array([Payload()], dtype=object)))
    assert nothing_left(tmp_path)

    def smuggled(draft: Draft) -> None:
        np.save(draft.folder / "a.npy", np.array([Payload()], dtype=object), allow_pickle=True)

    with pytest.raises(ValueError, match="Python objects"):
        run(Store(tmp_path), smuggled).array("a")


def test_json_without_a_meaning_elsewhere_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON compliant"):
        run(Store(tmp_path), lambda draft: draft.json("a", float("nan")))


# --- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_build_that_fails_leaves_nothing_and_its_own_error(tmp_path: Path, error: BaseException):
    def build(draft: Draft) -> None:
        numbers(draft)
        raise error

    with pytest.raises(type(error)):
        run(Store(tmp_path), build)
    assert nothing_left(tmp_path)
    run(Store(tmp_path))


def kill_inside(root: Path) -> None:
    def build(draft: Draft) -> None:
        draft.array("other", np.zeros(3))
        os.kill(os.getpid(), signal.SIGKILL)

    run(Store(root), build)


def test_the_draft_of_a_killed_process_is_cleaned_and_the_stage_built(tmp_path: Path):
    child = FORK.Process(target=kill_inside, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob("stage/.*.draft/other.npy")) and not Store(tmp_path).artifacts()
    built = run(Store(tmp_path))
    assert {path.name for path in built.folder.iterdir()} == {MANIFEST, *built.manifest["sha256"]}
    assert not list(tmp_path.glob("stage/.*.draft"))


def build_slowly(root: Path, start, ready) -> None:
    def build(draft: Draft) -> None:
        numbers(draft)
        with (root / "builds").open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.3)

    ready.release()
    start.wait()
    run(Store(root), build)


def test_processes_that_ask_for_one_stage_build_it_once(tmp_path: Path):
    start, ready = FORK.Event(), FORK.Semaphore(0)
    children = [FORK.Process(target=build_slowly, args=(tmp_path, start, ready)) for _ in range(4)]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    start.set()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert not Store(tmp_path).damaged()


def test_who_gives_up_waiting_does_not_harm_who_is_building(tmp_path: Path, monkeypatch):
    other = tmp_path / "stage" / f".{stage_key('stage', 1, {'a': 1}, {})}.draft"
    other.mkdir(parents=True)
    (other / "half.npy").touch()

    def interrupted(lock):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts.filelock.FileLock, "__enter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Store(tmp_path), must_not_build)
    assert (other / "half.npy").exists()


def test_write_text_atomic_replaces_or_leaves(tmp_path: Path, monkeypatch):
    file = tmp_path / "results.csv"
    write_text_atomic(file, "old")
    write_text_atomic(file, "new")
    assert file.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["results.csv"]

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(artifacts.os, "replace", fail)
    with pytest.raises(OSError):
        write_text_atomic(file, "half")
    assert file.read_text() == "new"


# --- damage ------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["numbers.npy", "rows.parquet", "about.json"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_byte_is_noticed_named_and_recomputed(tmp_path: Path, name: str, place: float):
    built = run(Store(tmp_path))
    file = built.folder / name
    before = file.read_bytes()
    flip(file, int(place * len(before)))
    with pytest.raises(ElfsError, match=f"{name} is damaged.*--repair"):
        run(Store(tmp_path), must_not_build)
    assert [name in problem for problem in Store(tmp_path).damaged()] == [True]
    repaired = run(Store(tmp_path, repair=True))
    assert repaired.manifest["sha256"] == built.manifest["sha256"]
    assert file.read_bytes() == before and not Store(tmp_path).damaged()


def test_any_flipped_byte_of_a_manifest_is_noticed(tmp_path: Path):
    manifest = run(Store(tmp_path)).folder / MANIFEST
    whole = manifest.read_bytes()
    name_of_checksum = whole.index(b'"checksum"')
    for position in range(0, len(whole), 7):
        if name_of_checksum <= position < name_of_checksum + 10:
            continue  # a checksum of another name is none, as in the first manifests
        flip(manifest, position)
        with pytest.raises(ElfsError, match=f"{MANIFEST}|is missing|is damaged"):
            run(Store(tmp_path), must_not_build)
        manifest.write_bytes(whole)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"sha256": 3}', "\xff\xfe"])
def test_a_manifest_that_is_none_is_said(tmp_path: Path, text: str):
    built = run(Store(tmp_path))
    (built.folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ElfsError, match="manifest.json.*--repair"):
        run(Store(tmp_path), must_not_build)
    run(Store(tmp_path, repair=True))


@pytest.mark.parametrize("name", ["numbers.npy", MANIFEST])
def test_a_missing_file_is_noticed_and_recomputed(tmp_path: Path, name: str):
    built = run(Store(tmp_path))
    (built.folder / name).unlink()
    with pytest.raises(ElfsError, match=name):
        run(Store(tmp_path), must_not_build)
    assert run(Store(tmp_path, repair=True)).array("numbers").shape == (3, 4)


def test_repair_leaves_what_is_whole_alone(tmp_path: Path):
    run(Store(tmp_path))
    run(Store(tmp_path, repair=True), must_not_build)


def repair_and_die(root: Path) -> None:
    def dies(folder, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    store = Store(root, repair=True)
    real, artifacts.shutil.rmtree = (
        artifacts.shutil.rmtree,
        lambda folder, **options: (
            dies(folder) if Path(folder).exists() else real(folder, **options)
        ),
    )
    run(store)


def test_a_killed_repair_leaves_no_half_of_the_old_artifact(tmp_path: Path):
    built = run(Store(tmp_path))
    flip(built.folder / "numbers.npy", -1)
    child = FORK.Process(target=repair_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert run(Store(tmp_path)).manifest["sha256"] == built.manifest["sha256"]


# --- disks -------------------------------------------------------------------------------------


def full(name: str, write):
    """A build whose file ``name`` lies on a device that is full."""

    def build(draft: Draft) -> None:
        os.symlink("/dev/full", draft.folder / name)
        write(draft)

    return build


BIG = np.zeros(1_000_000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    "name, write",
    [
        ("a.npy", lambda draft: draft.array("a", BIG)),
        ("a.json", lambda draft: draft.json("a", ["x" * 10_000])),
        ("a.parquet", lambda draft: draft.table("a", pd.DataFrame({"x": BIG}))),
    ],
)
def test_a_full_disk_is_one_sentence_and_no_half_artifact(tmp_path: Path, name: str, write):
    with pytest.raises(ElfsError) as caught:
        run(Store(tmp_path), full(name, write))
    message = str(caught.value)
    assert message.startswith("Cannot write stage 'stage' under") and "\n" not in message
    assert "free some space" in message and "ELFS_ARTIFACTS_DIR" in message
    assert nothing_left(tmp_path)
    run(Store(tmp_path))


def test_a_disk_that_is_full_at_the_manifest_is_the_same_sentence(tmp_path: Path, monkeypatch):
    real = Path.write_text

    def full_at_the_end(path: Path, text: str, *args, **options) -> int:
        if path.name == MANIFEST:
            real(path, text[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, text, *args, **options)

    monkeypatch.setattr(Path, "write_text", full_at_the_end)
    with pytest.raises(ElfsError, match="Cannot write stage 'stage'.*No space left.*free some"):
        run(Store(tmp_path))
    assert nothing_left(tmp_path)


def test_a_full_disk_under_safetensors_is_the_same_sentence(tmp_path: Path):
    def build(draft: Draft) -> None:
        save_file({"x": torch.zeros(3)}, draft.folder / "missing" / "a.safetensors")

    with pytest.raises(ElfsError, match="Cannot write stage 'stage'"):
        run(Store(tmp_path), build)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("call", ["mkdir", "open", "replace", "fsync"])
def test_folders_that_cannot_be_written_are_one_sentence(
    tmp_path: Path, monkeypatch, code: int, call: str
):
    real_open = os.open

    def fail(*args, **options):
        raise OSError(code, os.strerror(code), str(tmp_path / "stage"))

    def fail_open(path, *args, **options):
        return fail() if str(path).endswith(".lock") else real_open(path, *args, **options)

    monkeypatch.setattr(os, call, fail_open if call == "open" else fail)
    with pytest.raises(ElfsError, match=f"Cannot write stage 'stage'.*{os.strerror(code)}"):
        run(Store(tmp_path))
    monkeypatch.undo()
    assert nothing_left(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(ElfsError, match="Cannot write stage 'stage'.*Permission denied"):
        run(Store(tmp_path))


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ElfsError, match="Cannot write stage 'stage'"):
        run(Store(tmp_path / "file"))


def test_a_source_that_cannot_be_read_is_not_called_a_full_disk(tmp_path: Path):
    def build(draft: Draft) -> None:
        (tmp_path / "photo.jpg").read_bytes()

    with pytest.raises(ElfsError, match="cannot use .*photo.jpg: No such file.*repair it"):
        run(Store(tmp_path / "store"), build)


def test_paths_with_spaces_and_unicode(tmp_path: Path):
    root = tmp_path / "my künstliche 図 artifacts"
    run(Store(root))
    assert run(Store(str(root)), must_not_build).array("numbers").shape == (3, 4)


# --- keys of the real stages -------------------------------------------------------------------


def test_a_key_that_does_not_fit_json_is_refused():
    with pytest.raises(ValueError):
        stage_key("stage", 1, {"a": float("nan")}, {})
    with pytest.raises(TypeError):
        stage_key("stage", 1, {"a": np.float32(1)}, {})


def test_text_is_written_as_utf8_whatever_the_locale(tmp_path):
    code = "import sys, pathlib; from elfs_lib.artifacts import write_text_atomic as write; "
    code += "write(pathlib.Path(sys.argv[1]), 'caf\\xe9.jpg\\r\\nb\\n')"
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", code, str(tmp_path / "list.csv")]
    subprocess.run(command, check=True, env=os.environ | plain)
    assert (tmp_path / "list.csv").read_bytes() == "café.jpg\r\nb\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]


def test_versions_need_no_installed_elfs(monkeypatch):
    """A source tree on PYTHONPATH has no metadata, and another build of faiss another name."""

    def version(name: str) -> str:
        if name in ("elfs", "faiss-cpu"):
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    versions = package_versions.__wrapped__()
    assert versions["elfs"] == elfs_lib.__version__ and "faiss-cpu" not in versions
    assert versions["torch"] == "1.0"


def test_rows_on_disk_are_an_array_of_a_store_with_a_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.arange(12_000.0).reshape(3000, 4)

    def build(draft):
        draft.array("x", draft.rows("x", 3000, np.split(values, 3)))

    made = Store(Path("here")).run("rows", build, version=1, params={}, inputs={})
    assert np.array_equal(made.array("x"), values)
