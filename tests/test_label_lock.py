from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest

import elfs_lib
from elfs_lib.data.datasets import label_oracle, load_labels
from elfs_lib.data.decoding import read_ahead
from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import LabelLockError, LabelOracle, stage_lock

LABELS = {"train": np.array([3, 1, 4, 1], np.int32), "test": np.array([1, 5], np.uint8)}


def counting_oracle(has: tuple[str, ...] = ("train", "test")) -> tuple[LabelOracle, list[str]]:
    reads: list[str] = []

    def load(split: str) -> np.ndarray:
        reads.append(split)
        return LABELS[split]

    return LabelOracle(load, has), reads


def test_nothing_is_read_until_opened_and_each_split_is_read_once():
    oracle, reads = counting_oracle()
    assert reads == []
    first = oracle.open("train", purpose="analysis")
    assert first.dtype == np.int64 and first.tolist() == [3, 1, 4, 1]
    first[:] = 0  # a copy: the caller cannot change what the next one sees
    assert oracle.open("train", purpose="analysis").tolist() == [3, 1, 4, 1]
    assert reads == ["train"]
    assert oracle.opened == ["train:analysis"]


@pytest.mark.parametrize("purpose", ["analysis", "evaluation", "supervised"])
def test_label_free_stage_never_opens(purpose):
    oracle, reads = counting_oracle()
    with stage_lock("never", stage="double_end") as opened:
        with pytest.raises(LabelLockError, match="double_end is label-free"):
            oracle.open("train", purpose=purpose)
    assert reads == [] and opened == [] and oracle.opened == []


def test_a_thread_that_reads_ahead_for_a_stage_is_bound_by_its_lock():
    oracle, reads = counting_oracle()

    def items():
        yield 0
        yield oracle.open("train", purpose="analysis")

    with stage_lock("never", stage="embeddings"):
        ahead = read_ahead(items())
        assert next(ahead) == 0
        with pytest.raises(LabelLockError, match="embeddings is label-free"):
            next(ahead)
    assert reads == []


def test_labels_cached_before_a_label_free_stage_stay_shut_inside_it():
    oracle, _ = counting_oracle()
    oracle.open("train", purpose="analysis")
    with stage_lock("never", stage="temi"), pytest.raises(LabelLockError):
        oracle.open("train", purpose="analysis")


@pytest.mark.parametrize("policy", ["analysis", "evaluation", "supervised"])
def test_stage_opens_for_its_own_purpose_only_and_records_it(policy):
    oracle, _ = counting_oracle()
    others = {"analysis", "evaluation", "supervised"} - {policy}
    with stage_lock(policy, stage="s") as opened:
        for purpose in others:
            with pytest.raises(LabelLockError, match=f"for {policy} only, not for {purpose}"):
                oracle.open("test", purpose=purpose)
        for _ in range(2):
            oracle.open("test", purpose=policy)
        oracle.open("train", purpose=policy)
    assert opened == [f"test:{policy}", f"train:{policy}"]
    assert oracle.opened == opened


def test_outside_of_a_stage_only_analysis_opens():
    oracle, _ = counting_oracle()
    for purpose in ("evaluation", "supervised"):
        with pytest.raises(LabelLockError, match="run the"):
            oracle.open("train", purpose=purpose)
    assert oracle.open("test", purpose="analysis").tolist() == [1, 5]


def test_stages_nest_but_never_loosen():
    oracle, _ = counting_oracle()
    with stage_lock("never", stage="select"):
        with pytest.raises(LabelLockError, match="started inside select"):
            with stage_lock("analysis", stage="shift"):
                pass
        with stage_lock("never", stage="proxy"):
            pass
    with stage_lock("evaluation", stage="evaluate") as outer:
        with stage_lock("never", stage="select"), pytest.raises(LabelLockError, match="select"):
            oracle.open("train", purpose="evaluation")
        oracle.open("train", purpose="evaluation")
    assert outer == ["train:evaluation"]


def test_the_lock_opens_again_after_an_error():
    oracle, _ = counting_oracle()
    with contextlib.suppress(RuntimeError), stage_lock("never", stage="temi"):
        raise RuntimeError
    oracle.open("train", purpose="analysis")


def test_the_digest_follows_the_labels_and_stays_outside_of_label_free_stages():
    def oracle(last: int) -> LabelOracle:
        return LabelOracle(lambda split: np.array([0, 1, last]), ("train",))

    assert oracle(1).digest() == oracle(1).digest() != oracle(0).digest()
    one = oracle(1)
    one.digest()
    assert one.opened == []
    with stage_lock("never"), pytest.raises(LabelLockError, match="label-free"):
        one.digest()


def test_repr_never_shows_labels():
    oracle, _ = counting_oracle()
    oracle.open("train", purpose="analysis")
    assert repr(oracle) == "LabelOracle(has=('train', 'test'), opened=['train:analysis'])"


def test_unlabelled_split_is_one_clear_sentence():
    oracle, _ = counting_oracle(has=("train",))
    with pytest.raises(ElfsError, match="analysis needs labels: .* none for its test split"):
        oracle.open("test", purpose="analysis")


@pytest.mark.parametrize(
    "bad", [np.array([0.0, 1.0]), np.array([[0, 1]]), np.array([0, -1]), np.array(["a"])]
)
def test_labels_that_are_not_class_numbers(bad):
    with pytest.raises(ElfsError, match="one class number"):
        LabelOracle(lambda _: bad, ("train",)).open("train", purpose="analysis")


def test_wrong_names_are_named():
    oracle, _ = counting_oracle()
    with pytest.raises(ElfsError, match="did you mean 'train'"):
        oracle.open("trian", purpose="analysis")
    with pytest.raises(ElfsError, match="did you mean 'analysis'"):
        oracle.open("train", purpose="analisys")
    with pytest.raises(ElfsError, match="label policy"), stage_lock("nevr"):
        pass


def test_oracle_of_a_dataset():
    oracle = label_oracle("digits")
    assert oracle.has == ("train", "test")
    assert np.array_equal(oracle.open("test", purpose="analysis"), load_labels("digits", "test"))


def test_only_the_oracle_loads_labels():
    callers = [
        file.name
        for file in Path(elfs_lib.__file__).parent.rglob("*.py")
        if re.search(r"(?<!def )load_labels\(", file.read_text())
    ]
    assert callers == ["datasets.py"]
