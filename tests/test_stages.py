"""What a stage declares, and what follows from it: keys, the graph, what a researcher brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from elfs_lib.artifacts import Artifact, Draft, Store
from elfs_lib.errors import ElfsError
from elfs_lib.label_lock import LabelLockError
from elfs_lib.params import Params
from elfs_lib.photos.choosing import read_images
from elfs_lib.photos.request import Request
from elfs_lib.selection import METHODS
from elfs_lib.stages import STAGES, Run
from elfs_lib.stages.graph import Given, UndeclaredParameter, stage

CHANGES = {  # of each parameter that a stage reads, to a value that gives something else
    "dataset": {"dataset": "image_folder"},
    "data_path": {"dataset": "image_folder"},
    "image_size": {"dataset": "image_folder", "image_size": 5},
    "classes": {"classes": 11},
    "flip": {"flip": True},
    "crop_pad": {"crop_pad": 2},
    "seed": {"seed": 7},
    "precision": {"precision": "bfloat16"},
    "shuffle": {"shuffle": "blocks"},
    "encoder": {"encoder": "adapted_dino_vits16"},
    "encoder_size": {"encoder_size": 16},
    "encoder_epochs": {"encoder_epochs": 3},
    "encoder_network": {"encoder_network": "convnet"},
    "encoder_method": {"encoder_method": "emp_ssl"},
    "encoder_views": {"encoder_views": 3},
    "encoder_view_area": {"encoder_view_area": 0.5},
    "encoder_pca": {"encoder_pca": 3},
    "neighbors": {"neighbors": 11},
    "neighbor_search": {"neighbor_search": "ivf"},
    "clustering": {"clustering": "spectral"},
    "temi_weighting": {"temi_weighting": "student_teacher"},
    "temi_start": {"temi_start": "spectral"},
    "temi_pca": {"temi_pca": 5},
    "temi_standardize": {"temi_standardize": True},
    "temi_batch": {"temi_batch": 128},
    "pseudo_labels": {"pseudo_labels": "lowest_loss"},
    "relabel_rounds": {"relabel_rounds": 2},
    "relabel_keep": {"relabel_keep": 0.4},
    "relabel_start": {"relabel_start": "encoder"},
    "proxy_recipe": {"proxy_recipe": "resnet18"},
    "proxy_weights": {"proxy_weights": "confidence"},
    "score": {"score": "el2n"},
    "hard_prune_ratio": {"hard_prune_ratio": 0.3},
    "hard_prune_ratios": {"hard_prune_ratios": (0.1,)},
    "search_recipe": {"search_recipe": "resnet18"},
    "eval_recipe": {"eval_recipe": "resnet18"},
    "eval_epochs": {"eval_epochs": 3},
    "eval_batch": {"eval_batch": 9},
}
# Where all parameters of a stage count at once.
BASE = {
    "encoder": {"encoder": "self_supervised", "encoder_network": "convnet_tiny"},
    "embeddings": {"encoder": "self_supervised", "encoder_views": 2},
    "clusters": {"clustering": "kmeans"},
    "pseudo": {"relabel_rounds": 1},
}
# What self-labelling reads where it starts from the encoder, in place of the proxy's parameters.
OF_ENCODER = {"encoder", "encoder_size", "encoder_checkpoint"}
ARGUMENTS = {
    "proxy": {"seed": 0},
    "search": {"budget": 0.1, "score": "aum"},
    "true_search": {"budget": 0.1, "score": "aum"},
    "coreset": {"method": "elfs", "budget": 0.1},
    "evaluation": {"method": "random", "budget": 0.1, "seed": 0},
}


def with_checkpoint(params: Params, folder: Path) -> tuple[Params, Params]:
    file = folder / "encoder.pth"
    file.write_bytes(b"weights")
    base = params.model_copy(update={"encoder": "dino_vits16"})
    return base, base.model_copy(update={"encoder_checkpoint": str(file)})


def with_files(params: Params, folder: Path) -> list[Params]:
    found = []
    for number in range(2):
        np.save(folder / f"{number}.npy", np.full((2, 3), number, np.float32))
        path = str(folder / f"{number}.npy")
        found.append(params.model_copy(update={"encoder": "precomputed", "embeddings_path": path}))
    return found


def folders(params: Params, folder: Path, name: str) -> tuple[Params, Params]:
    for part in ("one", "other"):
        (folder / part).mkdir()
        (folder / part / f"{part}.png").touch()
    own = {"dataset": "image_folder", "data_path": str(folder / "one")}
    base = params.model_copy(update=own)
    changes = {"data_path": str(folder / "other"), "image_size": 5}
    return base, params if name == "dataset" else base.model_copy(update={name: changes[name]})


def changed(params: Params, name: str) -> Params:
    value = getattr(params, name)
    number = value / 2 if isinstance(value, float) else value
    return params.model_copy(update=CHANGES.get(name) or {name: number + (number == value)})


@pytest.mark.parametrize(
    "name, parameter",
    [
        (each.name, parameter)
        for each in STAGES.values()
        for parameter in sorted(each.reads - (OF_ENCODER if each.name == "pseudo" else set()))
    ],
)
def test_each_parameter_that_a_stage_declares_is_in_its_key(
    tiny_run: Run, name: str, parameter: str, tmp_path: Path
):
    if parameter == "encoder_checkpoint":
        both = with_checkpoint(tiny_run.params, tmp_path)
    elif parameter == "embeddings_path":
        both = with_files(tiny_run.params, tmp_path)
    elif name == "images":
        both = folders(tiny_run.params, tmp_path, parameter)
    else:
        base = tiny_run.params.model_copy(update=BASE.get(name, {}))
        both = base, changed(base, parameter)
    calls = [Run(p, tiny_run.store).call(name, **ARGUMENTS.get(name, {})) for p in both]
    assert calls[0].key_params != calls[1].key_params


@pytest.mark.parametrize("parameter", sorted(OF_ENCODER))
def test_self_labelling_from_the_encoder_is_keyed_by_it(
    parameter: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Given, "inputs", {"consensus": tiny_run.consensus})  # no need to embed
    start = {"relabel_rounds": 1, "relabel_start": "encoder", "encoder": "dino_vits16"}
    base = tiny_run.params.model_copy(update=start)
    if parameter == "encoder_checkpoint":
        base, other = with_checkpoint(base, tmp_path)
    else:
        other = changed(base, parameter)
    calls = [Run(params, tiny_run.store).call("pseudo") for params in (base, other)]
    assert calls[0].key_params != calls[1].key_params


def test_only_device_and_words_are_read_without_a_key():
    """What no key holds must not change a result."""
    place = {"dataset", "data_path"}  # of the files, which are in the key of the images
    words = {"encoder": {"dataset"}, "embeddings": place}
    of_training_images = STAGES["embeddings"].reads | place
    for name, each in STAGES.items():
        allowed = {"device", "compile", "loader"} | words.get(name, set())
        allowed |= of_training_images if name == "test_embeddings" else set()
        assert each.unkeyed <= allowed, name


# ---------------------------------------------------------------------- a stage of somebody's own


def double(tiny_run: Run, store: Path, **declared: object) -> Artifact:
    """A new stage that reads the budget."""

    @stage(title="double", **declared)
    def double(given: Given, draft: Draft) -> None:
        draft.json("found", 2 * given.params.budget)

    return Run(tiny_run.params, Store(store)).artifact(double)


def test_a_stage_gets_the_parameters_that_it_declares(tiny_run: Run, tmp_path: Path):
    found = double(tiny_run, tmp_path, reads=["budget"])
    assert found.json("found") == 2 * tiny_run.params.budget
    assert found.manifest["params"] == {"budget": tiny_run.params.budget}
    params = tiny_run.params.model_copy(update={"budget": 0.3})
    other = double(Run(params, tiny_run.store), tmp_path, reads=["budget"])
    assert other.json("found") == 0.6 and other.key != found.key


def test_a_parameter_that_is_not_declared_is_an_error(tiny_run: Run, tmp_path: Path):
    with pytest.raises(UndeclaredParameter, match="'double' reads parameter 'budget': add it"):
        double(tiny_run, tmp_path, reads=["seed"])
    assert not list(tmp_path.glob("double/[!.]*"))


def test_a_parameter_that_the_key_leaves_out_is_an_error(tiny_run: Run, tmp_path: Path):
    with pytest.raises(UndeclaredParameter, match="'budget', which its key leaves out"):
        double(tiny_run, tmp_path, reads=["budget"], key=lambda given: {})
    assert not list(tmp_path.glob("double/[!.]*"))


def weigh(tiny_run: Run, store: Path, weights: str, key: object) -> Artifact:
    """A new stage that reads how the proxy's images are weighted."""

    @stage(title="weigh", reads=["proxy_weights"], key=key)
    def weigh(given: Given, draft: Draft) -> None:
        draft.json("found", given.params.proxy_weights)

    params = tiny_run.params.model_copy(update={"proxy_weights": weights})
    return Run(params, Store(store)).artifact(weigh)


