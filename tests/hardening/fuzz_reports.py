"""Targets that read foreign reports and draw what they say: terminal, page, pictures, tables, verdicts."""

import html.parser
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

from gapscope.errors import GapscopeError
from gapscope.report import ci, file
from gapscope.report.charts import chart
from gapscope.report.citations import citation
from gapscope.report.comparison import compare
from gapscope.report.export import comparison_json, dumps, report_json, tabled
from gapscope.report.page import page
from gapscope.report.plot import picture
from gapscope.report.records import Comparison, Record, Report
from gapscope.report.sheets import sheet
from gapscope.report.sidecar import sidecar
from gapscope.report.terminal import printable, text
from gapscope.report.thresholds import threshold
from gapscope.report.verdicts import judge
from gapscope.report.view import comparison_document, report_document
from gapscope.results import Quantity
from tests.hardening.mutations import HOSTILE, NUMBERS, damaged, odd_value
from tests.report import example_reports as examples

Attempt = Callable[[Random], Any]
LIMITS = (
    threshold("*/*", {"max": 1.0, "max_increase": "25%", "max_decrease": 2}, "the fuzzer"),
    threshold("*/*[*]", {"min": 0.0, "claim": "population"}, "the fuzzer"),
)
ELEMENTS = frozenset(
    [
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "section",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "span",
        "a",
        "nav",
        "figure",
        "figcaption",
        "details",
        "summary",
        "svg",
        "g",
        "path",
        "line",
        "rect",
        "circle",
        "polyline",
        "polygon",
        "text",
        "tspan",
        "desc",
        "strong",
        "em",
        "small",
        "code",
        "b",
        "i",
        "br",
        "hr",
        "abbr",
        "sup",
        "sub",
    ]
)


def small_report() -> Report:
    """Return a report with single numbers, arrays, labels and samples, small enough to be read 300 times a second."""
    return examples.report(
        examples.eigenvalues(chunks=False), examples.curvature(layers=3), examples.gap(samples=20, wrong=(1, 2))
    )


def drawn(content: Report | Comparison, rng: Random, *, most: int = 3) -> list[str]:
    """Draw a report or a comparison in some of the ways there are; check that none carries a file's own commands."""
    ways = list(_REPORT_WAYS if isinstance(content, Report) else _COMPARISON_WAYS)
    said = []
    for way in rng.sample(ways, min(most, len(ways))):
        try:
            said.append(way(content))
        except GapscopeError:
            said.append("")
    return said


def _terminal(content: Any) -> str:
    document = report_document if isinstance(content, Report) else comparison_document
    return harmless(text(document(content)) + text(document(content, verbose=True), width=120))


def _json(content: Any) -> str:
    made = dumps(report_json(content) if isinstance(content, Report) else comparison_json(content))
    json.loads(made, parse_constant=_no_constant)
    return made


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _page(content: Any) -> str:
    made = page(sheet(content))
    Elements().check(made)
    return made


def _fragment(content: Any) -> str:
    made = content._repr_html_()
    Elements().check(made)
    return str(made)


def _svg(content: Any) -> str:
    figures = sheet(content).figures
    return "".join(ElementTree.fromstring(chart(content)).tag for one in figures for _, content in one.panels)


def _table(content: Any) -> str:
    return tabled(content)


def _cited(content: Any) -> str:
    return harmless(citation(content))


def _sidecar(report: Report) -> str:
    made = harmless(sidecar(report, report, reason="because", date="2026-01-01"))
    assert "\nnumbers\n" in made
    return made


def _gated(report: Report) -> str:
    name = str(report.identity.get("checkpoint", "a"))
    checks = judge({name: report}, LIMITS, baseline=small_report())
    said = [text(ci.gate_document(checks, verbose=True)), ci.markdown(checks), ci.annotations(checks)]
    harmless("".join(said))
    rows = [line for line in said[1].splitlines() if line.startswith("|")]
    assert len(rows) == len(checks) + 2, "a name broke the table"
    assert "<" not in said[1].replace("\\<", ""), "HTML in Markdown"
    assert all(line.startswith(("::error", "::warning", "::notice")) for line in said[2].splitlines() if line)
    ElementTree.fromstring(ci.junit(checks).encode())
    json.loads(dumps(ci.gate_json(checks, 0)), parse_constant=_no_constant)
    return said[1]


