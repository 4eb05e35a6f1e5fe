import math
from dataclasses import replace

from example_reports import curvature, large, near_rank, report, together

from gapscope.report.charts import chart
from gapscope.report.comparison import compare
from gapscope.report.comparison_figures import compared
from gapscope.report.records import Comparison

PAIR = together()


def of(comparison):
    return {one.path: one for one in compared(comparison)}


def test_ratios_come_first_in_words_too():
    forest = compared(PAIR)[0]
    assert forest.title == "ratios, large over small"
    drawing = chart(forest.panels[0][1])
    judged = [r for r in PAIR.rows if r.contrast == "ratio" and r.better != "none" and math.isfinite(r.interval[0])]
    assert drawing.count('class="value"') == len(judged) == len(forest.numbers.lines)
    assert "1.60 · large sharper</text>" in drawing
    assert "cannot tell</text>" in drawing
    assert "over the data" in forest.caption


def test_what_was_measured_together_is_drawn_too():
    assert {"path/loss", "plane/loss"} <= set(of(PAIR))


def test_arrays_of_the_subjects_stand_beside_each_other():
    sides = [make(curvature(k), near_rank(loss)) for make, k, loss in ((report, 1.0, 0), (large, 1.7, 17))]
    found = of(compare(sides))
    median = found["curvature/median"]
    assert [column.header for column in median.numbers.columns][:3] == ["layer", "subject", "value"]
    assert "on each of small batch 32 and large batch 650" in median.caption
    singular = found["near-rank/singular_values"]
    assert [heading for heading, _ in singular.panels] == ["fc1", "fc2", "fc3"]
    assert all(">large batch 650</text>" in chart(content) for _, content in singular.panels)


def test_runs_of_a_regime_are_said():
    first, last = PAIR.subjects
    several = replace(PAIR, subjects=(replace(first, runs=(first, first)), last))
    assert "95 % interval over runs" in compared(several)[0].caption


def test_a_sweep_has_its_curves():
    sides = [report(batch_size=size, checkpoint=f"{size}.pt") for size in (8, 64, 650)]
    titles = {one.title for one in compared(compare(sides))}
    assert {"top eigenvalue", "test accuracy %"} <= titles


def test_a_sweep_s_curves_have_bars_whose_caption_says_what_they_are():
    sides = [report(batch_size=size, checkpoint=f"{size}.pt") for size in (8, 64, 650)]
    top = next(one for one in compared(compare(sides)) if one.title == "top eigenvalue")
    ((_, content),) = top.panels
    assert chart(content).count('class="error') == 1
    assert "A thin bar reaches one error to each side" in top.caption
    assert [column.header for column in top.numbers.columns] == ["batch", "value", "±"]


def test_a_sweep_without_errors_has_no_bars_and_promises_none():
    comparison = compare([report(batch_size=size, checkpoint=f"{size}.pt") for size in (8, 64, 650)])
    blind = replace(comparison, rows=tuple(replace(row, errors=(math.nan,) * 3) for row in comparison.rows))
    top = next(one for one in compared(blind) if one.title == "top eigenvalue")
    assert "bar" not in top.caption
    assert [column.header for column in top.numbers.columns] == ["batch", "value"]


def test_curves_of_several_runs_have_bars_over_runs():
    def scaled(k):
        record = near_rank()
        values = record.quantities["singular_values"]
        return replace(record, quantities={"singular_values": replace(values, value=values.value * k)})

    runs = [make(scaled(k), checkpoint=f"{make.__name__}-{k}.pt") for make in (report, large) for k in (1, 1.2)]
    singular = of(compare(runs))["near-rank/singular_values"]
    assert "one standard deviation over runs" in singular.caption
    assert all('class="error' in chart(content) for _, content in singular.panels)


def test_nothing_is_drawn_of_nothing():
    assert compared(Comparison(subjects=PAIR.subjects, rows=(), reading=())) == []
