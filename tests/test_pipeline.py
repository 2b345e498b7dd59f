"""The whole pipeline on real images: what comes out, what is shared, what the lock allows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY

from elfs_lib.artifacts import Store
from elfs_lib.data import datasets
from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import LabelLockError
from elfs_lib.params import Params, read_yaml
from elfs_lib.results.tables import result_tables, write_results
from elfs_lib.runs import pipeline
from elfs_lib.runs.pipeline import LABELLED, NOTEBOOKS, notebooks_of
from elfs_lib.selection import METHODS, easiness
from elfs_lib.stages import Run

LABEL_FREE = [name for name, entry in METHODS.items() if not entry.supervised]


def coreset(run: Run, method: str, budget: float = 0.1) -> np.ndarray:
    return run.coreset(method, budget).table("coreset")["index"].to_numpy()


def test_every_stage_runs_and_a_second_run_does_no_work(tiny_run: Run, monkeypatch):
    for call in tiny_run.plan():
        call.make()
    assert len(tiny_run.results()) == 2 * 4 * 2  # budgets x methods x seeds

    again = Run(tiny_run.params, Store(tiny_run.store.root, look=True))  # look: may not build
    for call in again.plan():
        call.make()


def test_pages_of_a_finished_run_need_no_pytorch(tiny_run: Run):
    """It takes seconds to import. The first page computes with neighbours, so it is not asked."""
    tiny_run.evaluate("elfs", 0.1, 0)
    tiny_run.search(0.1)
    look = f"""
import sys
from elfs_lib.clustering import metrics as clustering
from elfs_lib.results import evaluation, plots, provenance, tables as results, shift
from elfs_lib.artifacts import Store
from elfs_lib.params import Params
from elfs_lib.stages import Run
params = Params.make({tiny_run.params.model_dump()!r})
run = Run(params, Store({str(tiny_run.store.root)!r}, look=True))
run.check()
run.evaluate("elfs", 0.1, 0), run.search(0.1), run.scores, run.pseudo_labels, run.neighbors
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", look], check=True)


def test_elfs_is_double_end_pruning_of_the_pseudo_scores(tiny_run: Run):
    beta = tiny_run.hard_prune_ratio(0.1)
    order = np.argsort(easiness(tiny_run.scores, "aum"), kind="stable")
    start = round(beta * len(order))
    assert (coreset(tiny_run, "elfs") == order[start : start + 144]).all()


@pytest.mark.parametrize("method", LABEL_FREE)
@pytest.mark.parametrize("labels", ["noise", "raise"])
def test_label_free_coresets_do_not_depend_on_labels(
    tiny_run: Run, tmp_path_factory, monkeypatch, method: str, labels: str
):
    def replaced(name, split, *args, **kwargs):
        if labels == "raise":
            raise AssertionError("the selection opened the labels")
        count = len(tiny_run.train_images if split == "train" else tiny_run.test_images)
        return np.random.default_rng(0).integers(0, 10, count)

    expected = coreset(tiny_run, method)
    monkeypatch.setattr(datasets, "load_labels", replaced)
    root = tmp_path_factory.getbasetemp() / f"unlabelled_{labels}"  # shared by the methods
    found = coreset(Run(tiny_run.params, Store(root)), method)
    np.testing.assert_array_equal(found, expected)


def test_double_end_pruning_with_true_labels_searches_on_true_labels(tiny_run: Run):
    beta = tiny_run.true_search(0.1).json("search")["best"]
    order = np.argsort(easiness(tiny_run.true_scores, "aum"), kind="stable")
    start = round(beta * len(order))
    assert (coreset(tiny_run, "elfs_true") == order[start : start + 144]).all()
    opened = tiny_run.true_search(0.1).manifest["labels"]
    assert opened == {"policy": "supervised", "opened": ["train:supervised"]}
    scores = tiny_run.true_search(0.1).array("scores")
    assert not np.array_equal(scores, tiny_run.search(0.1).array("scores"))


