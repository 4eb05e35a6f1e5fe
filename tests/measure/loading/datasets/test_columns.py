"""Named entries become inputs and targets by one rule; token rows are padded so that model and loss ignore it."""

import re

import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets import arrays
from gapscope.measure.loading.datasets.arrays import Keys
from gapscope.measure.loading.datasets.columns import class_numbers, classes_note, pair_of_columns, target_name

X, Y = [torch.arange(6.0).view(3, 2)], [torch.tensor([0, 1, 0])]


def test_a_table_puts_its_numbers_side_by_side():
    columns = {"a": [torch.tensor([1, 2])], "label": [torch.tensor([0, 1])], "b": [torch.tensor([0.5, 1.5])]}
    pair = pair_of_columns(columns, Keys(), "t", table=True)
    assert pair.inputs.tolist() == [[1, 0.5], [2, 1.5]]
    assert (pair.inputs.dtype, pair.targets.tolist()) == (torch.float64, [0, 1])
    one = pair_of_columns(columns, Keys(("b",)), "t", table=True)
    assert one.inputs.tolist() == [[0.5], [1.5]]
    names = ", ".join(str(i) for i in range(12))
    for count, more in ((12, ""), (13, " and 1 more"), (14, " and 2 more")):
        wide = {str(i): [torch.ones(2)] for i in range(count)} | {"y": [torch.ones(2)]}
        assert pair_of_columns(wide, Keys(), "t", table=True).notes == (f"data: t: inputs side by side: {names}{more}",)
    exact = {"a": [torch.ones(2)], "y": [torch.ones(2)]}
    assert pair_of_columns(exact, Keys(), "t", table=True).inputs.dtype == torch.float32


def test_several_entries_are_given_by_name_and_row_numbers_left_out():
    columns = {"left": X, "idx": [torch.arange(3)], "right": X, "labels": Y}
    pair = pair_of_columns(columns, Keys(), "t")
    assert list(pair.inputs) == ["left", "right"]
    assert pair.notes == ("data: t: left out, as single numbers: `idx`", "data: t: inputs by name: left, right")
    assert pair_of_columns({"x": X, "id": [torch.arange(3)], "y": Y}, Keys(), "t").inputs is X[0]
    assert list(pair_of_columns(columns, Keys(("idx", "left")), "t").inputs) == ["idx", "left"]


def test_entries_of_one_number_each_are_all_given_where_none_is_longer():
    pair = pair_of_columns({"left": Y, "right": Y, "labels": Y}, Keys(), "t")
    assert list(pair.inputs) == ["left", "right"]


def test_parts_that_memory_cannot_hold_are_not_joined(monkeypatch):
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 30)
    assert pair_of_columns({"a": X, "y": Y}, Keys(), "t").inputs is X[0]
    with pytest.raises(LoadError, match=r"t: `a` takes \S+ GiB. Expected at most"):
        pair_of_columns({"a": X * 2, "y": Y * 2}, Keys(), "t")


def test_the_target_is_found_by_name_or_is_last_and_said():
    assert [target_name({"A": 0, name: 0}) for name in ("Y", "Label", "TARGET", "class", "b")] == [
        "Y",
        "Label",
        "TARGET",
        "class",
        None,
    ]
    pair = pair_of_columns({"a": X, "b": Y}, Keys(), "t", last=True)
    assert pair.targets.tolist() == [0, 1, 0]
    assert pair.notes == ("data: t: the target is the last column, `b`",)
    assert pair_of_columns({"a": X, "b": Y}, Keys(target="b"), "t", last=True).notes == ()
    assert target_name({"LABEL": 0, "label": 1}) == "label"
    assert target_name({"LABEL": 0, "Label": 1}) == "LABEL"


def test_an_input_may_be_its_own_target():
    pair = pair_of_columns({"a": X, "y": Y}, Keys(("a",), "a"), "t")
    assert pair.inputs is pair.targets


def test_texts_become_classes_in_sorted_order_and_other_texts_are_left_out():
    columns = {"a": X, "remark": ["fine", "", ""], "label": ["dog", "cat", "dog"]}
    pair = pair_of_columns(columns, Keys(), "t")
    assert pair.targets.tolist() == [1, 0, 1]
    assert pair.classes == ("cat", "dog")
    assert pair.notes == ("data: t: left out, not numbers: `remark`", "data: t: classes 0 = cat, 1 = dog")
    numbers, classes = class_numbers([str(i) for i in range(12)])
    assert numbers.tolist()[:4] == [0, 1, 4, 5]
    assert classes_note(classes, "t").endswith("9 = 7, ...")


