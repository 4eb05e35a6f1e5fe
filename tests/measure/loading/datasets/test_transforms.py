"""Reshaping and normalization give the numbers that training scripts compute, and say so."""

import re

import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.loading.datasets.transforms import PRESETS, normalized, reshaped, scaled_pixels

BYTES = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4) * 5


def test_a_sample_takes_the_shape_given():
    flat = torch.arange(24.0).view(2, 12)
    assert reshaped(flat, "3,2,2", "data")[0].shape == (2, 3, 2, 2)
    new, note = reshaped(flat, "2,-1", "data")
    assert torch.equal(new[1], torch.arange(12.0, 24.0).view(2, 6))
    assert note == "data: data: each sample reshaped to 2,-1"


def test_pictures_with_their_channels_last_are_turned_and_not_cut_anew():
    first = torch.rand(2, 3, 5, 6)
    last = first.permute(0, 2, 3, 1).contiguous()
    for text in ("3,5,6", "-1,5,6"):
        turned, note = reshaped(last, text, "data")
        assert torch.equal(turned, first)
        assert note == f"data: data: the channels of each sample moved first, to {text}"
    assert torch.equal(reshaped(last, "90", "data")[0], last.flatten(1))
    assert "the channels of each sample moved first" in reshaped(last[..., :1], "1,5,6", "data")[1]
    narrow = torch.rand(2, 3, 5, 3)  # its channels may be first already
    assert torch.equal(reshaped(narrow, "3,3,5", "data")[0], narrow.reshape(2, 3, 3, 5))
    for rows in (torch.rand(2, 5, 3), torch.rand(2)):  # no pictures
        shape = tuple(reversed(rows.shape[1:])) or (1,)
        assert torch.equal(reshaped(rows, ",".join(map(str, shape)), "data")[0], rows.reshape(2, *shape))
    two = last[..., :2]  # no picture has two channels
    assert torch.equal(reshaped(two, "2,5,6", "data")[0], two.reshape(2, 2, 5, 6))
    with pytest.raises(UsageError, match=r"Expected 5, the first size of .* give the shape first, `--reshape 3,5,6`."):
        normalized(last, "0,0,0/1,1,1", "data")


@pytest.mark.parametrize("text", ["", "3,x", "-1,-1", "0,5", "-2,6"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"`--reshape {text}` is no shape. Expected that of one sample")):
        reshaped(torch.ones(2, 12), text, "data")


@pytest.mark.parametrize("text", ["5,2", "3,2", "5,-1"])
def test_a_shape_of_another_size_is_refused(text):
    with pytest.raises(UsageError, match=r"a sample of data has 12 numbers \(shape \(12,\)\). Expected a shape of as"):
        reshaped(torch.ones(2, 12), text, "data")


