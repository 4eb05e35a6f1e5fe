import csv
import io
import json
import math
from dataclasses import replace

import pytest
from example_reports import eigenvalues, large, near_rank, path, plane, report, together, with_quantity

from gapscope.errors import ReportError
from gapscope.report.comparison import compare
from gapscope.report.export import TABLE, comparison_json, dumps, report_json, save, tabled
from gapscope.results import Quantity, Status


def test_a_report_has_the_promised_shape():
    content = json.loads(dumps(report_json(report())))
    assert list(content) == ["format", "format_version", "subject", "environment", "results"]
    assert (content["format"], content["format_version"]) == ("gapscope-report", 1)
    assert set(content["subject"]) == {"identity", "training", "conditions"}
    assert content["environment"]["device"] == "cpu"
    record = content["results"]["eigenvalues"]
    keys = {"status", "message", "matvecs", "seconds", "settings", "notes", "quantities", "version"}
    assert set(record) == keys
    assert (record["status"], record["message"]) == ("CONVERGED", Status.CONVERGED.value)
    quantity = content["results"]["epsilon-sharpness"]["quantities"]["full"]
    assert {"value", "numerical_error", "sampling_error", "bound", "contrast", "better", "unit"} <= set(quantity)
    assert quantity["value"] == [[0.81, 0.21], [0.82, 0.22]]
    assert quantity["numerical_error"] is None
    assert quantity["dims"] == ["solver", "epsilon"]
    assert quantity["labels"]["epsilon"] == ["1e-3", "5e-4"]


def test_a_comparison_has_the_promised_shape():
    content = json.loads(dumps(comparison_json(compare([report(), large()]))))
    assert (content["format"], content["format_version"]) == ("gapscope-comparison", 1)
    assert [subject["label"] for subject in content["subjects"]] == ["small batch 32", "large batch 650"]
    row = content["rows"][0]
    assert {"path", "values", "errors", "contrast", "estimate", "interval", "verdict"} <= set(row)
    assert (row["path"], row["values"], row["verdict"]) == ("eigenvalues/top", [0.154, 0.246], "higher")
    assert len(content["reading"]) >= 3


def test_results_of_the_subjects_together_have_the_shape_of_a_report_s():
    results = {"path": path(), "plane": plane()}
    comparison = replace(compare([report(), large()]), results=results, environment={"device": "cpu"})
    content = json.loads(dumps(comparison_json(comparison)))
    alone = json.loads(dumps(report_json(report(path(), plane()))))
    assert content["results"] == alone["results"]
    assert content["environment"] == {"device": "cpu"}
    assert content["results"]["plane"]["quantities"]["loss"]["value"][0][0] is None


def test_nan_and_infinity_are_null():
    top = replace(eigenvalues().quantities["top"], value=math.inf, sampling_error=math.nan)
    record = with_quantity(eigenvalues(status=Status.NONFINITE, tolerance=math.nan), top=top)
    content = json.loads(dumps(report_json(report(record))))["results"]["eigenvalues"]
    assert content["status"] == "NONFINITE"
    assert content["quantities"]["top"]["value"] is None
    assert content["quantities"]["top"]["sampling_error"] is None
    assert content["settings"]["tolerance"] is None
    row = comparison_json(compare([report(record), large(record)]))["rows"][0]
    assert (row["values"], row["estimate"], row["interval"], row["verdict"]) == (
        [None, None],
        None,
        [None, None],
        "cannot tell",
    )


def rows(content):
    return list(csv.DictReader(io.StringIO(tabled(content))))


