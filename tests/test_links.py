"""The built book, read from its files: every internal link, image and anchor leads somewhere."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

BOOK = Path(__file__).parents[1] / "_build" / "html"
PAGES = [  # _static holds the theme's templates
    path.relative_to(BOOK) for path in sorted(BOOK.rglob("*.html")) if "_static" not in path.parts
]

pytestmark = [
    pytest.mark.book,
    pytest.mark.skipif(not PAGES, reason="no built book: make book"),
]


class Page(HTMLParser):
    """Collects what a page links to and the anchors it offers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.images_without_text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]
        if given.get("http-equiv", "").lower() == "refresh":
            self.links.append(given["content"].partition("url=")[2])
        if tag == "img" and not given.get("alt"):
            self.images_without_text.append(given.get("src", "")[:80])


@cache
def read(path: Path) -> Page:
    return Page(path)


def broken(page: Path) -> list[str]:
    """Links of one page that lead nowhere inside the book; other hosts are not asked."""
    found = []
    for link in read(page).links:
        if urlsplit(link).scheme or link.startswith("//"):
            continue
        target, anchor = urldefrag(link)
        path = unquote(urlsplit(target).path)
        file = (page.parent / path).resolve() if path else page.resolve()
        if not file.is_file() or (
            anchor and file.suffix == ".html" and unquote(anchor) not in read(file).anchors
        ):
            found.append(link)
    return found


def test_the_reader_finds_what_is_broken(tmp_path: Path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here">1</a><a href="#gone">2</a><a href="b%20c.html#x">3</a>'
        '<a href="b%20c.html#y">4</a><img src="no.png"><a href="https://example.org/no">5</a>'
    )
    (tmp_path / "b c.html").write_text('<p id="x">')
    assert broken(tmp_path / "a.html") == ["#gone", "b%20c.html#y", "no.png"]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links(page: Path):
    assert not broken(BOOK / page)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_images_have_alternative_text(page: Path):
    assert not read(BOOK / page).images_without_text
