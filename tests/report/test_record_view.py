import dataclasses
from dataclasses import replace

import numpy as np
from example_reports import curvature, density, near_rank, path, plane, with_quantity

from gapscope.report.document import Heat, Note, Series, Table
from gapscope.report.record_view import LAYERS, facts_line, record_block
from gapscope.results import Quantity, Status


def items(record, kind, verbose=False):
    return [item for item in record_block(record, verbose) if isinstance(item, kind)]


def headers(table):
    return [column.header for column in table.columns]


# Layers


def test_layers_are_rows_and_quantities_columns_the_headline_first():
    (table,) = items(near_rank(), Table)
    assert headers(table)[:5] == ["layer", "near rank rel:1e-2", "near rank rel:1e-3", "effective rank", "condition"]
    assert [line.cells[:5] for line in table.lines] == [
        ("fc1", "47", "55", "19.45", "inf"),
        ("fc2", "9", "10", "7.297", "187.5"),
        ("fc3", "29", "31", "12.1", "31.02"),
    ]
    assert table.overflow == "drop"
    assert items(near_rank(), Table, verbose=True)[0].overflow == "split"


def test_judged_quantities_come_before_the_others():
    record = curvature(layers=2)
    late = {"zeros": record.quantities["zeros"], **record.quantities}
    late["first"] = replace(record.quantities["zeros"], contrast="ratio")
    (table, _) = items(with_quantity(record, first=late.pop("first"), **late), Table)
    assert headers(table) == ["layer", "first", "median", "zeros"]


def test_values_stand_with_their_errors_and_bounds_with_their_sign():
    record = curvature(layers=2, status=Status.NOISE_DOMINATED)
    bound = with_quantity(record, median=replace(record.quantities["median"], bound="upper"))
    assert items(bound, Table)[0].lines[0].cells[1] == "≤ 0.0100 ± 0.0010"
    assert items(record, Table)[0].lines[0].cells[1] == "0.0100 ± 0.0010"


def test_single_numbers_follow_in_a_list_of_their_own():
    layers, listed = items(curvature(layers=3), Table)
    assert headers(layers) == ["layer", "median", "zeros"]
    assert [line.cells for line in listed.lines] == [("probes", "10", "–", "–")]


def test_a_record_begins_with_its_headline():
    assert items(path(), (Table, Series))[0].lines[0].cells[0] == "barrier"
    assert isinstance(items(density(), (Table, Series))[0], Series)
    assert headers(items(near_rank(), Table)[0])[0] == "layer"


def test_very_deep_networks_are_shown_in_part():
    (table, _) = items(curvature(layers=LAYERS + 6), Table)
    assert len(table.lines) == LAYERS + 1
    assert table.lines[-1].cells == ("6 more layers: --verbose",)
    assert len(items(curvature(layers=LAYERS + 6), Table, verbose=True)[0].lines) == LAYERS + 6


# Drawings


def test_a_strip_is_drawn_where_it_shows_more_than_the_table():
    assert items(curvature(layers=7), Series) == []
    (strip,) = items(curvature(layers=8), Series)
    assert (strip.title, strip.style, strip.axis) == ("median", "strip", "layer")
    assert strip.labels[:2] == ("transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc")


def test_of_strips_beside_a_table_only_the_important_ones_are_drawn():
    record = curvature(layers=8)
    both = with_quantity(record, **{**record.quantities, "zeros": replace(record.quantities["zeros"], drawn="strip")})
    assert [strip.title for strip in items(both, Series)] == ["median"]
    assert [strip.title for strip in items(both, Series, verbose=True)] == ["median", "zeros"]


def test_bars_and_lines_are_drawn_and_their_numbers_verbose():
    (bars,) = items(density(), Series)
    assert (bars.style, len(bars.labels), len(bars.curves)) == ("bars", 201, 1)
    assert [line.cells[0] for line in items(density(), Table)[0].lines] == ["mass near zero"]
    full = items(density(64), Table, verbose=True)[1]
    assert (full.caption, len(full.lines), headers(full)) == (
        "density",
        64,
        ["grid", "value", "± data", "± numerical"],
    )


