import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.training.optimizers import OPTIMIZERS, make_optimizer
from gapscope.training.optimizers.lamb import LAMB
from gapscope.training.optimizers.layerwise import LayerwiseSGD
from gapscope.training.optimizers.sam import SAM
from gapscope.training.optimizers.sngm import SNGM

KINDS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "sngm": SNGM,
    "lars": LayerwiseSGD,
    "mclr": LayerwiseSGD,
    "cblr": LayerwiseSGD,
    "lamb": LAMB,
    "sam": SAM,
}


def model():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[2].bias.requires_grad_(False)
    return net


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_name_makes_its_optimizer_over_what_is_trained(name):
    net, without = model(), name in ("adam", "lamb")
    optimizer = make_optimizer(name, net, lr=0.2, momentum=0.0 if without else 0.7, weight_decay=0.3)
    assert type(optimizer) is KINDS[name]
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.3)
    assert group["betas"] == (0.9, 0.999) if without else group["momentum"] == 0.7
    assert group.get("rate", name) == name


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("adam", {"beta1": 0.5, "eps": 1e-3}, {"betas": (0.5, 0.999), "eps": 1e-3}),
        ("lamb", {"beta2": 0.5}, {"betas": (0.9, 0.5)}),
        ("lars", {"trust": 0.001}, {"trust": 0.001, "damping": None}),
        ("cblr", {"damping": 2.0}, {"damping": 2.0}),
        ("sam", {"rho": 0.3}, {"rho": 0.3}),
    ],
)
def test_options_reach_it(name, options, found):
    (group,) = make_optimizer(name, model(), lr=0.1, options=options).param_groups
    assert {key: group[key] for key in found} == found


def test_sam_knows_the_model_s_batchnorm():
    net = model()
    optimizer = make_optimizer("sam", net, lr=0.1)
    net(torch.randn(4, 2)).sum().backward()
    optimizer.ascend()
    assert not net[1].track_running_stats
    optimizer.restore()
    assert net[1].track_running_stats


def test_what_there_is_not_is_refused():
    with pytest.raises(UsageError, match=r"no optimizer `sngn`\. Did you mean `sngm`\? Expected one of sgd, .* Mend"):
        make_optimizer("sngn", model(), lr=0.1)
    with pytest.raises(
        UsageError, match=r"`lars` has no option `thrust`\. Did you mean `trust`\? Expected `damping` or"
    ):
        make_optimizer("lars", model(), lr=0.1, options={"thrust": 1})
    with pytest.raises(UsageError, match=r"`sgd` has no option `rho`\. Expected none\. Leave it out\."):
        make_optimizer("sgd", model(), lr=0.1, options={"rho": 1})
    with pytest.raises(UsageError, match=r"`adam` has no momentum, and got 0\.9\. Expected 0\. Give `beta1=0\.9`\."):
        make_optimizer("adam", model(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_that_make_no_sense_are_refused_also_for_torch_s_own(name):
    with pytest.raises(UsageError, match=rf"{name} got lr=-1\. Expected a number of 0 or more, and finite\. Mend `lr`"):
        make_optimizer(name, model(), lr=-1)
