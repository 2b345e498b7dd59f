"""Neighbours of more rows than memory holds: short codes in an index on disk, ranked exactly.

Inverted lists of product-quantised codes (Jegou et al., 2011), by faiss.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elfs_lib.embedding.ranking import Neighbors, rank
from elfs_lib.embedding.rows import forget, read_rows, unit_rows
from elfs_lib.errors import ElfsError
from elfs_lib.progress import track

if TYPE_CHECKING:
    from distributed import Client

LEAST = 20_000  # rows; fewer are compared in full, which takes seconds
BLOCK = 16384  # rows read or searched at a time
SHARD = 2**21  # rows whose codes are in memory until they go to disk
HELD = 2**29  # bytes of candidates in memory
DIMENSIONS = 64  # principal components that are searched; half as many bytes a code
CELLS, PROBES = 4, 32  # cells, times the square root of N; those that a query looks into
SAMPLE = 64  # rows a cell, to learn the cells from
LEARNT = 50_000  # rows to learn the principal components from
SPARE = 32  # candidates beyond K


class Rows:
    """Embeddings float [N, D] of any size, of which some at a time are read, at length 1.

    Args:
        embeddings: An array or a memory map.

    Attributes:
        mean_cosine: Of all pairs, in [0, 1].

    Raises:
        ElfsError: if a row is not finite or all zero.
    """

    def __init__(self, embeddings: np.ndarray):
        self.embeddings = embeddings
        self.count, self.width = embeddings.shape
        self._scale = np.empty((self.count, 1), np.float32)
        mean = np.zeros(self.width)
        for part in self.parts():
            rows = unit_rows(embeddings[part], range(part.start, part.stop))
            mean += rows.sum(axis=0, dtype=np.float64)
            # of its largest entry, which no length makes infinite
            place = np.abs(rows).argmax(axis=1)[:, None]
            largest = np.take_along_axis(embeddings[part], place, axis=1)
            self._scale[part] = np.take_along_axis(rows, place, axis=1) / largest
            forget(embeddings)
        self.mean_cosine = float(np.square(mean / self.count).sum())

    @property
    def in_file(self) -> bool:
        """Whether they are all of a file, which other processes can map too."""
        array = self.embeddings
        whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
        return whole and array.flags.c_contiguous

    def __getstate__(self) -> dict[str, Any]:
        array = self.embeddings
        place = {"filename": array.filename, "offset": array.offset}
        return vars(self) | {"embeddings": place | {"shape": array.shape, "dtype": array.dtype}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, embeddings=np.memmap(mode="r", **state["embeddings"]))

    def parts(self) -> Iterator[slice]:
        """All rows in order, a block at a time."""
        for start in range(0, self.count, BLOCK):
            yield slice(start, min(start + BLOCK, self.count))

    def some(self, which: np.ndarray) -> np.ndarray:
        """float32 [R, D] of length 1."""
        found = read_rows(self.embeddings, which).astype(np.float32, copy=False)
        found *= self._scale[which]
        return found


def search_on_disk(rows: Rows, k: int, folder: Path) -> Neighbors:
    """The ``k`` nearest other rows of each row, nearly.

    Memory holds blocks of rows, the codes of a shard, and 16 bytes a row.

    Args:
        rows: At least ``LEAST`` of them. If they are a whole file and a Dask client is open in this
            process, its workers share the queries, and need as much memory each; all must see the
            file and the folder. The answer is the same.
        k: Number of neighbours.
        folder: Where the index is while it is needed, and where the answer stays: the arrays are
            memory maps of ``indices.npy`` and ``similarities.npy``.
    """
    import faiss  # only here: it takes a while to load

    folder = folder.resolve()  # workers may be elsewhere
    index, reduction = _index(rows, folder)
    files = {"indices": np.int32, "similarities": np.float32}
    answer = Neighbors(
        *(
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (rows.count, k))
            for name, dtype in files.items()
        )
    )
    # Rows of one cell share most candidates, which are read once.
    order = _by_cell(index)
    parts = [*rows.parts()]
    client = current_client() if rows.in_file else None
    if client is None:
        found = ((part, _nearest(rows, index, reduction, order[part], k)) for part in parts)
    else:
        faiss.write_index(index, str(folder / "index"))
        faiss.write_VectorTransform(reduction, str(folder / "reduction"))
        np.save(folder / "order.npy", order, allow_pickle=False)
        found = _by_workers(client, rows, parts, k, folder)
    for part, best in track(found, "neighbours", total=len(parts)):
        own = order[part]
        answer.indices[own], answer.similarities[own] = best.indices, best.similarities
        for array in (answer.indices, answer.similarities):
            forget(array)
    for name in ("codes", "index", "reduction", "order.npy"):
        (folder / name).unlink(missing_ok=True)
    return answer


def current_client() -> Client | None:
    """The Dask client that was opened in this process as the default one; None if there is none."""
    if "distributed" not in sys.modules:  # which takes seconds to import
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


def _by_workers(
    client: Client, rows: Rows, parts: list[slice], k: int, folder: Path
) -> Iterator[tuple[slice, Neighbors]]:
    """What :func:`_nearest` gives of each part of the order, whichever comes first, by workers that
    see the folder, with all that they need, and the file of the rows."""
    from distributed import KilledWorker, as_completed

    shared = client.scatter(rows, broadcast=True)
    futures = client.map(_on_worker, parts, rows=shared, k=k, folder=folder, pure=False)
    part_of = dict(zip(futures, parts, strict=True))
    try:
        for future, best in as_completed(futures, with_results=True):
            yield part_of.pop(future), best
    except KilledWorker as error:
        raise ElfsError(
            "A Dask worker died while it searched neighbours, probably out of memory: open a "
            "client of fewer workers."
        ) from error


def _on_worker(part: slice, rows: Rows, k: int, folder: Path) -> Neighbors:
    import faiss

    index = faiss.read_index(str(folder / "index"), faiss.IO_FLAG_READ_ONLY)
    reduction = faiss.read_VectorTransform(str(folder / "reduction"))
    order = np.load(folder / "order.npy", mmap_mode="r", allow_pickle=False)
    return _nearest(rows, index, reduction, np.array(order[part]), k)


def _nearest(rows: Rows, index, reduction, own: np.ndarray, k: int) -> Neighbors:
    """The neighbours of the rows ``own`` [R]: int32 and float32 [R, k]."""
    left = rows.some(own)
    wide = min(k + SPARE, rows.count - 1)
    found, counts = _candidates(index, reduction.apply(left), own, k, wide)
    answer = Neighbors(np.empty((len(own), k), np.int32), np.empty((len(own), k), np.float32))
    for part in _that_fit(found, rows.width):
        names, places = np.unique(found[part], return_inverse=True)
        right = rows.some(np.maximum(names, 0))  # -1 stands for none
        best = rank(left[part], right, names, places.reshape(found[part].shape), counts[part], k)
        answer.indices[part], answer.similarities[part] = best
    return answer


def _index(rows: Rows, folder: Path):
    """A faiss index of all rows with its lists in a file, and what reduces rows for it."""
    import faiss  # only here: it takes a while to load
    from faiss.contrib.ondisk import merge_ondisk

    width = min(DIMENSIONS, rows.width)
    reduction = faiss.PCAMatrix(rows.width, width)
    reduction.train(rows.some(_spread(rows.count, LEARNT)))
    cells = round(CELLS * rows.count**0.5)
    sample = _spread(rows.count, SAMPLE * cells)
    parts = (sample[start : start + BLOCK] for start in range(0, len(sample), BLOCK))
    reduced = np.concatenate([reduction.apply(rows.some(part)) for part in parts])
    codes = width // 2 if width % 2 == 0 else width
    flat = faiss.IndexFlatL2(width)
    index = faiss.IndexIVFPQ(flat, width, cells, codes, 8)
    index.own_fields = False
    index.referenced_objects = [flat]  # which faiss does not keep alive
    index.by_residual = False  # one table of distances a query, not one a cell
    index.do_polysemous_training = False
    index.pq.cp.niter, index.pq.cp.max_points_per_centroid = 10, SAMPLE
    index.nprobe = min(cells, PROBES)
    index.train(reduced)
    del reduced
    shards = []
    for part in rows.parts():
        names = np.arange(part.start, part.stop)
        index.add_with_ids(reduction.apply(rows.some(names)), names)
        if index.ntotal >= SHARD or part.stop == rows.count:
            shards.append(folder / f"codes.{len(shards)}")
            faiss.write_index(index, str(shards[-1]))
            index.reset()
    merge_ondisk(index, [str(shard) for shard in shards], str(folder / "codes"))
    for shard in shards:
        shard.unlink()
    return index, reduction


def _by_cell(index) -> np.ndarray:
    """The rows int64 [N], those of one cell side by side, and cells that look into each other."""
    import faiss

    centres = index.quantizer.reconstruct_n(0, index.nlist)
    groups = faiss.Kmeans(index.d, max(1, index.nlist // index.nprobe), niter=10, seed=0)
    groups.cp.min_points_per_centroid = 1
    groups.train(centres)
    order = np.argsort(groups.assign(centres)[1], kind="stable").tolist()
    lists = index.invlists
    return np.concatenate(
        [
            faiss.rev_swig_ptr(lists.get_ids(cell), size).copy()
            for cell in order
            if (size := lists.list_size(cell))
        ]
    )


def _candidates(
    index, queries: np.ndarray, own: np.ndarray, k: int, wide: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the index finds for rows, int64 [R, ``wide``] with -1 after the last, and how many that
    are [R], at least k: where there are fewer, more cells are looked into."""
    import faiss

    found = np.full((len(own), wide), -1)
    counts = np.zeros(len(own), np.int64)
    short = np.arange(len(own))
    probes = index.nprobe
    while len(short):
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, index.nlist))
        _, near = index.search(queries[short], wide + 1, params=parameters)
        near[near == own[short, None]] = -1
        place = np.argsort(near < 0, axis=1, kind="stable")[:, :wide]  # nearest first
        found[short] = np.take_along_axis(near, place, axis=1)
        counts[short] = (found[short] >= 0).sum(axis=1)
        short, probes = short[counts[short] < k], 4 * probes
    return found, counts


def _that_fit(found: np.ndarray, width: int) -> Iterator[slice]:
    """Parts of a block whose candidates fit in ``HELD`` bytes."""
    todo = [slice(0, len(found))]
    while todo:
        part = todo.pop()
        size = part.stop - part.start
        if size > 1 and len(np.unique(found[part])) * width * 4 > HELD:
            middle = part.start + size // 2
            todo += [slice(middle, part.stop), slice(part.start, middle)]
        else:
            yield part


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` rows, evenly spread."""
    return np.arange(0, count, max(1, -(-count // wanted)))
