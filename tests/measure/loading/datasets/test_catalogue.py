"""torchvision's data sets are read from disk, by the names and splits that it gives them."""

import io
import re
import sys
import types

import numpy as np
import pytest

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets import arrays
from gapscope.measure.loading.datasets.catalogue import read_catalogue

Image = pytest.importorskip("PIL.Image")


class Gray:
    """Has `train`, like MNIST."""

    def __init__(self, root, train=True, transform=None, download=True):
        if root == "nowhere":
            raise RuntimeError("Dataset not found.\nUse download=True")
        assert download is False
        self.count = 3 if train else 2

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return Image.fromarray(np.full((4, 4), i * 10, np.uint8)), i


class Colour(Gray):
    """Has `split`, like SVHN, and no `download`."""

    def __init__(self, root, split="train"):
        self.count = {"train": 3, "test": 2, "extra": 5, "none": 0}[split]

    def __getitem__(self, i):
        return Image.fromarray(np.full((4, 4, 3), i, np.uint8)), i


class Boxes(Colour):
    def __getitem__(self, i):
        return Image.fromarray(np.zeros((4, 4), np.uint8)), {"boxes": []}


class Three(Colour):
    def __getitem__(self, i):
        return (*super().__getitem__(i), "a.png")


class Alone(Colour):
    def __getitem__(self, i):
        return super().__getitem__(i)[0]


class Clips(Colour):
    def __getitem__(self, i):
        return np.zeros((4, 4), np.uint8), i


class Compiled(dict):
    """Takes what it is given, and Python knows no signature of it."""

    __getitem__ = Gray.__getitem__


class Damaged(Colour):
    def __getitem__(self, i):
        return Image.open(io.BytesIO(b"no picture")), i


class Truncated(Colour):
    def __getitem__(self, i):
        whole = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(whole, "png")
        return Image.open(io.BytesIO(whole.getvalue()[:-900])), i


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    module, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    datasets.Gray, datasets.Colour, datasets.Boxes, module.datasets = Gray, Colour, Boxes, datasets
    datasets.Three, datasets.Damaged, datasets.Truncated = Three, Damaged, Truncated
    datasets.Alone = Alone
    datasets.Clips, datasets.Compiled, datasets.gray = Clips, Compiled, types.ModuleType("gray")
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_train_and_test_are_the_data_sets_own():
    pair = read_catalogue("torchvision:Gray:root=here", "train", whole=False)
    assert pair.inputs[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert (pair.inputs.shape, pair.targets.tolist(), pair.pixels) == ((3, 1, 4, 4), [0, 1, 2], True)
    for name in ("Gray", "Colour"):
        assert len(read_catalogue(f"torchvision:{name}:root=here", "test", whole=False).targets) == 2
    assert read_catalogue("torchvision:Colour:root=here", "train", whole=False).inputs.shape == (3, 3, 4, 4)
    assert read_catalogue("torchvision:Compiled:root=here", "train", whole=False).inputs.shape == (1, 1, 4, 4)


def test_a_split_that_is_named_is_all_there_is():
    spec = "torchvision:Colour:root=here,split=extra"
    assert len(read_catalogue(spec, "train", whole=False).targets) == 5
    assert read_catalogue(spec, "test", whole=False) is None
    assert len(read_catalogue(spec, "test", whole=True).targets) == 5
    assert len(read_catalogue("torchvision:Gray:root=here,split=test", "train", whole=False).targets) == 2


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("Gray", "unknown options. Expected `torchvision:NAME:root=FOLDER[,split=NAME]`."),
        ("Gray:root=here,size=3", "unknown options"),
        ("Grey:root=here", "torchvision has no data set `Grey`. Did you mean `Gray`?"),
        ("gray:root=here", "torchvision has no data set `gray`. Did you mean `Gray`?"),
        (
            "Gray:root=nowhere",
            "cannot be read (RuntimeError: Dataset not found. Use download=True). Expected its files",
        ),
        ("Colour:root=here,split=dev", "cannot be read (KeyError: 'dev')"),
        ("Colour:root=here,split=none", "has no samples. Expected at least one: check its folder."),
        ("Boxes:root=here", "gives Image and dict. Expected an image and a class number: make it in a factory"),
        ("Three:root=here", "gives Image and int and str. Expected an image and a class number: make it in a factory"),
        ("Alone:root=here", "gives Image. Expected an image and a class number: make it in a factory"),
        ("Clips:root=here", "gives ndarray and int. Expected an image and a class number: make it in a factory"),
        ("Damaged:root=here", "reading sample 0 raised UnidentifiedImageError: cannot identify image file"),
        ("Truncated:root=here", "reading sample 0 raised OSError: "),
    ],
)
def test_what_cannot_be_read_says_why(rest, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read_catalogue(f"torchvision:{rest}", "train", whole=False)


def test_a_data_set_is_read_no_further_than_memory_holds_its_pixels_as_floats(monkeypatch):
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 3 * 4 * 16)
    assert len(read_catalogue("torchvision:Gray:root=here", "train", whole=False).targets) == 3
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 3 * 4 * 16 - 1)
    with pytest.raises(LoadError, match=r"`torchvision:Gray:root=here` takes \S+ GiB. Expected at most"):
        read_catalogue("torchvision:Gray:root=here", "train", whole=False)


def test_a_missing_or_broken_torchvision_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(LoadError, match=r"takes torchvision, which is not installed. `pip install torchvision`."):
        read_catalogue("torchvision:Gray:root=here", "train", whole=False)
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.delitem(sys.modules, "torchvision.datasets")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadError, match=r"importing torchvision raised RuntimeError: operator .*pip install -U torch"):
        read_catalogue("torchvision:Gray:root=here", "train", whole=False)
