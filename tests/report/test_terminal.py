import io
import re
from dataclasses import replace

import pytest
from example_reports import (
    curvature,
    density,
    eigenvalues,
    epsilon_sharpness,
    gap,
    large,
    near_rank,
    path,
    plane,
    report,
    together,
)

from gapscope.report import terminal
from gapscope.report.comparison import compare
from gapscope.report.document import Column, Heat, Line, Series, Table
from gapscope.report.terminal import open_console, output, printable, render
from gapscope.report.view import Document, Note, comparison_document, report_document


def drawn(document, width=80):
    stream = io.StringIO()
    console = open_console(stream)
    console.width = width
    render(document, console)
    return stream.getvalue()


COMPARED = compare([report(), large()])
FULL = report(near_rank(), curvature(layers=12), density(), path(), plane(), epsilon_sharpness())
JOINT = replace(
    compare([report(near_rank(), curvature()), large(near_rank(loss=17), curvature(2.0))]), results=together().results
)
DOCUMENTS = [
    report_document(report()),
    comparison_document(COMPARED),
    report_document(FULL),
    report_document(FULL, verbose=True),
    comparison_document(JOINT),
    comparison_document(JOINT, verbose=True),
]


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_cut_off(document, width):
    text = drawn(document, width)
    assert "…" not in text
    assert all(len(line) <= width and line == line.rstrip() for line in text.splitlines())


LAYERED = Table(
    columns=(
        Column(header="layer", numeric=False, wraps=True),
        *(Column(header=f"quantity {i}") for i in range(6)),
    ),
    lines=(Line(cells=("transformer.h.11.mlp.c_fc", *(f"{i}00000000 ± 1" for i in range(6)))), Line(cells=("more",))),
)


def test_columns_without_room_are_dropped_by_name():
    lines = drawn(Document(blocks=((replace(LAYERED, overflow="drop"),),))).splitlines()
    assert lines[0].split() == ["layer", "quantity", "0", "quantity", "1", "quantity", "2"]
    assert "transformer.h.11.mlp.c_fc  000000000 ± 1  100000000 ± 1  200000000 ± 1" in lines
    assert lines[-2:] == ["more", "no room for quantity 3, quantity 4, quantity 5: --verbose"]
    assert "no room" not in drawn(Document(blocks=((replace(LAYERED, overflow="drop"),),)), width=130)


def test_columns_without_room_are_dealt_to_several_tables():
    text = drawn(Document(blocks=((replace(LAYERED, overflow="split", caption="what it is"),),)))
    assert text.startswith("what it is\nlayer ")
    assert text.count("transformer.h.11.mlp.c_fc") == 2
    assert all(f"{i}00000000 ± 1" in text for i in range(6))


def test_a_window_too_narrow_for_one_column_still_gets_everything():
    for overflow in ("drop", "split"):
        text = drawn(Document(blocks=((replace(LAYERED, overflow=overflow),),)), width=30)
        assert "transformer.  000000000 ± 1\nh.11.mlp.c_fc\n" in text
        stacked = drawn(Document(blocks=((replace(LAYERED, overflow=overflow),),)), width=20)
        assert "transformer.h.11.\nmlp.c_fc\n  quantity 0  000000000 ± 1\n" in stacked


def test_very_long_names_break_after_dots():
    name = "model.encoder.layers.11.self_attention.output.dense.weight"
    lines = (Line(cells=(name, *LAYERED.lines[0].cells[1:])),)
    text = drawn(Document(blocks=((replace(LAYERED, lines=lines, overflow="drop"),),)))
    assert "\nmodel.encoder.layers.11.           000000000 ± 1 100000000 ± 1 200000000 ± 1\nself_attention." in text


def test_drawings_follow_what_the_stream_can_show(monkeypatch):
    rows = columns = ("-1", "0", "1")
    heat = Heat(title="m", axes=("y", "x"), rows=rows, columns=columns, values=((0, 1, 2), (1, 2, 3), (2, 3, 4)))
    strip = Series(title="s", style="strip", axis="layer", labels=rows, curves=((0, 1, 2),))
    document = Document(blocks=((heat,), (strip,)))
    plain = drawn(document)
    assert "@" in plain
    assert "██" in plain
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render(document, open_console(stream))
    stream.flush()
    assert raw.getvalue().isascii()
    assert b"?" not in raw.getvalue()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = drawn(document)
    assert "▀" in coloured
    assert "\x1b[38;5;" in coloured
    for key, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(key, value)
        assert "▀" not in drawn(document)
        assert "\x1b[38" not in drawn(document)
        monkeypatch.delenv(key)
        monkeypatch.setenv("TERM", "xterm-256color")


