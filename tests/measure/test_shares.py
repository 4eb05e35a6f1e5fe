import numpy as np
import pytest
import torch
from torch import nn

import gapscope
from gapscope.measure.shares import evened

POPULATION, DRAWN, REDRAWS, LENGTH, WORDS = 3000, 128, 150, 12, 7


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)

    def forward(self, input_ids, attention_mask):
        return self.head(torch.tanh(self.embed(input_ids)) * attention_mask.unsqueeze(-1))


@pytest.fixture(scope="module")
def corpus():
    """Rows of 1 to 12 tokens, most of them short; the rest is padding."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(WORDS, (POPULATION, LENGTH), generator=rng)
    lengths = 1 + (torch.rand(POPULATION, generator=rng) ** 2 * LENGTH).long()
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.roll(1, 1).where(mask.bool(), -100)}


@pytest.fixture(scope="module")
def drawn(corpus):
    """Loss, accuracy, top eigenvalue and their stated errors, for many draws of rows from the corpus."""
    torch.manual_seed(0)
    model, found = Tagger(), []
    for seed in range(REDRAWS):
        rows = torch.randperm(POPULATION, generator=torch.Generator().manual_seed(seed))[:DRAWN]
        problem = gapscope.problem(model, {name: table[rows] for name, table in corpus.items()}, loss="cross-entropy")
        report = gapscope.measure(problem, [gapscope.Gap(), gapscope.Eigenvalues()])
        results = {name: record.quantities for name, record in report.results.items()}
        ours = (results["gap"]["train_loss"], results["gap"]["train_accuracy"], results["eigenvalues"]["top"])
        found.append([(float(one.value), float(one.sampling_error)) for one in ours])
    return np.array(found)


@pytest.mark.parametrize("which", [0, 1], ids=["loss", "accuracy"])
def test_stated_errors_are_the_spread_over_draws_of_rows(drawn, which):
    values, errors = drawn[:, which].T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.2)


def test_the_error_of_the_top_eigenvalue_is_near_its_spread(drawn):
    values, errors = drawn[:, 2].T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.35)


def test_without_the_share_of_the_tokens_the_error_is_far_too_wide(drawn, corpus):
    torch.manual_seed(0)
    problem = gapscope.problem(Tagger(), {name: table[:DRAWN] for name, table in corpus.items()}, loss="cross-entropy")
    losses = problem.losses()
    flat = evened(problem, losses)
    assert flat.mean() == pytest.approx(losses.mean(), rel=1e-12)
    assert losses.std() > 3 * flat.std()


def test_the_mean_of_squares_goes_with_the_square_of_the_mean_weight(corpus):
    """Of sum (w h)^2 / N over (sum w / N)^2 the error is that of both sums: against it over draws of rows."""
    torch.manual_seed(0)
    model, found = Tagger(), []
    for seed in range(REDRAWS):
        rows = torch.randperm(POPULATION, generator=torch.Generator().manual_seed(seed))[:DRAWN]
        problem = gapscope.problem(model, {name: table[rows] for name, table in corpus.items()}, loss="cross-entropy")
        squares = problem.slopes_along(problem.theta) ** 2
        flat = evened(problem, squares, power=2)
        assert flat.mean() == pytest.approx(squares.mean(), rel=1e-9)
        both = evened(problem, np.stack([squares, 2 * squares], 1), power=2)
        assert both[:, 1] == pytest.approx(2 * flat)
        found.append([squares.mean(), flat.std(ddof=1) / np.sqrt(DRAWN)])
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.25)


def test_normalized_scores_weigh_as_the_loss_does(corpus):
    """Rows of other lengths of one token and one label have one loss each: no spread is left of their mean."""
    torch.manual_seed(0)
    mask = corpus["attention_mask"][:DRAWN]
    rows = {"input_ids": torch.ones_like(mask), "attention_mask": mask, "labels": torch.where(mask.bool(), 3, -100)}
    problem = gapscope.problem(Tagger(), rows, loss="cross-entropy")
    settings = {"rhos_linf": (), "rhos_sam": (), "probes": 0, "normalize_logits": True}
    found = gapscope.measure(problem, [gapscope.AdaptiveSharpness(**settings)]).results["adaptive-sharpness"].quantities
    for name in ("worst_l2", "worst_l2_normalized", "average_normalized"):
        assert np.all(found[name].sampling_error <= 1e-4 * np.abs(found[name].value))
        assert np.all(found[name].value > 0)


def test_errors_of_layers_curvature_are_the_spread_over_draws_of_weighted_classes():
    torch.manual_seed(0)
    model, found = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), []
    for seed in range(80):
        rng = torch.Generator().manual_seed(seed)
        data = torch.randn(256, 3, generator=rng), (torch.rand(256, generator=rng) < 0.1).long()
        problem = gapscope.problem(model, data, loss="cross-entropy:weight=[1,20]")
        report = gapscope.measure(problem, [gapscope.Curvature(top_matvecs=0)])
        quantities = report.results["curvature"].quantities
        ours = quantities["median"], quantities["trace"]
        found.append([np.stack([one.value, one.sampling_error]) for one in ours])
    values, errors = np.moveaxis(np.array(found), 2, 0)  # (draws, quantities, layers)
    assert errors.mean(0) == pytest.approx(values.std(0, ddof=1), rel=0.3)


def test_few_samples_that_count_have_curvature_without_an_error_over_the_data():
    """A half of the data without any weight has no mean."""
    torch.manual_seed(0)
    labels = torch.full((128,), -100)
    labels[:3] = torch.tensor([0, 1, 1])
    problem = gapscope.problem(nn.Linear(3, 2), (torch.randn(128, 3), labels), loss="cross-entropy")
    found = gapscope.measure(problem, [gapscope.Curvature(top_matvecs=0)]).results["curvature"].quantities
    assert found["median"].sampling_error is None
    assert found["trace"].sampling_error is None
    assert (found["trace"].value > 0).all()


def test_samples_of_equal_weight_are_left_as_they_are():
    problem = gapscope.problem(nn.Linear(2, 3), (torch.randn(8, 2), torch.arange(8) % 3))
    values = np.arange(8.0)
    assert np.array_equal(evened(problem, values), values)
