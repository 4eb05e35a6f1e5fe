import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from example_reports import curvature, near_rank, report
from scipy.stats import spearmanr
from test_groups import run, saved

from gapscope.errors import ComparisonError
from gapscope.report.comparison import compare
from gapscope.report.document import Note, Series, Table
from gapscope.report.sweep import BY_LOSS, bars_of, loss_block, spearman, sweep_blocks, sweep_curves, swept
from gapscope.report.terminal import text
from gapscope.report.view import comparison_document

SIZES = (8, 16, 32, 64, 128)


def sweep(sizes=SIZES, seeds=2, wrong=lambda i: 30 + 5 * i):
    """Sharpness and gap that rise with the batch size."""
    return compare(
        [
            run(f"b{size}-{seed}", 0.1 + 0.05 * i + 0.002 * seed, batch_size=size, seed=seed, wrong=wrong(i))
            for i, size in enumerate(sizes)
            for seed in range(seeds)
        ]
    )


def items(blocks, kind):
    return [item for block in blocks for item in block if isinstance(item, kind)]


# Against the batch size


def test_a_sweep_is_a_table_of_measures_by_batch_size():
    table, *_ = items(sweep_blocks(sweep(), False), Table)
    assert [column.header for column in table.columns] == ["", *(f"batch {size}" for size in SIZES)]
    assert [line.cells[0] for line in table.lines] == [
        "test accuracy %",
        "accuracy gap points",
        "top eigenvalue",
        "epsilon-sharpness full, keskar, 1e-3 %",
    ]
    assert table.lines[2].cells[1] == "0.1010 ± 0.0014"
    assert table.caption == "sweep: mean ± standard deviation over runs"


def test_arrays_of_a_sweep_show_their_first_number():
    reports = [report(near_rank(), curvature(), batch_size=size, checkpoint=f"{size}.pt") for size in SIZES[:3]]
    comparison = compare(reports)
    assert [row.path for row in swept(comparison)] == [
        "near-rank/near_rank[fc1,rel:1e-2]",
        "curvature/median[transformer.h.0.attn.c_attn]",
    ]
    caption = items(sweep_blocks(comparison, False), Table)[0].caption
    assert caption == "sweep: value ± standard error over the data (one run each)"


def test_curves_have_the_batch_sizes_as_their_axis():
    accuracy, top = items(sweep_blocks(sweep(), False), Series)
    assert (accuracy.axis, accuracy.labels) == ("batch", ("8", "16", "32", "64", "128"))
    assert top.title == "top eigenvalue"
    assert top.curves[0] == pytest.approx([0.101 + 0.05 * i for i in range(5)])
    assert len(items(sweep_blocks(sweep(), True), Series)) == 4
    named = compare([run(name, optimizer=name) for name in ("sgd", "adam", "lars")], by="optimizer")
    (curve,) = sweep_curves(named, [row for row in named.rows if row.path == "eigenvalues/top"])
    assert (curve.axis, curve.labels) == ("regimes", ("sgd", "adam", "lars"))


def test_curves_have_the_errors_of_the_table_and_say_what_they_are():
    _, top = items(sweep_blocks(sweep(), False), Series)
    assert top.errors[0] == pytest.approx([0.002 / math.sqrt(2)] * 5)  # of two runs 0.002 apart
    assert top.bars == "A thin bar reaches one standard deviation over runs to each side."
    (_, alone) = items(sweep_blocks(sweep(seeds=1), False), Series)
    row = next(row for row in sweep(seeds=1).rows if row.path == "eigenvalues/top")
    assert alone.errors == (row.errors,)
    assert np.isfinite(row.errors).all()
    assert alone.bars.startswith("A thin bar reaches one error to each side: that over the data and that of the comp")


def test_a_regime_of_one_run_beside_others_has_the_error_of_its_own():
    reports = [run(f"b{size}-{seed}", 0.1, batch_size=size, seed=seed) for size in SIZES[:2] for seed in range(2)]
    said = bars_of(compare([*reports, run("b650-0", 0.2, batch_size=650)]))
    assert said.startswith(
        "A thin bar reaches one standard deviation over runs to each side, of a single run one error"
    )


