"""Own images: from a folder to a list, to labels, to a model and the next list."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from urllib.parse import unquote

import image_files
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from elfs_lib.artifacts import NotBuilt, Store
from elfs_lib.cli import commands as cli
from elfs_lib.clustering.class_count import ClassEstimate, estimate_classes
from elfs_lib.data import datasets
from elfs_lib.data.base import Source
from elfs_lib.data.decoding import LEFT_OUT
from elfs_lib.data.duplicates import find_copies
from elfs_lib.data.label_files import LOCAL_FILES, read_labels, tasks
from elfs_lib.embedding import embed as embedding
from elfs_lib.embedding import encoders
from elfs_lib.embedding.neighbors import nearest_neighbors
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.photos import assessment as assessing
from elfs_lib.photos import choosing as own_images
from elfs_lib.photos import gallery
from elfs_lib.photos import labels as own_labels
from elfs_lib.photos.assessment import LINEAR, NETWORK, assess, learning_curve, linear_model
from elfs_lib.photos.choice import LISTED_COLUMNS, pick
from elfs_lib.photos.choosing import choose_images, read_images, select
from elfs_lib.photos.labels import evaluate, import_labels
from elfs_lib.photos.lists import (
    ListFiles,
    find_list,
    make_list,
    open_choice,
    read_record,
    stored_labels,
)
from elfs_lib.photos.request import BUDGETS, Request
from elfs_lib.photos.run import Photos
from elfs_lib.results.low_budget import ADVICE, AS_RANDOM
from elfs_lib.selection import METHODS, SelectionInputs, select_by
from elfs_lib.selection.double_end import double_end_prune
from elfs_lib.stages import Run
from elfs_lib.stages import embedding as stages_embedding
from elfs_lib.training.loop import train
from elfs_lib.training.recipes import find_recipe

TINY = {
    "encoder": "pixels",
    "flip": False,
    "crop_pad": 1,
    "device": "cpu",
    "precision": "float32",
    "temi_heads": 2,
    "temi_epochs": 8,
    "temi_batch": 64,
    "temi_hidden": 16,
    "temi_bottleneck": 8,
    "proxy_epochs": 2,
    "hard_prune_ratios": [0.0, 0.4],
    "search_steps": 2,
    "eval_steps": 6,
    "budgets": [10, 20],
}
DIGITS = load_digits()
NASTY = "<script>alert('x')<&.png"


def picture(number: int) -> Image.Image:
    return Image.fromarray((DIGITS.images[number] * 15.9375).astype(np.uint8))


def fill(root: Path, count: int, place=lambda number: f"{number:03}.png") -> None:
    for number in range(count):
        file = root / place(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """120 different digits of three sorts, in folders by sort; copies, and files of no use."""
    root = tmp_path_factory.mktemp("own") / "photos"
    wanted = np.flatnonzero(DIGITS.target < 3)[:120]
    for number in wanted:
        file = root / f"sort{DIGITS.target[number]}" / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    for name in ("copy.png", "again.bmp", NASTY):
        picture(wanted[0]).save(root / name)
    (root / "cut.png").write_bytes(b"\x89PNG no more")
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> ListFiles:
    """A list of 20 of them."""
    files = ListFiles(folder.parent / "to_label.csv")
    make_list(folder, files, Request(3, 20, overrides=TINY), Store(folder.parent / "artifacts"))
    return files


def truth(path: str) -> str:
    return path.split("/")[0] if "/" in path else "sort0"


def run_cli(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["elfs", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def options(changes: dict | None = None) -> list[str]:
    pairs = {**TINY, **(changes or {})}.items()
    return [word for name, value in pairs for word in ("-p", f"{name}={json.dumps(value)}")]


# --- by any method, and tested on images drawn at random -----------------------------------------


def by(method: str, **changes: object) -> Request:
    return Request(3, 20, overrides=TINY, compare=False, method=method, **changes)


@pytest.mark.parametrize("method", ["typiclust", "max_herding", "usl", "moderate", "elfs_el2n"])
def test_any_label_free_method_makes_the_list(folder: Path, made: ListFiles, method: str):
    """It gets one of each group of copies, and nothing that is labelled."""
    store = read_record(made.record).store
    choice = choose_images(folder, by(method), store)
    run, listed = choice.run, choice.listed
    group = choice.photos.copies.group
    assert len(listed) == 20 == len(np.unique(group[listed["index"]]))
    assert len(listed) + len(choice.rest) == run.n
    assert {*choice.rest["kind"]} <= {"not_chosen", "copy"}
    twins = group[choice.rest["index"][choice.rest["kind"] == "copy"]]
    assert {*twins} <= {*group[listed["index"]]}
    assert np.isfinite(listed["score"]).all() and list(listed["rank"]) == [*range(1, 21)]
    pool = np.flatnonzero(group == np.arange(run.n))
    wanted = {need: getattr(choice.chooser.inputs(pool), need) for need in METHODS[method].needs}
    if method == "max_herding":
        points = np.asarray(run.embeddings.array("embeddings"))[pool]
        direct = select_by(method, SelectionInputs(n=len(pool), embeddings=points), 20)
        assert listed["index"].tolist() == pool[direct.indices].tolist()
        np.testing.assert_allclose(listed["score"], direct.scores)
    assert all(value is not None for value in wanted.values())
    # the next ones go on from there: those that have a label count, and are not asked for again
    done = tuple(listed["path"][:7])
    more = choose_images(folder, by(method, done=done), store)
    assert not {*more.listed["path"]} & {*done} and len(more.listed) == 20
    assert (more.rest["kind"] == "labelled").sum() == 7
    if method == "max_herding":  # nested
        assert {*listed["path"][7:]} <= {*more.listed["path"]}


@pytest.mark.parametrize(("number", "advice"), list(enumerate(ADVICE)))
def test_the_method_goes_by_labels_a_class(number: int, advice: tuple[int, str]):
    start, method = advice
    assert not METHODS[method].supervised
    auto = Request(10, 20, method="auto")
    assert own_images.method_for(auto, 10 * start, 10)[0] == method
    if number:
        assert own_images.method_for(auto, 10 * start - 1, 10)[0] == ADVICE[number - 1][1] != method
    assert f"{start:.3g} labels a class" in own_images.method_for(auto, 10 * start, 10)[1]


def test_a_random_list_is_named_where_none_is_told_from_it():
    auto = Request(10, 20, method="auto")
    for each, said in ((AS_RANDOM - 1, False), (AS_RANDOM, True), (ADVICE[-1][0], False)):
        assert ("random list" in own_images.method_for(auto, 10 * each, 10)[1]) is said


def test_the_advice_counts_the_labels_that_there_are(folder: Path, made: ListFiles):
    store = read_record(made.record).store
    few = choose_images(folder, by("auto"), store)
    assert few.method == ADVICE[0][1] and few.why in few.summary()
    more = ADVICE[1][0] * few.run.classes - len(few.listed)  # labelled, as many as it takes
    done = tuple(pd.concat([few.listed["path"], few.rest["path"]])[:more])
    assert choose_images(folder, by("auto", done=done), store).method == ADVICE[1][1]
    given = replace(by("auto"), overrides=TINY | {"hard_prune_ratio": 0.1})
    assert choose_images(folder, given, store).method == "elfs"
    with pytest.raises(ElfsError, match="Unknown method 'ccs'"):
        choose_images(folder, by("ccs"), store)  # it would see labels


def test_a_list_keeps_its_method_when_the_advice_changes(tmp_path: Path, monkeypatch):
    files = small_list(tmp_path)
    request = Request(2, 12, overrides=TINY, method="auto", compare=False)
    listed = make_list(tmp_path / "photos", files, request, Store(tmp_path / "store")).listed
    monkeypatch.setattr(own_images, "ADVICE", ((0, "random"),))
    again = open_choice(files.record)
    assert again.method == ADVICE[0][1] and again.listed["path"].tolist() == listed["path"].tolist()
    give(files, {path: "ab"[row % 2] for row, path in enumerate(listed["path"])})
    assert evaluate(files, folds=3, batch=5)[1].method == "random"  # the next list is another


def test_a_method_that_trains_nothing_trains_nothing(folder: Path, made: ListFiles, monkeypatch):
    store = read_record(made.record).store
    monkeypatch.setattr(Run, "proxies", property(lambda self: pytest.fail("trained")))
    monkeypatch.setattr(Run, "search", lambda *args, **kwargs: pytest.fail("searched"))
    choice = choose_images(folder, replace(by("typiclust"), compare=True), store)
    assert choice.hard_prune_ratio is None and "hard_prune_ratio" not in choice.budgets
    assert list(choice.budgets["overlap"])[-1] == 1
    assert len(choice.seeds.shares) == 2 and choice.search is None


def test_what_speaks_against_a_list_is_said(folder: Path, made: ListFiles, monkeypatch):
    store = read_record(made.record).store
    choice = choose_images(folder, replace(by("elfs"), compare=True), store)
    assert choice.seeds is None  # it would train again
    assert choice.search.best == choice.hard_prune_ratio and choice.search.at_edge
    assert any("the search did not close it in" in line for line in choice.doubts)
    assert {*choice.trust, *choice.doubts} <= {*choice.summary()}
    sure = choice.run.pseudo.table("pseudo")["confidence"].median()
    assert any("barely confident" in line for line in choice.doubts) is bool(sure < 0.5)
    random = choose_images(folder, by("random"), store)
    assert any("would serve as well" in line for line in random.doubts)
    covered = choice.covered
    assert (
        covered["images"].tolist() == [5, 10, 20, 120]
        and covered["coverage"].is_monotonic_increasing
    )


def test_images_drawn_at_random_are_never_listed(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for number in range(80):
        picture(number % 40).save(tmp_path / "photos" / f"{number:03}.png")  # each twice
    files, store = ListFiles(tmp_path / "list.csv"), Store(tmp_path / "store")
    request = Request(2, 12, overrides=TINY, method="typiclust", holdout=14)
    choice = make_list(tmp_path / "photos", files, request, store)
    held = pd.read_csv(files.holdout)["path"].tolist()
    group = choice.photos.copies.group
    rows = {path: row for row, path in enumerate(choice.run.paths)}
    of_held = {group[rows[path]] for path in held}
    twins = choice.rest[np.isin(group[choice.rest["index"]], [*of_held])]
    assert len(twins) == 14 and twins["reason"].str.endswith("which is kept for testing").all()
    assert len(held) == 14 == len(of_held) and not of_held & {*group[choice.listed["index"]]}
    assert len(json.loads(files.holdout_tasks.read_text())) == 14
    for method in ("elfs", "random"):  # whatever else is asked for, they stay
        again = make_list(
            tmp_path / "photos", files, replace(request, method=method, holdout=0), store
        )
        assert again.held["path"].tolist() == held
        assert not of_held & {*group[again.listed["index"]]}
    more = make_list(tmp_path / "photos", files, replace(request, holdout=20), store)
    assert more.held["path"].tolist()[:14] == held and len(more.held) == 20
    with pytest.raises(ElfsError, match="only 40 different images"):
        make_list(tmp_path / "photos", files, replace(request, holdout=41), store)
    with pytest.raises(ElfsError, match="the 20 different images that have no label"):
        make_list(tmp_path / "photos", files, replace(request, holdout=19, budget=30), store)


def test_the_draw_is_uniform():
    """Whatever the list prefers: each image is drawn as often."""
    paths = [str(row) for row in range(30)]
    group = np.r_[np.arange(29), 3]  # the last is a copy of 3
    drawn = np.zeros(30)
    for seed in range(600):
        request = Request(2, 5, seed=seed, holdout=6, done=("7",))
        held = own_images.hold_out(paths, group, request).held
        assert len(held) == 6 and not {"3", "29"} <= {*held}
        drawn[[int(path) for path in held]] += 1
    assert drawn[7] == 0
    drawn[3] += drawn[29]
    expected = 600 * 6 / 28
    rest = np.delete(drawn, [7, 3, 29])
    assert abs(rest - expected).max() < 5 * np.sqrt(expected)


def test_random_images_give_the_accuracy_and_are_not_trained_on(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    wanted = np.flatnonzero(DIGITS.target < 2)[:100]
    sort = {}
    for number in wanted:
        picture(number).save(tmp_path / "photos" / f"{number:04}.png")
        sort[f"{number:04}.png"] = "ab"[DIGITS.target[number]]
    files, store = ListFiles(tmp_path / "list.csv"), Store(tmp_path / "store")
    request = Request(2, 16, overrides=TINY, method="typiclust", holdout=30)
    make_list(tmp_path / "photos", files, request, store)
    listed, held = (pd.read_csv(file)["path"].tolist() for file in (files.csv, files.holdout))
    give(files, {path: sort[path] for path in listed})
    before, _ = evaluate(files, folds=4, batch=0)
    assert before.tested == 0
    # labels that are wrong throughout: a model trained on them would be right about them
    typed = pd.read_csv(files.holdout).assign(label=["ab"["ba".index(sort[p])] for p in held])
    typed.to_csv(files.holdout, index=False)
    assert find_list(None, files.holdout).csv == files.csv
    import_labels(files, files.holdout)
    said: list[str] = []
    found, choice = evaluate(files, folds=4, batch=8, say=said.append)
    pd.testing.assert_frame_equal(found.accuracies, before.accuracies)
    assert found.tested == 30 and found.classes == before.classes
    assert found.artifact.manifest["labels"]["opened"] == ["train:evaluation", "test:evaluation"]
    last = found.learning.iloc[-1]
    assert last["labels"] == 16 and last["accuracy"] < 15
    predicted = found.predictions.set_index("path")["label"]
    wrong = np.mean([predicted[path] == ("ab"["ba".index(sort[path])]) for path in held])
    assert last["accuracy"] == pytest.approx(100 * wrong)
    low, high = binomtest(round(30 * wrong), 30).proportion_ci(method="wilson")
    assert (last["low"], last["high"]) == pytest.approx((100 * low, 100 * high))
    assert any("30 images drawn at random" in line for line in said)
    assert not {*choice.listed["path"]} & {*held, *listed} and len(choice.listed) == 8
    assert not files.next.holdout.exists()


def test_the_learning_curve_rises_where_labels_help_and_its_band_holds_the_truth():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 8))
    targets = rng.integers(0, 5, 1200)
    points = (means[targets] + rng.normal(size=(1200, 8))).astype(np.float32)
    rows, tests = np.arange(80), np.arange(80, 200)
    folds = np.arange(80) % 5
    for held in ((tests, targets[tests]), None):
        table = learning_curve(points, rows, targets[rows], folds, 0, held)
        assert table["labels"].tolist() == ([20, 40, 80] if held else [16, 32, 64])
        assert table["accuracy"].is_monotonic_increasing
        assert (table["low"] < table["accuracy"]).all() and (
            table["accuracy"] < table["high"]
        ).all()
    table = learning_curve(points, rows, targets[rows], folds, 0, (tests, targets[tests]))
    model = linear_model(points[rows], targets[rows])
    true = 100 * (model.predict(points[200:]) == targets[200:]).mean()
    assert table["low"].iloc[-1] < true < table["high"].iloc[-1]
    direct = 100 * (model.predict(points[tests]) == targets[tests]).mean()
    assert table["accuracy"].iloc[-1] == pytest.approx(direct)


def test_names_are_suggested_to_whoever_labels_and_are_no_labels(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "rank": [1, 2, 3],
            "path": ["a.png", "b.png", "c.png"],
            "pseudo_class": [1, 0, 2],
            "confidence": [0.9, 0.25, 1.0],
        }
    )
    sent = json.loads(json.dumps(tasks(frame, "photos", names=["cat", "dog", ""])))
    assert [task["data"]["rank"] for task in sent] == [1, 2, 3]
    assert "predictions" not in sent[2] and not any("predictions" in t for t in tasks(frame, "x"))
    first = sent[0]["predictions"][0]
    assert first["result"][0]["value"] == {"choices": ["dog"]} and first["score"] == 0.9
    assert first["result"][0]["from_name"] == "label" and first["result"][0]["to_name"] == "image"
    (tmp_path / "export.json").write_text(json.dumps(sent))
    with pytest.raises(ElfsError, match="holds no label"):
        read_labels(tmp_path / "export.json", frame["path"], folder="photos")
    sent[1]["annotations"] = [{"result": [{"from_name": "label", "value": {"choices": ["cat"]}}]}]
    (tmp_path / "export.json").write_text(json.dumps(sent))
    back = read_labels(tmp_path / "export.json", frame["path"], folder="photos")
    assert back.given == {"b.png": "cat"} and set(back.open) == {"a.png", "c.png"}


def test_there_is_a_name_for_each_pseudo_class(folder: Path, made: ListFiles):
    store = read_record(made.record).store
    with pytest.raises(ElfsError, match="2 names for 3 pseudo-classes"):
        choose_images(folder, by("typiclust", names=("cat", "dog")), store)


# --- choosing ------------------------------------------------------------------------------------


@settings(deadline=None)  # a busy machine stalls for longer than the default
@given(st.data())
def test_pick_is_double_end_pruning_that_takes_one_of_each_group(data):
    n = data.draw(st.integers(4, 40))
    scores = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), float)
    group = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
    done = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)), int)
    count = data.draw(st.integers(1, n - len(done)))
    beta = data.draw(st.floats(0, 1 - (count + len(done)) / n))
    chosen = pick(scores, group, beta, count, done)
    left = set(group.tolist()) - set(group[done].tolist())
    assert len(chosen) == min(count, len(left))  # exact wherever enough groups are left
    assert len(set(group[chosen].tolist())) == len(chosen)
    assert not set(group[chosen].tolist()) & set(group[done].tolist())
    if len(set(group.tolist())) == n and not len(done):
        np.testing.assert_array_equal(chosen, double_end_prune(scores, beta, count))


def test_pick_goes_on_to_the_easy_end_before_it_goes_back_to_the_hard_one():
    group = np.array([0, 1, 2, 3, 4, 3, 6, 7])
    assert pick(np.arange(8.0), group, 0.25, 3).tolist() == [2, 3, 4]
    assert pick(np.arange(8.0), group, 0.25, 5).tolist() == [2, 3, 4, 6, 7]
    assert pick(np.arange(8.0), group, 0.25, 6).tolist() == [2, 3, 4, 6, 7, 1]


def test_copies_are_found_by_pixels_by_embedding_and_through_others():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 1, 8, 8), np.uint8)
    images[11] = images[10]
    images[20:29] = images[3]  # more copies than neighbours
    embeddings = rng.normal(size=(30, 40)).astype(np.float32)
    embeddings[11] = embeddings[10]
    embeddings[20:29] = embeddings[3]
    embeddings[5] = embeddings[4] + 0.2 * rng.normal(size=40)
    found = nearest_neighbors(embeddings, 4)
    copies = find_copies(images, found.indices, found.similarities, cosine=0.95, look=False)
    expected = np.arange(30)
    expected[11], expected[20:29] = 10, 3
    assert copies.first.tolist() == expected.tolist()
    expected[5] = 4
    assert copies.group.tolist() == expected.tolist()
    assert (copies.exact, copies.near, copies.different) == (10, 1, 19)
    strict = find_copies(images, found.indices, found.similarities, cosine=1.0, look=False)
    assert strict.group[5] == 5
    with pytest.raises(ElfsError, match="1.5"):
        find_copies(images, found.indices, found.similarities, cosine=1.5)


def test_a_picture_saved_again_is_a_copy_though_its_embedding_moved():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (3, 3, 32, 32), np.uint8)
    images[1] = images[0] + rng.integers(0, 3, images[0].shape, np.uint8)
    indices = np.array([[1, 2], [0, 2], [0, 1]])
    similarities = np.array([[0.85, 0.84], [0.85, 0.2], [0.84, 0.2]], np.float32)
    assert find_copies(images, indices, similarities, cosine=0.95).group.tolist() == [0, 0, 2]
    blind = find_copies(images, indices, similarities, cosine=0.95, look=False)
    assert blind.group.tolist() == [0, 1, 2]


def test_classes_are_counted_where_there_are_some():
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(4, 12))
    points = (centres[rng.integers(0, 4, 240)] + rng.normal(size=(240, 12))).astype(np.float32)
    found = estimate_classes(points, seed=1, subsets=3)
    assert found.classes == 4 and found.low <= 4 <= found.high
    assert "about 4 classes" in found.sentence() and "silhouette" in found.sentence()
    again = estimate_classes(points, seed=1, subsets=3)
    np.testing.assert_array_equal(found.silhouettes, again.silhouettes)
    with pytest.raises(ElfsError, match="alike"):
        estimate_classes(np.ones((20, 4), np.float32))
    with pytest.raises(ElfsError, match="too few"):
        estimate_classes(points[:9])
    few = estimate_classes(rng.normal(size=(60, 12)).astype(np.float32), subsets=2)
    assert few.grid.tolist() == [2, 3]  # clusters of three images fit anything


def test_the_list_is_exact_and_every_file_is_accounted_for(folder: Path, made: ListFiles):
    listed = pd.read_csv(made.csv)
    rest = pd.read_csv(made.rest)
    assert list(listed.columns) == LISTED_COLUMNS
    assert listed["rank"].tolist() == list(range(1, 21))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sorted([*listed["path"], *rest["path"]]) == sorted(files)
    kinds = dict(zip(rest["path"], rest["kind"], strict=True))
    assert kinds["cut.png"] == "damaged" and kinds["notes.txt"] == "not_an_image"
    first = min(folder.glob("sort0/*")).relative_to(folder).as_posix()
    same = {"copy.png", "again.bmp", NASTY, first}
    assert len(same & set(listed["path"])) <= 1
    assert set(rest["kind"]) <= {"too_hard", "too_easy", "copy", "damaged", "not_an_image"}
    every = pd.concat([listed, rest[rest["pseudo_class"].notna()]])
    for own, images in every.groupby("pseudo_class"):
        said = images["reason"].str.extract(rf"harder than (\d+)% of pseudo-class {own:g}\b")[0]
        harder = images["score"].rank(ascending=False, method="first") - 1
        true = 100 * harder[said.notna()] / len(images)
        assert (said.dropna().astype(int) - true).abs().max() < 3
    assert listed["confidence"].between(0, 1).all() and listed["reason"].str.len().min() > 10


def test_awkward_files_are_listed_left_out_or_reported_by_path_and_counted(tmp_path: Path):
    report = image_files.awkward_folder(tmp_path / "photos")
    files = ListFiles(tmp_path / "list.csv")
    request = Request(2, 3, cosine=1.0, overrides=TINY)
    choice = make_list(tmp_path / "photos", files, request, Store(tmp_path / "store"))
    told = choice.files.groupby("kind")["path"].size().to_dict()
    assert told == {kind: len(names) for kind, names in report.items()}
    listed, rest = pd.read_csv(files.csv), pd.read_csv(files.rest)
    left_out = {name for kind in LEFT_OUT for name in report.get(kind, ())}
    assert sorted([*listed["path"], *rest["path"]]) == sorted({*choice.run.paths, *left_out})
    assert set(rest.loc[rest["path"].isin(left_out), "kind"]) == set(report) & set(LEFT_OUT)
    said = next(line for line in choice.summary() if line.startswith("Files left out"))
    for kind in set(report) & set(LEFT_OUT):
        assert f"{len(report[kind])} {kind.replace('_', ' ')}" in said


def test_an_encoder_trained_on_the_images_sees_them_all_at_once(tmp_path: Path, monkeypatch):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.setattr(stages_embedding, "FILES_AT_ONCE", 5)
    values = {"dataset": "image_folder", "data_path": str(tmp_path / "photos"), "image_size": 16}
    changes = {"encoder_network": "convnet_tiny", "encoder_epochs": 1}
    params = Params.make(values | changes | {"encoder": "self_supervised", "device": "cpu"})
    run = Run(params, Store(tmp_path / "store"))
    assert run.embeddings.array("embeddings").shape == (20, 32)
    assert len(np.unique(run.embeddings.array("embeddings"), axis=0)) == 20


def test_each_pseudo_class_has_its_share_at_every_length(made: ListFiles):
    choice = open_choice(made.record)
    sizes = np.bincount(choice.run.pseudo_labels, minlength=3)
    for length in (6, 12, 20):
        counts = np.bincount(choice.listed["pseudo_class"][:length], minlength=3)
        assert (np.abs(counts - length * sizes / sizes.sum()) <= 2).all()  # a copy may cost one


def test_an_unbalanced_list_is_in_the_order_of_the_score(folder: Path, made: ListFiles):
    request = Request(3, 20, balanced=False, overrides=TINY)
    choice = choose_images(folder, request, Store(made.csv.parent / "artifacts"))
    assert choice.listed["score"].is_monotonic_increasing
    assert choice.cuts.shape == (3, 2)


def test_copies_go_to_the_rest_and_say_what_of(folder: Path, made: ListFiles):
    # all images listed but the copies: so one of the group is on the list
    request = Request(3, 120, overrides={**TINY, "hard_prune_ratio": 0.0})
    choice = choose_images(folder, request, Store(made.csv.parent / "artifacts"))
    assert choice.photos.copies.exact == 3
    copies = choice.rest[choice.rest["kind"] == "copy"]
    assert len(copies) + 120 <= 123 and len(copies) >= 3
    assert copies["reason"].str.contains("same pixels as|near copy of").all()


def test_the_record_opens_the_same_choice_without_new_work(made: ListFiles, monkeypatch):
    monkeypatch.setattr(Store, "__init__", _look_only(Store.__init__))
    choice = open_choice(made.record)
    assert choice.listed["path"].tolist() == pd.read_csv(made.csv)["path"].tolist()
    budgets = choice.budgets.set_index("budget")
    assert budgets.loc[20, "overlap"] == 1.0 and set(budgets.index) == {10, 20}
    assert not re.search(r'"/', made.record.read_text())  # no path of this machine


def _look_only(init):
    return lambda self, root, **kwargs: init(self, root, look=True)


def test_the_list_does_not_depend_on_labels_or_class_folders(tmp_path: Path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the selection opened the labels")

    monkeypatch.setattr(datasets, "load_labels", refuse)
    monkeypatch.setattr(Run, "labels", property(refuse))
    frames = []
    for name, place in {
        "flat": lambda i: f"{i:03}.png",
        "sorted": lambda i: f"class{i // 20}/{i:03}.png",  # folders by class
    }.items():
        fill(tmp_path / name, 60, place)
        frames.append(select(tmp_path / name, classes=3, budget=9, **TINY))
    bare = [path.rpartition("/")[2] for path in frames[1]["path"]]
    assert bare == frames[0]["path"].tolist()
    assert frames[0]["score"].tolist() == frames[1]["score"].tolist()


def test_arrays_and_folders_give_the_same_list(tmp_path: Path):
    fill(tmp_path / "photos", 60)
    order = datasets.load_images(Source("image_folder", path=tmp_path / "photos")).paths
    array = np.stack([np.asarray(picture(int(Path(name).stem))) for name in order])[:, None]
    here = select(array, classes=3, budget=9, **TINY)
    there = select(tmp_path / "photos", classes=3, budget=0.15, **TINY)
    assert here["index"].tolist() == there["index"].tolist()
    assert there["path"].tolist() == [order[i] for i in here["index"]]
    assert here["path"].tolist() == [str(i) for i in here["index"]]
    assert (
        select(array, classes=3, budget=9, seed=1, **TINY)["index"].tolist()
        != here["index"].tolist()
    )


def test_auto_classes_are_estimated_and_a_number_by_hand_wins(tmp_path: Path):
    array = np.stack([np.asarray(picture(i)) for i in range(60)])[:, None]
    store = Store(tmp_path)
    said: list[str] = []
    auto = choose_images(array, Request("auto", 30, overrides=TINY), store, say=said.append)
    assert auto.run.classes == auto.photos.class_estimate.classes
    assert any("silhouette" in note for note in auto.notes)
    assert "[4/7] counting classes" in said and "silhouette" not in " ".join(said)
    assert choose_images(array, Request(4, 30, overrides=TINY), store).run.classes == 4
    own = choose_images(array, Request(4, 30, overrides=TINY | {"budgets": BUDGETS}), store)
    assert own.budgets["budget"].tolist() == [30]  # 200 and more are not to be had


def test_photos_are_embedded_at_the_encoders_size(tmp_path: Path, monkeypatch):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (120, 150, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    shapes, loaded = [], []

    def embed(images, *args, **kwargs):
        shapes.append(images.shape)
        return rng.normal(size=(len(images), 16)).astype(np.float32)

    def frozen_embedder(encoder, size, **kwargs):
        loaded.append((encoder, size))
        return embed

    monkeypatch.setattr(embedding, "embed", embed)
    monkeypatch.setattr(embedding, "frozen_embedder", frozen_embedder)
    monkeypatch.setattr(stages_embedding, "FILES_AT_ONCE", 5)

    def embeddings(**changes) -> np.ndarray:
        values = {"dataset": "image_folder", "data_path": str(tmp_path / "photos")}
        params = Params.make({**values, "encoder": "efficientnet_lite0", **changes})
        run = Run(params, Store(tmp_path / "store"))
        return run.embeddings.array("embeddings")

    assert embeddings(image_size=32).shape == (12, 16)
    assert shapes == [(5, 3, 120, 120), (5, 3, 120, 120), (2, 3, 120, 120)]
    assert loaded == [("efficientnet_lite0", (120, 120))]  # once for all parts
    embeddings(image_size=32, encoder_size=64)
    assert shapes[3] == (5, 3, 64, 64)
    embeddings(image_size=120)  # nothing to gain
    assert shapes[6:] == [(12, 3, 120, 120)]


def test_a_budget_below_the_estimated_classes_says_that_they_are_an_estimate(monkeypatch, tmp_path):
    found = ClassEstimate(9, 4, 12, np.arange(2), np.zeros((2, 1)), 30)
    monkeypatch.setattr(Photos, "class_estimate", found)
    array = np.stack([np.asarray(picture(i)) for i in range(60)])[:, None]
    with pytest.raises(ElfsError, match="9 classes.*4 to 12"):
        choose_images(array, Request("auto", 8, overrides=TINY), Store(tmp_path))


# --- what cannot be done -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--classes", 3, "--budget", 0], "budget is 0"),
        (["--classes", 3, "--budget", -4], "budget is -4"),
        (["--classes", 3, "--budget", 2], "below the 3 classes"),
        (["--classes", 3, "--budget", 5000], "5000 is above the 123 images"),
        (["--classes", 3, "--budget", 122], "copies"),
        (["--classes", 3, "--budget", "many"], "'many'"),
        (["--classes", "1", "--budget", 20], "at least 2"),
        (["--classes", "some", "--budget", 20], "'some': give a number, or auto"),
        (["--classes", 130, "--budget", 130], "for 130 classes"),
        (["--classes", 3, "--budget", 20, "-p", "temi_hedas=2"], "temi_heads"),
        (["--classes", 3, "--budget", 20, "-p", "budget=5"], "argument of its own"),
        (["--classes", 3, "--budget", 20, "--copies", 2], "cosine of near copies"),
        (["--classes", 3, "--budget", 20, "--out", "no/such/list.csv"], "not a folder"),
        (["--classes", 3, "--budget", 20, "--out", "list.html"], "no .csv file"),
        (["--classes", 3, "--budget", 20, "--out", "."], "is a folder: name a .csv file"),
    ],
)
def test_impossible_requests_are_one_sentence(
    folder: Path, tmp_path, monkeypatch, capsys, words: list, message: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(folder.parent / "artifacts"))
    assert run_cli(monkeypatch, "select", folder, "--no-report", *words, *options()) == 2
    error = capsys.readouterr().err
    assert error.startswith("elfs: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    "source, change, message",
    [
        ([1, 2], {}, "images hold a int"),
        (b"photos", {}, "images are a bytes"),
        ("photos", {"budget": "20"}, "budget is '20'"),
        ("photos", {"budget": None}, "budget is None"),
        ("photos", {"cosine": "near"}, "cosine is 'near'"),
        (np.zeros((40, 1, 8, 8), np.uint8), {"budgets": ["x"]}, "Parameter 'budgets' is 'x'"),
    ],
)
def test_what_python_cannot_mean_is_one_sentence(source: object, change: dict, message: str):
    with pytest.raises(ElfsError, match=re.escape(message)):
        select(source, **{"classes": 3, "budget": 9, **change})


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "useless", "few", "alike"])
def test_folders_without_a_choice_are_one_sentence(tmp_path, monkeypatch, capsys, kind: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    photos = tmp_path / "photos"
    if kind == "file":
        photos.write_text("no folder")
    elif kind != "missing":
        photos.mkdir()
    if kind == "useless":
        (photos / "a.png").write_bytes(b"no image")
    if kind == "few":
        fill(photos, 6)
    if kind == "alike":
        for number in range(15):
            picture(0).save(photos / f"{number}.png")
    words = ("select", photos, "--classes", 2, "--budget", 5, "--no-report", *options())
    assert run_cli(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    expected = {
        "missing": "does not exist",
        "file": "is a file",
        "empty": "has no image files",
        "useless": "no usable train image",
        "few": "only 6 usable images",
        "alike": "all alike",
    }
    assert error.startswith("elfs: ") and error.count("\n") == 1
    assert expected[kind] in error
    assert not list(tmp_path.glob("to_label*"))


# --- labels --------------------------------------------------------------------------------------

KNOWN = ["a/1.png", "a/2.png", "b, c/3.png", "ü.png"]


@pytest.mark.parametrize(
    "text",
    [
        'path,label\na/1.png,cat\n"b, c/3.png",dog\n',
        "path;label\na/1.png;cat\nb, c/3.png;dog\n",
        'rank,path,Label\n1,./a/1.png, cat \n2,"b, c/3.png",dog\n3,a/2.png,\n',
        ('\ufeffimage,choice\n/data/local-files/?d=photos/a/1.png,cat\n"/data/local-files/?d=photos'
        '/b%2C%20c/3.png",dog\n'),
        json.dumps([{"image": "x", "path": "a/1.png", "label": "cat"},
                    {"path": "b, c/3.png", "label": {"choices": ["dog"]}}]),
        json.dumps([
            {"data": {"path": "a/1.png"}, "annotations": [
                {"result": [{"type": "choices", "value": {"choices": ["cat"]}}]},
                {"was_cancelled": True, "result": []}]},
            {"data": {"image": "/data/local-files/?d=photos/b%2C%20c/3.png"}, "annotations": [
                {"result": [{"type": "choices", "value": {"choices": ["dog"]}}]}]},
            {"data": {"path": "a/2.png"}, "annotations": [{"was_cancelled": True}]},
        ]),
        "sep=;\r\npath;label\r\na/1.png;cat\r\nb, c/3.png;dog\r\n",
        'path,label\na/1.png,"{""choices"": [""cat""]}"\n"b, c/3.png","[""dog""]"\n',
        ('path,label\n/data/upload/3/0a1b2c3d-1.png,cat\n'
         '/data/local-files/?d=photos%5Cb%2C%20c%5C3.png,dog\n'),
        json.dumps([
            {"data": {"path": "a/1.png"}, "annotations": [{"result": [
                {"from_name": "quality", "value": {"choices": ["blurred"]}},
                {"from_name": "label", "value": {"choices": ["cat"]}}]}]},
            {"data": {"path": "b, c/3.png"}, "annotations": [{"result": [
                {"from_name": "label", "value": {"choices": ["dog"]}},
                {"from_name": "quality", "value": {"choices": ["sharp"]}}]}]},
            {"data": {"path": "a/2.png"}, "annotations": [{"result": [
                {"from_name": "quality", "value": {"choices": ["sharp"]}}]}]},
        ]),
    ],
    ids=["csv", "semicolons", "spaces", "urls", "json-min", "json", "excel", "json in csv",
         "uploads", "controls"],
)  # fmt: skip
def test_labels_are_read_from_whatever_people_export(tmp_path: Path, text: str):
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    labels = read_labels(tmp_path / "labels", KNOWN, folder="photos")
    assert labels.given == {"a/1.png": "cat", "b, c/3.png": "dog"}
    assert set(labels.open) <= {"a/2.png"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\nno.png,cat\n", "line 2: 'no.png' is not a usable image"),
        ("path,label\na/1.png,cat\na/1.png,dog\n", "labels 'cat' and 'dog'"),
        ("path,label\na/1.png,\n", "holds no label"),
        ("", "column 'path'"),
        ("path,note\na/1.png,x\n", "column 'label'"),
        ("path,label\na/1.png,cat\n,dog\n", "line 3: the label 'dog' has no path"),
        ("[1]", "task 1: is not as Label Studio exports it"),
        ("[{", "not valid JSON"),
        (('[{"data": {"path": "a/1.png"}, "annotations": [{"result": [{"value": {"choices": '
         '["cat", "dog"]}}]}]}]'), "labels 'cat' and 'dog'"),
        ('path,label\na/1.png,"{""choices"": [""cat"", ""dog""]}"\n', "labels 'cat' and 'dog'"),
        ("sep=,\npath,label\nno.png,cat\n", "line 3: 'no.png' is not a usable image"),
        (('[{"data": {"path": "a/1.png"}, "annotations": [{"result": [{"from_name": "quality", '
          '"value": {"choices": ["sharp"]}}]}]}]'), "answers to 'quality' and none to 'label'"),
        ("path,label\n/data/upload/3/0a1b2c3d-4.png,cat\n", "is not a usable image"),
        ('[{"data": 3, "annotations": []}]', "task 1: is not as"),
        ('[{"path": "a/1.png", "annotations": 3}]', "task 1: is not as"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_meant_are_one_sentence(tmp_path: Path, text: str, message: str):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ElfsError, match=re.escape(message)):
        read_labels(tmp_path / "labels.csv", KNOWN)


@pytest.mark.parametrize("name", ['quo"te.png', " space.png", "a;b.png", "two\rlines.png"])
def test_awkward_names_go_out_and_come_back(tmp_path: Path, name: str):
    file = tmp_path / "labels.csv"
    own_labels.write_list_csv(
        file, pd.DataFrame({"path": [name, "b.png"], "label": ['6" pipe', "x"]})
    )
    known = pd.read_csv(file, dtype=str)["path"]
    assert known.tolist() == [name, "b.png"]
    assert read_labels(file, known).given == {name: '6" pipe', "b.png": "x"}


def test_names_are_found_by_either_way_of_writing_an_accent(tmp_path: Path):
    composed, apart = "caf\u00e9.png", "cafe\u0301.png"
    for known, said in ((composed, apart), (apart, composed)):
        (tmp_path / "labels.csv").write_text(f"path,label\n{said},x\n")
        assert read_labels(tmp_path / "labels.csv", [known]).given == {known: "x"}
    (tmp_path / "labels.csv").write_text(f"path,label\n{composed},x\n{apart},y\n")
    both = read_labels(tmp_path / "labels.csv", [composed, apart]).given
    assert both == {composed: "x", apart: "y"}


def test_uploads_are_known_by_a_name_that_only_one_image_has(tmp_path: Path):
    file, upload = tmp_path / "labels.csv", "/data/upload/3/0a1b2c3d-my_photo1.png"
    file.write_text(f"path,label\n{upload},cat\n")
    assert read_labels(file, ["x/my photo(1).png"]).given == {"x/my photo(1).png": "cat"}
    with pytest.raises(ElfsError, match="is not a usable image"):
        read_labels(file, ["x/my photo(1).png", "y/my photo(1).png"])


def test_a_plus_sign_in_a_url_need_not_be_encoded(tmp_path: Path):
    file = tmp_path / "labels.csv"
    file.write_text(f"path,label\n{LOCAL_FILES}photos/a+b.png,cat\n")
    for known in ("a+b.png", "a b.png"):
        assert read_labels(file, [known], folder="photos").given == {known: "cat"}


def test_classes_that_look_the_same_are_the_same(tmp_path: Path):
    file = tmp_path / "labels.csv"
    spellings = ["caf\u00e9 au lait", "cafe\u0301 au  lait", "caf\u00e9\u00a0au\u200b lait "]
    rows = [f"{number}.png,{label}" for number, label in enumerate(spellings)]
    file.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert set(read_labels(file, None).given.values()) == {"caf\u00e9 au lait"}


def test_names_of_classes_may_have_commas(tmp_path: Path, monkeypatch, capsys):
    files = small_list(tmp_path)
    classes = ["salt, pepper", "cafe\u0301"] * 6
    typed = pd.read_csv(files.csv).assign(label=classes)
    typed.to_csv(files.csv, index=False)
    names = '"salt, pepper", caf\u00e9'
    assert run_cli(monkeypatch, "labels", "import", files.csv, "--names", names) == 0
    assert set(stored_labels(files).values()) == {"salt, pepper", "caf\u00e9"}


def test_tasks_come_back_as_they_went(tmp_path: Path):
    frame = pd.DataFrame({"rank": [1, 2], "path": [NASTY, "b, c/3.png"]})
    sent = json.loads(json.dumps(tasks(frame, "photos")))
    assert sent[0]["data"]["image"].startswith(LOCAL_FILES) and " " not in sent[1]["data"]["image"]
    done = [{"value": {"choices": ["cat"]}}]
    for task in sent:
        del task["data"]["path"]  # whoever labels may have kept the URL alone
        task["annotations"] = [{"result": done}]
    (tmp_path / "export.json").write_text(json.dumps(sent))
    back = read_labels(tmp_path / "export.json", frame["path"], folder="photos")
    assert list(back.given) == [NASTY, "b, c/3.png"]


def test_the_round_trip_keeps_labels_and_never_asks_twice(
    folder: Path, made: ListFiles, tmp_path: Path, monkeypatch, capsys
):
    files = ListFiles(made.csv)
    monkeypatch.chdir(made.csv.parent)
    listed = pd.read_csv(files.csv)
    listed.assign(label=listed["path"].map(truth)).to_csv(tmp_path / "labels.csv", index=False)
    assert run_cli(monkeypatch, "evaluate", "--next", 0) == 2
    assert "labels import" in capsys.readouterr().err

    assert run_cli(monkeypatch, "labels", "import", tmp_path / "labels.csv") == 0
    assert "20 labels read" in capsys.readouterr().out
    assert stored_labels(files) == dict(
        zip(listed["path"], map(truth, listed["path"]), strict=True)
    )

    assert run_cli(monkeypatch, "evaluate", "--folds", 4, "--next", 15, "--no-report") == 0
    out = capsys.readouterr().out
    assert "4-fold cross-validation" in out and "standard deviation" in out
    batch = pd.read_csv(files.next.csv)
    assert len(batch) == 15 and not set(batch["path"]) & set(listed["path"])
    assert not files.next.html.exists()
    again = open_choice(files.next.record)
    assert list(again.listed["path"]) == list(batch["path"])
    assert list(again.budgets["budget"]) == [15]
    assert find_list(None, files.next.csv).csv == files.csv  # labels go to the first
    first = min(folder.glob("sort0/*")).relative_to(folder).as_posix()
    same = {"copy.png", "again.bmp", NASTY, first}
    assert len(same & {*batch["path"], *listed["path"]}) <= 1
    predictions = pd.read_csv(files.predictions, keep_default_na=False)
    assert len(predictions) == 123 and (predictions["given"] != "").sum() == 20
    right = predictions["label"] == predictions["path"].map(truth)
    assert right.mean() > 0.8  # three easy digits, by a linear model

    # the second batch is labelled, one image otherwise than before
    batch.assign(label=batch["path"].map(truth)).to_csv(tmp_path / "more.csv", index=False)
    import_labels(files, tmp_path / "more.csv")
    assert len(stored_labels(files)) == 35
    (tmp_path / "other.csv").write_text(f"path,label\n{batch['path'][0]},other\n")
    with pytest.raises(ElfsError, match="before"):
        import_labels(files, tmp_path / "other.csv")
    with pytest.raises(ElfsError, match="made for 3"):
        import_labels(files, tmp_path / "other.csv", replace_old=True)
    with pytest.raises(ElfsError, match="did you mean 'others'"):
        import_labels(files, tmp_path / "other.csv", names=["others"], replace_old=True)
    assert len(stored_labels(files)) == 35

    # choosing again leaves out what has a label; only which images have one plays a part
    store = read_record(files.record).store
    choice = make_list(folder, files, Request(3, 20, overrides=TINY), store)
    assert not set(choice.listed["path"]) & set(stored_labels(files))
    assert (choice.rest["kind"] == "labelled").sum() == 35
    with pytest.raises(ElfsError, match="above the 88 images that have no label"):
        make_list(folder, files, Request(3, 100, overrides=TINY), store)


def test_the_assessment_says_which_labels_it_opened_and_repeats_itself(made: ListFiles, tmp_path):
    listed = pd.read_csv(made.csv)
    frame = listed.assign(label=listed["path"].map(truth))[["path", "label"]]
    other = ListFiles(made.csv.parent / "other.csv")
    for suffix in ("csv", "rest.csv", "run.json"):
        source = made.csv if suffix == "csv" else made.beside(suffix)
        (other.csv if suffix == "csv" else other.beside(suffix)).write_bytes(source.read_bytes())
    frame.to_csv(tmp_path / "labels.csv", index=False)
    import_labels(other, tmp_path / "labels.csv")
    assessment, choice = evaluate(other, folds=3, batch=0)
    assert choice is None
    labels = assessment.artifact.manifest["labels"]
    assert labels == {"policy": "evaluation", "opened": ["train:evaluation"]}
    table = assessment.accuracies
    photos = open_choice(other.record).photos
    labels = dict(zip(frame["path"], frame["label"], strict=True))
    with pytest.raises(ElfsError, match="not in the folder"):
        assess(photos, labels | {"gone.png": "sort0"})
    assert table["images"].sum() == len(frame) and np.ptp(table["images"]) <= 1
    assert table[[NETWORK, LINEAR]].stack().between(0, 100).all()
    for folds in (1, 200):
        with pytest.raises(ElfsError, match="folds"):
            evaluate(other, folds=folds, batch=0)


def small_list(
    root: Path, count: int = 40, budget: int = 12, copies: int = 1, **asked: object
) -> ListFiles:
    """A list of pictures, each of which is there several times."""
    (root / "photos").mkdir()
    for number in range(count * copies):
        picture(number % count).save(root / "photos" / f"{number:03}.png")
    files = ListFiles(root / "list.csv")
    request = Request(2, budget, overrides=TINY, **asked)
    make_list(root / "photos", files, request, Store(root / "store"))
    return files


def give(files: ListFiles, labels: dict[str, str], names: Sequence[str] = ()) -> None:
    source = files.csv.with_name("given.csv")
    pd.DataFrame(labels.items(), columns=["path", "label"]).to_csv(source, index=False)
    import_labels(files, source, names=names)


def test_a_class_that_only_tests_is_never_right(tmp_path: Path):
    files = small_list(tmp_path, holdout=6)
    held = pd.read_csv(files.holdout)["path"].tolist()
    listed = pd.read_csv(files.csv)["path"].tolist()
    labels = {path: "ab"[i % 2] for i, path in enumerate(listed)} | dict.fromkeys(held, "c")
    give(files, labels, names=["a", "b", "c"])
    assessment, _ = evaluate(files, folds=3, batch=0)
    assert assessment.learning["accuracy"].tolist() == [0.0] * 3
    assert assessment.classes == {"a": 6, "b": 6} and assessment.tested == 6


def test_the_assessment_trains_as_the_parameters_say(tmp_path: Path, monkeypatch):
    files = small_list(tmp_path)
    give(files, {path: "ab"[i % 2] for i, path in enumerate(pd.read_csv(files.csv)["path"])})
    photos, labels = open_choice(files.record).photos, stored_labels(files)
    trainings = []

    def record(*args: object, **options: object) -> object:
        trainings.append((args[3].batch, options["shuffle"], args[4].steps))
        return train(*args, **options)

    monkeypatch.setattr(assessing, "train", record)
    recipe = find_recipe(photos.run.params.eval_recipe)
    plain = assess(photos, labels, folds=2).artifact
    assert {*trainings} == {(recipe.batch, "full", photos.run.params.eval_steps)}
    assert plain.manifest["params"].keys() == {
        *("labels", "tests", "copies", "folds", "seed"),
        *("recipe", "steps", "flip", "crop_pad", "precision"),
    }
    keys = {plain.key}
    for change in ({"shuffle": "blocks"}, {"eval_batch": 5}, {"eval_steps": 3}, {"flip": True}):
        other = photos.with_params(photos.run.params.model_copy(update=change))
        keys.add(assess(other, labels, folds=2).artifact.key)
    assert len(keys) == 5
    steps = photos.run.params.eval_steps
    assert trainings[2::2] == [
        (recipe.batch, "blocks", steps),
        (5, "full", steps),
        (recipe.batch, "full", 3),
        (recipe.batch, "full", steps),
    ]


def test_folds_keep_copies_together(tmp_path: Path):
    files = small_list(tmp_path, copies=2)
    coin = np.random.default_rng(0).integers(0, 2, 40)
    give(files, {f"{number:03}.png": "ab"[coin[number % 40]] for number in range(80)})
    assessment, _ = evaluate(files, folds=4, batch=0)
    assert assessment.accuracies["images"].tolist() == [20] * 4
    assert assessment.accuracies[LINEAR].mean() < 75  # labels by chance, which copies would tell
    assert not assessment.notes
    stored = stored_labels(files)
    files.labels.unlink()
    give(files, stored | {"050.png": "ba"["ab".index(stored["050.png"])]})
    said = []
    evaluate(files, folds=4, batch=0, say=said.append)
    assert sum("010.png is" in line and "050.png is" in line for line in said) == 1
    with pytest.raises(ElfsError, match="of 40 different images"):
        evaluate(files, folds=50, batch=0)


def test_the_last_batch_is_as_long_as_there_are_images(tmp_path: Path):
    files, said = small_list(tmp_path), []
    paths = [*pd.read_csv(files.csv)["path"], *pd.read_csv(files.rest)["path"]]
    give(files, {path: "ab"[number % 2] for number, path in enumerate(paths[:39])})
    _, choice = evaluate(files, folds=3, say=said.append)
    assert choice.listed["path"].tolist() == [paths[39]]
    assert any("cross-validation" in line for line in said)
    assert any(re.search(r"no label.*\b1\b", line) for line in said)
    give(files, {paths[39]: "a"})
    assert evaluate(files, folds=3, say=said.append)[1] is None


def test_a_labelled_image_that_is_gone_plays_no_part(tmp_path: Path):
    files, said = small_list(tmp_path), []
    give(files, {path: "ab"[i % 2] for i, path in enumerate(pd.read_csv(files.csv)["path"])})
    gone = pd.read_csv(files.csv)["path"][0]
    (tmp_path / "photos" / gone).unlink()
    request = read_record(files.record).request
    make_list(tmp_path / "photos", files, request, Store(tmp_path / "store"))
    assessment, _ = evaluate(files, folds=3, batch=0, say=said.append)
    assert sum(assessment.classes.values()) == 11 and len(stored_labels(files)) == 12
    assert any("1 of the labels" in line and gone in line for line in said)


def test_labels_are_neither_lost_nor_mixed(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    listed = pd.read_csv(files.csv)
    typed = listed.assign(label=[*"ab" * 6])
    typed.to_csv(files.csv, index=False)
    with pytest.raises(ElfsError, match="holds labels that were not imported"):
        make_list(tmp_path / "photos", files, request, store)
    pd.testing.assert_frame_equal(pd.read_csv(files.csv), typed)
    import_labels(files, files.csv)
    make_list(tmp_path / "photos", files, request, store)
    fill(tmp_path / "others", 40)
    with pytest.raises(ElfsError, match="holds labels of images in .*photos"):
        make_list(tmp_path / "others", files, request, store)
    (tmp_path / "photos").rename(tmp_path / "moved")
    make_list(tmp_path / "moved", files, request, store)
    evaluate(files, folds=3, batch=4)
    pd.read_csv(files.next.csv).assign(label="a").to_csv(files.next.csv, index=False)
    with pytest.raises(ElfsError, match="next.csv holds labels"):
        evaluate(files, folds=3, batch=4)
    with pytest.raises(ElfsError, match="next.csv holds labels"):
        make_list(tmp_path / "moved", files, request, store)
    files.next.csv.unlink()
    files.record.write_text("{}")  # damaged: choosing again repairs it
    make_list(tmp_path / "moved", files, request, store)
    assert read_record(files.record).count == 12 and len(stored_labels(files)) == 12


@pytest.mark.parametrize(
    "column, label, encoding, message",
    [
        ("label", "M\u00f6hre", "cp1252", "CSV UTF-8"),  # as Excel saves plain CSV
        ("animal", "cat", "utf-8", "column 'label'"),
    ],
)
def test_a_list_that_cannot_be_understood_is_not_written_over(
    tmp_path: Path, column: str, label: str, encoding: str, message: str
):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    make_list(tmp_path / "photos", files, request, store)  # without labels it is made again
    typed = pd.read_csv(files.csv).assign(**{column: label})
    typed.to_csv(files.csv, index=False, encoding=encoding)
    before = files.csv.read_bytes()
    with pytest.raises(ElfsError, match=f"may hold labels, which would be lost .*{message}"):
        make_list(tmp_path / "photos", files, request, store)
    assert files.csv.read_bytes() == before


@pytest.mark.parametrize("header", ["", ","])
def test_a_label_in_a_column_without_a_name_is_not_lost(tmp_path: Path, header: str):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    first, *rows = files.csv.read_text().splitlines()
    files.csv.write_text("\n".join([first + header, rows[0] + ",cat", *rows[1:]]) + "\n")
    with pytest.raises(ElfsError, match="may hold labels"):
        make_list(tmp_path / "photos", files, request, store)


def test_imported_labels_do_not_stand_in_the_way_however_a_path_is_spelt(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    listed = pd.read_csv(files.csv).assign(label=[*"ab" * 6])
    listed.assign(path="./" + listed["path"]).to_csv(files.csv, index=False)
    import_labels(files, files.csv)
    make_list(tmp_path / "photos", files, request, store)
    assert len(stored_labels(files)) == 12


def test_labels_go_to_the_list_in_which_they_stand(tmp_path: Path, monkeypatch):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    pd.read_csv(files.csv).assign(label=[*"ab" * 6]).to_csv(files.csv, index=False)
    with pytest.raises(ElfsError, match=r"labels import \S*list.csv --list \S*list.csv first"):
        make_list(tmp_path / "photos", files, request, store)
    following = files.csv.with_name("list.next.csv")
    for named, source in ((None, files.csv), (None, following), (following, None)):
        assert find_list(named, source).csv == files.csv
    with pytest.raises(ElfsError, match="name of the next batch of another list"):
        make_list(tmp_path / "photos", ListFiles(following), request, store)
    other = tmp_path / "given.csv"
    assert find_list(files.csv, other).csv == files.csv
    assert find_list(other, files.csv).csv == other  # what is named wins
    monkeypatch.chdir(tmp_path)
    assert find_list(None, other).csv == Path("to_label.csv")


def test_an_older_batch_does_not_stand_beside_a_new_list(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    batch = (files.next.csv, files.next.tasks, files.next.rest, files.next.record)

    def label(file: Path) -> None:
        frame = pd.read_csv(file)
        frame.assign(label=["a", "b"] * (len(frame) // 2)).to_csv(file, index=False)
        import_labels(files, file)

    label(files.csv)
    evaluate(files, folds=3, batch=10)
    assert all(file.exists() for file in batch)
    waiting, said = files.next.csv.read_text(), []
    make_list(tmp_path / "photos", files, request, store, say=said.append)
    assert not any(file.exists() for file in batch)
    kept = files.csv.with_name("list.next.kept1.csv")  # somebody may be labelling it
    assert kept.read_text() == waiting and any(str(kept) in line for line in said)
    assert find_list(None, kept).csv == files.csv
    label(files.csv)
    evaluate(files, folds=3, batch=0)
    while evaluate(files, folds=3, batch=10, say=said.append)[1]:
        label(files.next.csv)
    assert said[-1].endswith("has a label: there is no next batch.")
    assert not any(file.exists() for file in batch)


def test_a_list_that_is_not_labelled_is_kept(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    first = files.csv.read_text()
    make_list(tmp_path / "photos", files, request, store)  # the same list again
    assert not list(tmp_path.glob("*kept*"))
    make_list(tmp_path / "photos", files, replace(request, budget=6), store)
    assert (tmp_path / "list.kept1.csv").read_text() == first
    import_labels(files, _labelled(tmp_path / "list.kept1.csv"))
    make_list(tmp_path / "photos", files, request, store)
    evaluate(files, folds=3, batch=4)
    batch = files.next.csv.read_text()
    evaluate(files, folds=3, batch=6)
    assert (tmp_path / "list.next.kept1.csv").read_text() == batch


def _labelled(file: Path) -> Path:
    frame = pd.read_csv(file)
    labelled = file.with_name("given.csv")
    frame.assign(label=["a", "b"] * (len(frame) // 2)).to_csv(labelled, index=False)
    return labelled


def test_what_the_model_says_is_no_label(tmp_path: Path):
    files = small_list(tmp_path)
    pd.read_csv(files.csv).assign(label=[*"ab" * 6]).to_csv(files.csv, index=False)
    import_labels(files, files.csv)
    evaluate(files, folds=3, batch=0)
    with pytest.raises(ElfsError, match="what the model says"):
        import_labels(files, files.predictions)
    assert len(stored_labels(files)) == 12


def test_labels_of_images_that_are_gone_take_no_room(tmp_path: Path):
    files = small_list(tmp_path)
    pd.read_csv(files.csv).assign(label=[*"ab" * 6]).to_csv(files.csv, index=False)
    import_labels(files, files.csv)
    record = read_record(files.record)
    pruned = {**record.request.overrides, "hard_prune_ratio": 0.2}
    left = set(record.paths) - set(stored_labels(files))
    request = replace(record.request, budget=len(left) + 1, overrides=pruned)
    with pytest.raises(ElfsError, match=rf"above the {len(left)} images\b"):
        make_list(tmp_path / "photos", files, request, record.store)
    for path in stored_labels(files):
        (tmp_path / "photos" / path).unlink()
    budget = round(0.75 * len(left))  # and a fifth is pruned
    choice = make_list(tmp_path / "photos", files, replace(request, budget=budget), record.store)
    assert len(choice.listed) == budget


def test_a_budget_counts_copies_of_labelled_images_as_labelled(tmp_path: Path):
    files = small_list(tmp_path, copies=2)
    pd.read_csv(files.csv).assign(label=[*"ab" * 6]).to_csv(files.csv, index=False)
    import_labels(files, files.csv)
    record = read_record(files.record)
    with pytest.raises(ElfsError, match=r"30 is above .*\b28\b"):
        make_list(tmp_path / "photos", files, replace(record.request, budget=30), record.store)


def test_a_list_among_the_images_is_no_file_of_theirs(tmp_path: Path):
    fill(tmp_path / "photos", 40)
    for name in ("notes.txt", "list.notes.txt"):
        (tmp_path / "photos" / name).write_text("mine")
    files = ListFiles(tmp_path / "photos" / "list.csv")
    found = [make_list(tmp_path / "photos", files, Request(2, 12, overrides=TINY), Store(tmp_path))]
    give(files, {path: "ab"[n % 2] for n, path in enumerate(pd.read_csv(files.csv)["path"])})
    (tmp_path / "photos" / "given.csv").unlink()
    for page in (files.html, files.next.html):
        page.touch()
    found += [
        evaluate(files, folds=3)[1],
        open_choice(files.record),
        open_choice(files.next.record),
    ]
    for choice in found:
        odd = choice.files[choice.files["kind"] == "not_an_image"]
        assert list(odd["path"]) == ["list.notes.txt", "notes.txt"]


def test_there_is_none_to_list_when_each_has_a_label(tmp_path: Path):
    files = small_list(tmp_path)
    record = read_record(files.record)
    give(files, {path: "ab"[number % 2] for number, path in enumerate(record.paths)})
    with pytest.raises(ElfsError, match="40 images"):
        make_list(tmp_path / "photos", files, record.request, record.store)


def test_an_older_report_and_the_files_of_others_do_not_stand_beside_a_list(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    files.html.write_text("of an older list")
    make_list(tmp_path / "photos", files, request, store)
    assert not files.html.exists()
    own = ListFiles(tmp_path / "mine.csv")
    own.html.write_text("my own page")
    with pytest.raises(ElfsError, match=r"mine.html is there already"):
        make_list(tmp_path / "photos", own, request, store)
    assert own.html.read_text() == "my own page"


def test_a_quotation_that_does_not_end_swallows_no_labels(tmp_path: Path):
    (tmp_path / "given.csv").write_text('path,label\n1.png,frog\n2.png,"frog\n3.png,cat\n')
    with pytest.raises(ElfsError, match="line 4: a label goes over several lines"):
        read_labels(tmp_path / "given.csv", None)


def test_absolute_paths_into_the_folder_are_known(tmp_path: Path):
    (tmp_path / "given.csv").write_text(f"path,label\n{tmp_path}/photos/a b/1.png,cat\n")
    options = {"folder": "photos", "root": tmp_path / "photos"}
    assert read_labels(tmp_path / "given.csv", ["a b/1.png"], **options).given == {
        "a b/1.png": "cat"
    }
    with pytest.raises(ElfsError, match="not a usable image"):
        read_labels(tmp_path / "given.csv", ["a b/1.png"], root=tmp_path / "others")


def test_a_class_too_many_is_named_with_its_image(tmp_path: Path):
    files = small_list(tmp_path)
    paths = pd.read_csv(files.csv)["path"]
    labels = dict(zip(paths, ["cat", "dog"] * 6, strict=True)) | {paths[7]: "catt"}
    with pytest.raises(ElfsError, match=f"3 classes .*'catt', of image {paths[7]!r}"):
        give(files, labels)


def test_what_cannot_work_is_said_before_the_work(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Run, "embeddings", property(lambda self: pytest.fail("it worked")))
    digits = np.zeros((40, 1, 8, 8), np.uint8)
    for wrong, words in (
        ({"neighbors": 40}, "'neighbors' is 40 but there are only 40 images"),
        ({"temi_pca": 50}, "'temi_pca' is 50 but there are only 40"),
        ({"hard_prune_ratio": 0.9}, "hard_prune_ratio 0.9 and a budget of 12"),
        ({"device": "cuda:7"}, "cuda"),
        ({"image_size": 16}, "'image_size' is for files"),
        ({"balanced": "no"}, "balanced is 'no'"),
    ):
        with pytest.raises(ElfsError, match=words):
            own_images.select(digits, classes=2, budget=12, encoder="pixels", **wrong)


@pytest.mark.parametrize("shape", [(3, 40), (40, 6), (8, 96)])
def test_images_need_not_be_square(shape: tuple[int, int]):
    images = np.random.default_rng(0).integers(0, 255, (40, 1, *shape), dtype=np.uint8)
    options = {"encoder": "pixels", "temi_heads": 2, "temi_epochs": 2, "search_steps": 2}
    chosen = own_images.select(images, classes=2, budget=10, seed=np.int64(3), **options)
    assert len(chosen) == 10


def test_a_label_that_was_mended_in_the_list_is_not_lost(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    typed = pd.read_csv(files.csv).assign(label=[*"ab" * 6])
    typed.to_csv(files.csv, index=False)
    import_labels(files, files.csv)
    typed.assign(label=["b", *typed["label"][1:]]).to_csv(files.csv, index=False)
    with pytest.raises(ElfsError, match="were not imported"):
        make_list(tmp_path / "photos", files, request, store)
    import_labels(files, files.csv, replace_old=True)
    make_list(tmp_path / "photos", files, request, store)
    assert stored_labels(files)[typed["path"][0]] == "b"


def test_the_list_may_be_cut_short_or_saved_otherwise(tmp_path: Path):
    files = small_list(tmp_path)
    whole = pd.read_csv(files.csv).assign(label=[*"ab" * 6])
    whole.iloc[:3].to_csv(files.csv, index=False, sep=";")
    import_labels(files, files.csv)
    full = files.csv.with_name("full.csv")
    whole[["path", "label"]].to_csv(full, index=False)
    import_labels(files, full)
    assert len(stored_labels(files)) == 12
    files.rest.unlink()
    with pytest.raises(ElfsError, match="'A' and 'a' differ in capitals"):
        give(files, {next(iter({f"{n:03}.png" for n in range(40)} - {*whole["path"]})): "A"})


def test_labels_of_a_folder_that_is_gone_are_not_given_to_other_images(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    give(files, {path: "ab"[i % 2] for i, path in enumerate(pd.read_csv(files.csv)["path"])})
    (tmp_path / "photos").rename(tmp_path / "old")
    fill(tmp_path / "new", 80)
    for number in range(40):  # other pictures under the same names
        (tmp_path / "new" / f"{number + 40:03}.png").rename(tmp_path / "new" / f"{number:03}.png")
    with pytest.raises(ElfsError, match="photos.*gone.*new"):
        make_list(tmp_path / "new", files, request, store)


def test_files_beside_the_images_come_and_go(tmp_path: Path):
    files = small_list(tmp_path)
    request, store = read_record(files.record).request, Store(tmp_path / "store")
    made = {path.name for path in (tmp_path / "store" / "embeddings").iterdir()}
    (tmp_path / "photos" / ".DS_Store").write_text("x")
    (tmp_path / "photos" / "movie.heic").write_text("x")
    for photo in (tmp_path / "photos").glob("*.png"):
        photo.touch()  # read again
    open_choice(files.record)
    choice = make_list(tmp_path / "photos", files, request, store)
    kinds = dict(zip(choice.files["path"], choice.files["kind"], strict=True))
    assert kinds == {".DS_Store": "hidden", "movie.heic": "unsupported"}
    assert {*pd.read_csv(files.rest)["path"]} > {".DS_Store", "movie.heic"}
    assert {path.name for path in (tmp_path / "store" / "embeddings").iterdir()} == made
    (tmp_path / "photos" / "movie.heic").unlink()
    choice = make_list(tmp_path / "photos", files, request, store)
    assert choice.files["path"].tolist() == [".DS_Store"]


def test_a_hard_prune_ratio_by_hand(tmp_path: Path):
    fill(tmp_path / "photos", 60)
    files, said = ListFiles(tmp_path / "list.csv"), []
    request = Request(2, 18, overrides=TINY | {"hard_prune_ratio": 0.5})
    store = Store(tmp_path / "store")
    assert make_list(tmp_path / "photos", files, request, store).hard_prune_ratio == 0.5
    give(files, {path: "ab"[i % 2] for i, path in enumerate(pd.read_csv(files.csv)["path"])})
    _, choice = evaluate(files, folds=3, say=said.append)
    assert len(choice.listed) == 12  # 30 of the 60 are left, and 18 of them are labelled
    assert any(re.search(r"50%.*\b12\b", line) for line in said)


def test_a_folder_may_be_named_by_a_link_or_from_home(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "DCIM", 40)
    (tmp_path / "photos").symlink_to(tmp_path / "DCIM")
    files, store = ListFiles(tmp_path / "list.csv"), Store(tmp_path / "store")
    make_list(Path("~/photos"), files, Request(2, 6, overrides=TINY), store)
    assert read_record(files.record).named == "photos"
    sent = json.loads(files.tasks.read_text())
    assert all(task["data"]["image"].startswith(LOCAL_FILES + "photos/") for task in sent)
    run = read_images("~/photos", read_record(files.record).request, store).run
    assert run.params.data_path == str(tmp_path / "photos")


def test_a_folder_that_was_copied_is_the_same_folder(tmp_path: Path):
    (tmp_path / "one").mkdir()
    files = small_list(tmp_path / "one")
    give(files, {path: "ab"[i % 2] for i, path in enumerate(pd.read_csv(files.csv)["path"])})
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    os.utime(tmp_path / "two" / "photos" / "000.png", (1, 1))
    there = ListFiles(tmp_path / "two" / "list.csv")
    first, second = evaluate(files, folds=3, batch=5)[1], evaluate(there, folds=3, batch=5)[1]
    assert first.listed["path"].tolist() == second.listed["path"].tolist()


def test_a_folder_that_changed_is_noticed(tmp_path: Path):
    fill(tmp_path / "photos", 40)
    files = ListFiles(tmp_path / "list.csv")
    make_list(tmp_path / "photos", files, Request(2, 6, overrides=TINY), Store(tmp_path / "store"))
    picture(50).save(tmp_path / "photos" / "new.png")
    embedded = list((tmp_path / "store" / "embeddings").iterdir())
    with pytest.raises(ElfsError, match="have changed"):
        open_choice(files.record)
    assert list((tmp_path / "store" / "embeddings").iterdir()) == embedded  # before the long work
    files.record.write_text("{}")
    with pytest.raises(ElfsError, match="missing or damaged"):
        open_choice(files.record)


# --- pages and packages --------------------------------------------------------------------------


def test_tables_and_captions_keep_text_and_break_paths_between_their_parts():
    files = pd.DataFrame(
        {
            "kind": ["broken_link"] * 23 + ["duplicates"],
            "path": [f"a/IMG_{i:02}.png" for i in range(22)] + [NASTY, "b.png"],
            "meaning": ["links to nothing"] * 23 + ["the same bytes as another file"],
            "used": [False] * 23 + [True],
            "same_as": [""] * 23 + ["a.png"],
        }
    )
    kinds = gallery.file_kinds(files)
    assert kinds["kind"].tolist() == ["broken link", "duplicates"]
    assert kinds["files"].tolist() == [23, 1] and kinds["used"].tolist() == ["no", "yes"]
    assert kinds["paths"][0].endswith("a/IMG_19.png and 3 more")
    assert kinds["what"][1] == "the same bytes as another file"
    assert kinds["paths"][1] == "b.png (as a.png)"
    html = gallery.table(gallery.file_kinds(files.tail(2)))
    assert "<script" not in html and "&lt;script&gt;alert(&#x27;x&#x27;)&lt;&amp;.png" in html
    grid = gallery.pictures(np.zeros((1, 3, 8, 8), np.uint8), [("1 of 2", "a/<b>_1.png")])
    assert 'alt="a/&lt;b&gt;_1.png"' in grid
    # a name moves to the next line as a whole, and breaks itself only after its own _ and -
    assert re.search(r"a/<wbr><span[^>]*inline-block[^>]*>&lt;b&gt;_<wbr>1.png</span>", grid)


def test_images_are_sorted_under_headings_and_filtered_by_kind_without_a_script():
    pixels = np.zeros((3, 1, 8, 8), np.uint8)
    captions = [("a.png",), ("b.png",), ("c.png",)]
    grid = gallery.pictures(pixels, captions, groups=[2, 0, 2], kinds=["copy", "", "too_hard"])
    places = {name: int(place) for place, name in re.findall(r"--group:(\d+).*?alt=\"(.)", grid)}
    heads = {name: int(p) for p, name in re.findall(r"--group:(\d+)\">class (\d)", grid)}
    order = sorted({**places, **heads}, key={**places, **heads}.get)
    assert order == ["0", "b", "2", "a", "c"]
    assert re.findall(r'data-kind="(\w+)"', grid) == ["copy", "too_hard"]
    assert "--group" not in gallery.pictures(pixels, captions)
    page = gallery.kind_filter({"copy": "Copies", "too_hard": "Too <hard>"})
    assert page.count('type="radio"') == 3 and page.count("checked>") == 1
    assert "#only-copy:checked) figure[data-kind]:not([data-kind=copy]){display:none}" in page
    assert "Too &lt;hard&gt;" in page and "<script" not in page + gallery.group_switch()


def test_encoders_are_listed_with_what_they_saw_and_their_licence(monkeypatch, capsys):
    assert run_cli(monkeypatch, "encoders") == 0
    lines = capsys.readouterr().out.splitlines()
    for line, (name, entry) in zip(lines, encoders.ENCODERS.items(), strict=True):
        assert line.split()[0] == name and entry.pretraining and entry.license
        assert line.endswith(f"{entry.pretraining} ({entry.license})")
        assert ("saw labels" if entry.saw_labels else "no labels") in line


@pytest.mark.slow
def test_the_report_holds_everything_and_file_names_stay_text(
    folder: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(folder.parent / "artifacts"))
    words = ("select", folder, "--classes", 3, "--budget", 20, "--out", "list.csv", *options())
    words += ("--method", "elfs")
    assert run_cli(monkeypatch, *words) == 0
    page = (tmp_path / "list.html").read_text()
    assert "<script" not in page.lower()
    assert "&lt;script&gt;alert" in page
    assert not re.findall(r"""src=["'](?!data:)""", page)
    links = {unquote(link) for link in re.findall(r'href="([^"#]+)"', page)}
    assert links and all((tmp_path / link).is_file() for link in links)
    assert {(tmp_path / link).resolve() for link in links} <= {*folder.rglob("*")}
    assert "least like their own nearest" in page and "outlier" not in page.lower()
    assert str(tmp_path) not in page and str(folder) not in page
    assert "In common is the share" in page
    assert 'id="by-group"' in page and 'id="only-too_hard"' in page and "--group:" in page
    for heading in ("To label", "Too hard", "Copies", "Too easy", "Files left out", "Clusters"):
        assert heading in page
    listed = pd.read_csv("list.csv")
    assert page.index(listed["path"][0]) < page.index(listed["path"][19])

    listed.assign(label=listed["path"].map(truth)).to_csv("list.csv", index=False)
    assert run_cli(monkeypatch, "labels", "import", "list.csv") == 0
    assert run_cli(monkeypatch, "evaluate", "--list", "list.csv", "--folds", 4, "--next", 15) == 0
    assert "list.next.html" in capsys.readouterr().out
    page, batch = Path("list.next.html").read_text(), pd.read_csv("list.next.csv")
    assert "15 of 123 images to label" in page and "20 labelled already" in page
    assert "Not compared for the next batch" in page and "In common is the share" not in page
    start, end = page.index("To label, in this order"), page.index("Not on the list")
    assert all(f'alt="{escape(path)}"' in page[start:end] for path in batch["path"])


def test_the_example_in_the_documentation_runs():
    results = doctest.testmod(own_images)
    assert results.attempted > 5 and not results.failed


def test_importing_the_package_stays_light():
    code = "import sys, elfs_lib; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("balanced", [True, False])
def test_beta_is_searched_in_the_order_of_the_list(balanced: bool, tmp_path: Path, monkeypatch):
    def search(self, budget, *, balanced):
        searched.append((budget, balanced))
        raise NotBuilt("as far as it goes here")

    searched = []
    monkeypatch.setattr(Run, "search", search)
    with pytest.raises(NotBuilt):
        Photos(Run(Params(), Store(tmp_path)), balanced=balanced).hard_prune_ratio(10)
    assert searched == [(10, balanced)]
    given = Params(hard_prune_ratio=0.1)
    photos = Photos(Run(given, Store(tmp_path)), balanced=balanced)
    assert photos.hard_prune_ratio(10) == 0.1