def test_a_table_has_one_row_per_number_of_a_report():
    content = report(eigenvalues(), near_rank(), path())
    found = rows(content)
    assert len(found) == sum(q.value.size for r in content.results.values() for q in r.quantities.values())
    assert found[0] == {
        **dict.fromkeys(found[0], ""),
        "path": "eigenvalues/top",
        "value": "0.154",
        "numerical_error": "1e-06",
        "sampling_error": repr(0.07 * 0.154),
        "status": "CONVERGED",
    }
    ranks = {(row["layer"], row["cut"]): float(row["value"]) for row in found if row["path"] == "near-rank/near_rank"}
    quantity = content.results["near-rank"].quantities["near_rank"]
    assert ranks[("fc2", "rel:1e-2")] == quantity.value[1, quantity.labels["cut"].index("rel:1e-2")]
    assert [row["value"] for row in found if row["path"] == "eigenvalues/residuals"] == ["1e-07", ""]


def test_dimensions_named_like_a_column_keep_their_own():
    loss = Quantity(value=[1, 2], doc="", dims=("path",), labels={"path": ("linear", "curved")})
    found = rows(report(replace(path(), quantities={"loss": loss})))
    assert [(row["path"], row["path_"]) for row in found] == [("path/loss", "linear"), ("path/loss", "curved")]


def test_a_table_of_a_comparison_has_subjects_and_contrasts():
    found = rows(together())
    first, last, ratio = [row for row in found if row["path"] == "eigenvalues/top"]
    assert [first["subject"], last["subject"], ratio["subject"]] == ["small batch 32", "large batch 650", "ratio"]
    assert float(ratio["value"]) == float(last["value"]) / float(first["value"])
    assert float(ratio["low"]) < float(ratio["value"]) < float(ratio["high"])
    assert ratio["status"] == "higher"
    accuracy = [row for row in found if row["path"] == "gap/test_accuracy"][-1]
    assert (accuracy["subject"], accuracy["unit"]) == ("difference", "points")
    assert [row for row in found if row["path"] == "path/loss"]


def test_no_cell_of_a_table_is_a_formula():
    quantity = eigenvalues().quantities["values"]
    evil = replace(quantity, labels={"rank": ("=1+1\x1b", "@cmd")})
    found = [row for row in rows(report(with_quantity(eigenvalues(), values=evil))) if row["path"].endswith("/values")]
    assert [row["rank"] for row in found] == ["'=1+1", "'@cmd"]
    places = replace(quantity, labels={"rank": ("-1", "+2")})
    numbered = report(with_quantity(eigenvalues(), values=places))
    found = [row for row in rows(numbered) if row["path"].endswith("/values")]
    assert [row["rank"] for row in found] == ["-1", "+2"]


def test_only_an_earlier_output_is_replaced(tmp_path):
    place = tmp_path / "out.csv"
    for text in ("path,value\n1\n", "path,value\n2\n"):
        save(place, text, mark="path,", option="--csv")
    assert place.read_text() == "path,value\n2\n"
    place.write_text("dear diary")
    with pytest.raises(ReportError, match=r"exists and was not written by `--csv`. Expected a new name .*place"):
        save(place, "path,value\n", mark="path,", option="--csv")
    assert place.read_text() == "dear diary"


def test_no_name_of_a_column_is_a_formula_or_reaches_the_terminal():
    quantity = eigenvalues().quantities["values"]
    for dim, shown in (("\x1b[31m=x", "[31m=x"), ("=x", "'=x"), ("##[error]", "## [error]")):
        evil = replace(quantity, dims=(dim,), labels={dim: ("1", "2")})
        text = tabled(report(with_quantity(eigenvalues(), values=evil)))
        assert text.splitlines()[0].split(",")[:2] == ["path", shown]
        assert "\x1b" not in text


def test_what_begins_like_a_table_and_is_none_is_left_alone(tmp_path):
    place = tmp_path / "out.csv"
    for content in (report(), compare([report(), large()]), report(near_rank())):
        save(place, tabled(content), mark=TABLE, option="--csv")
    for other in ("image_path,label\n1,2\n", "path,label\n1,2\n", "a,b\npath,value,unit,status\n"):
        place.write_text(other)
        with pytest.raises(ReportError, match="was not written by `--csv`"):
            save(place, tabled(report()), mark=TABLE, option="--csv")
        assert place.read_text() == other
