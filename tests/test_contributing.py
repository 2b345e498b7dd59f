"""The examples of CONTRIBUTING.md and of "Add a selection method" run as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT
from sklearn.cluster import AgglomerativeClustering

from elfs_lib.clustering.metrics import kmeans_labels
from elfs_lib.stages import Run

SCRIPT = """
import json, sys
import numpy as np
from conftest import TINY
import elfs_lib
from elfs_lib.artifacts import Store
from elfs_lib.params import Params
from elfs_lib.stages import Run

store = Store(sys.argv[1])
def run(**changes):
    return Run(Params.make(TINY | changes), store)
runs = {
    "agglomerative": run(clustering="agglomerative"),
    "kmeans": run(clustering="kmeans"),
    "kmeans, 1": run(clustering="kmeans", kmeans_restarts=1),
    "spectral": run(clustering="spectral"),
    "spectral, 1": run(clustering="spectral", kmeans_restarts=1),
}
print(json.dumps({
    "from": elfs_lib.__file__,
    "keys": {name: each.call("clusters").artifact.key for name, each in runs.items()},
    "labels": {name: each.pseudo_labels.tolist() for name, each in runs.items()},
    "list": run().coreset("least_similar", 20).table("coreset")["index"].tolist(),
}))
"""


def examples(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code.strip() for code in found if "Run(" not in code]


def insert(file: Path, code: str, before: str) -> None:
    text = file.read_text(encoding="utf-8")
    place = text.index(before)
    file.write_text(f"{text[:place]}{code}\n\n{text[place:]}", encoding="utf-8")


def test_the_examples_of_new_entries_and_parameters_run(tiny_run: Run, tmp_path: Path):
    shutil.copytree(ROOT / "elfs_lib", tmp_path / "elfs_lib")
    clusterings = tmp_path / "elfs_lib" / "clustering" / "registry.py"
    methods = tmp_path / "elfs_lib" / "selection" / "registry.py"
    function, line, field, entry = examples("CONTRIBUTING.md")
    insert(clusterings, function, "CLUSTERINGS: dict")
    insert(clusterings, line + ",", 'Clustering(\n            "temi"')
    insert(clusterings, entry + ",", 'Clustering(\n            "spectral"')  # in place of the old
    insert(tmp_path / "elfs_lib" / "params.py", field, "# proxy training")
    function, line = (code for code in examples("book/how_to_run.md") if "least_similar" in code)
    insert(methods, function, "def _methods()")
    insert(methods, line + ",", 'Method("random"')
    store = tmp_path / "artifacts"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(store)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'tests'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["from"]).is_relative_to(tmp_path)
    rows, near = tiny_run.embeddings.array("embeddings"), tiny_run.neighbors.array("similarities")
    linkage = AgglomerativeClustering(10, metric="cosine", linkage="average")
    expected = {
        "agglomerative": linkage.fit_predict(np.array(rows)),
        "kmeans, 1": kmeans_labels(np.array(rows), 10, restarts=1),
        "kmeans": kmeans_labels(np.array(rows), 10),
    }
    for name, labels in expected.items():
        assert found["labels"][name] == labels.tolist(), name
    assert found["labels"]["kmeans"] != found["labels"]["kmeans, 1"]
    keys = found["keys"]
    assert keys["kmeans"] != keys["kmeans, 1"] and keys["spectral"] == keys["spectral, 1"]
    for name in ("kmeans", "spectral"):  # what was made before there was a parameter
        params = tiny_run.params.model_copy(update={"clustering": name})
        assert Run(params, tiny_run.store).call("clusters").artifact.key == keys[name]
    apart = np.argsort(near.mean(axis=1).astype(np.float64), kind="stable")
    assert found["list"] == apart[:20].tolist()
