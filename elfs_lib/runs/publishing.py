"""The built book as one archive: supplementary material, also without a trace of its authors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import unicodedata
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from html.entities import html5
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from elfs_lib.artifacts import package_versions
from elfs_lib.data.base import default_data_dir
from elfs_lib.embedding.encoders import encoder_dir
from elfs_lib.errors import ElfsError
from elfs_lib.project import default_store, project_root

FORMAT = "elfs-supplement-1"
MANIFEST = "manifest.json"
NOBODY = "Anonymous"
#: Spaces as text, HTML, URLs and JSON spell them.
_SPACE = r"(?:\s|\xa0|&nbsp;|&#0?160;|&#xa0;|%20|\+|\\[nrt]|\\u00a0)+"
#: Where a word or path may begin although a letter or digit stands before: it ends an escape.
_AFTER_ESCAPE = r"(?<=\\[nrt])|(?<=\\u00a0)|(?<=%[0-9a-fA-F]{2})"
#: An absolute path that parameters, in YAML, JSON or a notebook, name.
_GIVEN_PATH = re.compile(
    r"""(?:data_path|embeddings_path|encoder_checkpoint)[\\"']*\s*[:=][\s\\"']*"""
    r"""(/[^\\"'\n#,{}]*[^\\"'\s#,{}])"""
)

#: Folders of the archive: where each comes from, and which files of it.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "book": ("_build/html", ("**/*",)),
    "runs": ("book/runs", ("*/*.ipynb", "*/*.csv", "*/coresets/*")),
    "params": ("params", ("**/*.yaml",)),
}
FILES = ("LICENSE", "requirements.lock")

NOTE = """# Supplementary material

- `book/index.html`: the book; open it in a browser, no network needed.
- `runs/<dataset>/`: the executed notebooks, the tables of results (one row a training) and, in
  `coresets/`, the lists of images to label with a manifest each.
- `params/`: the parameters of each run. `requirements.lock`: the versions of all packages.
- `manifest.json`: the SHA-256 of every file.

## Licences

Text, code and tables are under the licence in `LICENSE`. Images of datasets that pages and
notebooks show stay under the terms of those datasets; lists name images by index and contain none.
The scripts and fonts of `book/_static` and `book/mathjax` are under their own licences.
"""


