import re
from dataclasses import replace
from importlib.resources import files

from example_outcomes import outcome
from example_reports import eigenvalues, epsilon_sharpness, gap, path, report, together

from gapscope.report.citations import DEFINITIONS, STUDIES, citation, methods
from gapscope.report.outcome import outcome_report

BIBLIOGRAPHY = files("gapscope.report").joinpath("citations.bib").read_text(encoding="utf-8")


def test_every_source_stands_in_the_bibliography_and_every_entry_is_used():
    keys = re.findall(r"^@\w+\{(\w+),$", BIBLIOGRAPHY, re.M)
    assert sorted(keys) == sorted({key for _, used in DEFINITIONS.values() for key in used} | set(STUDIES.values()))
    for entry in BIBLIOGRAPHY.strip().split("\n\n"):
        assert {"author", "title", "year"} <= set(re.findall(r"^  (\w+) = \{.*\},$", entry, re.M))
        assert entry.count("{") == entry.count("}")


def test_only_what_was_used_is_cited():
    text = citation(report(epsilon_sharpness(), gap()))
    assert re.findall(r"^@\w+\{(\w+),$", text, re.M) == ["keskar2017large"]
    pair = citation(replace(together(), results={"path": path()}))
    assert pair.count("keskar2017large") == 1


def test_a_study_cites_its_paper_and_what_measured_its_runs():
    study = outcome_report(replace(outcome(), study="sngm", analyzers=("gap", "epsilon-sharpness")))
    text = citation(study)
    assert re.findall(r"^@\w+\{(\w+),$", text, re.M) == ["zhao2020stochastic", "keskar2017large"]
    assert "epsilon-sharpness: Metric 2.1 of Keskar et al." in text
    assert "gap: Losses and accuracies" in text
    assert "claims" not in text.partition("@")[0]  # its own parts are no methods
    assert "@" not in citation(outcome_report(outcome()))  # a study of another package has no paper here


def test_methods_say_what_how_and_with_which_versions():
    text = methods(report(eigenvalues(tolerance=1e-3)))
    for said in (
        "small.pt",
        "1,300 train samples",
        "cross-entropy loss",
        "tolerance 0.001",
        "batch size 32",
        "gapscope",
    ):
        assert said in text
    pair = methods(together())
    assert pair.startswith("small batch 32 (")
    assert " and large batch 650 (" in pair


def test_an_analyzer_of_another_package_is_named_and_nothing_is_made_up():
    text = citation(report(replace(eigenvalues(), analyzer="moons")))
    assert "moons. Version 1" in text
    assert "@" not in text


def test_no_control_character_reaches_the_terminal():
    assert "\x1b" not in citation(report(eigenvalues(), checkpoint="a\x1b[31m"))