def _compared(report: Report) -> str:
    other = small_report()
    with_same = replace(report, conditions=other.conditions)
    return _terminal(compare([with_same, other]))


_REPORT_WAYS = (_terminal, _json, _page, _fragment, _svg, _table, _cited, _sidecar, _gated, _compared)
_COMPARISON_WAYS = (_terminal, _json, _page, _fragment, _svg, _table, _cited)


def harmless(said: str) -> str:
    """Return a text of which no character but the end of a line commands the terminal."""
    bad = [c for c in set(said) if c != "\n" and printable(c) != c]
    assert not bad, f"{bad[0]!r} reaches the terminal"
    return said


class Elements(html.parser.HTMLParser):
    """Refuse what a page of gapscope never holds: scripts, handlers, addresses."""

    def check(self, text: str) -> None:
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, f"<{tag}>"
        for key, value in attrs:
            assert not key.startswith("on"), key
            assert key not in ("src", "action", "formaction", "srcset", "xlink:href"), key
            assert key != "href" or str(value).startswith(("#", "data:,")), value


def report_bytes(folder: Path) -> Attempt:
    """Bytes of reports and comparisons."""
    file.write(small_report(), folder / "a.h5")
    file.write(compare([small_report(), examples.large(examples.eigenvalues(0.3, chunks=False))]), folder / "b.h5")
    seeds = tuple((folder / name).read_bytes() for name in ("a.h5", "b.h5"))

    def attempt(rng: Random) -> Any:
        (folder / "x.h5").write_bytes(
            damaged(rng.choice(seeds), rng, seeds, (b"TREE", b"SNOD", b"OHDR", b"GCOL", b"HEAP"))
        )
        return drawn(file.read(folder / "x.h5"), rng)

    return attempt


def report_tree(folder: Path) -> Attempt:
    """Members and attributes of reports, replaced through h5py by others of wrong type, shape, link or value."""
    file.write(small_report(), folder / "a.h5")
    file.write(compare([small_report(), examples.large(examples.eigenvalues(0.3, chunks=False))]), folder / "b.h5")
    seeds = {name: (folder / name).read_bytes() for name in ("a.h5", "b.h5")}
    places = {name: _places(folder / name) for name in seeds}

    def attempt(rng: Random) -> Any:
        name, path = rng.choice(list(seeds)), folder / "x.h5"
        path.write_bytes(seeds[name])
        with h5py.File(path, "r+") as opened:
            for _ in range(rng.choice((1, 1, 2))):
                where, attribute = rng.choice(places[name])
                try:
                    _replace(opened, where, attribute, rng)
                except (ValueError, OSError, KeyError, TypeError, RuntimeError, UnicodeError, OverflowError):
                    continue  # h5py itself refuses
        return drawn(file.read(path), rng)

    return attempt