def test_several_inputs_are_not_reshaped_or_normalized():
    with pytest.raises(UsageError, match=r"`--reshape 3`: data has 2 inputs. Expected one: choose it with `--x-key"):
        reshaped((torch.ones(1), torch.ones(1)), "3", "data")
    with pytest.raises(UsageError, match=r"`--normalize scale`: data has 2 inputs"):
        normalized({"a": torch.ones(1), "b": torch.ones(1)}, "scale", "data")


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "cifar100"])
def test_presets_scale_bytes_and_shift_each_channel(name):
    mean, std = ([float(n) for n in part.split(",")] for part in PRESETS[name].split("/"))
    result, note = normalized(BYTES, name, "data")
    for channel in range(3):
        expected = (BYTES[0, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[0, channel].double(), expected, rtol=1e-5, atol=1e-6)
    assert note.startswith(f"data: data: divided by 255; minus {mean[0]}")


def test_the_gray_presets_are_those_of_their_data():
    for name, mean, std in (("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.286, 0.353)):
        expected = (BYTES[:, :1].double() / 255 - mean) / std
        torch.testing.assert_close(normalized(BYTES[:, :1], name, "data")[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_one_mean_is_for_all_channels_and_a_table_has_its_channels_last():
    result, _ = normalized(BYTES[:, :1], "mnist", "data")
    torch.testing.assert_close(result, (BYTES[:, :1] / 255 - 0.1307) / 0.3081)
    assert normalized(BYTES[:, :1], "1/1", "data")[0].max() == BYTES[0, 0].max() / 255 - 1  # white is the largest mean
    table, note = normalized(torch.tensor([[10.0, 200.0], [30.0, 400.0]]), "20,300/10,100", "data")
    assert table.tolist() == [[-1, -1], [1, 1]]
    assert note == "data: data: not divided by 255: not bytes; minus 20.0,300.0, over 10.0,100.0"


def test_whole_numbers_of_a_table_count_as_bytes_only_where_that_was_asked():
    pixels = torch.tensor([[0.0, 255.0], [51.0, 102.0]])
    for whole in (pixels, torch.tensor([[0.0, 2.0]])):
        assert torch.equal(normalized(whole, "scale", "data")[0], whole / 255)
    for unit in (pixels / 255, torch.tensor([[0.0, 1.0]])):
        same, note = normalized(unit, "scale", "data")
        assert torch.equal(same, unit)
        assert note == "data: data: not divided by 255: not bytes"
    dark = torch.tensor([[0, 1]], dtype=torch.uint8)
    assert normalized(dark, "scale", "data")[0].tolist() == [[0, pytest.approx(1 / 255)]]
    assert normalized(torch.tensor([3, 5]), "1/2", "data")[0].tolist() == [1, 2]
    exact = torch.tensor([1 + 2**-40, 2], dtype=torch.float64)
    assert torch.equal(normalized(exact, "1/2", "data")[0], (exact - 1) / 2)


def test_the_users_own_tensor_is_left_alone():
    mine = torch.tensor([[0.5]])
    normalized(mine, "mnist", "data")
    normalized(mine, "scale", "data")
    assert mine.item() == 0.5


@pytest.mark.parametrize(
    ("inputs", "text", "message"),
    [
        (BYTES, "mnst", "`--normalize mnst` is unknown. Did you mean `mnist`? Expected `scale`, `mnist`"),
        (BYTES, "1,2/3", "as many means as positive deviations"),
        (BYTES, "1/0", "`--normalize 1/0` is unknown"),
        (BYTES, "nan/1", "`--normalize nan/1` is unknown"),
        (BYTES, "1,2/3,4", "is for 2 channels. Expected 3, the first size of a sample of data (shape (3, 4, 4))"),
        (BYTES.flatten(1), "cifar10", "give the shape first, `--reshape 3,...`"),
        (torch.ones(2), "1,2/3,4", "is for 2 channels. Expected 1, the first size of a sample of data (shape ())"),
        (BYTES, "1.1/0.5", "bytes are divided by 255 first. Expected a mean between 0 and 1"),
        (BYTES, "125.3/63", "bytes are divided by 255 first. Expected a mean between 0 and 1"),
        (torch.tensor([[-1.5], [0.5]]), "mnist", "run from -1.5 to 0.5. Expected bytes, or pixels from 0 to 1"),
        (torch.tensor([[0.0], [256.0]]), "scale", "run from 0 to 256"),
        (torch.tensor([[0.5], [1.5]]), "scale", "run from 0.5 to 1.5"),
        (torch.tensor([[0.5], [200.5]]), "scale", "run from 0.5 to 200.5"),  # no bytes
        (torch.tensor([[-1.0], [5.0]]), "scale", "run from -1 to 5"),
    ],
)
def test_what_cannot_be_meant_is_refused(inputs, text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        normalized(inputs, text, "data")


def test_bytes_become_float32_whatever_the_usual_type_of_the_process_is():
    torch.set_default_dtype(torch.float64)
    try:
        assert scaled_pixels(BYTES).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_bytes_become_zero_to_one():
    assert scaled_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
