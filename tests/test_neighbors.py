"""Neighbours: against brute force, and what a neighbour graph promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elfs_lib.embedding import disk_search, neighbors, ranking
from elfs_lib.embedding.neighbors import (
    Neighbors,
    knn_accuracy,
    nearest_neighbors,
    neighbor_information,
    plain_neighbors,
)
from elfs_lib.embedding.rows import forget
from elfs_lib.errors import ElfsError
from elfs_lib.stages import Run


def random_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def cosines(rows: np.ndarray) -> np.ndarray:
    """Slow reference: float64 cosine of every pair, -inf for a row with itself."""
    rows = rows.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity


def check_promises(found: Neighbors, rows: np.ndarray, k: int) -> None:
    count = len(rows)
    assert found.indices.shape == found.similarities.shape == (count, k)
    assert found.indices.dtype == np.int32 and found.similarities.dtype == np.float32
    assert (found.indices != np.arange(count)[:, None]).all(), "an image is its own neighbour"
    assert (np.diff(found.similarities, axis=1) <= 0).all(), "not sorted"
    ties = np.diff(found.similarities, axis=1) == 0
    assert (np.diff(found.indices, axis=1)[ties] > 0).all(), "ties are not in order of index"
    assert all(len(set(row)) == k for row in found.indices.tolist()), "a neighbour twice"
    reference = cosines(rows)
    best = -np.sort(-reference, axis=1)[:, :k]
    np.testing.assert_allclose(found.similarities, best, atol=2e-6)
    own = np.take_along_axis(reference, found.indices.astype(int), axis=1)
    np.testing.assert_allclose(own, best, atol=2e-6)


@pytest.mark.parametrize("count, width, k", [(300, 16, 10), (50, 3, 49), (2, 4, 1), (129, 200, 5)])
def test_matches_brute_force(count, width, k):
    rows = random_rows(count, width)
    found, plain = nearest_neighbors(rows, k), plain_neighbors(rows, k)
    check_promises(found, rows, k)
    check_promises(plain, rows, k)
    assert (found.indices == plain.indices).all()


@pytest.mark.parametrize("block", [9, 64, 299, 300, 5000])
def test_blocks_do_not_change_the_result(block):
    rows = random_rows(300, 16)
    whole = nearest_neighbors(rows, 10)
    parts = nearest_neighbors(rows, 10, block=block)
    assert (whole.indices == parts.indices).all()
    assert (whole.similarities == parts.similarities).all()
    check_promises(parts, rows, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_precision_of_the_shortlist_does_not_change_the_result(dtype, seed, monkeypatch):
    monkeypatch.setattr(neighbors, "resolve_precision", lambda name, device: dtype)
    rows = random_rows(400, 12, seed)
    rows[:, 0] += 2 * seed  # all rows may point one way
    check_promises(nearest_neighbors(rows, 8, block=128), rows, 8)


def test_rows_that_bfloat16_cannot_tell_apart(monkeypatch):
    monkeypatch.setattr(neighbors, "resolve_precision", lambda name, device: torch.bfloat16)
    rows = random_rows(1, 24) + 1e-3 * random_rows(500, 24, seed=1)
    rows[300:] = random_rows(200, 24, seed=2)  # these can be
    check_promises(nearest_neighbors(rows, 7, block=200), rows, 7)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_gpu_scores_is_ranked_alike(seed):
    """Of the path that only GPUs take, all but the device."""
    rows = random_rows(1, 24, seed) * (seed > 0) + random_rows(400, 24, seed=9)
    rows[50:350:2] = rows[7]  # more equals than are listed: such rows are searched again
    expected = nearest_neighbors(rows, 20)
    rows = neighbors.unit_rows(rows)
    for held in (1, 400 * 37, neighbors.SCORE_BYTES):
        found = neighbors._exact_on(torch.device("cpu"), rows, 20, held)
        assert (found.indices == expected.indices).all()
        assert (found.similarities == expected.similarities).all()
    few = nearest_neighbors(rows[:9], 8)
    assert (neighbors._exact_on(torch.device("cpu"), rows[:9], 8).indices == few.indices).all()


def test_only_a_gpu_takes_its_path(monkeypatch):
    taken = []
    monkeypatch.setattr(neighbors, "_exact_on", lambda device, rows, k: taken.append(device))
    monkeypatch.setattr(neighbors, "resolve_device", torch.device)
    rows = random_rows(9, 4)
    nearest_neighbors(rows, 3, device="cuda")
    nearest_neighbors(rows, 3, device="mps")
    nearest_neighbors(rows, 3, device="cuda", method="hnsw")
    assert taken == [torch.device("cuda")]


def test_keys_keep_the_order_of_scores():
    scores = torch.tensor([-np.inf, -2.0, -1e-3, -1e-30, 0.0, 1e-30, 0.5, 0.75, 1.0])
    for dtype in (torch.float32, torch.bfloat16):
        keys = ranking.score_keys(scores.to(dtype).clone()[None])
        assert (np.diff(keys[0].astype(int)) > 0).all()
        back = ranking.key_values(keys[0])
        assert (back == scores.to(dtype).float().numpy()).all()
        between = np.float32([-1.999, 0.7519, 1.003])  # no bfloat16 is one of these
        floor = ranking.key_values(neighbors._floor_keys(between, keys.dtype))
        assert (floor <= between).all() and (floor > between - 0.02).all()


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_approximate_search_misses_few_and_ranks_exactly(method):
    rows = random_rows(40, 16)[np.arange(2000) % 40] + 0.4 * random_rows(2000, 16, seed=1)
    exact, found = nearest_neighbors(rows, 10), nearest_neighbors(rows, 10, method=method)
    assert (found.indices != np.arange(2000)[:, None]).all()
    assert all(len(set(row)) == 10 for row in found.indices.tolist())
    own = np.take_along_axis(cosines(rows), found.indices.astype(int), axis=1)
    np.testing.assert_allclose(found.similarities, own, atol=2e-6)
    assert (np.diff(found.similarities, axis=1) <= 0).all()
    assert neighbors.recall(found, exact) > 0.9
    few = random_rows(9, 4)
    assert (
        nearest_neighbors(few, 5, method=method).indices == nearest_neighbors(few, 5).indices
    ).all()


def test_recall_closed_form():
    similarities = np.ones((2, 2), np.float32)
    exact = Neighbors(np.array([[1, 2], [0, 2]], np.int32), similarities)
    found = Neighbors(np.array([[2, 3], [2, 0]], np.int32), similarities)
    assert neighbors.recall(found, exact) == 0.75


def test_duplicates_are_neighbours_of_each_other_but_not_of_themselves():
    rows = random_rows(200, 12)
    rows[40:160:2] = rows[5]  # 61 equal rows, more than are asked for
    found = nearest_neighbors(rows, 9, block=32)
    check_promises(found, rows, 9)
    equal = [5, *range(40, 160, 2)]
    for row in equal:
        # Of more equals than fit, those of lowest index, whatever order the search saw them in.
        assert found.indices[row].tolist() == [e for e in equal if e != row][:9]


@pytest.mark.parametrize("block", [1, 8, 30])
def test_rows_all_alike(block):
    found = nearest_neighbors(np.ones((30, 4), dtype="f4"), 3, block=block)
    assert found.indices[0].tolist() == [1, 2, 3]
    assert found.indices[2].tolist() == [0, 1, 3]
    assert found.indices[29].tolist() == [0, 1, 2]


@pytest.mark.parametrize("width", [3, 40])
def test_zero_has_no_sign(width):
    """A product of 0 and a negative number is -0, which is no less similar than 0."""
    axes = np.eye(width, dtype="f4")
    rows = np.concatenate([axes, -axes])
    check_promises(nearest_neighbors(rows, 2 * width - 1), rows, 2 * width - 1)


def test_length_of_rows_does_not_matter():
    rows = random_rows(100, 8)
    scale = np.exp2(np.random.default_rng(1).integers(-9, 9, size=(100, 1))).astype("f4")
    assert (nearest_neighbors(rows, 5).indices == nearest_neighbors(rows * scale, 5).indices).all()


def test_knn_vote_closed_form():
    indices = np.array([[1, 2], [0, 2], [3, 0], [2, 0]], dtype=np.int32)
    near = Neighbors(indices, np.array([[0.9, 0.1]] * 4, dtype=np.float32))
    assert knn_accuracy(near, np.array([0, 0, 1, 1]), k=1) == 1.0
    assert knn_accuracy(near, np.array([0, 0, 1, 1]), k=2) == 1.0  # the nearer weighs more
    assert knn_accuracy(near, np.array([0, 1, 0, 1]), k=1) == 0.0


def test_information_of_neighbours_closed_form():
    def of(indices: list[list[int]], labels: list[int]) -> float:
        found = np.array(indices, dtype=np.int32)
        return neighbor_information(Neighbors(found, np.ones(found.shape, "f4")), np.array(labels))

    paired = [[1], [0], [3], [2]]
    assert of(paired, [0, 0, 1, 1]) == pytest.approx(np.log(2))  # shared by all
    assert of(paired, [0, 1, 0, 1]) == pytest.approx(np.log(2))  # one tells the other
    assert of(paired, [2, 2, 2, 2]) == pytest.approx(0)
    assert of([[1, 2], [0, 3], [3, 0], [2, 1]], [0, 0, 1, 1]) == pytest.approx(0)
    # pairs 00 01 | 00 01 | 10 10: 1/3 of each kind but 11
    third = of([[1, 2], [0, 2], [0, 1]], [0, 0, 1])
    assert third == pytest.approx(np.log(3 / 4) / 3 + 2 / 3 * np.log(3 / 2))


def test_mistakes_are_one_sentence():
    rows = random_rows(10, 4)
    with pytest.raises(ElfsError, match="k is 10:.*from 1 to 9"):
        nearest_neighbors(rows, 10)
    with pytest.raises(ElfsError, match="k is 0"):
        nearest_neighbors(rows, 0)
    with pytest.raises(ElfsError, match="block"):
        nearest_neighbors(rows, 3, block=0)
    with pytest.raises(ElfsError, match="did you mean 'exact'"):
        nearest_neighbors(rows, 3, method="exac")
    with pytest.raises(ElfsError, match="all zero.*row 4"):
        nearest_neighbors(rows * (np.arange(10) != 4)[:, None], 3)
    with pytest.raises(ElfsError, match="NaN"):
        nearest_neighbors(np.where(np.arange(10)[:, None] == 3, np.nan, rows), 3)
    near = nearest_neighbors(rows, 3)
    with pytest.raises(ElfsError, match="only 3 neighbours"):
        knn_accuracy(near, np.zeros(10, int), k=4)
    with pytest.raises(ElfsError, match="10 integers"):
        knn_accuracy(near, np.zeros(9, int), k=3)
    with pytest.raises(ElfsError, match="10 integers"):
        neighbor_information(near, np.full(10, -1))


@pytest.mark.parametrize("noise", [1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize("copies", [0, 130])
def test_neighbours_in_a_tight_cone_are_those_of_float64(noise: float, copies: int):
    """Embeddings of some encoders have cosines above 0.9999, which float32 rounds to a few."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=96)
    rows = (rng.normal(size=(700, 96)) * noise + middle).astype(np.float32)
    rows[rng.permutation(700)[:copies]] = rows[7]  # more of them than candidates are kept
    found = nearest_neighbors(rows, 20, block=256)
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = np.square(unit[:, None] - unit).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    true = np.argsort(distance, axis=1, kind="stable")[:, :20]
    best = np.take_along_axis(distance, found.indices, axis=1)
    np.testing.assert_allclose(best, np.take_along_axis(distance, true, axis=1), rtol=1e-9)
    assert np.mean(found.indices == true) > 0.999
    cosines = (unit[:, None] * unit[found.indices]).sum(axis=2)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-7)
    assert (np.diff(found.similarities, axis=1) <= 0).all()


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_approximate_search_misses_few_in_a_tight_cone_too(method: str):
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(40, 64))[np.arange(2000) % 40]
    rows = rng.normal(size=64) + 1e-3 * (groups + 0.4 * rng.normal(size=(2000, 64)))
    rows = rows.astype(np.float32)
    exact, found = nearest_neighbors(rows, 10), nearest_neighbors(rows, 10, method=method)
    assert (found.indices != np.arange(2000)[:, None]).all()
    assert neighbors.recall(found, exact) > 0.9
    few = rows[:9]
    assert (
        nearest_neighbors(few, 5, method=method).indices == nearest_neighbors(few, 5).indices
    ).all()