def test_corrected_labels_are_not_served_what_wrong_ones_gave(tiny_run: Run, monkeypatch):
    real, before = datasets.load_labels, Run(tiny_run.params, tiny_run.store)
    label_free = before.search(0.1).key, before.coreset("elfs", 0.1).key
    using = {
        "true_proxy": lambda run: run.true_proxy,
        "true_search": lambda run: run.true_search(0.1),
        "coreset": lambda run: run.coreset("ccs", 0.1),
        "evaluation": lambda run: run.evaluate("random", 0.1, 0),
    }
    keys = {name: made(before).key for name, made in using.items()}
    monkeypatch.setattr(datasets, "load_labels", lambda *a, **k: np.roll(real(*a, **k), 7))
    after = Run(tiny_run.params, tiny_run.store)
    assert (after.search(0.1).key, after.coreset("elfs", 0.1).key) == label_free
    assert not {name for name, made in using.items() if made(after).key == keys[name]}
    for artifact in tiny_run.store.artifacts():
        if artifact.manifest["labels"]["policy"] != "never":
            assert "labels" in artifact.manifest["params"], artifact.stage


def test_another_number_of_classes_is_another_coreset(tiny_run: Run):
    runs = [Run(tiny_run.params.model_copy(update={"classes": c}), tiny_run.store) for c in (10, 5)]
    lists = [coreset(run, "prototypicality").tolist() for run in runs]
    assert lists[0] != lists[1]  # it needs no pseudo-labels, which differ anyway


def test_a_revised_method_does_not_get_the_list_of_the_old_one(tiny_run: Run, monkeypatch):
    old = Run(tiny_run.params, tiny_run.store).coreset("random", 0.1).key
    entry = dataclasses.replace(METHODS["random"], revision=2)
    monkeypatch.setitem(METHODS, "random", entry)
    assert Run(tiny_run.params, tiny_run.store).coreset("random", 0.1).key != old


def test_manifests_say_which_labels_were_opened(tiny_run: Run):
    free = tiny_run.coreset("elfs", 0.1).manifest["labels"]
    assert free == {"policy": "never", "opened": []}
    supervised = tiny_run.true_proxy.manifest["labels"]
    assert supervised == {"policy": "supervised", "opened": ["train:supervised"]}
    evaluated = tiny_run.evaluate("random", 0.1, 0).manifest["labels"]
    assert evaluated["opened"] == ["train:evaluation", "test:evaluation"]


def test_manifests_say_how_much_of_the_peak_a_training_reached(tiny_run: Run):
    for made in (*tiny_run.proxies, tiny_run.evaluate("random", 0.1, 0)):
        facts = made.manifest
        assert facts["train_flops"] > 0 and facts["train_s"] > 0
        assert 0 < facts["share_of_peak"] < 1


def test_a_label_free_stage_that_opens_labels_is_stopped(tiny_run: Run, tmp_path):
    with pytest.raises(LabelLockError, match="label-free"):
        Store(tmp_path).run(
            "cheat",
            lambda draft: tiny_run.labels.open("train", purpose="analysis"),
            version=1,
            params={},
        )
    assert not list(tmp_path.glob("cheat/[!.]*"))


def test_two_runs_are_bit_identical(tiny_run: Run, tmp_path):
    other = Run(tiny_run.params, Store(tmp_path))
    for stage in ("embeddings", "neighbors", "temi", "consensus", "pseudo"):
        here, there = getattr(tiny_run, stage), getattr(other, stage)
        assert here.manifest["sha256"] == there.manifest["sha256"], stage
    for here, there in zip(tiny_run.proxies, other.proxies, strict=True):
        assert here.manifest["sha256"] == there.manifest["sha256"]
    here, there = tiny_run.coreset("elfs", 0.3), other.coreset("elfs", 0.3)
    assert here.manifest["sha256"] == there.manifest["sha256"]


def test_the_proxy_may_weigh_images_by_their_confidence(tiny_run: Run, monkeypatch):
    def caught(*args, weights, **options):
        raise ElfsError(f"{args[1][0]} {weights[:3].tolist()}")

    params = tiny_run.params.model_copy(update={"proxy_weights": "confidence"})
    expected = tiny_run.pseudo.table("pseudo")
    monkeypatch.setattr("elfs_lib.training.loop.train", caught)
    with pytest.raises(ElfsError) as found:
        _ = Run(params, tiny_run.store).proxies
    first = expected["confidence"].to_numpy()[:3].tolist()
    assert str(found.value) == f"{expected['label'][0]} {first}"


