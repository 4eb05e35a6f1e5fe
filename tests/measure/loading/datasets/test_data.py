"""Digits, digests, subsets, and data that no loss can be computed on."""

import re

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.datasets.data import Reading, data_of, fingerprint, load_data, same_classes
from gapscope.measure.loading.trust import Trust


def load(spec, split="train", recorded=False, trusted=(), whole=False, **reading):
    return load_data(spec, split, recorded=recorded, trust=Trust(trusted), whole=whole, reading=Reading(**reading))


def test_digits_are_1300_to_train_and_497_to_test():
    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test)) == (1300, 497)
    assert train.inputs.shape == (1300, 64)
    assert (train.inputs.min(), train.inputs.max()) == (0, 1)
    assert train.targets[:10].tolist() == list(range(10))
    assert torch.bincount(torch.cat([train.targets, test.targets])).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


def test_digits_have_fixed_digests():
    digests = {
        spec: load(spec).fingerprint[:12] for spec in ("digits", "digits:size=8", "digits:size=28", "digits:size=32")
    }
    assert digests == {
        "digits": "6cee13ad2ae2",
        "digits:size=8": "7daae47e93fe",
        "digits:size=28": "1f2e5c94255d",
        "digits:size=32": "65c8c6dc902f",
    }
    assert load("digits", "test").fingerprint[:12] == "6bb592261f00"


def test_resized_digits_are_images_with_the_same_mean():
    small, large = load("digits:size=8"), load("digits:size=32")
    assert small.inputs.shape == (1300, 1, 8, 8)
    assert large.inputs.shape == (1300, 1, 32, 32)
    assert load("digits:size=1").inputs.shape == (1300, 1, 1, 1)
    assert torch.equal(small.inputs.flatten(1), load("digits").inputs)
    assert abs(float(small.inputs.mean() - large.inputs.mean())) < 0.01


def test_digits_are_resized_to_256_pixels_at_most(monkeypatch):
    monkeypatch.setattr("gapscope.measure.loading.datasets.data.DIGITS_TRAIN", 2)
    assert load("digits:size=256").inputs.shape == (2, 1, 256, 256)


@pytest.mark.parametrize(
    "spec", ["digits:", *(f"digits:size={n}" for n in ("0", "257", "x", "-3", "\u00b2", "\u0663")), "digits:sise=32"]
)
def test_an_unknown_option_of_digits_is_an_error(spec):
    with pytest.raises(LoadError, match=re.escape(f"`{spec}`: unknown option. Expected `digits` or `digits:size=32`")):
        load(spec)


def test_a_subset_is_seeded_sorted_and_has_its_own_digest():
    data = load("digits")
    few = data.limited(50, seed=3)
    assert (len(few), few.total) == (50, 1300)
    assert few.fingerprint == data.limited(50, seed=3).fingerprint == fingerprint(few.inputs, few.targets)
    assert few.fingerprint != data.limited(50, seed=4).fingerprint
    positions = [int((data.inputs == x).all(1).nonzero()[0]) for x in few.inputs]
    assert positions == sorted(positions)
    assert data.limited(None, 0) is data
    assert data.limited(5000, 0) is data
    with pytest.raises(UsageError, match=r"`--limit 0` leaves no samples. Expected 1 or more."):
        data.limited(0, 0)


def test_the_digest_sees_shape_type_and_bytes():
    x, y = torch.zeros(4, 2), torch.zeros(4)
    others = [(torch.zeros(2, 4), y), (x.double(), y), (x, y + 1), (y, x), (x[:, :0], y)]
    assert len({fingerprint(x, y), *(fingerprint(*other) for other in others)}) == 6


def test_the_digest_of_one_sample_of_a_column_is_that_of_its_copy():
    column = torch.arange(3)[None][:, 1]
    assert fingerprint(column, column) == fingerprint(torch.tensor([1]), torch.tensor([1]))


def test_types_become_what_models_take(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x=np.full((3, 2), 255, np.uint8), y=np.array([[0], [1], [2]], np.uint8))
    data = load(path)
    assert (data.inputs.dtype, data.targets.dtype, data.targets.shape) == (torch.float32, torch.int64, (3,))
    assert data.inputs.max() == 255
    assert "holds bytes, used as the numbers 0 to 255; no scaling was applied" in data.notes[0]
    np.savez(path, x=np.ones((3, 2), np.int32), y=np.ones((3, 2)))
    data = load(path)
    assert (data.inputs.dtype, data.targets.dtype, data.targets.shape) == (torch.int64, torch.float64, (3, 2))
    np.savez(path, x=np.ones((3, 2), bool), y=np.ones(3, bool))
    assert (load(path).inputs.dtype, load(path).targets.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "has no samples. Expected at least one."),
        (np.zeros((3, 2)), np.zeros(2, int), "3 inputs and 2 targets. Expected one target for each input."),
        (np.zeros((3, 2)), np.array(1), "3 inputs and no targets"),
        (np.array(0.5), np.array(1), "no inputs and no targets"),
        (np.array([[0.0], [np.nan]]), np.zeros(2, int), ": inputs hold NaN or infinity (first in sample 1)"),
        (np.zeros((2, 1)), np.array([np.inf, 0]), ": targets hold NaN or infinity (first in sample 0)"),
    ],
)
def test_data_without_a_finite_loss_are_refused(tmp_path, x, y, message):
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(LoadError, match=re.escape(message)):
        load(str(tmp_path / "a.npz"))


