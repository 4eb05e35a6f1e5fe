import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from example_reports import curvature, density, eigenvalues, gap, large, near_rank, plane, report, together

from gapscope.report.comparison import compare
from gapscope.report.document import Column, Document, Line, Note, Table
from gapscope.report.html import fragment

REPORT = report(eigenvalues(), near_rank(), curvature(layers=9), density(), gap())
COMPARISON = together()


@pytest.mark.parametrize("shown", [REPORT, COMPARISON, compare([report(), large()])])
def test_notebooks_show_well_formed_html(shown):
    root = ElementTree.fromstring(shown._repr_html_())
    assert (root.tag, root.attrib) == ("div", {"class": "gapscope"})
    plain = "div section h4 p ul li table caption thead tbody tr th td pre span"
    assert {element.tag for element in root.iter()} <= set(plain.split())
    for table in root.iter("table"):
        assert {cell.get("scope") for cell in table.iter("th")} <= {"col", "row", "rowgroup"}
        widths = [sum(int(cell.get("colspan", 1)) for cell in row) for row in table.iter("tr")]
        assert len(set(widths)) == 1


def test_it_holds_what_the_terminal_shows():
    text = "".join(ElementTree.fromstring(COMPARISON._repr_html_()).itertext())
    for said in ("top eigenvalue", "0.154 ± 0.011", "large\u00a0sharper", "loss along t", "▀", "On the straight"):
        assert said in text
    assert "fc1" in REPORT._repr_html_()


def test_captions_heads_levels_and_lists():
    columns = (Column(header="", numeric=False), Column(header="n"))
    lines = (Line(cells=("group",)), Line(cells=("a", "1"), level=1, tone="worse"))
    notes = (Note(text="one", bullet=True), Note(text="two", bullet=True), Note(text="end", tone="warning"))
    shown = fragment(Document(blocks=((Table(columns=columns, lines=lines, caption="what"), *notes), ())))
    assert "<caption>what</caption>" in shown
    assert '<th scope="col" style="text-align:right">n</th>' in shown
    assert '<th scope="rowgroup" colspan="2" class="plain">group</th>' in shown
    row = '<th scope="row" style="padding-left:1.5em">a</th>'
    assert f'{row}<td class="worse" style="text-align:right" data-label="n">1</td>' in shown
    assert '<ul>\n<li class="plain">one</li>\n<li class="plain">two</li>\n</ul>\n<p class="warning">end</p>' in shown


EVIL = "</pre><script>alert(1)</script>\"'&\x1b[31m\u202e"


def test_hostile_strings_are_harmless():
    deep = curvature(layers=9)
    names = tuple(f"{i}{EVIL}" for i in range(9))
    quantities = {
        name: replace(q, labels=dict.fromkeys(q.dims, names), unit=EVIL) for name, q in deep.quantities.items()
    }
    named = EVIL.replace("/", "")  # no name in a file has one
    record = replace(deep, notes=(EVIL,), quantities=quantities, analyzer=named)
    drawn = plane().quantities["loss"]
    odd = replace(plane(), quantities={named: replace(drawn, labels={"y": names, "x": names})})
    shown = report(record, odd, checkpoint=EVIL, data=EVIL)
    compared = replace(
        compare([shown, large(record, odd, data=EVIL)], labels=[EVIL, "b"]), reading=(EVIL,), results={"e": odd}
    )
    for page in (shown._repr_html_(), compared._repr_html_()):
        root = ElementTree.fromstring(page)
        assert "script" not in {element.tag for element in root.iter()}
        assert "&lt;script&gt;" in page
        assert not re.search("[\x1b\u202e]", page)
        assert {key for element in root.iter() for key in element.attrib} <= {
            *("class", "style", "scope", "colspan", "data-label")
        }
        attributes = {(key, value) for element in root.iter() for key, value in element.attrib.items()}
        assert not [value for key, value in attributes if "script" in value and key != "data-label"]


def test_powers_of_ten_in_headers_do_not_break_and_wide_tables_say_so():
    columns = tuple(Column(header=f"rel:1e-{i}") for i in range(6))
    wide = fragment(Document(blocks=((Table(columns=columns, lines=()),),)))
    assert '<span style="white-space:nowrap">rel:1e-2</span></th>' in wide
    assert wide.count('<section class="wide">') == 1
    assert '<section class="wide">' not in fragment(Document(blocks=((Table(columns=columns[:4], lines=()),),)))