@pytest.mark.parametrize("score", ["forgetting", "el2n"])
def test_another_score_changes_the_coreset_and_is_used(tiny_run: Run, score: str):
    run = Run(
        tiny_run.params.model_copy(update={"score": score, "hard_prune_ratio": 0.2}), tiny_run.store
    )
    order = np.argsort(easiness(run.scores, score), kind="stable")
    start = round(0.2 * len(order))
    assert (coreset(run, "elfs") == order[start : start + 144]).all()
    assert set(coreset(run, "elfs")) != set(
        np.argsort(easiness(run.scores, "aum"), kind="stable")[start : start + 144]
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"neighbors": 1437}, "neighbors.*1436"),
        ({"budgets": (2000,)}, "2000"),
        ({"budget": 0.5, "hard_prune_ratio": 0.6}, "add up"),
        ({"classes": 1438}, "1437 images"),
        ({"device": "cuda:9"}, "device"),
    ],
)
def test_check_refuses_before_any_work(tiny_params: Params, tmp_path, change: dict, words: str):
    if change.get("device") == "cuda:9":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA, so the device may exist")
    run = Run(tiny_params.model_copy(update=change), Store(tmp_path))
    with pytest.raises(ElfsError, match=words):
        run.check()
    assert not (tmp_path / "embeddings").exists()


@pytest.mark.parametrize("beta, budget", [(0.5, 0.5), (0.9, 0.1), (0.3, 0.7), (0.2, 0.8)])
def test_beta_and_budget_may_be_all_there_is(tiny_run: Run, beta: float, budget: float):
    changes = {"hard_prune_ratio": beta, "budget": budget, "budgets": (budget,)}
    run = Run(tiny_run.params.model_copy(update=changes), tiny_run.store)
    run.check()
    whole = coreset(run, "elfs", budget)
    order = np.argsort(easiness(run.scores, "aum"), kind="stable")
    assert (whole == order[-len(whole) :]).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"hard_prune_ratio": 0.5, "budgets": (0.1, 1400)},
        {"hard_prune_ratios": (0.5, 0.6), "budgets": (0.1, 1400)},
        {"hard_prune_ratio": 0.5, "budget": 1400},
    ],
)
def test_a_count_that_no_beta_leaves_is_refused_before_work(tiny_run: Run, tmp_path, changes: dict):
    run = Run(tiny_run.params.model_copy(update=changes), Store(tmp_path))
    with pytest.raises(ElfsError, match="budget of 1400 of 1437 images"):
        run.check()
    assert not (tmp_path / "embeddings").exists()


def test_hindsight_tries_every_beta_that_the_search_may_choose(tiny_run: Run):
    for changes, ratios in (
        ({"hard_prune_ratios": (0.9,)}, [0.9]),
        ({"hard_prune_ratio": 0.25}, [0.0, 0.25, 0.4]),
    ):
        run = Run(
            tiny_run.params.model_copy(update=changes | {"hindsight_seeds": (0,)}), tiny_run.store
        )
        assert run.hindsight(0.1)["ratio"].tolist() == ratios
        assert run.hard_prune_ratio(0.1) in ratios


def rows(accuracies: list[float], **changes: object) -> pd.DataFrame:
    """A row a seed."""
    row = {"dataset": "digits", "method": "elfs", "budget": 0.1, "count": 144} | changes
    return pd.DataFrame([row | {"seed": i, "accuracy": a} for i, a in enumerate(accuracies)])


def test_tables_of_one_setting_are_put_together_and_others_kept_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "digits.yaml").write_text("dataset: digits\n")
    base = Params.make({"dataset": "digits"})
    runs = tmp_path / "book" / "runs"
    write_results(rows([80.0, 81.0]), base, runs / "digits" / "results.csv")
    grid = base.model_copy(update={"budgets": (0.2,), "methods": ("elfs",)})
    more = pd.concat([rows([80.0, 81.0]), rows([85.0, 86.0], budget=0.2)])
    write_results(more, grid, runs / "digits" / "results_grid.csv", command="elfs sweep grid.yaml")
    longer = base.model_copy(update={"eval_epochs": 5})
    write_results(rows([70.0]), longer, runs / "digits" / "results_epochs.csv")
    write_results(rows([60.0], dataset="svhn"), base, runs / "svhn" / "results.csv")

    tables = result_tables()
    assert list(tables) == [("svhn", ""), ("digits", ""), ("digits", "eval_epochs=5")]
    assert tables["digits", ""]["accuracy"].tolist() == [80, 81, 85, 86]
    commands = tables["digits", ""].groupby("budget")["command"].first().tolist()
    assert commands == ["elfs run params/digits.yaml", "elfs sweep grid.yaml"]
    assert tables["digits", "eval_epochs=5"]["accuracy"].tolist() == [70]

    write_results(rows([80.0, 82.0]), grid, runs / "digits" / "results_grid.csv")
    with pytest.raises(ElfsError, match="'elfs' at budget 0.1 with seed 1 twice"):
        result_tables()


