import json
import math
from dataclasses import replace

from example_reports import eigenvalues, large, path, plane, report, with_quantity

from gapscope.report.comparison import compare
from gapscope.report.export import comparison_json, dumps, report_json
from gapscope.results import Status


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