def test_long_drawn_arrays_are_not_listed_number_by_number():
    assert len(items(density(), Table, verbose=True)) == 1
    assert "density: 201 numbers: --json" in [note.text for note in items(density(), Note, verbose=True)]


def curves(number, **more):
    dims = {"which": tuple(f"w{i}" for i in range(number)), "t": ("0", "1", "2")}
    value = np.arange(3.0 * number).reshape(number, 3)
    quantity = Quantity(value=value, doc="", drawn="line", dims=tuple(dims), labels=dims, **more)
    return with_quantity(path(), curves=quantity)


def test_leading_dimensions_become_curves_and_many_are_shown_in_part():
    (drawing,) = items(curves(2), Series)
    assert (drawing.names, drawing.curves) == (("w0", "w1"), ((0, 1, 2), (3, 4, 5)))
    (drawing,) = items(curves(10), Series)
    assert len(drawing.curves) == 8
    assert [note.text for note in items(curves(10), Note)][1] == "curves: 2 more of 10 with --verbose"
    assert len(items(curves(10), Series, verbose=True)[0].curves) == 10


def test_the_numbers_of_a_matrix_stand_in_one_table_with_the_longer_side_down():
    (table,) = items(near_rank(), Table, verbose=True)[1:]
    assert (table.caption, table.overflow) == ("singular values", "split")
    assert headers(table) == ["index \\ layer", "fc1", "fc2", "fc3"]
    assert table.lines[0].cells == ("1", "100", "200", "300")
    (table,) = items(curves(2), Table, verbose=True)
    assert headers(table) == ["t \\ which", "w0", "w1"]
    assert table.lines[1].cells == ("1", "1", "4")
    (table,) = items(curves(4), Table, verbose=True)
    assert headers(table) == ["which \\ t", "0", "1", "2"]
    assert table.lines[3].cells == ("w3", "9", "10", "11")


def test_a_map_has_its_axes_and_the_places_of_the_subjects():
    (drawing,) = items(plane(), Heat)
    assert (drawing.axes, len(drawing.rows), len(drawing.columns), drawing.marks) == (("y", "x"), 9, 9, ())
    labels = {"subject": ("0", "1"), "axis": ("first", "second")}
    points = Quantity(value=[[0.0, 0.5], [1, -0.5]], doc="", dims=("subject", "axis"), labels=labels)
    record = with_quantity(plane(), loss=plane().quantities["loss"], points=points)
    assert items(record, Heat)[0].marks == (("0", 0.5, 0.0), ("1", -0.5, 1.0))


def test_only_the_first_map_quantity_is_drawn_unless_verbose():
    loss = plane().quantities["loss"]
    dims = {"split": ("train", "test", "other"), **loss.labels}
    several = dataclasses.replace(loss, value=np.stack([loss.value] * 3), dims=tuple(dims), labels=dims)
    record = with_quantity(plane(), loss=several, accuracy=replace(loss, unit="%"))
    assert [drawing.title for drawing in items(record, Heat)] == ["loss, train", "loss, test"]
    said = [note.text for note in items(record, Note)]
    assert said[1:3] == ["loss: 1 more of 3 with --verbose", "accuracy %: drawn with --verbose"]
    assert len(items(record, Heat, verbose=True)) == 4
    said = [note.text for note in items(record, Note, verbose=True)]
    assert said[1:3] == ["loss: 243 numbers: --json", "accuracy %: 81 numbers: --json"]


def test_a_map_of_one_dimension_is_drawn_as_bars():
    quantity = Quantity(value=[1.0, 2], doc="", drawn="map", dims=("t",), labels={"t": ("0", "1")})
    (drawing,) = items(with_quantity(path(), q=quantity), Series)
    assert drawing.style == "bars"


def test_a_single_number_is_never_drawn():
    assert items(with_quantity(path(), q=Quantity(value=1, doc="", drawn="map")), (Series, Heat)) == []


