"""The built book in headless Chromium, at the width of a desk and of a phone.

Talks to the browser by its own protocol, over the websocket client that Jupyter brings along.
Playwright would replace the 70 lines of :class:`Browser` by a wheel of 53 MB that unpacks a Node.js
runtime of 168 MB (1.65), and still needs a Chromium.
Screenshots of every page are kept in ``_build/screenshots``.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "_build" / "html"
SCREENSHOTS = ROOT / "_build" / "screenshots"
PAGES = [  # index.html only forwards to the first page; test_links.py sees to that
    path.relative_to(BOOK).as_posix()
    for path in sorted(BOOK.rglob("*.html"))
    if "_static" not in path.parts and path != BOOK / "index.html"
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = {"desktop": 1280, "phone": 390}
MOST_HIGH = {("book/runs/results.html", "desktop"): 6000}  # px: a page that is read to its end
PATIENCE = 60  # seconds for a page, on a machine with other work

pytestmark = [
    pytest.mark.book,
    pytest.mark.slow,
    pytest.mark.skipif(not PAGES, reason="no built book: make book"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

# What a reader would see amiss, once everything has loaded and the formulas are set.
LOOK = """
(async () => {
  for (const image of document.images) image.loading = "eager";
  await Promise.allSettled([...document.images].map(image => image.decode()));
  await document.fonts.ready;
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const problems = [];
  for (const image of document.images)
    if (!image.naturalWidth) problems.push("broken image " + image.src.slice(0, 100));
  for (const place of document.querySelectorAll("span.math, div.math"))
    if (!place.querySelector("mjx-container, .MathJax"))
      problems.push("formula not set: " + place.textContent.slice(0, 60));
  for (const error of document.querySelectorAll("mjx-merror, [data-mml-node=merror]"))
    problems.push("formula in error: " + error.textContent.slice(0, 60));
  for (const name of document.querySelectorAll("th"))
    if (name.textContent.includes("interval") && name.getBoundingClientRect().right > WIDTH)
      problems.push("off the screen: the column " + name.textContent.trim());
  const wide = document.documentElement.scrollWidth - WIDTH;
  if (wide > 0) {
    const past = [...document.querySelectorAll("body *")].filter(
      e => e.getBoundingClientRect().right > WIDTH + 1);
    const last = past.length ? past[past.length - 1] : document.body;
    problems.push(wide + " px wider than the window: <" + last.tagName.toLowerCase() + " class='"
      + last.className + "'> " + last.textContent.slice(0, 40).trim());
  }
  return {problems, height: document.documentElement.scrollHeight};
})()
"""


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, profile: Path) -> None:
        import websocket

        options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        options += ["--hide-scrollbars", "--disable-gpu", "--no-first-run", "--mute-audio"]
        options += ["--disable-dev-shm-usage", "--disable-background-networking"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium has none for root
        self._process = subprocess.Popen(
            [BROWSER, *options, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        where = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (where.exists() and len(where.read_text().split()) == 2):
            assert self._process.poll() is None, "Chromium did not start"
            assert time.monotonic() < deadline, "Chromium did not answer"
            time.sleep(0.1)
        port, path = where.read_text().split()
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}{path}", timeout=PATIENCE, suppress_origin=True
        )
        self._session: str | None = None
        self._number = 0
        self._events: list[dict] = []
        tab = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: object) -> dict:
        """Send one command of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            self._events.append(answer)

    def _wait(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(json.loads(self._socket.recv()))

    def _errors(self) -> list[str]:
        """What the page wrote to the console as an error, and scripts that failed."""
        found = []
        for event in self._events:
            facts = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = facts["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded" and facts["entry"]["level"] == "error":
                found.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
            elif event.get("method") == "Runtime.consoleAPICalled" and facts["type"] == "error":
                found.append(" ".join(str(a.get("value", "")) for a in facts["args"]))
        return [f"console: {text}" for text in found]

    def visit(self, url: str, width: int, picture: Path) -> tuple[list[str], int]:
        """Open a page and keep its picture: what is wrong with it, and its height in pixels."""
        self._events.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
             mobile=width < 500)  # fmt: skip
        self("Page.navigate", url=url)
        self._wait("Page.loadEventFired")
        look = LOOK.replace("WIDTH", str(width))
        seen = self("Runtime.evaluate", expression=look, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in seen, seen
        seen = seen["result"]["value"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 16_000), "scale": 1}
        shot = self("Page.captureScreenshot", format="jpeg", quality=60, clip=clip,
                    captureBeyondViewport=True)  # fmt: skip
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(shot["data"]))
        return self._errors() + seen["problems"], seen["height"]

    def close(self) -> None:
        self._session = None
        self("Browser.close")
        self._socket.close()
        self._process.wait(PATIENCE)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of the book."""
    handler = functools.partial(_Quiet, directory=str(BOOK))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("websocket", reason="needs websocket-client, which Jupyter brings along")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_page(browser: Browser, server: str, page: str, width: str):
    picture = SCREENSHOTS / width / Path(page).with_suffix(".jpg")
    problems, height = browser.visit(f"{server}/{page}", WIDTHS[width], picture)
    assert not problems
    assert height <= MOST_HIGH.get((page, width), height)
