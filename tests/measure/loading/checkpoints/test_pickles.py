"""A pickle is read without calling what it names, and cannot change what this process uses."""

import argparse
import collections
import io
import os
import pickle

import numpy as np
import pytest
import torch

from gapscope.measure.loading.checkpoints.pickles import (
    NotAdmittedError,
    Record,
    Restricted,
    load_plain,
    names_in,
    record_of,
)
from gapscope.measure.loading.trust import Trust


class Own:
    """A class of the user's own."""


class Evil:
    def __reduce__(self):
        return os.system, ("touch sang",)


def load(thing, *allowed, protocol=None):
    return load_plain(io.BytesIO(pickle.dumps(thing, protocol)), Trust(allowed_globals=allowed))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_arrays_and_plain_values_of_every_protocol(protocol):
    half = torch.arange(6.0).half().reshape(2, 3).t()
    content = {
        "half": half,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.arange(4).reshape(2, 2),
        "scalar": np.float32(0.5),
        "args": argparse.Namespace(lr=0.1),
        "counts": collections.defaultdict(list, a=[1]),
        "size": torch.Size([2, 3]),
        "set": {1, 2},
    }
    found = load(content, protocol=protocol)
    assert torch.equal(found["half"], half)
    assert found["half"].dtype == torch.float16
    assert found["parameter"].tolist() == [1, 1]
    assert found["array"].tolist() == [[0, 1], [2, 3]]
    assert (found["scalar"], found["args"].lr, found["counts"]["a"], found["set"]) == (0.5, 0.1, [1], {1, 2})
    assert tuple(found["size"]) == (2, 3)


def test_a_name_that_is_not_admitted_is_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAdmittedError, match=r"(posix|nt)\.system"):
        load({"w": Evil()})
    assert not (tmp_path / "sang").exists()


def test_a_class_that_the_user_allows_is_admitted():
    with pytest.raises(NotAdmittedError, match="Own"):
        load(Own())
    assert isinstance(load(Own(), f"{__name__}.Own"), Own)


def test_tensors_inside_a_tensor_are_read_as_weights_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Evil(), inner, _use_new_zipfile_serialization=False)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(Nested())
    assert not (tmp_path / "sang").exists()


def test_a_pickle_cannot_change_the_classes_that_it_is_given():
    # argparse.Namespace itself, not an instance, with the state (None, {"spoilt": 1})
    content = b"\x80\x02cargparse\nNamespace\n(N}X\x06\x00\x00\x00spoiltK\x01stb."
    load_plain(io.BytesIO(content), Trust())
    assert not hasattr(argparse.Namespace, "spoilt")


def test_data_outside_the_pickle_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="it refers to data outside itself"):
        load_plain(io.BytesIO(b"\x80\x02U\x01xQ."), Trust())


def test_an_unknown_object_is_kept_as_what_it_was_made_of():
    made = Restricted(io.BytesIO(pickle.dumps(Own())), record_of).load()
    assert isinstance(made, Record)
    assert made.name == f"{__name__}.Own"
    made.__setstate__({"a": 1})
    assert made["a"] == 1


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_names_are_listed_without_running(protocol):
    named = names_in(io.BytesIO(pickle.dumps([Own(), Evil(), Own(), Evil()], protocol)))
    assert {f"{__name__}.Own", f"{os.system.__module__}.system"} <= named


def test_a_name_that_is_put_together_while_loading_is_marked():
    assert names_in(io.BytesIO(b"\x80\x04K\x01\x8c\x06system\x93.")) == {"?.system"}