def test_a_sweep_goes_on_over_another_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = Params.make({"dataset": "digits"})
    file = tmp_path / "results_grid.csv"
    write_results(rows([80.0, 81.0], recipe="small"), base, file, grow=True)
    write_results(rows([82.0], recipe="small", method="random"), base, file, grow=True)
    write_results(rows([79.0], recipe="small"), base, file, grow=True)
    assert pd.read_csv(file)["accuracy"].tolist() == [79, 81, 82]  # a training once, the new one
    longer = base.model_copy(update={"eval_epochs": 5})
    write_results(rows([70.0], recipe="small"), longer, file, grow=True)
    assert pd.read_csv(file)["accuracy"].tolist() == [70]  # another setting begins anew
    write_results(rows([60.0], recipe="small, revision 2", seed=4), longer, file, grow=True)
    assert pd.read_csv(file)["accuracy"].tolist() == [60]  # and so does another recipe
    write_results(rows([50.0], method="random"), longer, file)
    assert pd.read_csv(file)["accuracy"].tolist() == [50]  # a run writes what it holds


@pytest.mark.parametrize(
    "method, stages",
    [
        ("random", []),
        ("elfs", ["proxy"]),
        ("elfs_balanced", ["proxy", "pseudo"]),
        ("badge", ["embeddings", "proxy"]),
        ("herding", ["embeddings", "pseudo"]),
        ("d2", ["embeddings", "neighbors"]),
        ("ccs", ["true_proxy"]),
        ("d2_supervised", ["neighbors", "true_proxy"]),
    ],
)
def test_a_coreset_is_keyed_by_the_stages_that_its_method_reads(
    method: str, stages: list[str], tiny_run: Run
):
    chosen = tiny_run.call("coreset", method=method, budget=0.1)
    read = [call.stage.name for call in chosen.inputs.values()]
    assert read == ["images", *stages]
    assert [*chosen.artifact.manifest["contents"]] == [*chosen.inputs]


def test_betas_of_hindsight_are_checked_before_work(tiny_run: Run):
    changes = {"methods": ("random",), "budgets": (1400,), "hard_prune_ratios": (0.1, 0.2)}
    loose = tiny_run.params.model_copy(update=changes)
    Run(loose, tiny_run.store).check()
    with pytest.raises(ElfsError, match="No hard-prune ratio"):
        page7 = loose.model_copy(update={"hindsight_seeds": (0,)})
        Run(page7, tiny_run.store).check()


def test_a_notebook_is_executed_where_the_command_was_started(tmp_path, monkeypatch):
    """A relative path in a parameter or in the environment means one thing for both."""
    given = {}
    monkeypatch.setattr(
        pipeline.papermill, "execute_notebook", lambda *paths, **options: given.update(options)
    )
    pipeline.run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, last="kept")
    assert given.get("cwd") is None  # papermill's own default is the current folder


def test_a_kernel_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    kernel = {"name": "gone", "display_name": "Gone", "language": "python"}
    page = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    nbformat.write(page, tmp_path / "notebooks" / "01_embeddings.ipynb")
    monkeypatch.chdir(tmp_path)
    there = {"python3": "", "mine": ""}
    monkeypatch.setattr(pipeline, "_kernels", lambda: there)
    with pytest.raises(ElfsError, match="kernel 'gone': choose one of mine, python3"):
        pipeline.check_notebooks(["01_embeddings"])
    with pytest.raises(ElfsError, match="needs the Jupyter kernel 'gone'.* mine, python3 with -k"):
        pipeline.execute("01_embeddings", tmp_path / "out", {})
    there.clear()
    with pytest.raises(ElfsError, match="no Jupyter kernel: install ipykernel"):
        pipeline.check_notebooks(["01_embeddings"])


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "digits"},
        TINY,
        {"dataset": "image_folder", "data_path": "photos", "classes": 4},
        # what a page does not name must still go with what it does
        {"dataset": "digits", "hard_prune_ratio": 0.6, "budgets": (0.2,)},
    ],
)
def test_a_page_is_given_what_it_names_and_has_the_parameters_of_its_run(
    values: dict, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    given = {}
    monkeypatch.setattr(
        pipeline, "execute", lambda name, target, values, **options: given.update({name: values})
    )
    base = read_yaml(ROOT / "params/digits.yaml") if values["dataset"] == "digits" else {}
    params = Params.make(base | values)
    file = Params.make(base).model_dump()
    changed = {name for name, value in params.model_dump().items() if value != file[name]}
    pipeline.run_notebooks(NOTEBOOKS, params, tmp_path)
    for name, injected in given.items():
        page = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        namespace: dict = {}
        exec(next(c.source for c in page.cells if "parameters" in c.metadata.tags), namespace)
        named = Params.model_fields.keys() & namespace.keys()
        assert injected.keys() == named | changed
        cell = "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in injected.items())
        namespace |= injected | {"In": ["", cell]}
        assert Params.from_notebook(namespace) == params


def test_a_book_without_results_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ElfsError, match="elfs run params/digits.yaml"):
        result_tables()


