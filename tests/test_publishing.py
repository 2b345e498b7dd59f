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


def test_paths_outside_of_home_and_project_go(project: Path, monkeypatch):
    monkeypatch.setenv("ELFS_DATA_DIR", "/scratch/jdoe/data")
    monkeypatch.setenv("ELFS_ENCODER_DIR", "/scratch/jdoe/nets")
    (project / "params/own.yaml").write_text(
        "data_path: /srv/jane/my photos  # mine\n"
        "overrides: {encoder_checkpoint: /opt/ada/a.pt, b: 1}"
    )
    (project / "book/runs/digits/02.ipynb").write_text(
        json.dumps({"source": ['data_path = "/mnt/bea/tars"\n/scratch/jdoe/data/x.png']})
    )
    (project / "_build/html/index.html").write_text(
        "<p>/scratch/jdoe/data/a.png, /scratch/jdoe/nets: /srv/jane/my photos/1.png "
        "/opt/ada/a.pt /mnt/bea/tars/0.tar /usr/bin/python</p>"
    )
    publishing.publish(project / "supplement.zip", anonymous=True)
    inside = unzipped(project / "supplement.zip")
    assert inside["book/index.html"] == b"<p>~/a.png, ~: ~/1.png ~ ~/0.tar /usr/bin/python</p>"
    assert json.loads(inside["runs/digits/02.ipynb"]) == {"source": ['data_path = "~"\n~/x.png']}
    assert b"jane" not in inside["params/own.yaml"] and b"ada" not in inside["params/own.yaml"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://github.com/adalab", "https://Anonymous"),
        ("https://gitlab.com/adalab/secret-elfs/x", "https://Anonymous/x"),
        ("https://adalab.github.io/secret-elfs/", "https://Anonymous/"),
        ("https://github.com/adalab/other-work", "https://Anonymous/other-work"),
        ("https://gitlab.com/adalab", "https://Anonymous"),
        ("https://adalab.github.io/elfs/", "https://Anonymous/elfs/"),
        ("https://adalab.gitlab.io", "https://Anonymous"),
        ("https://github.com/pytorch", "https://github.com/pytorch"),
    ],
)
def test_the_owner_of_the_repository_goes(project: Path, text: str, kept: str):
    assert publishing.Traces.of(project).remove("a.html", text.encode()).decode() == kept


@pytest.mark.parametrize("file", ["LICENSE", "_config.yml"])
@pytest.mark.parametrize("between", [", ", " and ", " & ", ", and "])
def test_each_of_a_list_of_authors_goes(project: Path, file: str, between: str):
    people = between.join(["Jane Doe", "John Roe"])
    line = (
        f"Copyright © 2026 {people}. All rights reserved.\n"
        if file == "LICENSE"
        else f'author: "{people}"'
    )
    (project / file).write_text(line)
    traces = publishing.Traces.of(project)
    text = b"John Roe met Jane Doe; John and Jane. All rights reserved."
    kept = b"Anonymous met Anonymous; John and Jane. All rights reserved."
    assert traces.remove("a.html", text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "José O'Neil", "José&nbsp;O&#39;Neil", "José%20O%27Neil", "Jos%C3%A9+O%27Neil",
        "Jos&eacute; O’Neil", "Jos&#233; O'Neil", "Jos&#xE9; O'Neil", "Jose\u0301 O'Neil",
        "JOSÉ O'NEIL", json.dumps("José O’Neil"), json.dumps("JOSÉ\u00a0O'NEIL"),
        json.dumps("by\nJosé\nO'Neil"), "?by=x%20Jos%C3%A9%20O'Neil",
    ],
)  # fmt: skip
def test_a_name_goes_however_it_is_spelled(text: str):
    traces = publishing.Traces(["José O'Neil"], [])
    kept = traces.remove("a", text.encode()).decode()
    assert "Anonymous" in kept and "neil" not in kept.lower() and "jos" not in kept.lower()
    for data in (text.encode(), "José O'Neil".encode("latin-1")):
        with pytest.raises(ElfsError, match=r"a\.png"):
            traces.remove("a.png", b"\x89PNG\xff" + data + b"\xff")


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


def test_github_runs_the_tests_as_the_readme_says():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert flow["permissions"] == {"contents": "read"}
    assert {"run": "make test"} in flow["jobs"]["test"]["steps"]


def test_github_pages_serves_what_make_book_builds():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    assert flow["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    build, deploy = flow["jobs"]["build"]["steps"], flow["jobs"]["deploy"]
    assert {"run": "make book"} in build and deploy["needs"] == "build"
    uploaded = next(step for step in build if "upload-pages-artifact" in step.get("uses", ""))
    assert uploaded["with"]["path"] == "_build/html"
