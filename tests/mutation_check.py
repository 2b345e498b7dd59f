"""Mutation check: break each core formula once, and see that its tests notice.

By hand, or as ``make mutation``: ``python tests/mutation_check.py [word ...]`` (only mutations
whose description holds one of the words). Each mutation is made in a temporary copy and tested in
a process of its own, forked from one that has imported the libraries but not this package.
Exit code 1: a mutation survived, its code is no longer there, or tests fail without any.

Why not mutmut: it finds untested code but does not make these mistakes, which are the field's (the
diagonal of each block in place of the matrix's, teacher and student swapped) and several tokens
wide. Of the 291 mutants that mutmut 3 made of ``selection/double_end.py``, ``test_selection_core.py``
missed 53, nearly all of them texts, keys and equivalent code; each would have to be listed by hand
for an exit code that means something.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("elfs_lib", "tests", "params", "book/references.bib", "pyproject.toml", "_toc.yml")


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``elfs_lib/<file>``; ``test`` is to fail."""

    what: str
    file: str
    test: str
    old: str
    new: str


def _mutations(file: str, test: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(what, file, test, old, new) for what, old, new in changes]


MUTATIONS = [
    *_mutations(
        "training/dynamics.py",
        "test_dynamics.py",
        ("AUM: sign of the margin", "own.squeeze(1) - others", "others - own.squeeze(1)"),
        ("AUM: own class not left out", "targets[:, None], -1.0).amax", "targets[:, None], own).amax"),
        ("AUM: not summed over epochs", "self._aum[indices] += batch", "self._aum[indices] = batch"),
        ("EL2N: norm 1 for norm 2", "own - 1), dim=1)", "own - 1), ord=1, dim=1)"),
        ("EL2N: every epoch", "if self.epochs < EL2N_EPOCHS:", "if True:"),
        (
            "forgetting: wrong twice counts twice",
            "self._was_correct[indices] & ~correct",
            "~correct",
        ),
        ("forgetting: never learnt is never forgotten", "never_learnt, epochs + 1,", "never_learnt, 0,"),
        ("DUAL: confidence for its complement", "* (1 - window.mean(1))", "* window.mean(1)"),
    ),
    *_mutations(
        "training/loader.py",
        "test_training.py::test_a_sample_is_spread_evenly_over_all_images",
        ("sample: from the front of the list", "* len(self) // count", "* (len(self) // count)"),
    ),
    *_mutations(
        "training/loader.py",
        "test_training.py",
        ("cutout: never reaches the last place", "- self.cutout + 1", "- self.cutout"),
        ("cutout: all of a small image", "min(cutout, *(side // 2", "min(cutout, *(side"),
        ("cutout: a square's rows alone", "& inside[1][:, None, :])", "& inside[1][:, None, :].any())"),
    ),
    *_mutations(
        "training/models.py",
        "test_training.py::test_what_enters_a_residual_block_comes_out_of_it",
        ("residual: the input is not added", "return x + super()", "return super()"),
    ),
    *_mutations(
        "training/models.py",
        "test_training.py::test_grey_photos_saved_as_rgb_train_in_bfloat16",
        ("whitening: empty directions kept", "values >= min(eps / 100, float(values[-1]))", "values >= -1"),
    ),
    *_mutations(
        "embedding/neighbors.py",
        "test_neighbors.py",
        (
            "neighbours: the image is its own",
            "            np.fill_diagonal(keys, listed.nothing)\n",
            "",
        ),
        (
            "neighbours: each block's diagonal for the matrix's",
            "keys[inside, own[part][inside] - columns.start] = listed.nothing",
            "np.fill_diagonal(keys, listed.nothing)",
        ),
        ("neighbours: faiss's answer holds the image", "(found == np.arange(count)[:, None])", "False"),
    ),
    *_mutations(
        "embedding/ranking.py",
        "test_neighbors.py",
        (
            "neighbours: the image is its own where all are compared",
            "            rough[row] = -np.inf\n",
            "",
        ),
        ("neighbours: farthest first", "place = ~score_keys(", "place = score_keys("),
    ),
    *_mutations(
        "clustering/temi.py",
        "test_temi.py",
        (
            "TEMI: student and teacher swapped",
            "    heads, classes, size = student.shape",
            "    student, teacher = teacher, student\n    heads, classes, size = student.shape",
        ),
        (
            "TEMI: neighbour's student for its teacher",
            "torch.add(own, taught[g].roll(",
            "torch.add(own, own.roll(",
        ),
        ("TEMI: beta left out", "dims=2)).mul_(beta)", "dims=2))"),
        ("TEMI: marginal multiplied", ".sub_(marginal[g].log()", ".add_(marginal[g].log()"),
        ("TEMI: sign of the loss", "return -(pmi @ weight) / size", "return (pmi @ weight) / size"),
        ("TEMI: weight of the image with itself", "(judge * q_t.roll(size // 2, dims=2))", "(judge * q_t)"),
        (
            "TEMI: teacher takes what it should keep",
            "list(self.teacher), list(self.student), 1 - config",
            "list(self.teacher), list(self.student), config",
        ),
        (
            "TEMI: marginal takes what it should keep",
            "self.marginal.lerp_(share, 1 - config.marginal_momentum)",
            "self.marginal.lerp_(share, config.marginal_momentum)",
        ),
        ("TEMI: heads aligned by the inverse names", "mapping.argsort(axis=1)", "mapping"),
        (
            "TEMI: Hungarian minimised",
            "reshape(classes, classes), maximize=True)",
            "reshape(classes, classes), maximize=False)",
        ),
    ),
    *_mutations(
        "clustering/spectral.py",
        "test_spectral.py",
        ("spectral: least informative first", "key=lambda pair: -pair[0]", "key=lambda pair: pair[0]"),
        ("spectral: not scaled by degrees", "scale @ graph @ scale", "graph.astype(float)"),
        ("spectral: a graph's parts are not found", "if parts == 1:", "if parts:"),
    ),
    *_mutations(
        "clustering/temi.py",
        "test_spectral.py",
        ("TEMI's start: away from the targets", "dim=1) - wanted", "dim=1) + wanted"),
        ("TEMI's start: the teacher stays random", "torch._foreach_copy_(list(self.teacher)", "(lambda *a: 0)(list(self.teacher)"),
    ),
    *_mutations(
        "embedding/embed.py",
        "test_encoder_file.py",
        ("crops: the first counts for all", "yield crop.flip(3) if self.mirror and number % 2 else crop", "yield crop.flip(3) if self.mirror else crop"),
        ("crops: lengths count in the mean", "F.normalize(self._features(torch.cat(some)))", "self._features(torch.cat(some))"),
        ("PCA: rows are not centred", "- self.mean) @ self.axes", "- 0 * self.mean) @ self.axes"),
    ),
    *_mutations(
        "embedding/emp_ssl.py",
        "test_emp_ssl.py",
        ("EMP-SSL: crops part", "-invariance * cosine.mean()", "invariance * cosine.mean()"),
        ("coding rate: N and D change places", "columns / (rows * eps)", "rows / (columns * eps)"),
    ),
    *_mutations(
        "clustering/turtle.py",
        "test_turtle.py",
        ("TURTLE: the mean label is to have little entropy", "- entropy * spread", "+ entropy * spread"),
        ("TURTLE: the classifier follows labels at random", "target.detach()))", "target.detach().flip(0)))"),
        ("TURTLE: lengths of embeddings count", "torch.from_numpy(unit_rows(embeddings))", "torch.from_numpy(embeddings)"),
        ("TURTLE: the first images alone", "torch.randperm(len(rows), generator=draw)[:count]", "torch.arange(count)"),
    ),
    *_mutations(
        "results/verdict.py",
        "test_verdict.py",
        ("verdict: of all rows, not those of the method", 'at["method"] == pair.method', 'at["method"] == pair.rival'),
    ),
    *_mutations(
        "clustering/metrics.py",
        "test_clustering.py",
        (
            "clustering accuracy: Hungarian minimised",
            "(counts, maximize=True)",
            "(counts, maximize=False)",
        ),
    ),
    *_mutations(
        "selection/base.py",
        "test_selection_core.py",
        (
            "polarity: every score is easy when high",
            'if SCORES[name].hard == "low" else -values',
            "",
        ),
    ),
    *_mutations(
        "selection/double_end.py",
        "test_selection_core.py",
        (
            "double-end: descending for ascending",
            'return np.argsort(easiness, kind="stable")[dropped : dropped + count]',
            'return np.argsort(-easiness, kind="stable")[dropped : dropped + count]',
        ),
        (
            "double-end: beta cuts the easy end",
            "[dropped : dropped + count]",
            "[::-1][dropped : dropped + count][::-1]",
        ),
        ("double-end: nothing dropped", "[dropped : dropped + count]", "[:count]"),
        (
            "search: worst beta for the best",
            "np.argmax(scores.mean(1))",
            "np.argmin(scores.mean(1))",
        ),
        (
            "search: trains on what it validates on",
            "splits[s][held_out:])",
            "splits[s])",
        ),
    ),
    *_mutations(
        "selection/ccs.py",
        "test_selection_core.py",
        ("CCS: beta cuts the easy end", 'kind="stable")[dropped:]', 'kind="stable")[: inputs.n - dropped]'),
        ("CCS: largest strata first", "np.argsort(sizes, kind", "np.argsort(-sizes, kind"),
        (
            "CCS: strata of equal count for equal width",
            "position = (values - low) / (high - low) * strata",
            "position = np.argsort(np.argsort(values)) / len(values) * strata",
        ),
    ),
    *_mutations(
        "selection/by_class.py",
        "test_selection_core.py",
        (
            "by class: the last class's size for all",
            "size[order] = sizes[inverse]",
            "size[order] = sizes[-1]",
        ),
    ),
    *_mutations(
        "selection/message_passing.py",
        "test_selection_comparators.py",
        ("D2: reverse messages raise", "value[target[edges]] -= weight", "value[target[edges]] += weight"),
        ("D2: no forward messages", "value = difficulty + _graph", "value = difficulty + 0 * _graph"),
        ("D2: distance for its square", "2 - 2 * inputs.similarities[:, :k]", "1 - inputs.similarities[:, :k]"),
    ),
    *_mutations(
        "selection/geometry.py",
        "test_selection_comparators.py",
        ("prototypicality: near ones kept", "np.argsort(-distances, kind", "np.argsort(distances, kind"),
        ("Moderate: from the ends inwards", "np.argsort(from_middle, kind", "np.argsort(-from_middle, kind"),
        ("k-center: nearest first", "j = int(np.argmax(local))", "j = int(np.argmin(local))"),
        ("herding: picks not taken off", "weight += mean - rows[pick]", "weight += mean"),
    ),
    *_mutations(
        "selection/badge.py",
        "test_selection_comparators.py",
        ("BADGE: p for p - onehot", "self.predicted[rows]] -= 1", "self.predicted[rows]] -= 0"),
        ("BADGE: drawn with D for D squared", "cumulative = np.cumsum(nearest)", "cumulative = np.cumsum(nearest**0.5)"),
    ),
    *_mutations(
        "selection/zcore.py",
        "test_selection_comparators.py",
        ("ZCore: no redundancy", "return change - np.bincount", "return change - 0 * np.bincount"),
        ("ZCore: lowest first", "np.argsort(-scores, kind", "np.argsort(scores, kind"),
    ),
    *_mutations(
        "selection/prototypes.py",
        "test_selection_low_budget.py",
        ("TypiClust: least typical", "_in_turns(clusters, typicality, count", "_in_turns(clusters, -typicality, count"),
        ("k-means: farthest from the centroid", "_in_turns(clusters, -distances", "_in_turns(clusters, distances"),
        ("USL: in the sparsest place", "_in_turns(clusters, dense", "_in_turns(clusters, -dense"),
        ("one of each: small clusters first", "(index, -size, place", "(index, size, place"),
        ("TypiClust: small clusters like others", "size < fewest", "size < 0"),
    ),
    *_mutations(
        "selection/coverage.py",
        "test_selection_low_budget.py",
        ("ProbCover: balls too large", "min(int(round((1 - purity)", "min(1 + int(round((1 - purity)"),
        ("ProbCover: nearest of all clusters", "first=end)", "first=0)"),
        ("MaxHerding: sigma not squared", "2 / sigma**2", "2 / sigma"),
        ("coverage: forgets earlier picks", "np.maximum(covered[part], kernel", "np.maximum(0 * covered[part], kernel"),
        ("coverage: stale gains", "np.minimum(bound[which], coverage_gains", "np.maximum(bound[which], coverage_gains"),
        ("facility location: not shifted", "        cosine += 1\n", "        cosine += 0.5\n"),
    ),
    *_mutations(
        "results/low_budget.py",
        "test_low_budget.py::test_a_method_that_opens_labels_is_stopped",
        ("track: labels are open during the choice", 'stage_lock("never", stage="the choice', 'stage_lock("evaluation", stage="the choice'),
    ),
    *_mutations(
        "results/low_budget.py",
        "test_low_budget.py::test_the_probe_is_the_minimum_of_its_loss",
        ("probe: no regularisation", "C=strength", "C=1e6 * strength"),
        ("probe: tested on raw lengths", "model.predict(tests)", "model.predict(test_embeddings)"),
    ),
    *_mutations(
        "selection/dual.py",
        "test_selection_comparators.py",
        ("DUAL: budget for pruning rate", "rate = 1 - count / inputs.n", "rate = count / inputs.n"),
        ("DUAL: beta's parameters swapped", "(a - 1) * np.log(inner) + (b - 1)", "(b - 1) * np.log(inner) + (a - 1)"),
    ),
    *_mutations(
        "training/loop.py",
        "test_training.py",
        ("training: weights not used", "(loss * weights[rows]).mean()", "loss.mean()"),
        ("training: weights of other images", "weights[rows]).mean()", "weights[: len(rows)]).mean()"),
        ("training: weights not scaled", "weights / np.mean(weights)", "weights"),
    ),
    *_mutations(
        "training/optimizer.py",
        "test_training.py",
        ("Muon: the gradient as it is", "orthogonalised(ahead.flatten(1).to(self.dtype))", "ahead"),
        ("Muon: no look ahead", "weight.grad.add(state[\"momentum\"], alpha=momentum)", "weight.grad"),
        ("Muon: weights of any length", "weight.mul_(len(weight) ** 0.5 / weight.norm())", "pass"),
        ("Muon: too few rounds", "ROUNDS = 3", "ROUNDS = 1"),
        ("Muon: convolutions decay", "\"weight_decay\": 0.0}", "\"weight_decay\": 0.1}"),
    ),
    *_mutations(
        "photos/labels.py",
        "test_own_images.py",
        ("next batch: compares budgets", "done=done, compare=False", "done=done, compare=True"),
    ),
    *_mutations(
        "photos/lists.py",
        "test_own_images.py",
        (
            "next batch: a list of its own",
            'stem = re.sub(r"(\\.next|\\.holdout)?(\\.kept\\d+)?$", "", meant.stem)',
            "stem = meant.stem",
        ),
        ("next batch: an older one stays", "    drop_batch(files, labels, say)\n    return choice", "    return choice"),
    ),
    *_mutations(
        "photos/request.py",
        "test_own_images.py",
        ("own images: gone images take room", "if path in known))", "))"),
    ),
    *_mutations(
        "photos/reasons.py",
        "test_own_images.py",
        ("own images: a list is a stray file", 'name) not in own]', "name)]"),
    ),
    *_mutations(
        "label_lock.py",
        "test_label_lock.py",
        ("label lock: label-free stages may look", 'elif stage.policy == "never":', "elif False:"),
        ("label lock: any purpose outside a stage", 'if purpose != "analysis":', "if False:"),
        ("label lock: openings are not recorded", "record.append(entry)", "pass"),
    ),
    *_mutations(
        "artifacts.py",
        "test_artifacts.py",
        ("store: checksums not verified", "if _sha256(path) != expected:", "if False:"),
        (
            "store: manifest not verified",
            'if manifest.get("checksum", checksum) != checksum:',
            "if False:",
        ),
        ("store: key without the parameters", "[stage, version, dict(params),", "[stage, version,"),
        ("store: drafts of killed runs stay", "        shutil.rmtree(draft_folder, ignore_errors=True)  # left by a killed run\n", ""),
    ),
]  # fmt: skip