def test_a_large_matrix_that_is_judged_is_shown_in_part_and_whole_when_verbose():
    dims = {"which": tuple(map(str, range(5))), "t": tuple(map(str, range(6)))}
    judged = Quantity(value=np.ones((5, 6)), doc="", better="lower", dims=tuple(dims), labels=dims)
    record = with_quantity(path(), q=judged)
    (table,) = items(record, Table)
    assert table.lines[-1].cells[0] == "q, 22 more of 30: all with --verbose or --json"
    (table,) = items(record, Table, verbose=True)
    assert (table.caption, len(table.lines), len(table.columns)) == ("q", 6, 6)


# Bounds and details


def test_a_bound_whose_error_exceeds_it_is_an_interval():
    def cells(status=Status.CONVERGED, **given):
        record = with_quantity(replace(path(), status=status), q=Quantity(doc="", **given))
        return items(record, Table)[0].lines[0].cells[1:]

    assert cells(value=-0.004, numerical_error=0.1, bound="upper") == ("-0.10 to -0.004", "–", "")
    assert cells(value=0.004, numerical_error=0.1, bound="lower", sampling_error=0.01) == (
        "0.004 to 0.10",
        "0.010",
        "",
    )
    assert cells(Status.BUDGET_SPENT, value=0.5, numerical_error=2, bound="lower")[0] == "0.5 to 2.5"
    assert cells(value=-0.004, numerical_error=0.001, bound="upper") == ("-0.0040", "–", "0.0010")
    assert cells(value=-0.004, numerical_error=0.1) == ("-0.004", "–", "0.10")
    noisy = cells(Status.NOISE_DOMINATED, value=-0.004, numerical_error=0.1, bound="upper")
    assert noisy == ("≤ -0.004", "–", "0.10")  # its true value lies further off than any error says


def test_a_layer_whose_error_exceeds_its_bound_has_an_interval_too():
    layers = {"dims": ("layer",), "labels": {"layer": ("fc1", "fc2")}}
    bound = Quantity(value=[1.0, 1.0], numerical_error=[0.1, 2.0], bound="lower", doc="", **layers)
    table = items(with_quantity(curvature(layers=2), median=bound), Table)[0]
    assert [line.cells[1] for line in table.lines] == ["1.00 ± 0.10", "1 to 3.0"]


def test_details_are_shown_only_when_verbose():
    record = curvature(layers=3)
    details = {name: replace(each, drawn="detail") for name, each in record.quantities.items() if name != "median"}
    record = with_quantity(record, median=record.quantities["median"], **details)
    (layers,) = items(record, Table)
    assert headers(layers) == ["layer", "median"]
    layers, listed = items(record, Table, verbose=True)
    assert headers(layers) == ["layer", "median", "zeros"]
    assert listed.lines[0].cells[0] == "probes"
    assert items(record, Series, verbose=True) == []


def test_arrays_without_errors_or_direction_run_on_in_one_line():
    def said(size):
        labels = {"draw": tuple(map(str, range(size)))}
        draws = Quantity(value=range(size), doc="", unit="%", dims=("draw",), labels=labels)
        record = with_quantity(path(), barrier=path().quantities["barrier"], draws=draws)
        return [note.text for note in items(record, Note, verbose=True) if note.text.startswith("draws")]

    assert said(4) == ["draws %: 0 at 0; 1 at 1; 2 at 2; 3 at 3"]
    assert said(65)[0].endswith("7 at 7; 57 more of 65: --json")


def test_long_tables_begin_and_say_what_is_left():
    dims = {"which": ("a", "b"), "side": ("l", "r"), "t": tuple(map(str, range(40)))}
    record = with_quantity(path(), q=Quantity(value=np.ones((2, 40)), doc="", dims=("side", "t"), labels=dims))
    (table,) = items(record, Table, verbose=True)
    assert (len(table.lines), items(record, Note, verbose=True)[1].text) == (8, "q: 64 more of 80: --json")


def test_a_digest_is_shortened():
    assert facts_line("identity", {"sha256": "ab" * 32, "n": 1}) == "identity: n 1, sha256 abababababab..."


def test_strips_beside_the_table_of_layers_are_not_listed_again():
    assert [headers(table)[0] for table in items(curvature(layers=12), Table, verbose=True)] == ["layer", ""]
