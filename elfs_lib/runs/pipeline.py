"""Running a whole run: the stages with progress, the notebooks through papermill, the book."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from elfs_lib.errors import ElfsError, choose
from elfs_lib.params import Params
from elfs_lib.project import project_root
from elfs_lib.results.provenance import changes_of
from elfs_lib.stages.graph import Call
from elfs_lib.stages.run import Run

NOTEBOOKS = (
    "01_embeddings",
    "02_temi_clustering",
    "03_aum_dynamics",
    "04_distribution_shift",
    "05_double_end_pruning",
    "06_coreset_evaluation",
    "07_comparison",
)
LABELLED = ("04_distribution_shift", "06_coreset_evaluation", "07_comparison")  # need labels
WIDGET = "application/vnd.jupyter.widget-view+json"
# pages over all runs, rewritten with each book; the last is of the digits alone
SUMMARIES = ("results", "results_tables", "encoders", "digits_demo")


def run_stages(run: Run, *, say: Callable[[str], None] = print) -> None:
    """Run every stage of :meth:`Run.plan`, saying before each what is running and what is likely
    left.

    The estimate counts the stages that were timed in this run, so it is a lower bound until the
    first evaluation is done.
    """
    plan = run.plan()
    start, timed = time.perf_counter(), defaultdict(list)
    for number, call in enumerate(plan):
        say(f"[{number + 1}/{len(plan)}] {call.title}{_left(timed, plan[number:])}")
        began = time.perf_counter()
        call.make()
        spent = time.perf_counter() - began
        if spent > 0.1:  # one that was found ready says nothing about the others
            timed[call.stage.name].append(spent)
    say(f"Stages done in {_clock(time.perf_counter() - start)}; artifacts are in {run.store.root}.")


def _left(timed: Mapping[str, list[float]], remaining: Sequence[Call]) -> str:
    """The time that stages will take that are run again with other arguments."""
    stages = Counter(call.stage.name for call in remaining if call.args)
    known = {name: timed[name][-10:] for name in stages if timed[name]}
    if not known:
        return ""
    seconds = sum(stages[name] * sum(spent) / len(spent) for name, spent in known.items())
    once = any(not call.args for call in remaining)
    bound = "about" if len(known) == len(stages) and not once else "at least"
    return f"  ({bound} {_clock(seconds)} left)"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def notebooks_of(run: Run) -> list[str]:
    """The notebooks that a run can fill: without labels of both splits, there is nothing to
    analyse and to test."""
    return [name for name in NOTEBOOKS if run.can_evaluate or name not in LABELLED]


def run_notebooks(
    names: Sequence[str],
    params: Params,
    target: Path,
    *,
    kernel: str | None = None,
    workers: int = 2,
) -> list[Path]:
    """Execute the notebooks through papermill into ``target``.

    Args:
        names: Which of :data:`NOTEBOOKS`.
        params: Parameters of the run; a notebook's own defaults are for the digits.
        target: Folder of the executed copies.
        kernel: Name of a Jupyter kernel; None for the one the notebooks name.
        workers: Notebooks at a time; they share the cores.

    Raises:
        ElfsError: naming the notebook, its cell and the message, if one fails. The failed copy is
            kept in ``target`` with its error, as papermill leaves it.
    """
    check_notebooks(names, kernel)
    given = {name: page_parameters(name, params) for name in names}
    return _execute_all(given, target, kernel, workers)


def page_parameters(name: str, params: Params) -> dict[str, Any]:
    """What papermill is to give a page of a run: the parameters that the page names, and those
    others that the dataset's file in ``params/`` does not say, which is where
    :meth:`Params.from_notebook` takes the rest from."""
    named = papermill.inspect_notebook(str(project_root() / "notebooks" / f"{name}.ipynb"))
    given = {*named, *changes_of(params)}
    return {key: value for key, value in params.model_dump(mode="json").items() if key in given}


def _execute_all(
    pages: Mapping[str, Mapping], target: Path, kernel: str | None, workers: int
) -> list[Path]:
    with _quiet(workers), ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(execute, n, target, p, kernel=kernel) for n, p in pages.items()]
        return [job.result() for job in jobs]


def refresh_notebooks() -> list[Path]:
    """Run every page of ``notebooks/`` with its defaults and keep the outputs in it."""
    root = project_root()
    check_notebooks((*NOTEBOOKS, *SUMMARIES))
    with _quiet(1):
        return [execute(name, root / "notebooks", {}) for name in (*NOTEBOOKS, *SUMMARIES)]


def execute(
    name: str, target: Path, parameters: Mapping[str, Any], *, kernel: str | None = None
) -> Path:
    """Execute one notebook of ``notebooks/`` through papermill into the folder ``target``.

    Raises:
        ElfsError: naming the notebook, its cell and the message, if it fails;
            :class:`KernelDied` if its kernel did. What was executed is kept all the same.
    """
    root = project_root()
    target.mkdir(parents=True, exist_ok=True)
    output = target / f"{name}.ipynb"
    draft = target / f".{name}.ipynb"  # a notebook under its own name is never half executed
    notebook = root / "notebooks" / output.name
    # a failed copy never takes the place of the page itself
    failed = output if output != notebook else target / f"{name}.failed.ipynb"
    try:
        run_notebook(notebook, draft, parameters, kernel=kernel, last=f"kept as {failed}")
    except ElfsError:
        if draft.exists():  # it is not where no kernel was started
            os.replace(draft, failed)
        raise
    tidy(draft)
    os.replace(draft, output)
    return output


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    kernel: str | None = None,
    last: str,
) -> None:
    """Execute a notebook through papermill, in the current folder: relative paths in parameters
    and in the environment mean there what they mean here.

    Args:
        notebook: The notebook to read.
        output: Where it is written as it was executed, also when it fails.
        parameters: Of papermill, which puts them into a cell of their own.
        kernel: Name of a Jupyter kernel; None for the one that the notebook names.
        last: What a message ends with, in brackets.

    Raises:
        ElfsError: naming the notebook, its cell and the message, if it fails;
            :class:`KernelDied` if its kernel did.
    """
    # it warns of each parameter that a page does not name: a page names those that it reads
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=dict(parameters),
            kernel_name=kernel,
            progress_bar=False,
            log_output=False,
            # a kernel logs its shutdown as an error; the errors of cells are raised
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        raise ElfsError(
            f"Notebook {notebook.stem} failed in cell {error.cell_index}: {error.ename}: "
            f"{error.evalue} ({last})."
        ) from error
    except NoSuchKernel as error:  # where it was not checked: on a worker of a sweep
        raise ElfsError(
            f"Notebook {notebook.stem} needs the Jupyter kernel {error.name!r}, which is not on "
            f"this machine: name one of {', '.join(sorted(_kernels()))} with -k."
        ) from error
    except RuntimeError as error:  # nbclient's and jupyter_client's, by what they say
        if "died" not in str(error):
            raise
        raise KernelDied(
            f"The kernel of notebook {notebook.stem} died, probably out of memory: stop "
            f"what else runs, and repeat the command ({last})."
        ) from error


class KernelDied(ElfsError):
    """A notebook's kernel ended before the notebook did."""


