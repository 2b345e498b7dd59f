"""Play the page "From a folder to a model": a folder of photos, a list, a person's labels, a model.

    python book/own_images/play.py FOLDER

FOLDER is a new folder to work in; ELFS_DATA_DIR holds CIFAR-10. Everything that the page shows is
written beside this script: what each command printed, the comparison with random lists, pictures of
the images at each step, and, where Chromium is installed, one of the report. It takes a few minutes
on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

HERE = Path(__file__).resolve().parent
PHOTOS, SEED, BUDGET, HOLDOUT = 1500, 0, 100, 50
SHOWN, COLUMNS = 16, 8  # images in a picture, and in a row of it
LISTS, DRAWS = 3, 5  # seeds of the method, where it draws, and random lists, that are compared


def make_photos(folder: Path) -> dict[str, str]:
    """Write images of CIFAR-10's test split under names that tell nothing; return path -> class.

    As in any real folder, some files are of no use or there twice: a damaged one, a text, a grey
    image, an exact copy, and a copy saved again as JPEG.
    """
    from elfs_lib.data.datasets import load_images, load_labels

    images = load_images("cifar10")
    labels = load_labels("cifar10", "test")
    chosen = np.random.default_rng(SEED).permutation(len(images.test))[:PHOTOS]
    truth = {}
    folder.mkdir(parents=True)
    for number, row in enumerate(chosen):
        place = f"card{number % 3 + 1}/IMG_{number:04}.png"
        (folder / place).parent.mkdir(exist_ok=True)
        Image.fromarray(images.test[row].transpose(1, 2, 0)).save(folder / place)
        truth[place] = images.class_names[labels[row]]
    first, second, third, fourth = list(truth)[:4]
    shutil.copy(folder / first, folder / "copy of IMG_0000.png")
    Image.open(folder / second).save(folder / "sent.jpg", quality=90)
    Image.open(folder / third).convert("L").save(folder / third)
    (folder / "broken.png").write_bytes((folder / fourth).read_bytes()[:700])
    (folder / "notes.txt").write_text("Taken on three cards.\n")
    return truth | {"copy of IMG_0000.png": truth[first], "sent.jpg": truth[second]}


def elfs(name: str, *words: str) -> None:
    """Run a command of ``elfs`` and keep what it printed as ``<name>.txt``."""
    start = time.perf_counter()
    done = subprocess.run(["elfs", *words], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    print(f"elfs {' '.join(words)}: {seconds:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    (HERE / f"{name}.txt").write_text(f"$ elfs {' '.join(words)}\n{done.stdout}")


def label(listed: str, file: str, truth: dict[str, str]) -> None:
    """What a person does with a list: name the class of each image."""
    frame = pd.read_csv(listed)
    frame.assign(label=frame["path"].map(truth))[["path", "label"]].to_csv(file, index=False)


def compare(truth: dict[str, str]) -> None:
    """Accuracy on the images without a label, after training on chosen lists and on random ones."""
    from elfs_lib.photos.assessment import predict
    from elfs_lib.photos.choosing import choose_images
    from elfs_lib.photos.lists import ListFiles, open_choice, stored_labels
    from elfs_lib.results.evaluation import display_name

    files = ListFiles(Path("to_label.csv"))
    choice = open_choice(files.record)
    run, held = choice.run, set(choice.request.held)
    both = [path for path in stored_labels(files) if path not in held]
    pool = [path for path in run.paths if path not in held]
    draws = choice.chooser.trains or choice.chooser.entry.seeded
    name = display_name(choice.method)

    def accuracy(paths: list[str]) -> float:
        found = predict(run, {path: truth[path] for path in paths})
        rest = found[found["given"] == ""]
        return 100 * float((rest["label"] == rest["path"].map(truth)).mean())

    lists = [
        list(
            choose_images(
                Path("photos"), replace(choice.request, seed=seed, compare=False), run.store
            ).listed["path"]
        )
        for seed in range(LISTS if draws else 1)
    ]
    rows = {(name, BUDGET): lists, (f"{name}, and the next list", len(both)): [both]}
    for size in (BUDGET, len(both)):
        rows["random", size] = [
            list(np.random.default_rng(draw).permutation(pool)[:size]) for draw in range(DRAWS)
        ]
    table = []
    for (which, size), several in rows.items():
        found = np.array([accuracy(paths) for paths in several])
        spread = f"{found.std(ddof=1):.1f}" if len(found) > 1 else ""
        table.append([which, size, len(found), f"{found.mean():.1f}", spread])
        print(*table[-1], flush=True)
    columns = ["list", "labels", "lists", "accuracy on the others (%)", "standard deviation"]
    pd.DataFrame(table, columns=columns).sort_values(["labels", "list"]).to_csv(
        HERE / "against_random.csv", index=False
    )


def show(name: str, paths: Iterable[str], titles: Iterable[str] | None = None) -> None:
    """Write images of the folder as ``<name>.png``, each under its title."""
    from elfs_lib.results import plots

    pixels = [np.asarray(Image.open(Path("photos") / path).convert("RGB")) for path in paths]
    grid = np.stack(pixels).transpose(0, 3, 1, 2)
    figure = plots.image_grid(grid, None if titles is None else list(titles), columns=COLUMNS)
    (HERE / f"{name}.png").write_bytes(figure._repr_png_())


def show_steps(truth: dict[str, str]) -> None:
    """Pictures of the folder, the list, its labels and what the model then says."""
    show("folder", list(truth)[:SHOWN])
    listed = pd.read_csv("to_label.csv").head(SHOWN)
    show("list", listed["path"], [f"rank {rank}" for rank in listed["rank"]])
    show("labels", listed["path"], [truth[path] for path in listed["path"]])
    said = pd.read_csv("to_label.predictions.csv", keep_default_na=False)
    said = said[said["given"] == ""].head(SHOWN)
    right = said["label"] == said["path"].map(truth)
    titles = [name if ok else f"({name})" for name, ok in zip(said["label"], right, strict=True)]
    show("predictions", said["path"], titles)


def picture(page: str, file: Path) -> None:
    """The top of the report, as a browser shows it."""
    browser = shutil.which("chromium")
    if browser:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size = ["--window-size=1060,1000", f"--screenshot={file}"]
        words = [browser, *options, *size, Path(page).resolve().as_uri()]
        subprocess.run(words, check=True, capture_output=True)


def main(folder: str) -> None:
    os.environ |= {"ELFS_DATA_DIR": str(Path(os.environ["ELFS_DATA_DIR"]).resolve())}
    os.environ |= {"ELFS_ARTIFACTS_DIR": "artifacts", "ELFS_PROGRESS": "0"}
    os.makedirs(folder)
    os.chdir(folder)
    truth = make_photos(Path("photos"))
    words = ("--classes", "10", "--budget", str(BUDGET), "--holdout", str(HOLDOUT))
    elfs("1_select", "select", "photos", *words)
    picture("to_label.html", HERE / "report.png")
    table = pd.read_csv("to_label.csv", dtype=str).head(5)
    (HERE / "2_list.csv").write_text(table.to_csv(index=False))
    label("to_label.csv", "labels.csv", truth)
    label("to_label.holdout.csv", "tests.csv", truth)
    elfs("3_import", "labels", "import", "labels.csv")
    elfs("3_holdout", "labels", "import", "tests.csv")
    elfs("4_evaluate", "evaluate")
    label("to_label.next.csv", "more.csv", truth)
    elfs("5_import", "labels", "import", "more.csv")
    elfs("6_evaluate", "evaluate", "--next", "0")
    show_steps(truth)
    compare(truth)
    made()


def made() -> None:
    """Say what made the page, and what the stages cost."""
    from elfs_lib.artifacts import package_versions
    from elfs_lib.compute import describe_device, resolve_device
    from elfs_lib.project import default_store

    seconds = sum(artifact.manifest["cpu_s"] for artifact in default_store().artifacts())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    (HERE / "made.txt").write_text(
        f"{PHOTOS:,} images of CIFAR-10's test split, seed {SEED}\n"
        f"{describe_device(resolve_device())}; {seconds:.0f} processor seconds in the stages, "
        f"those of the comparison at the end included\n{versions}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