def test_a_name_that_is_no_data_says_what_is():
    with pytest.raises(LoadError, match=r"`digit` is no data that gapscope knows. Did you mean `digits`?"):
        load("digit")


@pytest.mark.parametrize(("spec", "meant"), [("techer:samples=9", "teacher"), ("digit:size=32", "digits")])
def test_built_in_data_with_options_that_are_misspelt_are_named(folder, spec, meant):
    message = f"`{spec}` is no data that gapscope knows. Did you mean `{meant}`? Expected `digits`, `teacher:samples"
    with pytest.raises(LoadError, match=re.escape(message)):
        load(spec)


def test_a_file_with_the_name_of_built_in_data_and_an_end_is_that_file(folder):
    for name in ("digits.bin", "digit"):  # the latter nearly that name
        (folder / name).write_bytes(np.arange(9, dtype="<u2").tobytes())
        assert load(f"{name}:block=4,dtype=uint16").inputs.shape == (2, 4)
    with pytest.raises(LoadError, match=r"^digits.b does not exist. Did you mean `digits.bin`\? Expected a data file."):
        load("digits.b:block=4,dtype=uint16")
    for name, rest in (("tokens", "block=4,dtype=uint16"), ("teachers", ":/x,/y")):
        with pytest.raises(LoadError, match=rf"^{name} does not exist. Expected a data file."):
            load(f"{name}:{rest}")


def test_data_of_torchvision_are_known_by_their_first_word():
    with pytest.raises(LoadError, match=r"unknown options. Expected `torchvision:NAME:root=FOLDER\[,split=NAME\]`."):
        load("torchvision:MNIST")


def test_a_source_without_splits_has_no_test_split_but_may_be_one(folder):
    np.savez("a.npz", x=np.ones((3, 2)), y=np.arange(3))
    for spec in ("a.npz", "zoo:pairs"):
        assert load(spec, "test") is None
        assert len(load(spec, "test", whole=True)) == len(load(spec))


def test_recorded_data_need_trust_and_leave_no_trace_without(folder):
    np.savez("a.npz", x=np.ones((3, 2)), y=np.arange(3))
    assert load("digits:size=8", recorded=True)
    assert load("teacher:samples=9", recorded=True)
    assert len(load("zoo:pairs", recorded=True, trusted=("zoo:*",))) == 6
    assert len(load("a.npz", recorded=True, trusted=("*.npz",))) == 3
    for spec in ("os:system", "canary:build", "zoo:run", "a.npz", "digits:build"):
        with pytest.raises(LoadError, match=f"records the data `{spec}`"):
            load(spec, recorded=True)
        with pytest.raises(LoadError, match=f"records the test data `{spec}`"):
            load(spec, "test", recorded=True, whole=True)
    for whole, kind in ((False, "data"), (True, "test data")):
        with pytest.raises(LoadError, match=rf"records the {kind} `zoo:run`, which is really `(posix|nt):system`"):
            load("zoo:run", recorded=True, trusted=("zoo:*",), whole=whole)
    with pytest.raises(LoadError, match="does not open on a checkpoint's word alone"):
        load("no such", recorded=True)
    assert not (folder / "sang").exists()


def test_what_was_read_is_reshaped_then_normalized_and_both_are_said(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 12)
    np.savez(tmp_path / "a.npz", flat=pixels, mark=np.arange(2))
    data = load(str(tmp_path / "a.npz"), x_key="flat", y_key="mark", reshape="3,2,2", normalize="0.5,0,0/0.5,1,2")
    expected = torch.from_numpy(pixels).view(2, 3, 2, 2) / 255
    torch.testing.assert_close(data.inputs[:, 0], 2 * expected[:, 0] - 1)
    torch.testing.assert_close(data.inputs[:, 2], expected[:, 2] / 2)
    assert [note.split(": ", 2)[2] for note in data.notes] == [
        "each sample reshaped to 3,2,2",
        "divided by 255; minus 0.5,0.0,0.0, over 0.5,1.0,2.0",
    ]
    assert data.fingerprint != load(str(tmp_path / "a.npz"), x_key="flat", y_key="mark", reshape="3,2,2").fingerprint


def test_an_input_that_is_its_own_target_stays_so_whatever_is_done_to_it(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 12)
    np.savez(tmp_path / "a.npz", x=pixels)
    data = load(str(tmp_path / "a.npz"), x_key="x", y_key="x", reshape="3,2,2", normalize="scale")
    torch.testing.assert_close(data.inputs, torch.from_numpy(pixels).view(2, 3, 2, 2) / 255)
    assert torch.equal(data.targets, data.inputs)
    bits = torch.eye(4, dtype=torch.bool)
    for source, reading in (
        (list(torch.from_numpy(pixels)), Reading(normalize="0.5/0.5")),
        (list(bits), Reading()),
        ([{"a": row, "b": 1} for row in bits], Reading(x_key="a", y_key="a", reshape="2,2")),
    ):
        data = data_of(source, "rows", reading)
        assert data.targets.is_floating_point()
        assert torch.equal(data.targets, data.inputs)