def test_two_regimes_are_no_sweep():
    assert sweep_blocks(sweep(SIZES[:2]), False) == ()


def test_from_five_regimes_measures_are_ranked_against_the_gap():
    blocks = sweep_blocks(sweep(), False)
    ranks = items(blocks, Table)[1]
    assert ranks.columns[1].header == "rank correlation with the accuracy gap"
    assert [line.cells for line in ranks.lines] == [
        ("top eigenvalue", "1.0", "0.017"),
        ("epsilon-sharpness full, keskar, 1e-3 %", "1.0", "0.017"),
    ]
    (note,) = items(blocks, Note)
    assert "5 regimes reach no smaller p than 0.017" in note.text
    assert "names no cause" in note.text
    assert len(items(sweep_blocks(sweep(SIZES[:4]), False), Table)) == 1


def test_without_a_gap_nothing_is_ranked():
    reports = [report(near_rank(i), batch_size=size, checkpoint=f"{size}.pt") for i, size in enumerate(SIZES)]
    assert len(items(sweep_blocks(compare(reports), False), Table)) == 1


def test_the_sweep_is_shown_before_the_rows_in_80_columns():
    shown = text(comparison_document(sweep()))
    assert shown.index("sweep: mean") < shown.index("rank correlation") < shown.index("Reading")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("size", [5, 8, 12])
def test_rho_is_that_of_scipy_ties_included(size):
    rng = np.random.default_rng(size)
    for _ in range(5):
        a, b = rng.integers(0, size, (2, size)).astype(float)
        assert spearman(a, b)[0] == pytest.approx(spearmanr(a, b).statistic)


def test_p_is_the_share_of_all_orders():
    a, b = [1.0, 2, 3, 4, 5], [2.0, 1, 4, 3, 5]
    rho, p = spearman(a, b)
    rhos = [spearmanr(a, order).statistic for order in itertools.permutations(b)]
    assert p == pytest.approx(np.mean(np.abs(rhos) >= abs(rho) - 1e-12))


def test_beyond_nine_regimes_p_is_student_s():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 14))
    assert spearman(a, b)[1] == pytest.approx(spearmanr(a, b).pvalue)
    assert spearman(range(12), range(12)) == (1.0, 2 / math.factorial(12))
    assert spearman(range(12), range(0, -12, -1)) == (-1.0, 2 / math.factorial(12))


def test_ranks_of_what_does_not_vary_or_is_unknown_say_nothing():
    for side in ([1.0] * 5, [1.0, 2, 3, 4, math.nan]):
        assert all(map(math.isnan, spearman(side, [1.0, 2, 3, 4, 5])))


# Against the training loss


def traced():
    small = [*saved("a", 32, (1.0, 0.2, 0.05)), *saved("b", 32, (0.9, 0.3, 0.06), seed=1)]
    return compare([*small, *saved("l", 650, (0.8, 0.21, 0.1))], by_loss=True)


def test_all_saved_epochs_are_kept_by_falling_loss():
    record = traced().results[BY_LOSS]
    loss = record.quantities["gap train_loss"]
    assert next(iter(record.quantities)) == "gap train_loss"
    assert loss.value.tolist() == [1.0, 0.9, 0.8, 0.3, 0.21, 0.2, 0.1, 0.06, 0.05]
    assert loss.labels["saved"][:3] == ("small batch 32, a1", "small batch 32, b1", "large batch 650, l1")
    assert record.quantities["regime"].value.tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 0]
    assert record.quantities["run"].value.tolist() == [0, 1, 0, 1, 0, 0, 0, 1, 0]
    assert record.quantities["eigenvalues top"].value[0] == pytest.approx(0.11)
    assert {"gap test_accuracy", "epsilon-sharpness full"} <= set(record.quantities)


def test_by_loss_compares_the_matched_epochs_too():
    comparison = traced()
    assert [subject.size for subject in comparison.subjects] == [2, 1]
    assert "nearest in training loss" in comparison.reading[-1]


def test_a_number_that_an_epoch_lacks_is_not_made_up():
    first, *rest = saved("s", 32, (1.0, 0.2))
    poor = type(first)(**{**vars(first), "results": {"gap": first.results["gap"]}})
    record = compare([poor, *rest, *saved("l", 650, (0.5, 0.2))], by_loss=True).results[BY_LOSS]
    assert np.isnan(record.quantities["eigenvalues top"].value).tolist() == [True, False, False, False]


