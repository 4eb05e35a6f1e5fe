import math

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError, UsageError
from gapscope.measure.distributed import Ranks
from gapscope.measure.loading import Trust, build_loss, load_data
from gapscope.training.gradient import Batch, Objective
from gapscope.training.looking import mean_loss
from gapscope.training.recipe import Recipe

CPU = torch.device("cpu")
LOSSES = ["cross-entropy", "cross-entropy:ignore_index=3,weight=[1,2,3,4,5,6,7,8,9,10]"]


@pytest.fixture(scope="module")
def data():
    return load_data("digits", "train", recorded=False, trust=Trust()).limited(103, 0)


class Watched(nn.Linear):
    """Notes how many samples it is called with."""

    def __init__(self):
        super().__init__(64, 10, dtype=torch.float64)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return super().forward(x)


def objective(loss, **recipe):
    torch.manual_seed(0)
    return Objective(Watched(), build_loss(loss, recorded=False, trust=Trust()), Recipe(epochs=1, **recipe), CPU)


def of_batch(made, data):
    value = made.batch(data, torch.arange(len(data))).backward()
    return float(value), torch.cat([p.grad.reshape(-1) for p in made.model.parameters()])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("parts", [2, 7, 103, 200])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(data, loss, parts):
    whole, gradient = of_batch(objective(loss), data)
    made = objective(loss, accumulate=parts)
    value, added = of_batch(made, data)
    slack = len(data) * torch.finfo(torch.float64).eps  # of a sum of so many terms in another order
    assert value == pytest.approx(whole, rel=slack)
    assert float((added - gradient).norm()) <= slack * float(gradient.norm())
    assert max(made.model.sizes) == math.ceil(len(data) / min(parts, len(data)))
    assert sum(made.model.sizes) == len(data)


def test_the_gradient_is_that_of_torch_s_own_mean(data):
    made = objective(LOSSES[0])
    _, gradient = of_batch(made, data)
    outputs = made.model(data.inputs.double())
    plain = torch.autograd.grad(nn.functional.cross_entropy(outputs, data.targets), list(made.model.parameters()))
    truth = torch.cat([part.reshape(-1) for part in plain])
    assert float((gradient - truth).norm()) <= len(data) * torch.finfo(torch.float64).eps * float(truth.norm())


def test_the_smallest_losses_are_left_out(data):
    made = objective(LOSSES[0], discard=0.5)
    value, _ = of_batch(made, data)
    losses = nn.functional.cross_entropy(made.model(data.inputs.double()), data.targets, reduction="none")
    kept = losses.sort().values[math.floor(0.5 * len(data)) :]
    assert value == pytest.approx(float(kept.mean().detach()), rel=1e-12)


@pytest.mark.parametrize("loss", ["cross-entropy:ignore_index=3", "cross-entropy:weight=[1,1,1,0,1,1,1,1,1,1]"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_in_which_no_target_counts_has_a_loss_and_a_gradient_of_zero(data, loss, parts):
    ignored = data.part((data.targets == 3).nonzero().flatten())
    made = objective(loss, accumulate=parts)
    value, gradient = of_batch(made, ignored)
    assert value == 0.0
    assert gradient.tolist() == [0.0] * 650
    with pytest.raises(LoadError, match="leaves out every target"):
        mean_loss(made.model, ignored, made.loss)


def test_the_loss_alone_leaves_no_gradient(data):
    made = objective(LOSSES[0])
    batch = made.batch(data, torch.arange(9))
    value = batch.value()
    assert all(p.grad is None for p in made.model.parameters())
    assert float(value) == float(batch.backward())


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        (nn.Sequential(nn.BatchNorm1d(64)), {}, "`0` takes statistics over a batch, of which each of 2 processes sees"),
        (nn.Linear(64, 10), {"discard": 0.5}, "`--discard-small-losses` stands in 2 processes"),
    ],
)
def test_what_needs_the_whole_batch_is_refused_in_several_processes(model, recipe, message):
    with pytest.raises(UsageError) as error:
        Objective(model, None, Recipe(epochs=1, **recipe), CPU, Ranks(0, 2))
    assert message in str(error.value)
    assert "Expected" in str(error.value)


def test_a_single_sample_for_batchnorm_is_refused_in_words_of_the_options(data):
    made = objective(LOSSES[0])
    made = Objective(nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)), made.loss, made.recipe, CPU)
    with pytest.raises(
        UsageError, match=r"A batch, or a part of one, is a single sample.* Expected two or more. Choose"
    ):
        made.batch(data, torch.arange(1)).backward()


def test_other_mistakes_of_a_model_are_left_as_they_are(data):
    class Wrong(nn.Linear):
        def forward(self, x):
            raise ValueError("its own")

    made = objective(LOSSES[0])
    with pytest.raises(ValueError, match="its own"):
        Objective(Wrong(64, 10), made.loss, made.recipe, CPU).batch(data, torch.arange(2)).backward()


def test_inputs_are_moved_against_the_model_sample_by_sample(data):
    made, batch = (objective(LOSSES[0], **more).batch(data, torch.arange(20)) for more in ({"adversarial": 0.25}, {}))
    assert float((made.inputs - batch.inputs).abs().max()) == pytest.approx(0.25)
    assert float(made.value()) > float(batch.value())
    several = Batch(batch.objective, batch.per_sample, (batch.inputs, batch.inputs), batch.targets)
    with pytest.raises(UsageError, match=r"`--adversarial` moves one tensor of inputs, .* Expected one tensor. Leave"):
        several.attacked(0.25)
