from dataclasses import replace

import numpy as np
from example_reports import adaptive_sharpness, curvature, eigenvalues, gap, large, near_rank, report, with_quantity
from test_groups import groups

from gapscope.report.comparison import compare
from gapscope.report.document import Note, Table
from gapscope.report.row_view import row_tables
from gapscope.report.terminal import text
from gapscope.report.view import comparison_document
from gapscope.results import Quantity


def tables(*reports, verbose=False):
    blocks = row_tables(compare(reports), verbose)
    return [item for block in blocks for item in block if isinstance(item, Table)]


def layered(values, **more):
    labels = {"layer": tuple(f"fc{i + 1}" for i in range(len(values)))}
    quantity = Quantity(value=values, doc="", dims=("layer",), labels=labels, **{"better": "lower", **more})
    return with_quantity(replace(gap(), analyzer="flatness"), relative_flatness=quantity)


def names(table):
    return [line.cells[0] for line in table.lines]


def test_layers_stand_below_the_main_table_by_the_size_of_their_difference():
    main, layers = tables(report(layered([1.0, 1, 1, 0]), gap()), large(layered([1.1, 0.2, 3, 1]), gap()))
    assert "train loss" in names(main)
    assert not [name for name in names(main) if "fc" in name]
    assert names(layers) == ["fc2", "fc3", "fc1", "fc4"]  # log 5 > log 3 > log 1.1; zero has no ratio
    assert layers.caption == "relative flatness by layer, largest |log ratio| first"
    assert [column.header for column in layers.columns][1:4] == ["small batch 32", "large batch 650", "ratio"]


def test_where_all_errors_are_known_layers_are_ordered_in_units_of_them():
    sides = [layered([1.0, 1], sampling_error=errors) for errors in ([0.5, 0.01], [1.0, 0.01])]
    sides[1] = layered([2.0, 1.1], sampling_error=[1.0, 0.01])
    (layers,) = tables(report(sides[0]), large(sides[1]))
    assert names(layers) == ["fc2", "fc1"]
    assert layers.caption.endswith("largest |log ratio| first, in units of its error")


def test_errors_that_make_no_interval_still_order_the_layers():
    sides = [layered([1.0, 1], numerical_error=[0.5, 0.01]), layered([2.0, 1.1], numerical_error=[1.0, 0.01])]
    (layers,) = tables(report(sides[0]), large(sides[1]))
    assert names(layers) == ["fc2", "fc1"]
    assert layers.caption.endswith("in units of its error")


def test_a_layer_whose_ratio_may_be_zero_does_not_lead():
    """An interval (0, b) is of a value that its error reaches: as a ratio the least known of all."""
    sides = [{"numerical_error": [0.01, 0.01], "sampling_error": [0.01, 0.01]} for _ in range(2)]
    sides[1]["numerical_error"] = [5.1, 0.01]
    (layers,) = tables(report(layered([10.0, 1], **sides[0])), large(layered([5.0, 1.2], **sides[1])))
    assert names(layers) == ["fc2", "fc1"]
    assert layers.caption.endswith("in units of its error")


def test_differences_that_are_exact_come_first_and_equal_ones_last():
    errors = {"numerical_error": np.zeros(3), "sampling_error": np.zeros(3), "contrast": "difference"}
    (layers,) = tables(report(layered([1.0, 1, 1], **errors)), large(layered([1.0, 3, 1], **errors)))
    assert names(layers)[0] == "fc2"
    assert layers.caption == "relative flatness by layer, largest difference first, in units of its error"


def test_only_the_largest_are_shown_unless_verbose():
    sides = report(layered(np.ones(9))), large(layered(1.0 + np.arange(9)))
    (layers,) = tables(*sides)
    assert names(layers) == ["fc9", "fc8", "fc7", "fc6", "fc5", "4 more layers: --verbose"]
    assert len(tables(*sides, verbose=True)[0].lines) == 9
    (six,) = tables(report(layered(np.ones(6))), large(layered(1.0 + np.arange(6))))
    assert len(six.lines) == 6


