"""Pages in a real browser, offline: what a reader sees, on a telephone and on a desk, in both schemes.

Set SCREENSHOTS to a folder to keep a picture of every page.
"""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import example_reports as examples

from gapscope.report.comparison import compare
from gapscope.report.file import read
from gapscope.report.page import page
from gapscope.report.sheets import sheet
from gapscope.report.trajectory import Point, Trajectory
from gapscope.report.trajectory_sheet import trajectory_sheet
from gapscope.results import Quantity, Status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed: apt-get install chromium")

ARCHIVE = Path(__file__).parents[2] / "fixtures" / "reports"
PICTURES = os.environ.get("SCREENSHOTS", "")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
SIZES = {"telephone": (390, 844), "desk": (1280, 900)}
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>fc1\'"&'
# the effective colour of a text, and of what lies behind it, as (r, g, b) of 0 to 255
FAINT = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.tagName === "title") continue;
    const style = getComputedStyle(element);
    const colour = parse(element.closest("svg") ? style.fill : style.color);
    const [dark, bright] = [light(colour), light(behind(element))].sort((a, b) => a - b);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < 4.5) found.push([contrast, walker.currentNode.data]);
  }
  return found;
}"""
# text of a drawing that leaves its drawing, and labels of a drawing that overlap each other
MISPLACED = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    for (const [text, box] of boxes)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1) found.push([text]);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const tall = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && tall > 4) found.push([a, b]);
    }));
  }
  return found;
}"""


def everything():
    """A report with every kind of figure, and a comparison of two with what was measured on both."""
    sides = [
        make(
            examples.eigenvalues(k),
            examples.epsilon_sharpness(k),
            examples.curvature(k, layers=12),
            examples.near_rank(n),
        )
        for make, k, n in ((examples.report, 1.0, 0), (examples.large, 1.7, 17))
    ]
    alone = replace(sides[0], results={**sides[0].results, "density": examples.density(), "plane": examples.plane()})
    return {"report": alone, "comparison": compare(sides, together=examples.together())}


def run():
    """A run of five checkpoints, one of them unfinished."""
    limit = Quantity(value=0.5, doc="share of the limit")

    def at(step, **how):
        top = examples.eigenvalues(step / 10, **how)
        top = replace(top, quantities={**top.quantities, "stability": limit})
        measured = (examples.gap(1 / step), top, examples.near_rank(step), examples.adaptive_sharpness())
        report = examples.report(*measured, checkpoint=f"step-{step}.pt")
        return Point(place=str(step), report=report, path=f"run.track/step-{step}.report.h5")

    hows = {4: {"status": Status.BUDGET_SPENT}}
    return Trajectory(axis="steps", points=tuple(at(step, **hows.get(step, {})) for step in range(1, 6)), name="run")


CONTENTS = {
    **everything(),
    "archived-report": read(ARCHIVE / "v1.report.h5"),
    "archived-comparison": read(ARCHIVE / "v1.comparison.h5"),
    "sweep": compare([examples.report(batch_size=size, checkpoint=f"{size}.pt") for size in (8, 64, 650)]),
}
SHEETS = {**{name: sheet(content) for name, content in CONTENTS.items()}, "run": trajectory_sheet(run())}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def shown(browser, tmp_path):
    """Open sheets as pages; requests and messages are kept and must be none."""
    contexts, requests, messages = [], [], []

    def show(sheet, *, size="desk", scheme="light"):
        path = tmp_path / "page.html"
        path.write_text(page(sheet), encoding="utf-8")
        width, height = SIZES[size]
        context = browser.new_context(
            offline=True, viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        opened = context.new_page()
        opened.on("request", lambda request: requests.append(request.url))
        opened.on("console", lambda message: messages.append(message.text))
        opened.on("pageerror", lambda error: messages.append(str(error)))
        opened.goto(path.as_uri())
        return opened

    yield show
    for context in contexts:
        context.close()
    assert {url for url in requests if not url.startswith("data:,")} == {(tmp_path / "page.html").as_uri()}
    assert messages == []


@pytest.mark.parametrize("name", SHEETS)
@pytest.mark.parametrize("size", SIZES)
def test_a_page_fits_its_window_and_every_figure_is_seen(shown, name, size):
    opened = shown(SHEETS[name], size=size)
    assert opened.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    drawings = opened.locator("figure svg")
    assert drawings.count() >= 1
    for box in drawings.evaluate_all("all => all.map((e) => e.getBoundingClientRect().toJSON())"):
        assert box["width"] > 200
        assert box["height"] > 60
    assert opened.locator("figure svg :is(.curve, .mark, .cells rect)").count() >= drawings.count()
    assert opened.evaluate(MISPLACED) == []
    if PICTURES:
        opened.screenshot(path=Path(PICTURES) / f"{name}-{size}.png", full_page=True)


@pytest.mark.parametrize("name", ["report", "comparison", "run"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(shown, name, scheme):
    opened = shown(SHEETS[name], scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert opened.evaluate(FAINT) == []
    if PICTURES:
        opened.screenshot(path=Path(PICTURES) / f"{name}-{scheme}.png", full_page=True)


def test_details_open_and_links_are_followed_by_keyboard(shown):
    opened = shown(SHEETS["comparison"])
    assert not opened.locator("details[open]").count()
    for _ in range(40):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    opened.keyboard.press("Enter")
    assert opened.locator("details[open]").count() == 1
    opened.locator("figcaption a").first.focus()
    opened.keyboard.press("Enter")
    assert opened.locator(":target").count() == 1
    assert opened.locator(":target").is_visible()


def test_a_screen_reader_finds_headings_tables_and_drawings(shown):
    opened = shown(SHEETS["comparison"])
    assert opened.get_by_role("heading", level=1).count() == 1
    assert opened.get_by_role("img").count() == opened.locator("svg").count()
    assert opened.get_by_role("rowheader", name="top eigenvalue").first.is_visible()
    assert opened.get_by_role("navigation", name="On this page").is_visible()


def test_markup_in_names_is_text_and_runs_nothing(shown):
    deep = examples.curvature(layers=9)
    names = tuple(f"{i}{EVIL}" for i in range(9))
    quantities = {key: replace(q, labels=dict.fromkeys(q.dims, names), doc=EVIL) for key, q in deep.quantities.items()}
    content = examples.report(replace(deep, quantities=quantities, notes=(EVIL,)), checkpoint=EVIL)
    opened = shown(sheet(content))
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img, script").count() == 0
    assert opened.get_by_role("heading", level=1).inner_text() == EVIL


@pytest.mark.parametrize("name", ["report", "comparison", "run"])
def test_it_prints(shown, name):
    opened = shown(SHEETS[name], scheme="dark")
    printed = opened.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) > 10_000
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.locator("nav").is_visible()
    if PICTURES:
        opened.pdf(format="A4", path=Path(PICTURES) / f"{name}.pdf")
