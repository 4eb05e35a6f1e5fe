import io
import re
from dataclasses import replace

import pytest
from example_reports import eigenvalues, epsilon_sharpness, gap, large, report

from gapscope.report.comparison import compare
from gapscope.report.terminal import open_console, output, printable, render
from gapscope.report.view import Document, Note, comparison_document, report_document


def drawn(document, width=80):
    stream = io.StringIO()
    console = open_console(stream)
    console.width = width
    render(document, console)
    return stream.getvalue()


COMPARED = compare([report(), large()])


@pytest.mark.parametrize("document", [report_document(report()), comparison_document(COMPARED)])
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_cut_off(document, width):
    text = drawn(document, width)
    assert "…" not in text
    assert all(len(line) <= width and line == line.rstrip() for line in text.splitlines())


def test_a_report_at_80_columns():
    text = drawn(report_document(report()))
    assert text.startswith(
        "small.pt\ndigits, train split, 1,300 samples · mlp 64-32-10, 2,410 parameters ·\ncross-entropy"
    )
    assert "full %, keskar, 1e-3        0.81    0.05            –\n" in text
    assert "test accuracy %        93.0     1.1            –\n" in text


def test_a_comparison_at_80_columns():
    text = drawn(comparison_document(COMPARED))
    assert "                  small batch 32 large batch 650 ratio 95 % interval\n" in text
    assert "top eigenvalue     0.154 ± 0.011   0.246 ± 0.017  1.60  1.56 to 1.63 large\u00a0is\n" in text
    assert " keskar, 1e-3        0.81 ± 0.05     0.75 ± 0.05  0.93  0.91 to 0.95 small\u00a0is\n" in text
    assert "ratio: large / small; with a sign: large - small\n" in text
    assert "· The test accuracies cannot be told apart on 497 test samples (-1.2 points,\n  95\u00a0% interval" in text


def test_a_table_that_is_too_wide_becomes_a_block_per_row():
    text = drawn(comparison_document(COMPARED), width=40)
    assert "top eigenvalue\n  small batch 32   0.154 ± 0.011\n  large batch 650  0.246 ± 0.017\n" in text
    assert "  95 % interval    1.56 to 1.63\n                   large\u00a0is sharper\n" in text


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
    assert b"* ? >= 1\n" in raw.getvalue()
