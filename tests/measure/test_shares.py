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


def test_samples_of_equal_weight_are_left_as_they_are():
    problem = gapscope.problem(nn.Linear(2, 3), (torch.randn(8, 2), torch.arange(8) % 3))
    values = np.arange(8.0)
    assert np.array_equal(evened(problem, values), values)
