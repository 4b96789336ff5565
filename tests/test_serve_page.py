"""The page of `dgiqa-rt serve`, in a real browser: a picture is dropped, and its score, tiles and reasons are seen."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_serve import Server
from waiting import PATIENCE_S

from dgiqa.bundle import Bundle
from dgiqa.scorer import Scorer
from dgiqa.serve.intake import Limits

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
PICTURE = Path(__file__).parent.parent / "examples" / "chelsea-motion_blur-5.jpg"
DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A new page; whatever it complains about fails the test."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    page.on("request", lambda asked: None if "127.0.0.1" in asked.url else complaints.append(asked.url))
    yield page
    page.close()
    assert [text for text in complaints if "status of 4" not in text] == []


def dropped(page: Any, name: str, data: bytes) -> None:
    page.evaluate(DROP, [name, base64.b64encode(data).decode()])
    playwright.expect(page.locator("#said")).not_to_contain_text("…", timeout=PATIENCE_S * 1000)


def test_a_dropped_picture_shows_score_tiles_and_reasons(page: Any, tmp_path: Path) -> None:
    with Scorer("small", threads=1, gate=0.5) as scorer:
        score = scorer.score(PICTURE)
        server = Server(scorer, Limits(4))
        page.goto(f"http://127.0.0.1:{server.port}/")
        dropped(page, PICTURE.name, PICTURE.read_bytes())
        cards = page.locator("#cards").inner_text()
        assert f"{score.value:.2f}" in cards
        assert "fail" in cards
        assert f"{score.tiles}\ntiles" in cards
        assert "blurred" in page.locator("#said").inner_text()
        red = """c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]
            .filter((value, i) => i % 4 == 0 && value > 150 && value < 200).length"""
        assert page.locator("#picture").evaluate(red) > 500  # the tiles' frames
        page.locator("#preset").select_option(label=page.locator("#preset option").nth(1).inner_text())
        playwright.expect(page.locator("#cards")).to_contain_text("verdict", timeout=PATIENCE_S * 1000)
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        server.close()


def test_what_is_no_picture_is_said_in_the_servers_words(page: Any, tiny_bundle: Bundle) -> None:
    with Scorer(tiny_bundle, threads=1) as scorer:
        server = Server(scorer, Limits(4))
        page.goto(f"http://127.0.0.1:{server.port}/")
        dropped(page, "<b>notes</b>.txt", b"<script>alert(1)</script>")
        assert "not an image" in page.locator("#said").inner_text()
        server.close()


def test_a_token_is_asked_for_when_it_is_wanted(page: Any, tiny_bundle: Bundle) -> None:
    with Scorer(tiny_bundle, threads=1) as scorer:
        server = Server(scorer, Limits(4), token="secret")
        page.goto(f"http://127.0.0.1:{server.port}/")
        assert page.locator("#token").is_hidden()
        dropped(page, "a.jpg", PICTURE.read_bytes())
        page.locator("#token").fill("secret")
        page.locator("#token").press("Enter")
        playwright.expect(page.locator("#cards")).to_contain_text("score", timeout=PATIENCE_S * 1000)
        server.close()