def test_the_page_on_the_digits_is_written_where_these_were_run(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    written: list[tuple[str, ...]] = []
    monkeypatch.setattr(pipeline, "check_notebooks", lambda *given: None)
    monkeypatch.setattr(pipeline, "_execute_all", lambda names, *rest: written.append((*names,)))
    for _ in range(2):
        with pytest.raises(ElfsError, match="did not build"):  # there is nothing to render
            pipeline.build_book()
        (tmp_path / "book" / "runs" / "digits").mkdir(parents=True, exist_ok=True)
    assert "digits_demo" not in written[0] and "results" in written[0]
    assert written[1] == (*written[0], "digits_demo")


def searches(run: Run) -> list[str]:
    return [call.title for call in run.plan() if call.stage.name in ("search", "true_search")]


def test_each_search_that_a_run_needs_is_one_step(tiny_run: Run, monkeypatch):
    """Else it hides in an evaluation, and the time that is left is guessed wrong."""
    methods = {"methods": ("random", "elfs", "elfs_true", "elfs_forgetting"), "budgets": (0.3,)}
    run = Run(tiny_run.params.model_copy(update=methods), tiny_run.store)
    assert searches(run) == [
        "beta search, budget 0.1, by aum",  # of the coreset that page 5 shows
        "beta search, budget 0.3, by aum",
        "beta true search, budget 0.3, by aum",
        "beta search, budget 0.3, by forgetting",
    ]
    plain = Run(run.params.model_copy(update={"methods": ("random",)}), tiny_run.store)
    assert searches(plain) == ["beta search, budget 0.1, by aum"]
    page7 = {"methods": ("random",), "hindsight_seeds": (0,)}  # sets ELFS's beta beside the best
    hindsight = Run(run.params.model_copy(update=page7), tiny_run.store)
    assert searches(hindsight) == [f"beta search, budget {b}, by aum" for b in (0.1, 0.3)]
    given = Run(run.params.model_copy(update={"hard_prune_ratio": 0.1}), tiny_run.store)
    assert searches(given) == []
    monkeypatch.setattr(Run, "can_evaluate", False)
    assert searches(run) == ["beta search, budget 0.1, by aum"]


def test_a_run_without_labels_leaves_out_the_pages_that_need_them(tiny_run: Run, monkeypatch):
    assert notebooks_of(tiny_run) == list(NOTEBOOKS)
    monkeypatch.setattr(Run, "can_evaluate", False)
    assert notebooks_of(tiny_run) == [name for name in NOTEBOOKS if name not in LABELLED]


def test_a_page_that_fails_does_not_replace_its_source(tmp_path, monkeypatch):
    def fails(notebook, output, parameters, *, last, **options):
        output.write_text("executed up to an error")
        raise ElfsError(last)

    (tmp_path / "_toc.yml").touch()
    source = tmp_path / "notebooks" / "01_embeddings.ipynb"
    source.parent.mkdir()
    source.write_text("the page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run_notebook", fails)
    with pytest.raises(ElfsError, match="01_embeddings.failed.ipynb"):
        pipeline.execute("01_embeddings", source.parent, {})
    assert source.read_text() == "the page"
    assert source.with_suffix(".failed.ipynb").read_text() == "executed up to an error"
    with pytest.raises(ElfsError, match="out/01_embeddings.ipynb"):
        pipeline.execute("01_embeddings", tmp_path / "out", {})