@pytest.mark.parametrize(
    "key",
    [
        lambda given: {"n": 1 if given.params.proxy_weights else 2},
        lambda given: {"n": 1} if given.key("proxy_weights") else {},
        lambda given: {"n": 1} if given.some("proxy_weights") else {},
        lambda given: given.key_entry("w", lambda given: given.params.proxy_weights) and {},
    ],
    ids=["only_looked_at", "dropped", "some", "entry_dropped"],
)
def test_a_parameter_that_the_key_only_looks_at_is_an_error(
    tiny_run: Run, tmp_path: Path, key: object
):
    with pytest.raises(UndeclaredParameter):
        weigh(tiny_run, tmp_path, "equal", key)
    assert not list(tmp_path.glob("weigh/[!.]*"))


def test_an_entry_of_the_key_stands_for_what_it_was_made_from(tiny_run: Run, tmp_path: Path):
    def key(given: Given) -> dict[str, object]:
        return given.key_entry("w", lambda given: given.params.proxy_weights, neutral="equal")

    found = {w: weigh(tiny_run, tmp_path, w, key) for w in ("equal", "confidence")}
    assert {w: each.json("found") for w, each in found.items()} == {w: w for w in found}
    assert [each.manifest["params"] for each in found.values()] == [{}, {"w": "confidence"}]