def _places(path: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = [("/", key) for key in ("format", "format_version", "complete")]
    with h5py.File(path, "r") as opened:
        opened.visititems(lambda name, one: found.extend([(name, ""), *((name, key) for key in one.attrs)]))
    return found


def _replace(opened: h5py.File, where: str, attribute: str, rng: Random) -> None:
    if attribute:
        value = _odd_stored(rng)
        if rng.random() < 0.2:
            del opened[where].attrs[attribute]
        else:
            opened[where].attrs[attribute] = value
        return
    way = rng.randrange(9)
    old = opened[where]
    data = old[()] if isinstance(old, h5py.Dataset) else None
    if data is not None and data.dtype.kind == "f" and way < 3:
        data = np.asarray(data)
        data.flat[rng.randrange(data.size)] = rng.choice((np.nan, np.inf, -np.inf, 0, -1, 1e308, 5e-324, 1e-300))
        old[()] = data
        return
    if data is not None and data.dtype.kind == "O" and way < 4:
        data.flat[rng.randrange(data.size)] = rng.choice(HOSTILE).replace("\0", "").encode("utf-8", "replace")
        old[()] = data
        return
    del opened[where]
    if way == 4:
        opened.create_group(where)
    elif way == 5:
        opened[where] = h5py.SoftLink(rng.choice(("/", f"/{where}", "/results", "/nowhere")))
    elif way == 6:
        opened[where] = h5py.ExternalLink(rng.choice(("a.h5", "/etc/passwd", "../a.h5")), "/")
    elif way == 7:
        shape = rng.choice(((0,), (1,), (2**27,), (2**40,), (2**20, 2**20), (1,) * 30, (3, 3)))
        kind = rng.choice(("f8", "i1", "u8", "f2", "c16", "S5", "V3", "b1", h5py.string_dtype()))
        opened.create_dataset(
            where, shape=shape, dtype=kind, chunks=True if rng.random() < 0.5 and 0 not in shape else None
        )
    elif way == 8:
        opened[where] = _odd_stored(rng)


def _odd_stored(rng: Random) -> Any:
    value = odd_value(rng)
    if isinstance(value, int) and not isinstance(value, bool):
        return np.int64(max(-(2**63), min(value, 2**63 - 1)))
    if value is None:
        return h5py.Empty("f8")
    if isinstance(value, list | dict):
        return rng.choice(
            (np.zeros((2, 2)), np.array([1, 2, 3]), np.array([b"a", b"\xff\xfe"]), np.bool_(True), 1 + 2j)
        )
    return (
        value.replace("\0", "").encode("utf-8", "replace") if isinstance(value, str) and rng.random() < 0.5 else value
    )


def names(folder: Path) -> Attempt:
    """Names of layers, facts and notes as hostile as can be, through a written report, in every drawing."""

    def attempt(rng: Random) -> Any:
        report = hostile_report(rng)
        content: Report | Comparison = report
        if rng.random() < 0.3:
            try:
                content = compare([report, replace(report, identity={**report.identity, "sha256": "0"})])
            except GapscopeError:
                content = report
        file.write(content, folder / "a.h5")
        found = file.read(folder / "a.h5")
        return drawn(found, rng, most=4)

    return attempt


def hostile_report(rng: Random) -> Report:
    """Return a small report of which any text may be hostile and any number odd."""

    def word(usual: str) -> str:
        return rng.choice(HOSTILE) + rng.choice(("", usual)) if rng.random() < 0.4 else usual

    def facts(given: Any) -> dict[str, Any]:
        return {word(key) or key: word(value) if isinstance(value, str) else value for key, value in given.items()}

    report = small_report()
    records: dict[str, Record] = {}
    for name, record in report.results.items():
        quantities = {key: _hostile_quantity(one, word, rng) for key, one in record.quantities.items()}
        if len({one.labels.get("layer") for one in quantities.values() if one.dims == ("layer",)}) > 1:
            first = next(one.labels for one in quantities.values() if one.dims == ("layer",))
            quantities = {k: replace(q, labels=first) if q.dims == ("layer",) else q for k, q in quantities.items()}
        if len({one.labels.get("rank") for one in quantities.values() if one.dims == ("rank",)}) > 1:
            first = next(one.labels for one in quantities.values() if one.dims == ("rank",))
            quantities = {k: replace(q, labels=first) if q.dims == ("rank",) else q for k, q in quantities.items()}
        records[name] = replace(record, notes=(word("note"),), quantities=quantities)
    return replace(
        report,
        identity=facts(report.identity),
        training=facts(report.training),
        conditions=facts(report.conditions),
        environment=facts(report.environment),
        results=records,
    )


def _hostile_quantity(quantity: Quantity, word: Any, rng: Random) -> Quantity:
    value = np.array(quantity.value)
    if rng.random() < 0.2:
        value.flat[rng.randrange(value.size)] = rng.choice(
            (np.nan, np.inf, -np.inf, -1e308, 5e-324, 0, *map(float, NUMBERS))
        )
    labels = {dim: tuple(word(one) for one in names) for dim, names in quantity.labels.items()}
    return replace(
        quantity,
        value=value,
        labels=labels,
        unit=word(quantity.unit),
        doc=word(quantity.doc),
        higher_is=word(quantity.higher_is),
    )


def pictures(folder: Path) -> Attempt:
    """The same names in a picture of matplotlib, which has a language of its own."""

    def attempt(rng: Random) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = picture(sheet(hostile_report(rng)).figures, ".svg")
        ElementTree.fromstring(made)
        return made[:10]

    return attempt


TARGETS: dict[str, Callable[[Path], Attempt]] = {
    "report bytes": report_bytes,
    "report tree": report_tree,
    "hostile names": names,
    "hostile picture": pictures,
}
