import numpy as np
import pytest
import torch

from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.loading import Loss
from gapscope.results import Status
from tests.problems import context, least_squares, problem, softmax_regression


def splits(train=100, test=80):
    given = softmax_regression(samples=train + test).problem
    x, y = given.data.inputs, given.data.targets
    return problem(given.model, x[:train], y[:train]), problem(given.model, x[train:], y[train:])


def test_losses_accuracies_and_gaps_are_those_of_the_samples():
    train, test = splits()
    result = context(Gap(), train=train, test=test).result("gap")
    assert result.status is Status.EXACT
    for quantity, where in ((result.train_loss, train), (result.test_loss, test)):
        assert quantity.value == pytest.approx(where.losses().mean())
        assert quantity.sampling_error == pytest.approx(where.losses().std(ddof=1) / np.sqrt(where.samples))
        assert quantity.chunks == pytest.approx(where.chunk_means(where.losses()))
    for quantity, where in ((result.train_accuracy, train), (result.test_accuracy, test)):
        assert quantity.value == pytest.approx(100 * where.outcomes()[1].mean())
        assert np.array_equal(quantity.samples, where.outcomes()[1])
    assert result.loss_gap.value == result.test_loss.value - result.train_loss.value
    assert result.accuracy_gap.value == result.train_accuracy.value - result.test_accuracy.value
    both = np.hypot(result.train_loss.sampling_error, result.test_loss.sampling_error)
    assert result.loss_gap.sampling_error == pytest.approx(both)
    assert result.loss_gap.chunks == pytest.approx(result.test_loss.chunks - result.train_loss.chunks)


def test_the_standard_error_of_an_accuracy_is_binomial():
    train, test = splits(400, 100)
    accuracy = context(Gap(), train=train, test=test).result("gap").train_accuracy
    rate = accuracy.value / 100
    assert accuracy.sampling_error == pytest.approx(100 * np.sqrt(rate * (1 - rate) / 399))


def test_without_test_data_there_are_train_values_only():
    result = context(Gap(), train=splits()[0]).result("gap")
    assert result.status is Status.NO_TEST_DATA
    assert np.isfinite(result.train_loss.value)
    assert np.isnan(result.test_loss.value)
    assert np.isnan(result.loss_gap.value)
    assert result.loss_gap.sampling_error is None
    assert result.loss_gap.chunks is None


def test_a_regression_has_no_accuracy():
    given = least_squares(80).problem
    result = context(Gap(), train=given, test=given).result("gap")
    assert result.train_accuracy is result.test_accuracy is result.accuracy_gap is None
    assert result.loss_gap.value == 0


def test_one_sample_has_no_standard_error():
    result = context(Gap(), train=splits(1)[0], test=splits(1)[0]).result("gap")
    assert result.train_loss.sampling_error is None
    assert result.loss_gap.sampling_error is None
    assert np.isfinite(result.loss_gap.value)


def test_a_loss_that_is_not_finite_is_nonfinite():
    nan = Loss("nan", lambda outputs, targets: outputs.sum(1) * torch.nan)
    train, test = splits()
    broken = problem(test.model, test.data.inputs, test.data.targets, nan)
    assert context(Gap(), train=train, test=broken).result("gap").status is Status.NONFINITE


def test_a_share_of_right_tokens_is_no_yes_or_no():
    torch.manual_seed(0)
    x, y = torch.randn(80, 5, 3), torch.randint(0, 4, (80, 5))
    given = problem(torch.nn.Linear(3, 4), x, y)
    result = context(Gap(), train=given, test=given).result("gap")
    assert result.train_accuracy.samples is None
    assert result.train_accuracy.chunks is not None
    assert result.train_accuracy.value == pytest.approx(100 * given.outcomes()[1].mean())