@pytest.mark.parametrize(
    "key", [lambda given: {}, lambda given: {"n": bool(given.args.budget)}], ids=["none", "looks"]
)
def test_an_argument_that_the_key_leaves_out_is_an_error(
    tiny_run: Run, tmp_path: Path, key: object
):
    @stage(title="take", inputs=lambda run, budget: {}, key=key)
    def take(given: Given, draft: Draft) -> None:
        draft.json("found", given.args.budget)

    with pytest.raises(UndeclaredParameter, match="argument 'budget'"):
        Run(tiny_run.params, Store(tmp_path)).artifact(take, budget=0.1)
    assert not list(tmp_path.glob("take/[!.]*"))


def test_a_parameter_and_an_argument_of_one_name_need_two_entries(tiny_run: Run, tmp_path: Path):
    run = Run(tiny_run.params, Store(tmp_path))
    for named in (None, "of_run"):

        def key(given: Given, named: str | None = named) -> dict[str, object]:
            own = (
                given.key_entry(named, lambda given: given.params.budget) if named else given.key()
            )
            return own | given.key(args=["budget"])

        @stage(title="take", inputs=lambda run, budget: {}, reads=["budget"], key=key)
        def take(given: Given, draft: Draft) -> None:
            draft.json("found", [given.args.budget, given.params.budget])

        if named:
            assert run.artifact(take, budget=0.2).json("found") == [0.2, run.params.budget]
        else:
            with pytest.raises(UndeclaredParameter):
                run.artifact(take, budget=0.2)


def test_a_parameter_that_joins_later_keeps_what_is_there(tiny_run: Run, tmp_path: Path):
    before = double(tiny_run, tmp_path, reads=["budget"])
    later = {"later": {"search_seeds": tiny_run.params.search_seeds}}
    assert double(tiny_run, tmp_path, reads=["budget"], **later).key == before.key
    more = tiny_run.params.model_copy(update={"search_seeds": 9})
    assert double(Run(more, tiny_run.store), tmp_path, reads=["budget"], **later).key != before.key


def test_an_input_that_is_not_declared_is_an_error(tiny_run: Run, tmp_path: Path):
    @stage(title="peek", inputs=["images"])
    def peek(given: Given, draft: Draft) -> None:
        draft.array("found", given.array("embeddings", "embeddings"))

    with pytest.raises(KeyError, match="embeddings"):
        Run(tiny_run.params, Store(tmp_path)).artifact(peek)