def test_a_column_or_image_may_be_its_own_target(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,5\n2,6\n")
    data = load(str(tmp_path / "a.csv"), x_key="a", y_key="a", normalize="1/0.5")
    assert data.inputs.tolist() == data.targets.tolist() == [[0], [2]]
    image = pytest.importorskip("PIL.Image").new("L", (2, 2), 51)
    data = data_of([{"image": image, "label": i} for i in range(2)], "rows", Reading(x_key="image", y_key="image"))
    torch.testing.assert_close(data.targets, torch.full((2, 1, 2, 2), 0.2))


def test_padded_tokens_that_are_their_own_labels_keep_what_is_left_out():
    rows = [{"input_ids": torch.arange(1, n)} for n in (3, 4)]
    data = data_of(rows, "rows", Reading(x_key="input_ids", y_key="input_ids"))
    assert data.targets.tolist() == [[1, 2, -100], [1, 2, 3]]


def test_objects_at_hand_are_read_the_same_way():
    rows = [{"a": torch.ones(4), "b": i} for i in range(3)]
    data = data_of(rows, "rows", Reading(x_key="a", y_key="b", reshape="2,2"))
    assert (data.inputs.shape, data.targets.tolist()) == ((3, 2, 2), [0, 1, 2])


def test_several_inputs_with_one_target_for_all_of_them_are_refused():
    def one_for_all(items):
        x = torch.stack(items)
        return x, 2 * x, 5

    rows = torch.utils.data.DataLoader(list(torch.ones(3, 2)), batch_size=3, collate_fn=one_for_all)
    with pytest.raises(LoadError, match=r"rows: 3 and 3 inputs and no targets. Expected one target for each input."):
        data_of(rows, "rows")


def test_each_of_several_inputs_is_typed_and_checked():
    inputs = {"a": torch.ones(3, 2, dtype=torch.int32), "b": torch.ones(3, 2, dtype=torch.bool)}
    rows = [{"a": inputs["a"][i], "b": inputs["b"][i], "y": i} for i in range(3)]
    data = data_of(rows, "rows")
    assert [t.dtype for t in data.inputs.values()] == [torch.int64, torch.float32]
    with pytest.raises(LoadError, match=r"rows: inputs hold NaN or infinity \(first in sample 0\)"):
        data_of([(torch.ones(2), torch.tensor([np.nan, 1]), 1)], "rows")
    assert len(data.limited(2, 0).inputs["b"]) == 2


def test_complex_targets_stay_what_they_are():
    x, y = torch.ones(3, 2), torch.tensor([1.5 + 2j, 0.5j, 3])
    assert torch.equal(data_of([(x[i], y[i]) for i in range(3)], "rows").targets, y)
    waves = torch.tensor([[0.5 + 1.5j, 2], [1j, 0.25]])
    alone = data_of([waves[0], waves[1]], "rows")
    assert torch.equal(alone.targets, waves)
    assert alone.targets is alone.inputs


def test_names_of_classes_must_agree_between_train_and_test(tmp_path):
    (tmp_path / "train.csv").write_text("a,label\n1,cat\n2,dog\n")
    (tmp_path / "test.csv").write_text("a,label\n1,dog\n2,dog\n")
    train, test = (load(str(tmp_path / f"{name}.csv")) for name in ("train", "test"))
    assert (train.classes, test.targets.tolist()) == (("cat", "dog"), [0, 0])
    same_classes(train, train)
    (tmp_path / "numbers.csv").write_text("a,label\n1,0\n2,1\n")
    numbers = load(str(tmp_path / "numbers.csv"))
    same_classes(train, numbers)  # which has no names to compare
    same_classes(numbers, train)
    with pytest.raises(
        LoadError, match=r"test.csv and .*train.csv number their classes differently: only one has `cat`"
    ):
        same_classes(train, test)


def test_names_of_inputs_are_part_of_the_fingerprint_and_their_order_is_not():
    a, b, y = torch.ones(3, 2), torch.zeros(3, 2), torch.arange(3)
    assert fingerprint({"a": a, "b": b}, y) == fingerprint({"b": b, "a": a}, y)
    assert len({fingerprint(inputs, y) for inputs in ({"a": a, "b": b}, {"a": a, "c": b}, (a, b))}) == 3


def test_a_limit_of_one_leaves_one_sample(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.arange(3))
    assert len(load(str(tmp_path / "a.npz")).limited(1, seed=0)) == 1


def test_inputs_of_differing_number_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones((3, 2)), b=np.ones((2, 2)), y=np.arange(3))
    with pytest.raises(LoadError, match=r"3 and 2 inputs and 3 targets. Expected one target for each input."):
        load(str(tmp_path / "a.npz"), x_key="a,b")