def test_strings_of_drawings_are_harmless():
    evil = "a\x1b]0;title\x07b\u202e"
    series = Series(
        title=evil, style="line", axis=evil, labels=(evil, evil), curves=((1, 2), (2, 3)), names=(evil, evil)
    )
    heat = Heat(title=evil, axes=(evil, evil), rows=(evil,), columns=(evil, evil), values=((1, 2),))
    text = drawn(Document(blocks=((series, heat),)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a]0;titleb" in text


def test_a_report_at_80_columns():
    text = drawn(report_document(report()))
    assert text.startswith(
        "small.pt\ndigits, train split, 1,300 samples · mlp 64-32-10, 2,410 parameters ·\ncross-entropy"
    )
    assert "full %, keskar, 1e-3        0.81    0.05            –\n" in text
    assert "test accuracy %        93.0     1.1            –\n" in text


def test_a_comparison_at_80_columns():
    text = drawn(comparison_document(COMPARED))
    assert "                small batch 32 large batch 650 ratio 95 % interval\n" in text
    assert "top eigenvalue   0.154 ± 0.011   0.246 ± 0.017  1.60  1.56 to 1.63 large\u00a0sharper\n" in text
    assert "\nepsilon-sharpness %\n full, keskar,     0.81 ± 0.05     0.75 ± 0.05  0.93" in text
    assert "Of an array its first number is shown: 6 more with --verbose.\n" in text
    assert "ratio: large / small; with a sign: large - small; intervals over the data\n" in text
    assert "· The test accuracies cannot be told apart on 497 test samples (-1.2 points,\n  95\u00a0% interval" in text


def test_a_table_that_is_too_wide_becomes_a_block_per_row():
    text = drawn(comparison_document(COMPARED), width=40)
    assert "top eigenvalue\n  small batch 32   0.154 ± 0.011\n  large batch 650  0.246 ± 0.017\n" in text
    assert "  95 % interval    1.56 to 1.63\n                   large sharper\n" in text


def test_words_that_stay_together_part_before_a_table_falls_into_pieces():
    columns = (
        Column(header="", numeric=False, wraps=True),
        Column(header="n"),
        Column(header="", numeric=False, wraps=True),
    )
    table = Table(columns=columns, lines=(Line(cells=("a", "1", "large\u00a0sharper")),))
    document = Document(blocks=((table,),))
    assert drawn(document, 20).splitlines()[1] == "a  1  large\u00a0sharper"
    assert drawn(document, 12).splitlines()[1:] == ["a 1 large", "    sharper"]


def test_many_subjects_at_80_columns_take_two_tables():
    several = compare([report(), report(batch_size=128), report(batch_size=256), large()])
    text = drawn(comparison_document(several))
    assert re.search("top eigenvalue +0.154 ± 0.011 +0.154 ± 0.011 +0.154 ± 0.011", text)
    assert re.search("top eigenvalue .* 1.60 +1.56 to 1.63 +batch 650 sharper", text)
    assert max(map(len, text.splitlines())) <= 80


def test_long_names_break_at_hyphens_but_numbers_do_not():
    sides = [
        replace(r, training={}, identity={"checkpoint": f"digits-{size}-batch.pt"})
        for r, size in ((report(eigenvalues(), gap()), "small"), (large(eigenvalues(0.3), gap()), "large"))
    ]
    text = drawn(comparison_document(compare(sides)))
    assert re.search(r"digits-small- +digits-large- .*\n +batch +batch\n", text)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "0.154 ± 0.011" in text


def test_a_pipe_gets_80_columns_and_no_escape_codes(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = open_console(io.StringIO())
    assert console.width == 80
    assert "\x1b" not in drawn(comparison_document(COMPARED))
    monkeypatch.setenv("COLUMNS", "132")
    assert open_console(io.StringIO()).width == 132


@pytest.mark.parametrize(
    ("asked", "width"), [("1000000", 1000), ("9" * 5000, 1000), ("²", 80), ("0", 80), ("-5", 80), ("wide", 80)]
)
def test_a_window_is_as_wide_as_columns_says_within_reason(monkeypatch, asked, width):
    monkeypatch.setenv("COLUMNS", asked)
    assert open_console(io.StringIO()).width == width


def test_a_wide_window_has_no_more_ways_to_lay_out_a_table_than_its_texts_can_use(monkeypatch):
    tried, height = [], terminal._height
    monkeypatch.setattr(terminal, "_height", lambda lines, widths: tried.append(tuple(widths)) or height(lines, widths))
    wordy = Column(header="words", numeric=False, wraps=True)
    table = Table(columns=(wordy, Column(header="n"), wordy), lines=(Line(cells=("a few words", "1", "some more")),))
    narrow = drawn(Document(blocks=((table,),)), 40)
    ways = len(tried)
    assert drawn(Document(blocks=((table,),)), 900) == narrow
    assert len(tried) == 2 * ways


def test_colour_only_repeats_what_words_say(monkeypatch):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = drawn(comparison_document(COMPARED))
    monkeypatch.delenv("FORCE_COLOR")
    assert "\x1b[33m" in coloured
    bare = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()]
    assert bare == drawn(comparison_document(COMPARED)).splitlines()


def test_output_goes_to_stdout(capsys):
    output(Document(blocks=((Note(text="a"),), (), (Note(text="b"),))))
    assert capsys.readouterr().out == "a\n\nb\n"


def test_strings_from_files_are_harmless():
    evil = "a\x1b]0;title\x07b\x9b31m\u202ec\u2066\u200bd\n[red]e[/red] :smile:\udc80"
    assert printable(evil) == "a]0;titleb31mcd [red]e[/red] :smile:"
    text = drawn(report_document(report(replace(epsilon_sharpness(), notes=(evil,)), checkpoint=evil)))
    assert text.startswith("a]0;titleb31mcd [red]e[/red] :smile:\n")
    assert text.count("[red]e[/red] :smile:") == 2


def test_a_stream_without_unicode_gets_plain_signs():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render(comparison_document(COMPARED), open_console(stream))
    render(Document(blocks=((Note(text="λ ≥ 1", bullet=True),),)), open_console(stream))
    stream.flush()
    assert b"0.154 +- 0.011" in raw.getvalue()
    assert rb"* \u03bb >= 1" + b"\n" in raw.getvalue()


@pytest.mark.parametrize("overflow", ["stack", "split", "drop"])
def test_a_table_of_titles_alone_has_no_columns_to_lay_out(overflow):
    titles = (Line(cells=("gap q: 65 numbers: --json",)), Line(cells=("gap r: 70 numbers: --json",)))
    table = Table(columns=(Column(header="", numeric=False, wraps=True),), lines=titles, overflow=overflow)
    shown = drawn(Document(blocks=((table,),)))
    assert shown.splitlines() == ["gap q: 65 numbers: --json", "gap r: 70 numbers: --json"]