@pytest.mark.parametrize("change", ["settings", "conditions"])
def test_saved_epochs_that_were_not_measured_alike_are_refused_although_none_was_chosen(change):
    first, *rest = saved("s", 32, (1.0, 0.2))
    record = first.results["eigenvalues"]
    other = {"eigenvalues": replace(record, settings={**record.settings, "gauss_newton": True})}
    unlike = {
        "settings": replace(first, results={**first.results, **other}),
        "conditions": replace(first, conditions={**first.conditions, "limit": 9}),
    }
    reports = [unlike[change], *rest, *saved("l", 650, (0.5, 0.2))]
    assert compare(reports, match_loss=True)  # it does not count there
    with pytest.raises(ComparisonError, match=r"do not measure the same thing: (eigenvalues\.gauss_newton|limit): "):
        compare(reports, by_loss=True)
    assert compare(reports, by_loss=True, force=True).forced


def test_an_entry_that_an_epoch_lacks_is_not_made_up():
    first, *rest = saved("s", 32, (1.0, 0.2))
    full = first.results["epsilon-sharpness"].quantities["full"]
    labels = {**full.labels, "epsilon": tuple(f"{i + 2}e-2" for i in range(len(full.labels["epsilon"])))}
    record = first.results["epsilon-sharpness"]
    record = replace(record, quantities={**record.quantities, "full": replace(full, labels=labels)})
    reports = [replace(first, results={**first.results, "epsilon-sharpness": record}), *rest]
    found = compare([*reports, *saved("l", 650, (0.5, 0.2))], by_loss=True).results[BY_LOSS]
    assert np.isnan(found.quantities["epsilon-sharpness full"].value).tolist() == [True, False, False, False]


def test_epochs_are_listed_and_regimes_drawn_at_equal_loss():
    block = loss_block(traced(), False)
    (table,) = (item for item in block if isinstance(item, Table))
    assert [column.header for column in table.columns][:3] == ["", "train loss", "top eigenvalue"]
    assert table.lines[0].cells[:3] == ("small batch 32, a1", "1", "0.11")
    top, accuracy = (item for item in block if isinstance(item, Series))
    assert (accuracy.title, top.title) == ("test accuracy %", "top eigenvalue")
    assert top.names == ("small batch 32", "large batch 650")
    assert top.labels == ("0.8", "0.3", "0.21", "0.2", "0.1")  # where all three runs have been
    share = math.log(0.21 / 0.05) / math.log(0.2 / 0.05)
    assert share > 1  # beyond the saved epoch at 0.2, towards that at 1.0
    a = 0.12 - 0.01 * math.log(0.21 / 0.2) / math.log(1.0 / 0.2)
    b = 0.13 - 0.01 * math.log(0.21 / 0.06) / math.log(0.3 / 0.06)
    assert top.curves[0][2] == pytest.approx((a + b) / 2)
    assert top.curves[1][2] == pytest.approx(0.12)
    two, one = top.errors
    assert two[2] == pytest.approx(abs(a - b) / math.sqrt(2))
    record = traced().results[BY_LOSS].quantities
    saved_at = record["gap train_loss"].value.tolist().index(0.8)
    assert one[0] == pytest.approx(
        np.hypot(record["eigenvalues top"].sampling_error, record["eigenvalues top"].numerical_error)[saved_at]
    )
    assert "the mean of a regime's runs" in top.bars
    assert "of a single run one error" in top.bars
    assert len(loss_block(traced(), True)) > len(block)
    shown = text(comparison_document(traced()))
    assert "by-loss" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_runs_that_share_no_losses_have_no_curves():
    comparison = compare([*saved("s", 32, (1.0, 0.5)), *saved("l", 650, (0.1, 0.05))], by_loss=True)
    block = loss_block(comparison, False)
    assert not [item for item in block if isinstance(item, Series)]
    assert block[-1] == Note(
        text="No curves: the saved epochs of the runs share no range of training losses.", tone="dim"
    )
