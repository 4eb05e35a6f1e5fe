import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.networks import c1, c2, c3, c4, lenet5, vgg16


def rates(model):
    return [layer.p for layer in model if isinstance(layer, nn.Dropout)]


def test_dropout_is_where_the_published_code_has_it():
    with torch.device("meta"):
        assert rates(c1()) == rates(c3()) == [0.5, 0.5]
        assert rates(c2()) == rates(c4()) == [0.3, *[0.4] * 7, 0.5, 0.5]
        assert rates(vgg16()) == []
        assert [type(layer) for layer in c2()][-7:] == [
            nn.Flatten,
            nn.Dropout,
            nn.Linear,
            nn.BatchNorm1d,
            nn.ReLU,
            nn.Dropout,
            nn.Linear,
        ]


@pytest.mark.parametrize(("make", "counts"), [(c1, (2, 4, 3)), (c2, (13, 14, 2)), (lenet5, (2, 0, 3))])
def test_layers_with_weights_are_numbered_in_their_order(make, counts):
    """Files hold them by these names."""
    with torch.device("meta"):
        names = [name for name, layer in make().named_children() if list(layer.parameters())]
    for kind, count in zip(("conv", "bn", "fc"), counts, strict=True):
        assert [name for name in names if name.startswith(kind)] == [f"{kind}{i + 1}" for i in range(count)]
    assert len(names) == sum(counts)


@pytest.mark.parametrize("size", [8, 28, 32])
def test_pooling_of_c1_is_that_of_the_padding_same(size):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x, (0, 1, 0, 1), value=-torch.inf)
    assert torch.equal(c1(size=size).pool1(x), F.max_pool2d(padded, 3, stride=2))


def test_lenet5_pads_small_images_to_the_large_ones():
    small, large = lenet5(), lenet5(size=32)
    large.load_state_dict(small.state_dict())
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(x), large(F.pad(x, (2, 2, 2, 2))))


@pytest.mark.parametrize(("make", "least"), [(c1, 4), (c2, 32), (c3, 4), (c4, 32), (vgg16, 32)])
@pytest.mark.parametrize("more", [0, 1, 19])
def test_images_of_the_least_size_and_more_fit(make, least, more):
    with torch.device("meta"):
        size = least + more
        model = make(channels=1, size=size, outputs=7).eval()
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: c1(size=3), "`c1` halves images 2 times and was asked for 3 pixels. Expected 4 or more. Take larger"),
        (lambda: c2(size=28), "`c2` halves images 5 times and was asked for 28 pixels. Expected 32 or more."),
        (lambda: vgg16(size=8), "`vgg16` halves images 5 times and was asked for 8 pixels. Expected 32 or more."),
        (lambda: lenet5(size=30), "images of 30 pixels. Expected 28 or 32"),
    ],
)
def test_images_that_are_too_small_are_named(make, message):
    with pytest.raises(LoadError, match=message):
        make()
