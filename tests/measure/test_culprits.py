import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from gapscope.measure.culprits import unrepeatable, without_second_derivative
from tests.awkward import Cube, OnceCube, SilentCube
from tests.problems import problem


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def given(*layers):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=rng), torch.randint(3, (20,), generator=rng)
    torch.manual_seed(0)
    return problem(nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3)), x, y)


def test_the_innermost_module_that_is_not_repeatable_is_named():
    noisy = nn.Sequential(nn.Tanh(), Applied(lambda x: F.dropout(x, 0.5)))
    assert unrepeatable(given(noisy, nn.Linear(5, 5))) == "module `1.1` (Applied)"
    assert unrepeatable(given(Applied(lambda x: x + torch.rand(5)), noisy)) == "module `1` (Applied)"
    assert unrepeatable(given()) == "the model"


@pytest.mark.parametrize("function", [OnceCube, SilentCube])
def test_custom_functions_are_named_with_the_innermost_module_that_calls_them(function):
    text = without_second_derivative(given(nn.Sequential(nn.Tanh(), Applied(function.apply))), torch.float64)
    assert f"`tests.awkward.{function.__name__}` in module `1.1` (Applied) is the likely cause" in text


def test_without_custom_functions_the_leaf_module_that_fails_by_itself_is_named():
    class Detached(nn.Linear):
        """Half of the second derivative is lost."""

        def forward(self, x):
            return F.linear(x, self.weight) * F.linear(x, self.weight).detach() + 0 * self.bias

    assert without_second_derivative(given(nn.Tanh()), torch.float64) == ""
    text = without_second_derivative(given(nn.Tanh(), Detached(5, 5)), torch.float64)
    assert text == " By itself, module `2` (Detached) fails so."


def test_a_function_that_is_right_is_named_only_as_likely():
    assert "is the likely cause" in without_second_derivative(given(Applied(Cube.apply)), torch.float64)