def test_of_several_numbers_per_layer_the_one_that_differs_most_is_shown():
    sides = report(near_rank()), large(near_rank(loss=17))
    (layers,) = tables(*sides)
    assert names(layers) == ["fc1, rel:1e-2", "fc3, rel:1e-3", "fc2, rel:1e-2"]
    assert layers.lines[0].cells[-1] == "-17"
    assert layers.caption == "near rank by layer, largest difference first, each at the cut where it differs most"
    assert [column.header for column in layers.columns] == ["", "small batch 32", "large batch 650", "difference"]
    full, further = tables(*sides, verbose=True)
    assert len(full.lines) == 6
    assert full.caption == "near rank by layer, largest difference first"
    assert further.caption == "near-rank, further"
    assert {"effective rank by layer", "singular values by layer"} <= set(names(further))


def test_layers_of_what_is_neither_judged_nor_a_headline_are_verbose_only():
    sides = report(curvature()), large(curvature(2.0))
    assert [table.caption.partition(",")[0] for table in tables(*sides)] == ["curvature median by layer"]
    assert names(tables(*sides, verbose=True)[1])[0] == "curvature zeros by layer"


def test_drawn_arrays_are_not_listed_unless_verbose():
    labels = {"t": ("0", "1")}
    quantity = Quantity(value=[1.0, 2], doc="", better="lower", drawn="line", dims=("t",), labels=labels)
    side = with_quantity(gap(), train_loss=gap().quantities["train_loss"], curve=quantity)
    (main,) = tables(report(side), large(side))
    assert names(main) == ["train loss"]
    main, further = tables(report(side), large(side), verbose=True)
    assert (names(main), further.caption) == (["train loss"], "gap, further")
    assert names(further) == ["gap curve", "0", "1"]


def test_verbose_keeps_the_main_table_and_adds_the_rest():
    sides = report(), large()
    (main,) = tables(*sides)
    full, further = tables(*sides, verbose=True)
    assert names(main)[:4] == ["top eigenvalue", "epsilon-sharpness %", "full, keskar, 1e-3", "manifold, keskar, 1e-3"]
    assert names(full)[1:4] == ["epsilon-sharpness full %", "keskar, 1e-3", "keskar, 5e-4"]
    assert len(full.lines) == len(main.lines) + 6 + 1
    assert names(further)[:2] == ["bottom eigenvalue", "largest eigenvalues"]
    assert [column.header for column in further.columns] == ["", "small batch 32", "large batch 650", "ratio"]


def test_of_an_array_the_first_number_stands_with_what_the_others_say():
    labels = {"rho": ("0.1", "0.5", "1, 0")}
    common = {"doc": "", "better": "lower", "higher_is": "sharper", "dims": ("rho",), "labels": labels}
    sides = []
    for values in ([1.0, 1, 1], [2.0, 2, 1]):
        quantity = Quantity(value=values, sampling_error=[0.01] * 3, **common)
        sides.append(with_quantity(eigenvalues(), worst_case=quantity, worst_mean=quantity))
    blocks = row_tables(compare([report(sides[0]), large(sides[1])]), False)
    (table, _, more) = blocks[0]
    assert [(line.cells[0], line.cells[-1], line.level) for line in table.lines] == [
        ("worst", "worst", 0),
        ("case, 0.1", "large\u00a0sharper (2\u00a0of\u00a03)", 1),
        ("mean, 0.1", "large\u00a0sharper (2\u00a0of\u00a03)", 1),
    ]
    assert more.text == "Of an array its first number is shown: 4 more with --verbose."


