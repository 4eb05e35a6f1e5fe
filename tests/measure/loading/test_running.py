"""A model is run on a few samples, and is afterwards as it was."""

import torch
from torch import nn

from gapscope.measure.loading.running import few, sizes_of, undisturbed


def test_a_few_samples_come_in_the_models_own_type():
    x = few((torch.ones(9, 2), torch.ones(9, dtype=torch.long)), nn.Linear(2, 1).double(), 3)
    assert [(t.dtype, len(t)) for t in x] == [(torch.float64, 3), (torch.int64, 3)]


def test_the_models_own_type_is_that_of_its_real_numbers():
    model = nn.Module()
    model.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    assert few(torch.ones(2), model, 2).dtype == torch.float64


def test_the_sizes_of_the_outputs_are_found_without_a_trace():
    model = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert sizes_of(torch.ones(4, 2), model) == (5,)
    assert sizes_of(torch.ones(4, 3), model) is None
    assert sizes_of(torch.ones(4, 2), nn.Sequential(model, nn.Flatten(0))) is None  # no output for each sample
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training


def test_a_buffer_that_a_run_moved_is_put_back():
    model = nn.Module()
    model.register_buffer("calls", torch.zeros(()))
    with undisturbed(model):
        assert not model.training
        model.calls += 1
    assert model.calls == 0
    assert model.training


def test_a_buffer_that_cannot_be_written_to_is_left_as_it_is():
    model = nn.Module()
    model.register_buffer("ones", torch.ones(1).expand(3))  # three numbers in one place
    with undisturbed(model):
        assert not model.training
    assert torch.equal(model.ones, torch.ones(3))


def test_a_buffer_in_whose_place_a_run_put_another_tensor_is_the_old_one_again():
    class Cached(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("cache", torch.zeros(1, 3))
            self.register_buffer("last", torch.zeros(2, 3))
            self.register_buffer("none", None)

        def forward(self, x):
            if len(self.cache) < len(x):
                self.cache = torch.ones(len(x), 3)
            self.last, self.none = x, x
            return super().forward(x + self.cache[: len(x)])

    model, x = Cached(), torch.randn(2, 3)
    given, buffer = x.clone(), model.cache
    outputs = []
    for _ in range(2):
        with undisturbed(model):
            outputs.append(model(x))
    assert torch.equal(*outputs)
    assert model.cache is buffer
    assert torch.equal(model.cache, torch.zeros(1, 3))
    assert torch.equal(model.last, torch.zeros(2, 3))
    assert model.none is None
    assert torch.equal(x, given)