def run(test: str, mutation: Mutation | None = None) -> str:
    """Run a test file in a copy with the mutation: "passed", "failed", or what else came."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (copy / name).parent.mkdir(exist_ok=True)
                shutil.copy(source, copy / name)
        if mutation:
            file = copy / "elfs_lib" / mutation.file
            text = file.read_text()
            if text.count(mutation.old) != 1:
                return "not found"
            file.write_text(text.replace(mutation.old, mutation.new))
        child = os.fork()
        if child == 0:
            _test(copy, test)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    known = {pytest.ExitCode.OK: "passed", pytest.ExitCode.TESTS_FAILED: "failed"}
    return known.get(code, f"exit code {code}")


def _test(copy: Path, test: str) -> None:
    """In the child: pytest on one file of the copy; never returns."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code: int = 70
    try:
        import elfs_lib

        assert Path(elfs_lib.__file__).is_relative_to(copy)
        code = pytest.main(
            ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"tests/{test}"]
        )
    finally:
        os._exit(code)


def main(words: list[str]) -> int:
    import faiss  # noqa: F401  (imported once, for the children)
    import hypothesis  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import torch._dynamo  # noqa: F401

    chosen = [m for m in MUTATIONS if not words or any(w in m.what for w in words)]
    # a test that fails anyhow would catch nothing
    runs = [(test, None) for test in dict.fromkeys(m.test for m in chosen)]
    runs += [(m.test, m) for m in chosen]
    bad = 0
    for test, mutation in runs:
        start = time.perf_counter()
        result = run(test, mutation)
        if mutation:
            good, name = result == "failed", mutation.what
            result = {"failed": "caught", "passed": "SURVIVED"}.get(result, result)
        else:
            good, name = result == "passed", f"{test} without a mutation"
        bad += not good
        print(f"{result:9}  {name}  ({time.perf_counter() - start:.1f} s)", flush=True)
    print(f"{len(chosen)} mutations; {bad} of {len(runs)} runs were not as they should be.")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
