import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_reports import curvature, density, eigenvalues, gap, large, near_rank, plane, report, together

from gapscope.errors import ReportError
from gapscope.report.comparison import compare
from gapscope.report.document import Note
from gapscope.report.page import page, write
from gapscope.report.sheet import Definition, Headline, Sheet
from gapscope.report.sheets import sheet
from gapscope.results import Status

REPORT = report(eigenvalues(), near_rank(), curvature(layers=9), density(), gap())
EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[31m\u202e"
VOID = {"meta", "link"}


class Page(HTMLParser):
    """The elements of a page, their text, and whether they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.said = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_comparison_begins_with_its_answer():
    text = page(sheet(together()))
    parts = [text.index(part) for part in ('class="lead"', 'id="numbers"', 'id="figures"', 'id="definitions"')]
    assert parts == sorted(parts)
    lead = html.unescape(re.search('<p class="lead">(.*?)</p>', text)[1])
    assert lead == together().reading[0]
    assert "<h1>small batch 32 against large batch 650</h1>" in text
    assert text.count(lead[:40]) == 1


def test_a_report_begins_with_its_headlines():
    text = page(sheet(REPORT))
    lead = html.unescape(re.search('<p class="lead">(.*?)</p>', text)[1])
    assert lead.startswith("Top eigenvalue 0.154 ± 0.011, train loss")
    assert lead.endswith("Every measurement reached what was asked of it.")
    unsure = page(sheet(report(eigenvalues(status=Status.BUDGET_SPENT))))
    assert "Mind what follows." in unsure
    assert html.escape(f"eigenvalues: {Status.BUDGET_SPENT.value}") in unsure


@pytest.mark.parametrize("content", [REPORT, together(), compare([report(), large()]), report()], ids=repr)
def test_it_nests_is_deterministic_and_its_links_lead_somewhere(content):
    text = page(sheet(content))
    assert text == page(sheet(content))
    parsed = Page(text)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in parsed.of("a"):
        assert link["href"].removeprefix("#") in ids
    figures = len(parsed.of("figure"))
    assert figures == len(parsed.of("figcaption")) == len(parsed.of("h3"))
    assert len(parsed.of("details")) == figures + 1
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in parsed.of("svg"))


def test_it_asks_for_nothing():
    text = page(sheet(together()))
    parsed = Page(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "iframe", "object", "base", "form"}
    assert not re.findall(r"https?:|url\(|@import", text)
    assert [link["href"] for link in parsed.of("link")] == ["data:,"]
    (policy,) = [meta for meta in parsed.of("meta") if "http-equiv" in meta]
    assert policy["content"].startswith("default-src 'none'")


def test_no_string_of_a_file_becomes_markup():
    deep = curvature(layers=9)
    names = tuple(f"{i}{EVIL}" for i in range(9))
    quantities = {
        name.replace("_", "<b>"): replace(q, labels=dict.fromkeys(q.dims, names), unit=EVIL, doc=EVIL)
        for name, q in deep.quantities.items()
    }
    named = EVIL.replace("/", "")
    record = replace(deep, notes=(EVIL,), quantities=quantities, analyzer=named, settings={EVIL: EVIL})
    odd = replace(plane(), quantities={named: replace(plane().quantities["loss"], labels={"y": names, "x": names})})
    alone = report(record, odd, checkpoint=EVIL, data=EVIL)
    pair = replace(
        compare([alone, large(record, odd, data=EVIL)], labels=[EVIL, "b"]), reading=(EVIL, EVIL), results={"e": odd}
    )
    for text in (page(sheet(alone)), page(sheet(pair))):
        parsed = Page(text)
        assert not {tag for tag, _ in parsed.tags} & {"script", "img", "b2"}
        assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
        assert not re.search("[\x1b\u202e]", text)
        assert "<script>alert(1)</script>" in "".join(parsed.said)


def test_hints_for_the_terminal_stay_there():
    many = compare([report(curvature(layers=30)), large(curvature(1.7, layers=30))])
    for content in (together(), REPORT, many):
        assert "--verbose" not in page(sheet(content)).partition("<details>")[0]
    assert "25 more layers: below</th>" in page(sheet(many))


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    place = tmp_path / "out.html"
    write(sheet(REPORT), place)
    write(sheet(together()), place)
    assert place.read_text(encoding="utf-8") == page(sheet(together()))
    place.write_text("<h1>Mine</h1>")
    with pytest.raises(ReportError, match=r"was not written by `--html`. Expected a new name or an earlier output"):
        write(sheet(REPORT), place)


def test_an_empty_report_says_so():
    empty = replace(REPORT, results={})
    assert "Nothing was measured." in page(sheet(empty))
    assert "Nothing here is better seen than read." in page(sheet(empty))


def test_a_sheet_of_another_kind_becomes_a_page_as_it_is():
    words = "A study of two seeds"
    study = Sheet(
        name="a study",
        lead=words,
        said=(Note(text="Claim 1 holds.", tone="better"), Note(text="Claim 2 cannot be told.", tone="unsure")),
        headlines=(Headline(title="slope", shown="2 ± 1", status="over seeds"),),
        definitions=(Definition(name="Sources", entries=(("sources/a", "A 2020", "On things."),)),),
        figures=sheet(REPORT).figures[:1],
        origin="Trained today",
    )
    parsed = Page(page(study))
    assert parsed.of("li")[:2] == [{"class": "better"}, {"class": "unsure"}]
    assert {words, "slope", "2 ± 1", "over seeds", "Sources", "A 2020 ", "Trained today"} <= set(parsed.said)
    assert len(parsed.of("figure")) == 1
    assert len(parsed.of("details")) == 1  # the figure's numbers: nothing waits behind a fold of the tables
