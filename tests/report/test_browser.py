"""Every page in a real browser: no error on its console, nothing too wide, nothing asked of the network."""

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import REASONS, fake_catalog, fake_rejects, fake_spectrum, fake_truth
from tornado.websocket import websocket_connect

from hotdask.report.explorer import MOST, explorer_page
from hotdask.report.method import method_page
from hotdask.report.page import build_report
from hotdask.report.spectrum import page_address, page_name, spectrum_page

WIDTHS = {"desktop": 1400, "phone": 390}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the debugging socket of a headless browser."""
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [CHROMIUM, *options, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True
    )
    address = next((found[1] for line in process.stderr if (found := re.search(r"(ws://\S+)", line))), None)
    yield address
    process.terminate()
    process.wait(30)
    process.stderr.close()


class Tab:
    """One tab, spoken to in Chrome's DevTools protocol."""

    def __init__(self, socket, session: str):
        self.socket, self.session, self.number, self.events = socket, session, 0, []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: str) -> AsyncIterator["Tab"]:
        tab = cls(await websocket_connect(address, max_message_size=1 << 28), "")
        target = await tab.call("Target.createTarget", url="about:blank")
        attached = await tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        yield tab
        tab.socket.close()
        # It says goodbye first.
        while await tab.socket.read_message() is not None:
            pass

    async def call(self, method: str, **params) -> dict:
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": params}
        await self.socket.write_message(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(await self.socket.read_message())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    async def show(self, path: Path, width: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        await self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(await self.socket.read_message()))
        # Bokeh draws after the page is loaded.
        await asyncio.sleep(1)

    async def value(self, expression: str):
        options = {"returnByValue": True, "awaitPromise": True}
        return (await self.call("Runtime.evaluate", expression=expression, **options))["result"].get("value")

    async def picture(self, path: Path, *, whole: bool = True) -> None:
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        out = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                out.append(json.dumps(params["exceptionDetails"])[:500])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                out.append(json.dumps(params["args"])[:500])
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                out.append(params["entry"]["text"])
            elif method == "Network.requestWillBeSent" and params["request"]["url"].startswith(("http", "ws")):
                out.append(f"asks for {params['request']['url'][:200]}")
        return out


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report as a run leaves it; HOTDASK_REPORT names the report folder of a real run instead."""
    if given := os.environ.get("HOTDASK_REPORT"):
        return Path(given)
    folder = tmp_path_factory.mktemp("report")
    (folder / "spectra").mkdir()
    catalog = fake_catalog()
    view = fake_spectrum()
    index = build_report(
        catalog=catalog,
        rejects=fake_rejects(),
        spectra=[view],
        truth=fake_truth(catalog),
        reasons=REASONS,
        provenance={"versions": {"hotdask": "0.1.0"}},
        site=True,
    )
    (folder / "index.html").write_text(index)
    (folder / "spectra" / page_name(view.specid)).write_text(spectrum_page(view, home="../"))
    (folder / "explorer.html").write_text(explorer_page(catalog, {view.specid: page_address(view.specid)}))
    (folder / "method.html").write_text(method_page())
    return folder


def test_pages_fit_the_screen_and_complain_of_nothing(browser: str, site: Path, tmp_path: Path) -> None:
    shots = Path(os.environ.get("HOTDASK_SHOTS", tmp_path))
    pages = [*sorted(site.glob("*.html")), *sorted((site / "spectra").glob("*.html"))[:2]]
    assert len(pages) >= 4

    async def look() -> list[str]:
        async with Tab.open(browser) as tab:
            wrong = []
            for page in pages:
                for name, width in WIDTHS.items():
                    await tab.show(page, width)
                    wide = await tab.value("document.documentElement.scrollWidth - innerWidth")
                    if wide > 0:
                        wrong.append(f"{page.name} is {wide} px too wide on a {name}")
                    wrong += [f"{page.name}, {name}: {text}" for text in tab.complaints()]
                    await tab.picture(shots / f"{page.stem}-{name}.png")
            return wrong

    assert asyncio.run(look()) == []


ROWS = """(() => {
  const out = [];
  const walk = (node) => {
    for (const cell of node.querySelectorAll(".slick-row .l0")) out.push(cell.textContent.trim());
    for (const inner of node.querySelectorAll("*")) if (inner.shadowRoot) walk(inner.shadowRoot);
  };
  walk(document);
  return out;
})()"""
"""Spectra in the rows of the table as they are drawn; those out of sight are not."""
LISTED = """(() => {
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.type === "DataTable") return [...model.source.data.specid];
})()"""
"""Spectra that the table was given."""


async def draw_box(tab: Tab, share: float = 1.0) -> None:
    """Drag the mouse over the diagram, or over a share of its width from the left."""
    box = "document.querySelector('[data-root-id]').firstElementChild.getBoundingClientRect()"
    rect = json.loads(await tab.value(f"JSON.stringify({box})"))
    mouse = {"button": "left", "buttons": 1, "clickCount": 1}
    start = rect["x"] + 80, rect["y"] + 60
    end = start[0] + share * (rect["width"] - 240), rect["y"] + 390
    await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=start[0], y=start[1])
    await tab.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
    for step in (0.3, 0.6, 1.0):
        x, y = (a + step * (b - a) for a, b in zip(start, end, strict=True))
        await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **mouse)
    await tab.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)


def test_the_explorer_bears_as_many_stars_as_it_takes(browser: str, tmp_path: Path) -> None:
    """A box around nearly all of them and one around a few: each listed within a second or two, without a complaint."""
    shots = Path(os.environ.get("HOTDASK_SHOTS", tmp_path))
    path = tmp_path / "explorer.html"
    rng = np.random.default_rng(0)
    catalog = fake_catalog(MOST).assign(in_sample=True, m_ks=rng.normal(1, 1, MOST), bp_rp_0=rng.normal(0, 0.2, MOST))
    path.write_text(explorer_page(catalog, {s: page_address(s) for s in catalog["specid"].iloc[::9000]}))
    assert path.stat().st_size < 16e6
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"

    async def look() -> tuple[float, list[tuple[float, int, list[str], list[str]]], list[str]]:
        async with Tab.open(browser) as tab:
            began = time.monotonic()
            await tab.show(path, 1400)
            while not await tab.value("Bokeh.documents.length === 1 && Bokeh.documents[0].is_idle"):
                await asyncio.sleep(0.1)
            loaded, found = time.monotonic() - began, []
            for share in (1.0, 0.3):
                before = await tab.value("document.getElementById('selected').textContent")
                began = time.monotonic()
                await draw_box(tab, share)
                while (told := await tab.value("document.getElementById('selected').textContent")) == before:
                    await asyncio.sleep(0.02)
                await tab.value(frames)
                took = time.monotonic() - began
                count = int(re.match(r"(\d+) selected", told)[1])
                found.append((took, count, await tab.value(LISTED), await tab.value(ROWS)))
                await tab.picture(shots / f"explorer-many-{share:g}.png")
            return loaded, found, tab.complaints()

    loaded, found, complaints = asyncio.run(look())
    print(f"{path.stat().st_size / 1e6:.1f} MB, shown after {loaded:.1f} s, boxes", [row[:2] for row in found])
    assert complaints == []
    assert loaded < 15
    (first, most, *_), (second, few, *_) = found
    assert most > 0.9 * MOST > few > 200
    teff = catalog.set_index("specid")["teff"]
    for _, _, listed, rows in found:
        assert len(listed) == len(set(listed)) == 200
        # As many rows the second time: they must still be drawn anew.
        assert len(rows) > 10
        assert rows == listed[: len(rows)]
    assert teff[found[1][2]].min() > teff[found[0][2]].min()
    assert max(first, second) < 3


def test_a_box_lists_its_stars_with_links(browser: str, site: Path, tmp_path: Path) -> None:
    shots = Path(os.environ.get("HOTDASK_SHOTS", tmp_path))

    async def select() -> tuple[str, list[str], list[str]]:
        async with Tab.open(browser) as tab:
            await tab.show(site / "explorer.html", 1400)
            await draw_box(tab)
            await asyncio.sleep(1)
            await tab.picture(shots / "explorer-selected.png")
            told = await tab.value("document.getElementById('selected').textContent")
            rows = await tab.value("Bokeh.documents[0].roots().length")
            listed = await tab.value(
                "(() => { const d = Bokeh.documents[0]; "
                "for (const m of d._all_models.values()) if (m.type === 'DataTable') return m.source.data.page; })()"
            )
            return told, rows, [*listed], tab.complaints()

    told, roots, pages, complaints = asyncio.run(select())
    assert complaints == []
    assert roots == 2
    count = int(re.match(r"(\d+) selected", told)[1])
    assert count > 0
    assert len(pages) == min(count, 200)
    # Those that lead to a page come first.
    assert pages == sorted(pages, key=lambda page: page == "")