# ---------------------------------------------------------------------- on disk


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A memory map of rows in 40 groups, some of them equal."""
    rows = random_rows(40, 16)[np.arange(20_500) % 40] + 0.4 * random_rows(20_500, 16, seed=1)
    rows *= np.random.default_rng(2).uniform(0.1, 10, (len(rows), 1))
    rows[1::1000] = rows[1]
    file = tmp_path_factory.mktemp("pool") / "rows.npy"
    np.save(file, rows.astype(np.float32))
    return np.load(file, mmap_mode="r")


@pytest.fixture(scope="module")
def exact_pool(pool: np.ndarray) -> Neighbors:
    return nearest_neighbors(pool, 10)


def check_found(found: Neighbors, rows: np.ndarray, exact: Neighbors) -> None:
    """All that is promised of neighbours but that none is missed."""
    count, k = found.indices.shape
    assert (found.indices != np.arange(count)[:, None]).all()
    assert all(len(set(row)) == k for row in found.indices.tolist())
    unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    own = np.einsum("nd,nkd->nk", unit, unit[found.indices])
    np.testing.assert_allclose(found.similarities, own, atol=2e-6)
    steps = np.diff(found.similarities, axis=1)
    assert (steps <= 0).all() and (np.diff(found.indices, axis=1)[steps == 0] > 0).all()
    assert neighbors.recall(found, exact) > 0.9


@pytest.mark.parametrize("change", ["", "shards", "little memory", "few probes"])
def test_search_on_disk_misses_few_and_ranks_exactly(
    pool, exact_pool, tmp_path, monkeypatch, change: str
):
    monkeypatch.setattr(disk_search, "BLOCK", 5000)
    if change == "shards":
        monkeypatch.setattr(disk_search, "SHARD", 8000)
    if change == "little memory":
        monkeypatch.setattr(disk_search, "HELD", 2000 * 16 * 4)
    if change == "few probes":  # so that cells have fewer rows than are asked for
        monkeypatch.setattr(disk_search, "PROBES", 1)
    found = nearest_neighbors(pool, 10, method="ivf_pq", folder=tmp_path)
    if change == "few probes":
        assert (found.indices >= 0).all() and found.indices.max() < len(pool)
        return
    check_found(found, pool, exact_pool)
    assert isinstance(found.indices, np.memmap) and isinstance(found.similarities, np.memmap)
    assert {file.name for file in tmp_path.iterdir()} == {"indices.npy", "similarities.npy"}
    for name in ("indices", "similarities"):
        assert (np.load(tmp_path / f"{name}.npy") == getattr(found, name)).all()


def test_search_on_disk_needs_no_folder_and_no_memory_map(pool, exact_pool):
    found = nearest_neighbors(np.array(pool, np.float64), 10, method="ivf_pq")
    assert not isinstance(found.indices, np.memmap)
    check_found(found, pool, exact_pool)


@pytest.mark.filterwarnings("ignore:Port 8787 is already in use")
def test_dask_workers_share_the_queries_and_find_the_same(pool, tmp_path, monkeypatch):
    from distributed import Client, get_task_stream

    monkeypatch.setattr(disk_search, "BLOCK", 2000)
    alone = nearest_neighbors(pool, 10, method="ivf_pq")
    in_memory = np.array(pool)
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    with Client(n_workers=2, threads_per_worker=1, **options) as client:
        with get_task_stream(client) as stream:
            found = nearest_neighbors(pool, 10, method="ivf_pq", folder=tmp_path)
        tasks = [task for task in stream.data if "_on_worker" in task["key"]]
        assert len({task["worker"] for task in tasks}) == 2 and len(tasks) == 11
        with get_task_stream(client) as stream:
            nearest_neighbors(in_memory, 10, method="ivf_pq")
        assert not stream.data  # workers could not map it
    for name in ("indices", "similarities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    assert {file.name for file in tmp_path.iterdir()} == {"indices.npy", "similarities.npy"}


def test_a_run_gives_the_search_the_file_of_its_embeddings(tiny_run, pool, tmp_path, monkeypatch):
    """So that memory need not hold them, and other processes can map them."""
    seen = []

    def search(rows: disk_search.Rows, k: int, folder):
        seen.append(rows.in_file)
        return nearest_neighbors(np.asarray(rows.embeddings), k)

    monkeypatch.setattr(neighbors, "LEAST", tiny_run.n)
    monkeypatch.setattr(neighbors, "search_on_disk", search)
    params = tiny_run.params.model_copy(update={"neighbor_search": "ivf_pq"})
    run = Run(params, tiny_run.store).with_embeddings(np.array(pool[: tiny_run.n]), "pool")
    assert run.neighbors.array("indices").shape == (run.n, params.neighbors)
    assert seen == [True]
    assert not disk_search.Rows(np.array(pool[:9])).in_file
    assert not disk_search.Rows(pool[1:9]).in_file


def test_few_rows_are_compared_in_full_where_others_are_searched_on_disk():
    rows = random_rows(300, 16)
    found, exact = nearest_neighbors(rows, 9, method="ivf_pq"), nearest_neighbors(rows, 9)
    assert (found.indices == exact.indices).all()
    tight = rows[0] + 1e-3 * rows
    found, exact = nearest_neighbors(tight, 9, method="ivf_pq"), nearest_neighbors(tight, 9)
    assert (found.indices == exact.indices).all()


def test_search_on_disk_says_which_row_is_wrong_and_what_is_too_tight(pool, monkeypatch):
    monkeypatch.setattr(disk_search, "BLOCK", 5000)
    for value, words in ((0, "all zero.*row 12345"), (np.nan, "NaN.*row 12345")):
        rows = np.array(pool)
        rows[12345] = value
        with pytest.raises(ElfsError, match=words):
            nearest_neighbors(rows, 3, method="ivf_pq")
    with pytest.raises(ElfsError, match="mean cosine of the embeddings is 0.99.*encoder_pca"):
        nearest_neighbors(rows[0] + 0.01 * np.array(pool), 3, method="ivf_pq")


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_what_was_written_to_a_memory_map_is_not_forgotten(tmp_path, mode: str):
    np.save(tmp_path / "x.npy", np.zeros(9000))
    array = np.load(tmp_path / "x.npy", mmap_mode=mode)
    array[:] = 7
    forget(np.asarray(array[5:]))
    assert (array == 7).all()
    forget(np.ones(3))
