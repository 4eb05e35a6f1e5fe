import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.networks import gpt, vit

EPS = torch.finfo(torch.float32).eps


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("make", "causal", "heads"), [(vit, False, 3), (gpt, True, 3), (gpt, True, 1)])
def test_attention_is_torchs(make, causal, heads):
    torch.manual_seed(0)
    attention = make(dim=24, heads=heads).encoder.blocks[0].attention
    x = torch.randn(5, 7, 24, generator=rng())
    q, k, v = (part.view(5, 7, heads, -1).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.out(mixed), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("make", [vit, gpt])
def test_places_start_small_beside_what_is_there(make):
    torch.manual_seed(0)
    assert float(make(dim=192).encoder.positions.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_tokens_and_places_go_through_torchs_blocks():
    torch.manual_seed(0)
    model = gpt(outputs=11, block=9, dim=24, depth=2, heads=3).eval()
    tokens = torch.randint(11, (5, 7), generator=rng())
    x = model.tokens(tokens) + model.encoder.positions[:7]
    for block in model.encoder.blocks:
        theirs = nn.TransformerEncoderLayer(24, 3, 96, activation="gelu", batch_first=True, norm_first=True).eval()
        ours = [*block.attention.parameters(), *block.fc1.parameters(), *block.fc2.parameters()]
        ours += [*block.norm1.parameters(), *block.norm2.parameters()]
        theirs.load_state_dict(dict(zip(theirs.state_dict(), ours, strict=True)))
        x = theirs(x, nn.Transformer.generate_square_subsequent_mask(7), is_causal=True)
    scores = model.encoder.norm(x) @ model.tokens.weight.T
    torch.testing.assert_close(model(tokens), scores, rtol=0, atol=100 * EPS)


def test_scores_of_a_language_model_do_not_see_later_tokens():
    torch.manual_seed(0)
    model = gpt().eval()
    tokens = torch.randint(64, (3, 32), generator=rng())
    other = torch.cat([tokens[:, :20], torch.randint(64, (3, 12), generator=rng(1))], dim=1)
    one, two = model(tokens), model(other)
    assert one.shape == (3, 32, 64)
    torch.testing.assert_close(one[:, :20], two[:, :20], rtol=0, atol=100 * EPS)
    assert (one[:, 21:] - two[:, 21:]).abs().max() > 1e-2
    torch.testing.assert_close(model(tokens[:, :20]), one[:, :20], rtol=0, atol=100 * EPS)  # a shorter row


@pytest.mark.parametrize("patch", [1, 2, 8])
def test_scores_of_a_vision_transformer_depend_on_every_patch(patch):
    torch.manual_seed(0)
    model = vit(size=8, patch=patch, channels=1).eval()
    x = torch.randn(1, 1, 8, 8, generator=rng(), requires_grad=True)
    model(x).square().sum().backward()
    assert (x.grad != 0).all()


def test_scores_of_a_vision_transformer_are_read_off_at_a_token_of_its_own():
    """Which learns of the patches in the blocks alone: without one, no picture is told from another."""
    torch.manual_seed(0)
    model = vit(size=8, channels=1, depth=0).eval()
    one, two = model(torch.randn(2, 1, 8, 8, generator=rng()))
    assert torch.equal(one, two)


@pytest.mark.parametrize("model", [vit(size=8), gpt()])
def test_dropout_is_on_in_training_alone(model):
    x = torch.zeros(1, 3, 8, 8) if hasattr(model, "patches") else torch.zeros(1, 8, dtype=torch.long)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vit(size=28, patch=8), "`vit` was asked for images of 28 pixels in patches of 8. Expected a multiple"),
        (lambda: vit(size=2, patch=4), "images of 2 pixels in patches of 4"),
        (lambda: vit(size=0, patch=0), "images of 0 pixels in patches of 0"),
        (lambda: vit(heads=5), "`vit` was asked for 64 units in 5 heads. Expected a multiple: `-a dim=64 -a heads=4`"),
        (lambda: gpt(dim=32, heads=0), "`gpt` was asked for 32 units in 0 heads"),
    ],
)
def test_sizes_that_do_not_divide_are_named(make, message):
    with pytest.raises(LoadError, match=message):
        make()


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (vit(), torch.zeros(2, 3, 8, 8), r"`vit` was built for images of 32 pixels and given \(8, 8\).*`-a size=8`"),
        (vit(size=8), torch.zeros(2, 3, 4, 16), r"`vit` was built for images of 8 pixels and given \(4, 16\)"),
        (gpt(), torch.zeros(2, 33).long(), r"`gpt` was built for rows of 32 tokens and given 33.*`-a block=33`"),
    ],
)
def test_inputs_of_another_size_are_refused(model, x, message):
    with pytest.raises(LoadError, match=message):
        model(x)


def test_pictures_without_a_channel_are_not_said_to_be_of_another_size():
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        vit(size=8)(torch.zeros(2, 8, 8))


def test_tokens_and_places_of_a_language_model_start_small():
    """Its tokens give the scores, too: at a standard deviation of 1 the first loss would be far above log(outputs)."""
    torch.manual_seed(0)
    tokens = gpt(outputs=500).state_dict()["tokens.weight"]
    assert float(tokens.std()) == pytest.approx(0.02, rel=0.05)