def test_arrays_whose_titles_share_no_word_do_not_share_a_title():
    sides = [report(adaptive_sharpness()), large(adaptive_sharpness(2.0))]
    (table,) = tables(*sides)
    assert [(line.cells[0], line.level) for line in table.lines] == [
        ("adaptive sharpness", 0),
        ("worst l2, 0.1", 1),
        ("worst linf, 0.1", 1),
        ("average, 0.1", 1),
        ("SAM sharpness", 0),
        ("0.1", 1),
    ]


def test_layer_names_with_commas_and_brackets_are_kept_whole():
    labels = {"layer": ("a,b", "c[0]")}
    quantity = Quantity(value=[1.0, 2], doc="", better="lower", dims=("layer",), labels=labels)
    sides = [with_quantity(eigenvalues(), q=replace(quantity, value=quantity.value * scale)) for scale in (1, 2)]
    (layers,) = tables(report(sides[0]), large(sides[1]))
    assert names(layers) == ["a,b", "c[0]"]


def test_the_legend_stands_even_where_there_are_layers_only():
    blocks = row_tables(compare([report(layered([1.0])), large(layered([2.0]))]), False)
    assert [item.text for block in blocks for item in block if isinstance(item, Note)] == [
        "ratio: large / small; with a sign: large - small; intervals over the data"
    ]
    assert row_tables(replace(compare([report(), large()]), rows=()), False) == ()


def test_details_are_shown_when_verbose_even_if_judged():
    side = with_quantity(eigenvalues(), **eigenvalues().quantities)
    side.quantities["top"] = replace(side.quantities["top"], drawn="detail")
    assert "top eigenvalue" not in [
        name for table in tables(report(side, gap()), large(side, gap())) for name in names(table)
    ]
    further = tables(report(side, gap()), large(side, gap()), verbose=True)[1]
    assert names(further)[0] == "top eigenvalue"


def test_a_judged_row_without_an_interval_says_so():
    sides = [with_quantity(gap(), train_loss=Quantity(value=value, doc="", better="lower")) for value in (1.0, 2.0)]
    (table,) = tables(report(sides[0]), large(sides[1]))
    assert (table.lines[0].cells[-2:], table.lines[0].tone) == (("", "no interval"), "unsure")


def test_long_arrays_are_listed_in_part_or_not_at_all():
    def side(**more):
        labels = {"t": tuple(map(str, range(65)))}
        return with_quantity(
            gap(),
            a=gap().quantities["train_loss"],
            q=Quantity(value=range(65), doc="", dims=("t",), labels=labels, **more),
        )

    further = tables(report(side()), large(side()), verbose=True)[1]
    assert (len(further.lines), names(further)[-1]) == (10, "gap q: 57 more of 65: --json")
    further = tables(report(side(drawn="line", unit="%")), large(side(drawn="line", unit="%")), verbose=True)[1]
    assert names(further) == ["gap q %: 65 numbers: --json"]
    pair = compare([report(side(drawn="line", unit="%")), large(side(drawn="line", unit="%"))])
    assert "gap q %: 65 numbers: --json" in text(comparison_document(pair, verbose=True)).splitlines()


def test_the_letters_of_long_verdicts_may_part():
    sides = [
        replace(r, training={}, identity={"checkpoint": f"digits-{r.training['batch_size']}.pt"})
        for r in (report(), large())
    ]
    assert tables(*sides)[0].lines[0].cells[-1] == "digits-650 sharper"


def test_of_runs_the_legend_says_what_stands_beside_the_mean_and_what_intervals_are_over():
    notes = [item.text for block in row_tables(compare(groups()), False) for item in block if isinstance(item, Note)]
    assert notes[0] == (
        "mean ± standard deviation over runs; ratio: large / small of geometric means; with a sign: large - small; "
        "95 % interval: over seeds (3 and 3 runs)"
    )


def test_a_group_of_one_is_shown_without_an_interval():
    (main,) = tables(*groups(large=(0.3,)))
    assert main.lines[0].cells[1:] == ("0.150 ± 0.010", "0.300 ± 0.021", "2", "", "no interval")