@pytest.mark.parametrize("policy", ["never", "analysis"])
def test_labels_open_as_far_as_declared_and_are_then_in_the_key(
    tiny_run: Run, tmp_path: Path, policy: str
):
    @stage(title="look", labels=policy)
    def look(given: Given, draft: Draft) -> None:
        draft.array("found", given.labels.open("train", purpose="analysis"))

    run = Run(tiny_run.params, Store(tmp_path))
    if policy == "never":
        with pytest.raises(LabelLockError):
            run.artifact(look)
    else:
        keyed = run.artifact(look).manifest["params"]
        assert keyed == {"labels": tiny_run.labels.digest()}


# ---------------------------------------------------------------------- the graph


def test_what_comes_first_stands_first(tiny_run: Run):
    plan = tiny_run.plan()
    place = {call.id: number for number, call in enumerate(plan)}
    for call in plan:
        for before in call.before.values():
            assert place[before.id] < place[call.id] if before.id in place else before.stage.quick
    assert len({call.title for call in plan}) == len(plan)


def test_a_plan_holds_all_that_its_run_makes(tiny_params: Params, tmp_path: Path):
    run = Run(tiny_params, Store(tmp_path))
    for call in run.plan():
        call.make()
    count = len(list(tmp_path.glob("*/*/manifest.json")))
    run.results()
    assert len(list(tmp_path.glob("*/*/manifest.json"))) == count


@pytest.mark.parametrize("clustering", ["temi", "kmeans"])
def test_only_the_stages_of_the_clustering_are_in_the_plan(tiny_run: Run, clustering: str):
    params = tiny_run.params.model_copy(update={"clustering": clustering})
    names = {call.stage.name for call in Run(params, tiny_run.store).plan()}
    of_temi = {"temi", "consensus"}
    assert names & (of_temi | {"clusters"}) == (of_temi if clustering == "temi" else {"clusters"})


def test_a_graph_is_known_before_anything_is_computed(tiny_params: Params, tmp_path: Path):
    call = Run(tiny_params, Store(tmp_path)).call("evaluation", method="elfs", budget=0.1, seed=0)
    names = [each.stage.name for each in call.upstream]
    assert names[0] == "images" and names[-1] == "evaluation"
    assert {"temi", "search", "pseudo_quality"} < {*names}
    assert call.reads >= {"temi_heads", "search_steps", "eval_steps", "neighbors"}
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- what a researcher brings

MADE_FROM_LABELS = {"pseudo", "proxy", "search", "coreset", "evaluation"}


def coreset(run: Run, method: str = "elfs") -> np.ndarray:
    return run.coreset(method, 0.1).table("coreset")["index"].to_numpy()


def made(store: Store) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for artifact in store.artifacts():
        found.setdefault(artifact.stage, set()).add(artifact.key)
    return found


def test_pseudo_labels_of_somebodys_own_reuse_nothing_of_others(
    tiny_params: Params, tmp_path: Path
):
    run = Run(tiny_params, Store(tmp_path))
    for call in run.plan():
        call.make()
    before = made(run.store)
    labels = np.random.default_rng(0).integers(0, run.classes, run.n)
    own = run.with_pseudo_labels(labels, "drawn")
    assert own.clustering == "drawn" and run.clustering == "temi"
    for method in ("elfs", "elfs_balanced", "badge", "herding"):
        own.evaluate(method, 0.1, 0)
    np.testing.assert_array_equal(own.pseudo_labels, labels)
    proxies = [proxy.table("scores") for proxy in own.proxies]
    assert not proxies[0].equals(run.proxies[0].table("scores"))
    after = made(run.store)
    new = {name for name in after if after[name] - before.get(name, set())}
    assert new == MADE_FROM_LABELS | {"pseudo_quality"}
    for call in own.call("evaluation", method="elfs_balanced", budget=0.1, seed=0).upstream:
        kept = call.artifact.key in before[call.stage.name]
        assert kept == (call.stage.name not in new), call.stage.name

    again = Run(tiny_params, Store(tmp_path, look=True)).with_pseudo_labels(labels, "drawn")
    assert coreset(again).tolist() == coreset(own).tolist()
    named = again.with_pseudo_labels(labels, "another name for them")
    with pytest.raises(ElfsError):  # of another name, so it is not there
        _ = named.pseudo
    changed = labels.copy()
    changed[0] = (changed[0] + 1) % run.classes
    with pytest.raises(ElfsError):
        _ = again.with_pseudo_labels(changed, "drawn").pseudo