def test_token_rows_are_padded_where_model_and_loss_can_ignore_it():
    rows = [torch.tensor([[5, 6, 7]]), torch.tensor([[8]])]
    columns = {"input_ids": rows, "token_type_ids": [r * 0 + 1 for r in rows], "labels": rows}
    pair = pair_of_columns(columns, Keys(), "t")
    assert pair.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert pair.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pair.inputs["token_type_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pair.targets.tolist() == [[5, 6, 7], [8, -100, -100]]
    assert "tokens of 1 to 3 per sample, padded to 3 (attention_mask 0, labels -100)" in pair.notes[0]


def test_a_mask_that_is_there_is_kept_and_labels_of_one_number_are_not_padded():
    rows = [torch.tensor([[5, 6], [7, 0]]), torch.tensor([[8, 9, 1]])]
    masks = [torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1, 1, 1]])]
    columns = {"input_ids": rows, "attention_mask": masks, "label": [torch.tensor([0, 1]), torch.tensor([1])]}
    pair = pair_of_columns(columns, Keys(), "t")
    assert pair.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert pair.targets.tolist() == [0, 1, 1]


def test_a_column_of_one_length_beside_rows_of_tokens_is_not_padded():
    rows, pairs = [torch.tensor([[5, 6]]), torch.tensor([[8]])], [torch.tensor([[1, 2], [3, 4]])]
    pair = pair_of_columns({"input_ids": rows, "pairs": pairs, "label": [torch.tensor([0, 1])]}, Keys(), "t")
    assert pair.inputs["input_ids"].tolist() == [[5, 6], [8, 0]]
    assert pair.inputs["pairs"].tolist() == [[1, 2], [3, 4]]


def test_tokens_of_one_length_are_left_as_they_are():
    for ids in (torch.ones(2, 3).long(), torch.ones(2).long()):  # rows of tokens, and one token each
        pair = pair_of_columns({"input_ids": [ids], "labels": [torch.ones(2).long()]}, Keys(), "t")
        assert pair.inputs is ids


RAGGED = [torch.ones(1, 2), torch.ones(1, 3)]


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"a": X, "y": Y}, Keys(("aa",)), "t has no `aa`, but `a`, `y`. Did you mean `a`? Expected one of them."),
        ({"a": X, "y": Y}, Keys(target="z"), "t has no `z`, but `a`, `y`."),
        ({"a": X, "b": X}, Keys(), "t has `a`, `b`, and none is called `y`, `label` or `target`. Expected a target"),
        ({f"a{i}": X for i in range(13)}, Keys(), "`a10`, `a11`, and none is called"),
        ({}, Keys(), "t has no columns, and none is called"),
        ({"a": ["text"], "y": Y}, Keys(), "t: `a` holds no numbers. Expected numbers as inputs: encode or tokenize"),
        ({"a": ["text"], "b": X, "y": Y}, Keys(("a", "b")), "t: `a` holds no numbers"),
        ({"a": X, "y": ["dog", "", " "]}, Keys(), "t: `y` has 2 missing values. Expected none: fill or remove them."),
        ({"y": Y}, Keys(), "t has only the column `y`. Expected inputs beside the target."),
        ({"a": RAGGED, "y": Y}, Keys(), "t: `a`: samples differ in shape ((2,), (3,)). Expected one shape for all"),
        (
            {"input_ids": [r.long() for r in RAGGED], "labels": RAGGED},
            Keys(),
            "t: `labels`: samples differ in shape ((2,), (3,))",
        ),
        (  # which are neither padded nor cut to the tokens' length
            {"input_ids": [r.long() for r in RAGGED], "labels": [r.long() for r in RAGGED[::-1]]},
            Keys(),
            "t: `labels`: samples differ in shape ((2,), (3,))",
        ),
        (
            {"input_ids": [r.long() for r in RAGGED], "b": RAGGED[::-1], "y": Y},
            Keys(),
            "t: `b`: samples differ in shape",
        ),
    ],
)
def test_what_gives_no_samples_says_why(columns, keys, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        pair_of_columns(columns, keys, "t", last=not columns)
