"""The archive of the book, opened again: what is in it, and that it names nobody if asked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from elfs_lib.errors import ElfsError
from elfs_lib.runs import publishing

LEAKS = ("Neil", "Lovelace", "example.org", "adalab", "secret-elfs", "/home/", "/Users/", "0000-1")
PAGE = """<p>By Ada O&#39;Neil and Bea Lovelace</p> <p>Ada O’Neil</p> <p>Lovelace, Bea</p>
<p>ada@example.org, https://orcid.org/0000-1</p>
<a href="https://github.com/adalab/secret-elfs/issues">issues</a> git@github.com:adalab/secret-elfs
<p>Zheng et al. (2025); Ada Boost</p>"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with a built book, whose every file names its authors."""
    root = tmp_path / "project"
    files = {
        "_toc.yml": "",
        "_config.yml": 'author: "Ada O\'Neil, Bea Lovelace"',
        "CITATION.cff": "authors:\n"
        "  - {given-names: Ada, family-names: O'Neil, email: ada@example.org, orcid: "
        "https://orcid.org/0000-1}\n"
        "  - {given-names: Bea, family-names: Lovelace}\n"
        "references:\n  - {type: article, authors: [{name: Zheng et al.}]}\n",
        "LICENSE": "MIT License\n\nCopyright (c) 2026 Ada O'Neil\n",
        "requirements.lock": "numpy==2.0\n",
        "params/digits.yaml": "data_path: /Users/bea/digits\n",
        "_build/html/index.html": PAGE,
        "book/runs/digits/01.ipynb": json.dumps(
            {"a": f"{root}/x.py", "b": "/home/ada/data", "c": "Ada O’Neil", "d": "book/home"}
        ),
        "book/runs/digits/results.csv": "accuracy\n90\n",
        "book/runs/digits/coresets/elfs_9.parquet.json": "{}",
        "book/runs/results.ipynb": "{}",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "_build/html/a.png").write_bytes(b"\x89PNG\xff picture")
    git = ["git", "-C", str(root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run(
        [*git, "remote", "add", "origin", "git@github.com:adalab/secret-elfs.git"], check=True
    )
    monkeypatch.chdir(root)
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(root / "_artifacts"))
    return root


def unzipped(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_an_archive_has_the_book_the_runs_and_checksums_of_all(project: Path):
    archive = project / "supplement.zip"
    publishing.publish(archive)
    inside = unzipped(archive)
    assert set(inside) == {
        "LICENSE", "README.md", "requirements.lock", "params/digits.yaml", "book/index.html",
        "book/a.png", "runs/digits/01.ipynb", "runs/digits/results.csv",
        "runs/digits/coresets/elfs_9.parquet.json", "manifest.json",
    }  # fmt: skip
    assert inside["book/index.html"] == PAGE.encode()  # as it is, unless asked
    manifest = json.loads(inside.pop("manifest.json"))
    assert manifest["format"] == publishing.FORMAT and manifest["anonymous"] is False
    assert manifest["files"] == {n: hashlib.sha256(d).hexdigest() for n, d in inside.items()}
    first = archive.read_bytes()
    publishing.publish(archive)
    assert archive.read_bytes() == first


def test_an_anonymous_archive_names_nobody_and_keeps_the_rest(project: Path):
    archive = project / "supplement.zip"
    publishing.publish(archive, anonymous=True)
    inside = unzipped(archive)
    text = "\n".join(data.decode("latin-1") for data in inside.values())
    assert [leak for leak in (*LEAKS, str(project), str(Path.home())) if leak in text] == []
    page = inside["book/index.html"].decode()
    assert "Zheng et al. (2025); Ada Boost" in page  # a paper, and a first name alone
    assert page.count(publishing.NOBODY) >= 6
    assert inside["LICENSE"].decode().endswith("2026 Anonymous\n")
    notebook = json.loads(inside["runs/digits/01.ipynb"])
    assert notebook == {"a": "~/x.py", "b": "~/data", "c": "Anonymous", "d": "book/home"}
    assert inside["book/a.png"] == b"\x89PNG\xff picture"
    checksums = json.loads(inside["manifest.json"])["files"]
    assert checksums["LICENSE"] == hashlib.sha256(inside["LICENSE"]).hexdigest()


def test_the_projects_own_archive_would_name_none_of_its_authors(monkeypatch):
    monkeypatch.chdir(ROOT)
    traces = publishing.Traces.of(ROOT)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for file in ("CITATION.cff", "LICENSE", "_config.yml"):
        kept = traces.remove(file, (ROOT / file).read_bytes()).decode()
        for person in cited["authors"]:
            assert person["name"] not in kept, file


def test_what_cannot_be_made_anonymous_is_refused_and_nothing_is_written(project: Path):
    archive = project / "supplement.zip"
    archive.write_bytes(b"an older one")
    (project / "_build/html/b.png").write_bytes(b"\x89PNG\xff by Bea Lovelace")
    publishing_error = pytest.raises(ElfsError, match=r"book/b\.png")
    with publishing_error:
        publishing.publish(archive, anonymous=True)
    assert archive.read_bytes() == b"an older one"
    assert [path.name for path in project.glob(".supplement*")] == []


def test_a_book_that_is_not_built_and_a_name_that_is_no_archive_are_refused(project: Path):
    with pytest.raises(ElfsError, match="zip"):
        publishing.publish(project / "supplement.tar")
    (project / "_build/html/index.html").unlink()
    with pytest.raises(ElfsError, match="elfs book"):
        publishing.publish(project / "supplement.zip")


def test_github_pages_serves_what_make_book_builds():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    assert flow["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    build, deploy = flow["jobs"]["build"]["steps"], flow["jobs"]["deploy"]
    assert {"run": "make book"} in build and deploy["needs"] == "build"
    uploaded = next(step for step in build if "upload-pages-artifact" in step.get("uses", ""))
    assert uploaded["with"]["path"] == "_build/html"
