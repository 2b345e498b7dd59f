"""The page "Use the parts": its examples run, one after the other, and so does the callback."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT

from elfs_lib.training.dynamics import DynamicsRecorder

PAGE = (ROOT / "book" / "use_the_parts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_examples_give_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    session = "\n".join(blocks("pycon"))
    test = doctest.DocTestParser().get_doctest(session, {}, "use_the_parts", None, 0)
    results = doctest.DocTestRunner().run(test)
    assert results.attempted == session.count(">>> ") > 40 and not results.failed


def test_the_callback_records_what_a_loop_does(monkeypatch: pytest.MonkeyPatch):
    lightning = ModuleType("lightning")
    lightning.Callback = object
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    namespace: dict = {}
    exec(blocks("python")[0], namespace)
    targets, generator = torch.arange(6) % 3, torch.Generator().manual_seed(0)
    callback, plain = namespace["RecordDynamics"](targets), DynamicsRecorder(targets)
    module = SimpleNamespace(device=torch.device("cpu"))
    callback.on_fit_start(None, module)
    for _ in range(3):
        for number, positions in enumerate(torch.arange(6).split(2)):
            logits = torch.randn(2, 3, generator=generator)
            batch = (None, targets[positions], positions)
            callback.on_train_batch_end(None, module, {"logits": logits}, batch, number)
            plain.update(positions, logits)
        callback.on_train_epoch_end(None, module)
        plain.end_epoch()
    assert callback.recorder.table().equals(plain.table())