def test_temis_own_labels_give_the_coreset_of_temi(tiny_run: Run, tmp_path: Path):
    table = tiny_run.pseudo.table("pseudo")
    brought = tiny_run.with_pseudo_labels(
        tiny_run.pseudo_labels, "of TEMI", confidence=table["confidence"].to_numpy()
    )
    assert brought.pseudo.key != tiny_run.pseudo.key
    assert brought.pseudo.content == tiny_run.pseudo.content
    assert brought.coreset("elfs", 0.1).key == tiny_run.coreset("elfs", 0.1).key


def test_embeddings_of_somebodys_own_reuse_nothing_of_others(tiny_run: Run, tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(tiny_run.n, 6))
    own = tiny_run.with_embeddings(rows, "noise", test=rng.normal(size=(360, 6)))
    np.testing.assert_array_equal(own.embeddings.array("embeddings"), rows.astype(np.float32))
    assert own.test_embeddings.array("embeddings").shape == (360, 6)
    for name in ("neighbors", "temi", "consensus", "pseudo"):
        assert own.artifact(name).key != tiny_run.artifact(name).key, name
    assert coreset(own, "k_center").tolist() != coreset(tiny_run, "k_center").tolist()
    assert own.encoder_facts["encoder"] == "noise" and own.encoder_facts["saw_labels"] is None
    assert (
        own.with_pseudo_labels(tiny_run.pseudo_labels, "TEMI").encoder_facts["encoder"] == "noise"
    )


def test_scores_of_somebodys_own_take_the_place_of_the_proxys(tiny_run: Run):
    scores = np.random.default_rng(0).normal(size=tiny_run.n)
    own = tiny_run.with_scores(scores, "drawn")
    np.testing.assert_array_equal(own.scores["aum"], scores)
    chosen = own.coreset("elfs", 100, hard_prune_ratio=0.25).table("coreset")["index"]
    cut = round(0.25 * tiny_run.n)
    assert set(chosen) == set(np.argsort(scores)[cut : cut + 100])
    other = Run(tiny_run.params.model_copy(update={"score": "el2n"}), tiny_run.store)
    np.testing.assert_array_equal(other.with_scores(scores, "drawn").scores["el2n"], scores)
    for wrong in (scores[:5], np.where(np.arange(tiny_run.n) == 3, np.nan, scores)):
        with pytest.raises(ElfsError, match="for each of the 1437 images"):
            tiny_run.with_scores(wrong, "wrong")


@pytest.mark.parametrize(
    "labels, words",
    [
        (np.zeros(5, int), "one whole number for each of the 1437 images"),
        (np.zeros(1437), "float64"),
        (np.full(1437, 10), r"0\.\.9"),
        (np.full(1437, -1), r"0\.\.9"),
    ],
)
def test_wrong_pseudo_labels_are_one_sentence(tiny_run: Run, labels: np.ndarray, words: str):
    with pytest.raises(ElfsError, match=words):
        tiny_run.with_pseudo_labels(labels, "wrong")


def test_wrong_embeddings_are_one_sentence(tiny_run: Run):
    rows = np.ones((1437, 3))
    for wrong, words in (
        (rows[:5], "one row for each of the 1437 images"),
        (rows[:, :0], "shape"),
        (np.where(np.arange(3) == 1, np.nan, rows), "NaN"),
    ):
        with pytest.raises(ElfsError, match=words):
            tiny_run.with_embeddings(wrong, "wrong")
    with pytest.raises(ElfsError, match="test=array"):
        _ = tiny_run.with_embeddings(rows, "no test").test_embeddings


def test_no_stage_is_made_by_a_run_that_only_looks(tiny_params: Params, tmp_path: Path):
    run = Run(tiny_params, Store(tmp_path, look=True))
    for method in METHODS:
        assert run.call("coreset", method=method, budget=0.1).inputs
    assert not list(tmp_path.iterdir())


def test_the_runtime_is_configured_wherever_work_starts(tiny_params: Params, tmp_path: Path):
    def tf32() -> bool:
        return torch.backends.cuda.matmul.allow_tf32

    starts = {
        "stage": lambda: Run(tiny_params, Store(tmp_path)).images,
        "own images": lambda: read_images(digits, Request(10, 20), Store(tmp_path)),
    }
    digits = np.zeros((40, 1, 8, 8), np.uint8)
    read_images(digits, Request(10, 20), Store(tmp_path))  # which is found, and not made, below
    for name, start in starts.items():
        torch.backends.cuda.matmul.allow_tf32 = True
        start()
        assert not tf32(), name
