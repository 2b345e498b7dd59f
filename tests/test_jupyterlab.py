"""A page as its reader has it: opened and run in JupyterLab, in headless Chromium, with the slider
of page 5 moved by a key."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT, TINY
from test_browser import BROWSER, PATIENCE, Browser

from elfs_lib.selection import double_end_prune
from elfs_lib.stages import Run

PAGE = "05_double_end_pruning.ipynb"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

OPEN = """(async () => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = await app.commands.execute("docmanager:open", {path: "notebooks/PAGE"});
  window.page = panel;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await app.commands.execute("notebook:run-all-cells");
  const cells = [...panel.content.widgets];
  panel.content.activeCellIndex = cells.findIndex(
    cell => cell.model.type === "code" && cell.model.sharedModel.source.includes("BetaSlider("));
  await panel.content.scrollToCell(panel.content.activeCell);
  const outputs = cells.filter(cell => cell.model.type === "code")
    .flatMap(cell => cell.model.outputs.toJSON());
  return {ran: cells.filter(cell => cell.model.executionCount).length,
          failed: outputs.filter(o => o.output_type === "error").map(o => o.evalue)};
})()""".replace("PAGE", PAGE)

# The words over the rows of images, and the pictures in them.
SEEN = """(() => {
  const cell = window.page.content.activeCell.node;
  return {words: (cell.querySelector(".widget-html-content") || {}).textContent || "",
          pictures: [...cell.querySelectorAll("img.widget-image")]
            .filter(image => image.naturalWidth).map(image => image.src)};
})()"""
FOCUS = """window.page.content.activeCell.node.querySelector(".noUi-handle").focus()"""


@pytest.fixture
def lab(tiny_run: Run, tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the page, over the tiny run's artifacts."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "_toc.yml", tmp_path)
    page = nbformat.read(ROOT / "notebooks" / PAGE, as_version=4)
    for cell in page.cells:
        if "parameters" in cell.metadata.get("tags", []):
            values = {k: [*v] if isinstance(v, tuple) else v for k, v in TINY.items()}
            cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    nbformat.write(page, tmp_path / "notebooks" / PAGE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR",
           "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}  # fmt: skip
    environment = os.environ | own | {"ELFS_ARTIFACTS_DIR": str(tiny_run.store.root)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    words = [
        "lab",
        "--no-browser",
        "--expose-app-in-browser",
        "--LabApp.extension_manager=readonly",
    ]
    words += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    words += [f"--ServerApp.root_dir={tmp_path}", *["--allow-root"] * (os.geteuid() == 0)]
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", *words], env=environment, stdout=log, stderr=log
    )
    try:
        address = f"http://127.0.0.1:{port}/lab?token={token}&reset"
        deadline = time.monotonic() + PATIENCE
        while not answers(address):
            assert server.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(PATIENCE)
        log.close()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=PATIENCE).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def evaluate(browser: Browser, script: str) -> object:
    found = browser("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in found, json.dumps(found["exceptionDetails"])[:1000]
    return found["result"].get("value")


def wait(browser: Browser, script: str, holds) -> object:
    deadline = time.monotonic() + PATIENCE
    while not holds(found := evaluate(browser, script)):
        assert time.monotonic() < deadline, f"{script[:80]}: {found}"
        time.sleep(0.1)
    return found


def test_page_5_runs_and_its_slider_changes_the_coreset(lab: str, tiny_run: Run, tmp_path: Path):
    browser = Browser(tmp_path / "profile")
    try:
        browser("Page.navigate", url=lab)
        wait(browser, "!!window.jupyterapp", bool)
        done = evaluate(browser, OPEN)
        assert not done["failed"] and done["ran"] > 10
        before = wait(browser, SEEN, lambda seen: "0 of 144" in seen["words"] and seen["pictures"])
        assert len(before["pictures"]) == 1  # at the chosen beta nothing leaves or enters
        evaluate(browser, FOCUS)
        for kind in ("keyDown", "keyUp"):
            browser("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight",
                    windowsVirtualKeyCode=39)  # fmt: skip
        after = wait(
            browser, SEEN,
            lambda seen: seen["words"] != before["words"] and len(seen["pictures"]) >= 2,
        )  # fmt: skip
    finally:
        browser.close()
    beta, left = re.match(r"beta = ([\d.]+) .*: ([\d,]+) of 144", after["words"]).groups()
    chosen = tiny_run.hard_prune_ratio(0.1)
    assert float(beta) == pytest.approx(chosen + 0.05)
    easiness = tiny_run.scores["aum"].to_numpy()
    lists = [double_end_prune(easiness, ratio, 144) for ratio in (chosen, float(beta))]
    assert int(left) == len(np.setdiff1d(*lists)) > 0
