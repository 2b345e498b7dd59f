"""What pages say in words has the numbers that they show, and claims no more."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from elfs_lib.artifacts import Store
from elfs_lib.embedding.neighbors import Neighbors
from elfs_lib.results import sentences
from elfs_lib.results.evaluation import paired_difference, results_table
from elfs_lib.stages import Run


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"[-+]?\d[\d,]*\.?\d*", text)]


def test_run_time_counts_each_stage_and_its_inputs_once(tmp_path):
    store = Store(tmp_path)
    first = store.run("first", lambda draft: draft.fact(device="a"), version=1, params={})
    twins = [
        store.run("twin", lambda d: None, version=1, params={"n": n}, inputs={"first": first})
        for n in (1, 2)
    ]
    store.run("unused", lambda draft: None, version=1, params={})
    seconds = {"first": 100.0, "twin": 30.0, "unused": 500.0}
    for artifact in store.artifacts():
        manifest = artifact.folder / "manifest.json"
        text = re.sub(r'"wall_s": [\d.]+', f'"wall_s": {seconds[artifact.stage]}',
                      manifest.read_text())  # fmt: skip
        manifest.write_text(text)
    known = {artifact.key: artifact for artifact in store.artifacts()}
    said = sentences.run_time(store, [known[twin.key] for twin in (*twins, twins[0])])
    assert "2.7 min on a" in said and "first 100.0 s, twin 60.0 s (2 of them)" in said


def test_neighbors_are_judged_only_with_labels():
    found = Neighbors(np.array([[1, 2], [0, 3], [3, 0], [2, 1]]), np.ones((4, 2)))
    said = sentences.neighbors(found, np.array([0, 0, 1, 1]), 2)
    # each image has one neighbour of its class, and of a tie the lower class is voted for
    assert numbers(said) == [2, 50.0, 50.0, 2, 50.0]
    assert not numbers(sentences.neighbors(found, None, 2))


def quality(**rows: float) -> pd.DataFrame:
    names = {"kmeans": "k-means", "lowest": "TEMI, lowest-loss head",
             "plain": "TEMI, plain mean of heads", "aligned": "TEMI, aligned mean of heads",
             "own": "spectral"}  # fmt: skip
    return pd.DataFrame({"accuracy": {names[name]: value for name, value in rows.items()}})


def test_pseudo_labels_are_compared_with_each_alternative():
    table = quality(kmeans=0.7, lowest=0.85, plain=0.5, aligned=0.8)
    facts = {"heads": 8, "own": "TEMI, aligned mean of heads"}
    said = sentences.pseudo_labels(table, clusters=10, classes=10, **facts)
    assert numbers(said) == [8, 80.0, 10.0, -5.0, 30.0]
    more = sentences.pseudo_labels(table, clusters=20, classes=10, **facts)
    assert numbers(more)[5:] == [20, 10]
    also = quality(kmeans=0.7, lowest=0.85, plain=0.5, aligned=0.8, own=0.7)
    assert sentences.pseudo_labels(also, clusters=10, classes=10, **facts) == said
    own = sentences.pseudo_labels(also, heads=8, clusters=10, classes=10, own="spectral")
    assert numbers(own)[5:] == [70, -10] and "spectral" in own
    assert not numbers(sentences.pseudo_labels(None, clusters=10, classes=10, **facts))


DECILES = pd.DataFrame({"error": [0.5, 0.2, 0.01]})


@pytest.mark.parametrize(
    ("gaps", "seen"),
    [([0.10, 0.11, 0.12], True), ([-0.1, 0.1, 0.12], False), ([-0.10, -0.11, -0.12], False)],
)
def test_a_shift_is_claimed_only_where_its_interval_is_above_zero(gaps: list, seen: bool):
    said = sentences.shift(DECILES, 0.66, np.array(gaps), -0.08)
    assert ("was seen here" in said, "not seen here" in said) == (seen, not seen)
    half = 4.302653 * np.std(gaps, ddof=1) / np.sqrt(3)
    low, high = 100 * (np.mean(gaps) - half), 100 * (np.mean(gaps) + half)
    assert numbers(said)[:5] == [50, 1, 0.66, pytest.approx(100 * np.mean(gaps), abs=0.06), -8.0]
    assert numbers(said)[-2:] == [pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06)]


def test_one_draw_has_no_interval():
    assert "interval" not in sentences.shift(DECILES, 0.66, np.array([0.1]), -0.08)


def test_double_end_pruning_adds_up(tiny_run: Run):
    said = sentences.double_end(
        tiny_run.coreset("elfs", 0.1, hard_prune_ratio=0.4), tiny_run.pseudo_labels, 10,
        score="aum", beta=0.4,
    )  # fmt: skip
    kept, total, beta, hard, easy, spanned, classes, least, most = numbers(said)[:9]
    assert (kept, total, beta, classes) == (144, tiny_run.n, 0.4, 10)
    assert hard == round(0.4 * tiny_run.n) and hard + kept + easy == total
    assert spanned <= 10 and least <= kept / 10 <= most


def results(**accuracies: list[float]) -> pd.DataFrame:
    return results_table(
        {"dataset": "digits", "method": method, "budget": 0.1, "count": 10, "seed": seed,
         "accuracy": accuracy, "seconds": 30.0, "train_flops": 1e12}
        for method, each in accuracies.items() for seed, accuracy in enumerate(each)
    )  # fmt: skip


def test_the_search_says_what_it_trained(tiny_params):
    own = tiny_params.model_copy(update={"search_steps": 1200})
    assert f"`{own.eval_recipe}`, the network trained" in sentences.searched_by(own)
    assert "1,200 steps" in sentences.searched_by(own)
    other = own.model_copy(update={"search_recipe": "speedrun", "eval_recipe": "resnet18"})
    assert "`speedrun`, a stand-in for `resnet18`, the network" in sentences.searched_by(other)


def test_the_verdict_is_that_of_the_interval():
    table = results(elfs=[90.0, 91.0, 92.5], random=[80.0, 81.5, 82.0], ccs=[95.0, 95.0, 95.0])
    paired = paired_difference(table, "elfs", "random")
    lines = sentences.evaluation_lines(table, paired, ["ccs"]).splitlines()
    assert len(lines) == 2 and "above" in lines[0] and "95.0%" in lines[1]
    alone = sentences.evaluation_lines(results(ccs=[95.0]), None, []).splitlines()
    assert len(alone) == 1 and numbers(alone[0]) == [95.0, 10]


def test_a_comparison_names_each_pair_once():
    table = results(elfs=[90.0, 91.0], random=[80.0, 81.5], moderate=[1.0, 2.0], ccs=[9.0, 9.5])
    said = sentences.comparison(table, ["random", "elfs", "moderate", "ccs"], ["ccs"]).splitlines()
    pairs = [tuple(re.match(r"- (.+) against (.+):", line).groups()) for line in said]
    assert pairs == [("ELFS", "Random"), ("Moderate", "Random"), ("CCS", "Random"),
                     ("ELFS", "Moderate")]  # fmt: skip
    assert len(sentences.comparison(table, ["moderate"], []).splitlines()) == 1


def test_trainings_are_counted():
    table = results(elfs=[90.0, 91.0], random=[80.0, 81.5])
    said = sentences.trainings(table, recipe="x", steps=60, epochs=None)
    assert numbers(said) == [4, 60, 4, 2.0, 2]
    assert "7 epochs" in sentences.trainings(table, recipe="x", steps=60, epochs=7)


def test_dynamics_and_images(tiny_run: Run):
    proxy, aum = tiny_run.proxies[0], tiny_run.scores["aum"].to_numpy()
    groups = np.array(["hard", "middle", "easy"])[np.arange(300) % 3]
    said = numbers(sentences.dynamics(proxy, aum, groups))
    last = proxy.array("curves")[-1]
    assert said[0] == 2  # epochs
    assert said[3:6] == [
        pytest.approx(last[groups == "easy"].mean(), abs=0.006),
        pytest.approx(last[groups == "hard"].mean(), abs=0.006),
        pytest.approx(100 * (aum < 0).mean(), abs=0.06),
    ]
    assert {1437.0, 8.0, 10.0} <= set(numbers(sentences.images(tiny_run)))
    facts = SimpleNamespace(encoder="x", pretraining="y", saw_labels=None)
    assert "not known" in sentences.encoder(vars(facts), 512)