def check_notebooks(names: Iterable[str], kernel: str | None = None) -> None:
    """Check that notebooks and kernel are there, before the work that comes first.

    Raises:
        ElfsError: naming what is not.
    """
    folder = project_root() / "notebooks"
    for name in names:
        notebook = folder / f"{name}.ipynb"
        if not notebook.is_file():
            raise ElfsError(f"There is no {name}.ipynb in {folder}: go to the project's folder.")
        check_kernel(kernel, notebook)


def check_kernel(kernel: str | None, notebook: Path) -> None:
    """Check that a notebook has its Jupyter kernel: the one given, or the one that it names.

    Raises:
        ElfsError: if there is none of that name.
    """
    there = _kernels()
    if not there:
        raise ElfsError("There is no Jupyter kernel: install ipykernel.")
    named = nbformat.read(notebook, as_version=4).metadata.get("kernelspec", {}).get("name")
    choose("Jupyter kernel", kernel or named or "python3", there)


def _kernels() -> Iterable[str]:
    return KernelSpecManager().find_kernel_specs()


@contextmanager
def _quiet(workers: int) -> Iterator[None]:
    """Kernels started in here show no progress bars and share the cores."""
    changes = {"ELFS_PROGRESS": "0", "OMP_NUM_THREADS": str(_threads(workers))}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _threads(workers: int) -> int:
    return max(1, (os.cpu_count() or 1) // workers)


def tidy(path: Path) -> None:
    """Drop what differs between two equal runs: times, paths, what was said on stderr, widgets."""
    notebook = nbformat.read(path, as_version=4)
    kept = notebook.metadata.get("papermill", {}).get("parameters", {})
    notebook.metadata["papermill"] = {"parameters": kept}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
            cell.metadata["mystnb"] = {
                "code_prompt_show": "Show the parameters of this run",
                "code_prompt_hide": "Hide the parameters of this run",
            }
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:  # a widget lives as long as its kernel: its picture stays
                output.get("data", {}).pop(WIDGET, None)
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


def build_book(*, strict: bool = True, kernel: str | None = None) -> Path:
    """Write the pages over all runs, render the book to ``_build/html`` and return its first page.

    Args:
        strict: Whether a warning of Sphinx is an error.
        kernel: Name of a Jupyter kernel; None for the one that the pages name.

    Raises:
        ElfsError: if Sphinx finds an error or, when ``strict``, a warning.
    """
    root = project_root()
    check_notebooks(SUMMARIES, kernel)
    runs = root / "book" / "runs"
    names = SUMMARIES if (runs / "digits").is_dir() else SUMMARIES[:-1]
    _execute_all({name: {} for name in names}, runs, kernel, len(names))
    sphinx = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    sphinx += ["build", str(root), "--quiet"]
    sphinx += ["--warningiserror", "--nitpick", "--keep-going"] if strict else []
    page = root / "_build" / "html" / "index.html"
    page.unlink(missing_ok=True)  # so that a page that is there was built just now
    if subprocess.run(sphinx, cwd=root, check=False).returncode or not page.exists():
        raise ElfsError("The book did not build: fix what Sphinx names above.")
    return page