def publish(target: Path, *, anonymous: bool = False) -> dict[str, Any]:
    """Put the built book, executed notebooks, tables, coreset lists and parameters into a zip.

    The same files give the same bytes. The archive appears under its name when it is complete.

    Args:
        target: The archive, whose name ends in ``.zip``.
        anonymous: Replace the names, paths and addresses that :class:`Traces` knows of.

    Returns:
        The manifest: ``format``, ``anonymous``, ``packages`` and ``files``, path -> SHA-256.

    Raises:
        ElfsError: if the book is not built, or ``anonymous`` and a file that is no text names
            somebody.
    """
    if target.suffix != ".zip":
        raise ElfsError(f"{target} is no archive: choose a name that ends in .zip.")
    root = project_root()
    if not (root / "_build" / "html" / "index.html").exists():
        raise ElfsError("There is no built book to publish: run elfs book first.")
    traces = Traces.of(root) if anonymous else None
    contents = {name: file.read_bytes() for name, file in sorted(_files(root))}
    contents["README.md"] = NOTE.encode()
    if traces:
        contents = {name: traces.remove(name, data) for name, data in contents.items()}
    manifest = {
        "format": FORMAT,
        "anonymous": anonymous,
        "packages": package_versions(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                # the date of a file would tell when, and make the bytes differ
                entry = zipfile.ZipInfo(name)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, data)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return manifest


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Name in the archive and file."""
    for part, (folder, patterns) in PARTS.items():
        for pattern in patterns:
            for file in (root / folder).glob(pattern):
                if file.is_file():
                    yield f"{part}/{file.relative_to(root / folder).as_posix()}", file
    for name in FILES:
        if (root / name).exists():
            yield name, root / name


class Traces:
    """What would tell a reviewer who made an archive, and how to remove it.

    Names and addresses are those of ``CITATION.cff``, ``LICENSE``, ``_config.yml``, Git's authors
    and its remotes, and the owner's pages on GitHub and GitLab; of names in Git, of affiliations
    and of lists of authors, single words stay, since they may be any word. Paths are the project,
    the artifacts, the folders of datasets and encoders, those that published parameters name, and
    every home directory; other paths stay. References to papers stay.

    Files that are no text are searched byte by byte: what they hold compressed (the columns of
    Parquet files, some texts in PNG files) is not.
    """

    def __init__(self, names: Iterable[str], paths: Iterable[str]) -> None:
        wanted = {unicodedata.normalize("NFC", name.strip()) for name in names} - {""}
        # longest first: a name or path may lie in another
        spelled = map(_spelled, sorted(wanted, key=len, reverse=True))
        self._names = re.compile("|".join(spelled) or "(?!)", re.IGNORECASE | re.ASCII)
        known = sorted({path.rstrip("/") for path in paths} - {""}, key=len, reverse=True)
        homes = r"/(?:home|Users)/[\w.-]+"
        places = "|".join([*map(re.escape, known), homes])
        self._paths = re.compile(rf"(?:(?<![\w.~-])|{_AFTER_ESCAPE})(?:{places})(?![\w-])")

    @classmethod
    def of(cls, root: Path) -> Traces:
        """Those of a project."""
        folders = [Path.home(), root, default_store().root, default_data_dir(), encoder_dir()]
        paths = [path for folder in folders for path in (folder.absolute(), folder.resolve())]
        addresses = _git(root, "config", "--get-regexp", r"^remote\..*\.url$", drop_key=True)
        here = [address for address in addresses if address.startswith("/")]
        known = [
            *_git(root, "log", "--format=%an%n%ae%n%cn%n%ce"),
            *_git(root, "config", "--get-regexp", r"^user\.", drop_key=True),
            *(part for address in addresses if address not in here for part in _parts(address)),
        ]
        names = [*_authors(root), *filter(_telling, known)]
        return cls(names, [*map(str, paths), *here, *_given_paths(root)])

    def remove(self, name: str, data: bytes) -> bytes:
        """The bytes of a file without traces.

        Raises:
            ElfsError: if the file is not text and has one.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            # a file that is not text may hold some in either encoding
            texts = data.decode("latin-1"), data.decode("utf-8", "surrogateescape")
            if any(map(self._names.search, texts)) or any(map(self._paths.search, texts)):
                raise ElfsError(
                    f"{name} names an author, a path or a repository, and is not text: recreate "
                    "it without them, or publish without --anonymous."
                ) from None
            return data
        return self._paths.sub("~", self._names.sub(NOBODY, text)).encode()


def _telling(name: str) -> bool:
    """Whether a name is more than one word."""
    return bool(re.search(r"[\s@/]|\w\.\w", name))


def _spelled(name: str) -> str:
    """A pattern of a name as text, JSON, HTML and URLs spell it."""
    words = ("".join(map(_letter, word)) for word in name.split())
    return rf"(?:(?<!\w)|{_AFTER_ESCAPE})(?:{_SPACE.join(words)})(?!\w)"


def _letter(letter: str) -> str:
    if letter in "'’":
        return r"(?:'|’|%27|%E2%80%99|&#0?39;|&#x27;|&rsquo;|&#8217;|&#x2019;|\\u2019)"
    if letter.isascii():
        return re.escape(letter)
    ways = set()
    for form in (letter.lower(), letter.upper()):
        ways |= {form, unicodedata.normalize("NFD", form), json.dumps(form)[1:-1], quote(form)}
        ways |= {f"&#{ord(one)};" for one in form} | {f"&#x{ord(one):x};" for one in form}
        ways |= {f"&{entity}" for entity, one in html5.items() if one == form}
    return f"(?:{'|'.join(map(re.escape, sorted(ways, key=len, reverse=True)))})"


def _authors(root: Path) -> Iterator[str]:
    """The names and addresses that the project gives for its authors."""
    cited = _yaml(root / "CITATION.cff")
    for person in cited.get("authors", []):
        first, last = (person.get(key, "") for key in ("given-names", "family-names"))
        if first and last:
            yield from (f"{first} {last}", f"{last} {first}", f"{last}, {first}")
        yield person.get("name", "")
        yield from filter(_telling, map(str, person.values()))
    yield from (str(cited.get(key, "")) for key in ("repository-code", "url"))
    yield from _people(str(_yaml(root / "_config.yml").get("author", "")))
    if (root / "LICENSE").exists():
        licence = (root / "LICENSE").read_text(encoding="utf-8")
        for line in re.findall(r"^Copyright (?:(?:\(c\)|©) )?[\d, -]*(.+)$", licence, re.MULTILINE):
            yield from _people(line)


def _people(names: str) -> Iterator[str]:
    """A list of people as a whole, and each of them."""
    yield names
    yield from filter(_telling, re.split(r"[,;&<>()]|\band\b|\. All rights reserved", names))


def _given_paths(root: Path) -> Iterator[str]:
    """The absolute paths of images, embeddings and encoders that published parameters name."""
    for _, file in _files(root):
        if file.suffix in (".yaml", ".json", ".ipynb"):
            yield from _GIVEN_PATH.findall(file.read_text(encoding="utf-8", errors="replace"))


def _parts(address: str) -> list[str]:
    """An address of a repository as a whole, ``owner/name`` of it, and the owner's pages."""
    path = re.sub(r"^(?:\w+://)?(?:[^@/]+@)?[^/:]+[:/]", "", address).removesuffix(".git")
    owner, slash, name = path.partition("/")
    pages = [
        page
        for forge in ("github", "gitlab")
        for page in (f"{forge}.com/{owner}", f"{forge}.com:{owner}", f"{owner}.{forge}.io")
    ]
    whole = [f"{page}{slash}{name}" for page in pages]
    return [address, address.removesuffix(".git"), path, *whole, *pages]


def _yaml(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file.exists() else {}


def _git(root: Path, *words: str, drop_key: bool = False) -> list[str]:
    """Lines that Git prints, without the key that each begins with if asked; none where there is
    no Git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return []
    lines = {line for line in done.stdout.splitlines() if line}
    return sorted(line.partition(" ")[2] if drop_key else line for line in lines)
