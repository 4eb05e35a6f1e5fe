"""A model is run on a few samples, and is afterwards as it was."""

import torch
from torch import nn

from gapscope.measure.loading.running import few, sizes_of, undisturbed


def test_a_few_samples_come_in_the_models_own_type():
    x = few((torch.ones(9, 2), torch.ones(9, dtype=torch.long)), nn.Linear(2, 1).double(), 3)
    assert [(t.dtype, len(t)) for t in x] == [(torch.float64, 3), (torch.int64, 3)]


def test_the_sizes_of_the_outputs_are_found_without_a_trace():
    model = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert sizes_of(torch.ones(4, 2), model) == (5,)
    assert sizes_of(torch.ones(4, 3), model) is None
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
