import numpy as np
import pytest
from oyedotun_found import falling, found

from gapscope.training.studies.oyedotun.parts import SHOWN, across, claims, layers, training

FALLS = falling([[-2.0, -3.0], [-2.5, -3.5], [-3.0, -4.5]])
RISES = falling([[2.0, 3.0], [2.5, 3.5], [3.0, 4.5]], start=20)
WAVERS = falling([[-2.0, -2.0], [0.1, 0.1], [2.0, 2.0]], start=50)


def verdicts(*of, wide="", narrow=""):
    return {claim.text.partition(",")[0]: claim.verdict for claim in claims(of, wide=wide, narrow=narrow)}


@pytest.mark.parametrize(
    ("shares", "answer"), [(FALLS, "shows"), (RISES, "does not show"), (WAVERS, "cannot tell")], ids=str
)
def test_each_answer_is_given_in_both_modes_and_by_the_control(shares, answer):
    other = np.full(shares.shape, 100.0)
    assert verdicts(found(shares, same=other))["near-rank falls with the batch size"] == "cannot tell"
    every = claims([found(shares, same=shares, control=shares)], wide="", narrow="")
    assert [claim.verdict for claim in every[:2]] == [answer, answer]
    assert every[3].verdict == answer


def test_a_fall_that_the_control_shows_too_is_not_beyond_it():
    assert claims([found(FALLS, control=FALLS)], wide="", narrow="")[2].verdict == "cannot tell"
    assert claims([found(FALLS)], wide="", narrow="")[2].verdict == "shows"
    more = falling([[-9.0, -9.0], [-9.5, -9.5], [-9.8, -9.2]])
    assert claims([found(FALLS, control=more)], wide="", narrow="")[2].verdict == "does not show"


def test_a_claim_must_hold_in_every_network():
    claim = claims([found(FALLS, name="one"), found(RISES, name="other")], wide="", narrow="")[0]
    assert claim.verdict == "does not show"
    assert claim.because.startswith("one: shows (points per doubling -3.1")
    assert "other: does not show" in claim.because
    assert claims([found(FALLS, name="one"), found(WAVERS, name="other")], wide="", narrow="")[0].verdict == (
        "cannot tell"
    )


def test_of_a_network_without_a_seed_nothing_can_be_told_and_every_claim_says_so():
    told = claims([found(FALLS, name="wide")], wide="wide", narrow="narrow", missing=["narrow"])
    over_all = [claim for claim in told if claim.because.startswith("wide: ")]
    assert len(over_all) == 5
    assert all(claim.because.endswith("; narrow: cannot tell (no seed is left)") for claim in over_all)
    assert over_all[0].verdict == "cannot tell"
    width = [claim for claim in told if "than narrow" in claim.text]
    assert [(claim.verdict, claim.because) for claim in width] == [("cannot tell", "no seed is left")] * 2
    assert {(claim.source, claim.own) for claim in width} == {("a question of this study", True)}
    refuted = claims([found(RISES)], wide="", narrow="", missing=["other"])[0]
    assert refuted.verdict == "does not show"


def test_controls_and_questions_are_none_of_the_papers_claims():
    every = claims([found(FALLS, name="wide"), found(FALLS, name="narrow")], wide="wide", narrow="narrow")
    assert [claim.own for claim in every] == [False, True, True, False, True, True, True, True, False]
    assert {claim.source for claim in every if not claim.own} == {"abstract", 'abstract: "near-rank loss"'}


def test_depth_and_width_are_asked_of_the_networks_that_the_plan_names():
    deep = falling([[-1.0, -3.0], [-1.2, -3.5], [-0.8, -2.7]])
    told = verdicts(found(deep, name="wide"), found(deep / 4, name="narrow"), wide="wide", narrow="narrow")
    assert told["deeper layers of wide lose more near-rank on the same samples in points"] == "shows"
    assert told["wide loses more near-rank on the same samples in points"] == "shows"
    assert told["wide loses more near-rank on the same samples in proportion"] == "cannot tell"
    assert not any("deeper" in text for text in verdicts(found(deep)))
    alone = verdicts(found(deep, name="wide"), wide="wide", narrow="narrow")
    assert [text for text in alone if "loses more" in text] == []


def test_accuracy_that_follows_near_rank_shows():
    rng = np.random.default_rng(0)
    shares = rng.uniform(20, 80, size=(8, 3, 2))
    accuracy = shares.mean(axis=2) + rng.normal(scale=4, size=(8, 3))
    text = "test accuracy falls with near-rank on the same samples"
    assert verdicts(found(shares, accuracy=accuracy))[text] == "shows"
    assert verdicts(found(shares, accuracy=100 - accuracy))[text] == "does not show"
    assert verdicts(found(shares))[text] == "cannot tell"  # every run is as accurate


def test_without_a_run_nothing_is_judged():
    assert claims([], wide="wide", narrow="narrow") == ()


def test_a_deep_networks_table_has_some_layers_from_the_first_to_the_last():
    deep = falling(-np.arange(1.0, 21.0)[None, :] / 10 + np.array([[0.0], [0.1]]))
    part = layers(found(deep))
    named = [line.cells[0] for line in part.tables[0].lines if line.cells[0].startswith("fc")]
    assert named[: len(named) // 3] == ["fc1", "fc5", "fc9", "fc12", "fc16", "fc20"]
    assert len(named) == 3 * SHOWN
    assert part.notes == ("14 of 20 hidden layers are in the report alone.",)
    assert part.record.quantities["share_of_full_rank"].value.shape == (20, 3, 3)


def test_tables_have_means_spreads_and_intervals():
    part = layers(found(FALLS))
    assert part.notes == ()
    first = next(line for line in part.tables[0].lines if line.cells[0] == "fc1")
    assert first.cells == ("fc1", "100 ± 0", "95.0 ± 1.0", "90.0 ± 2.0", "-2.5 (-3.7 to -1.3)")
    lines = across([found(FALLS, control=FALLS)]).tables[0].lines
    assert lines[0].cells[0] == "MLP"
    assert lines[0].cells[3] == "0"
    trained = training([found(FALLS)])
    assert "at or below the smallest batch's loss" in trained.notes[1]
    assert trained.tables[0].lines[1].cells == ("16", "16 ± 0", "0.1 ± 0", "90 ± 0", "0.1 ± 0")


def test_errors_of_curves_are_over_seeds():
    curves = layers(found(FALLS)).record.quantities["share_of_full_rank"]
    np.testing.assert_allclose(curves.sampling_error[0, 0], FALLS[:, :, 0].std(axis=0, ddof=1) / np.sqrt(3), rtol=1e-12)
    alone = layers(found(FALLS[:1])).record.quantities["share_of_full_rank"]
    assert np.isnan(alone.sampling_error).all()
