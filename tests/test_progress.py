"""Progress bars: widgets in a notebook's kernel, text on a terminal, nothing in a log."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import tqdm
import tqdm.notebook

from elfs_lib.progress import track


def pretend(monkeypatch: pytest.MonkeyPatch, *, kernel: bool, terminal: bool) -> None:
    shell = SimpleNamespace(kernel=None) if kernel else None
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: terminal))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_kernel_shows_widgets(monkeypatch: pytest.MonkeyPatch, terminal: bool):
    bars = []
    monkeypatch.setattr(tqdm.notebook, "tqdm", lambda *args, **options: bars.append(options))
    pretend(monkeypatch, kernel=True, terminal=terminal)
    monkeypatch.delenv("ELFS_PROGRESS", raising=False)
    track(range(3), "x")
    assert [bar["disable"] for bar in bars] == [False]
    monkeypatch.setenv("ELFS_PROGRESS", "0")  # a page that is executed keeps no widget
    assert track(range(3), "x").disable and len(bars) == 1


def test_what_only_imported_ipython_is_no_notebook(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ELFS_PROGRESS", raising=False)
    pretend(monkeypatch, kernel=False, terminal=False)
    bar = track(range(3), "x")
    assert type(bar) is tqdm.tqdm and bar.disable and [*bar] == [0, 1, 2]
