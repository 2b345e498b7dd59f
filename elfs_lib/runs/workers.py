"""The Dask workers of a sweep: on this machine, on SLURM, or of a scheduler that runs already."""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from elfs_lib.errors import ElfsError

if TYPE_CHECKING:  # Dask takes seconds to import, and only running a sweep needs it
    from distributed import Client

    from elfs_lib.runs.spec import Sweep

_WORKER_BYTES = 2 * 2**30  # a worker and its kernel, each with torch, before any data


def local_workers(*, cores: int, gpus: int, memory: int) -> int:
    """How many trainings run at a time on one machine.

    One for each GPU; else one for each 4 cores, and two where there are fewer than 8, as far as
    memory holds them.
    """
    if gpus:
        return gpus
    return max(1, min(max(min(cores, 2), cores // 4), memory // _WORKER_BYTES))


def worker_environments(workers: int, *, cores: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment of each local worker, which its kernels inherit.

    Workers divide the cores: threads of several that outnumber the cores slow each other down by
    an order of magnitude. A thread count that the user has set is kept. GPUs are assigned in turn.
    """
    share = str(max(1, cores // workers))
    threads = {
        name: os.environ.get(name, share)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    cards = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(workers)]
    return [threads | card for card in cards]


def _gpus(sweep: Sweep) -> list[str]:
    if all(params.device == "cpu" for params in sweep.pipelines):
        return []
    numbered = [p.device for p in sweep.pipelines if re.fullmatch("cuda:0*[1-9].*", p.device)]
    if numbered:
        raise ElfsError(
            f"Each worker of sweep {sweep.name!r} sees one GPU, under the number 0, so none has "
            f"device {numbered[0]!r}: use 'cuda', and CUDA_VISIBLE_DEVICES to say which GPUs."
        )
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def open_client(
    sweep: Sweep,
    say: Callable[[str], None],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
) -> Iterator[Client]:
    """A Dask client of the scheduler at an address, else of a SLURM cluster if the sweep says so,
    else of workers on this machine (``workers`` of them instead of the sweep's number).

    Raises:
        ElfsError: if the scheduler does not answer, or SLURM does not take the jobs.
    """
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors become sentences
    with ExitStack() as stack:
        if scheduler:
            try:
                client = stack.enter_context(Client(scheduler, timeout=10, set_as_default=False))
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ElfsError(
                    f"No Dask scheduler answers at {scheduler!r} ({reason}): start one with "
                    "'dask scheduler', or leave --scheduler out."
                ) from None
        else:
            cluster = stack.enter_context(
                _slurm_cluster(sweep.slurm) if sweep.slurm else _local_cluster(sweep, workers, say)
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
        say(f"Dask's dashboard: {client.dashboard_link}")
        yield client


@contextmanager
def _local_cluster(sweep: Sweep, workers: int | None, say: Callable[[str], None]) -> Iterator[Any]:
    import dask
    import psutil
    from dask.system import CPU_COUNT
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _gpus(sweep)
    memory = psutil.virtual_memory().available
    count = workers or sweep.workers
    count = count or local_workers(cores=CPU_COUNT, gpus=len(gpus), memory=memory)
    environments = worker_environments(count, cores=CPU_COUNT, gpus=gpus)
    threads = environments[0]["OMP_NUM_THREADS"]
    say(f"Workers: {count}, each with {threads} CPU threads" + (" and a GPU" if gpus else "") + ".")
    settings = {
        "distributed.scheduler.allowed-failures": sweep.retries,
        # A stage may hold Python's lock for minutes, and a busy machine answers late: that does not
        # mean it is dead.
        "distributed.scheduler.worker-ttl": None,
        "distributed.comm.timeouts.connect": "300s",
    }
    quiet = {"silence_logs": logging.CRITICAL}
    nanny = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": None} | quiet
    address = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:8787"}
    with dask.config.set(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port 8787 is already in use")
        with SpecCluster(
            scheduler={"cls": Scheduler, "options": address},
            workers={
                number: {"cls": Nanny, "options": {**nanny, "env": environment}}
                for number, environment in enumerate(environments)
            },
            **quiet,
        ) as cluster:
            yield cluster


@contextmanager
def _slurm_cluster(options: Mapping[str, Any]) -> Iterator[Any]:
    from distributed.core import Status

    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ElfsError("Sweeps on SLURM need dask-jobqueue: pip install 'elfs[slurm]'.") from None
    options = dict(options)
    jobs = options.pop("jobs")
    command = SLURMCluster.job_cls.submit_command
    if shutil.which(command) is None:
        raise ElfsError(
            f"There is no {command!r} here: start a sweep on SLURM on a machine that submits jobs, "
            "or take 'slurm' out of its file."
        )
    try:
        cluster = SLURMCluster(**options, silence_logs=logging.CRITICAL)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ElfsError(f"SLURMCluster refuses the sweep's 'slurm' options: {reason}.") from None

    async def submit() -> None:
        # As cluster.scale does, which does not report that sbatch refuses: a sweep would wait
        # forever.
        for _ in range(jobs):
            cluster.worker_spec.update(cluster.new_worker_spec())
        try:
            await cluster
        except BaseException:
            for job in cluster.workers.values():
                job.status = Status.failed  # else closing treats them as running
            raise

    with cluster:
        try:
            cluster.sync(submit)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ElfsError(
                f"SLURM rejected the job ({reason}): fix the sweep's 'slurm' options."
            ) from None
        yield cluster
