"""MNIST and CIFAR as published: real formats, damaged ones, and attacks."""

import gzip
import io
import pickle
import re
import struct

import numpy as np
import pytest

from gapscope.errors import LoadError
from gapscope.measure.loading import stand_ins
from gapscope.measure.loading.datasets import arrays
from gapscope.measure.loading.datasets.classic import find_cifar, find_idx, read_cifar, read_idx
from tests.measure.loading.conftest import Evil

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.arange(5, dtype=np.uint8)
ROWS = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    for name, n in (("train", 5), ("t10k", 2)):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(IMAGES[:n]))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:n])))
    return tmp_path


def test_idx_files_hold_images_and_labels(mnist):
    pairs = [read_idx(find_idx(mnist, split)) for split in ("train", "test")]
    assert pairs[0].inputs.shape == (5, 1, 28, 28)
    assert np.array_equal(pairs[0].inputs[:, 0].numpy(), IMAGES)
    assert pairs[0].targets.tolist() == [0, 1, 2, 3, 4]
    assert len(pairs[1].targets) == 2
    assert pairs[0].pixels


def test_idx_files_for_tests_are_called_as_those_of_mnist_or_of_emnist(mnist):
    for file in list(mnist.glob("t10k-*")):
        file.rename(mnist / file.name.replace("t10k", "emnist-digits-test"))
    assert len(read_idx(find_idx(mnist, "test")).targets) == 2


def test_labels_are_found_beside_packed_images_whether_they_are_packed_or_not(mnist):
    images, labels = mnist / "train-images-idx3-ubyte", mnist / "train-labels-idx1-ubyte.gz"
    (mnist / f"{images.name}.gz").write_bytes(gzip.compress(images.read_bytes()))
    images.unlink()
    assert read_idx(find_idx(mnist, "train")).targets.tolist() == [0, 1, 2, 3, 4]
    labels.with_suffix("").write_bytes(gzip.decompress(labels.read_bytes()))
    labels.unlink()
    assert read_idx(find_idx(mnist, "train")).targets.tolist() == [0, 1, 2, 3, 4]
    packed = mnist / f"{images.name}.gz"
    packed.write_bytes(gzip.compress(idx(np.zeros_like(IMAGES))))  # many times smaller than what it holds
    assert read_idx(packed).inputs.shape == (5, 1, 28, 28)


def test_idx_files_are_found_where_torchvision_keeps_them(mnist):
    (mnist / "MNIST").mkdir()
    raw = mnist / "MNIST" / "raw"
    raw.mkdir()
    for file in list(mnist.glob("train*")):
        file.rename(raw / file.name)
    assert find_idx(mnist, "train").parent == find_idx(mnist / "MNIST", "train").parent == raw


def test_of_several_idx_data_sets_in_a_folder_none_is_taken(mnist):
    (mnist / "emnist-digits-t10k-images-idx3-ubyte").touch()
    with pytest.raises(LoadError, match=r"holds the images of 2 data sets: emnist-digits-t10k-.*, t10k-"):
        find_idx(mnist, "test")
    (mnist / "emnist-digits-t10k-images-idx3-ubyte").unlink()
    for word in ("balanced", "digits"):
        for kind in ("images-idx3", "labels-idx1"):
            (mnist / f"emnist-{word}-train-{kind}-ubyte.gz").touch()
    packed = [f"emnist-{word}-train-images-idx3-ubyte.gz" for word in ("balanced", "digits")]
    message = (
        f"{mnist} holds the images of 3 data sets: {', '.join(packed)}, train-images-idx3-ubyte. Expected those of "
        f"one. Name its file: `{mnist / packed[0]}`."
    )
    with pytest.raises(LoadError, match=re.escape(message)):
        find_idx(mnist, "train")
    for word in ("bymerge", "byclass", "letters", "mnist"):
        (mnist / f"emnist-{word}-train-images-idx3-ubyte.gz").touch()
    with pytest.raises(
        LoadError, match=r"of 7 data sets: .*emnist-mnist-train-images-idx3-ubyte\.gz, \.\.\.\. Expected"
    ):
        find_idx(mnist, "train")
    assert find_idx(mnist, "test").name == "t10k-images-idx3-ubyte"


def test_of_a_packed_and_an_unpacked_idx_file_the_unpacked_one_is_read(mnist):
    (mnist / "train-images-idx3-ubyte.gz").touch()
    (mnist / "train-images.idx3-ubyte").mkdir()  # archives from elsewhere keep each file in a folder of its name
    assert find_idx(mnist, "train").name == "train-images-idx3-ubyte"


def test_damaged_idx_files_say_so(mnist):
    images = mnist / "train-images-idx3-ubyte"
    labels = mnist / "train-labels-idx1-ubyte.gz"
    good = idx(IMAGES)
    huge = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**31, 2**31)
    for content, message in [
        (good[:-1], "declares 3,920 bytes and holds fewer. It is damaged"),
        (good[:-100], "declares 3,920 bytes, but the file is too short to hold them"),
        (good + b"x", "declares 3,920 bytes and holds more"),
        (huge, "bytes, but the file is too short to hold them"),
        (gzip.compress(huge), "bytes, but the file is too short to hold them"),
        (gzip.compress(good)[:-20], "is a damaged gzip file"),
        (b"\x1f\x8b\x07" + gzip.compress(good)[3:], "is a damaged gzip file"),  # packed in a way that nobody knows
        (gzip.compress(good + bytes(2**22)), "declares 3,920 bytes and holds more"),
        (b"\0\0\x0d\x03", "is no IDX file of bytes (it starts with b'\\x00\\x00\\r\\x03')"),
        (b"\0\0\x08\0x", "is no IDX file of bytes (it starts with b'\\x00\\x00\\x08\\x00')"),  # of no dimension
        (b"", "is no IDX file of bytes (it starts with b'')"),
        (good[:10], "bytes, but the file is too short to hold them"),
        (idx(LABELS), "has 1 dimensions and train-labels-idx1-ubyte.gz 1. Expected 3 and 1"),
    ]:
        images.write_bytes(content)
        with pytest.raises(LoadError, match=re.escape(message)):
            read_idx(images)
    images.write_bytes(good)
    labels.write_bytes(gzip.compress(good))
    with pytest.raises(LoadError, match=r"has 3 dimensions and train-labels-idx1-ubyte.gz 3. Expected 3 and 1"):
        read_idx(images)
    labels.unlink()
    with pytest.raises(LoadError, match=r"has no labels beside it. Expected `train-labels-idx1-ubyte` in the same fo"):
        read_idx(images)


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte.gz", "pixels"])
def test_a_file_whose_name_does_not_lead_to_its_labels_says_what_name_would(mnist, name):
    (mnist / "pixels").write_bytes(idx(IMAGES))
    with pytest.raises(
        LoadError, match=rf"{name} has neither `images` nor `idx3` in its name, .* Expected images like"
    ):
        read_idx(mnist / name)


def test_files_without_images_have_no_samples(mnist):
    (mnist / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[:0]))
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:0])))
    dump(mnist / "test_batch", {"data": ROWS[:0], "labels": np.zeros(0, int)}, 4)
    for pair in (read_idx(find_idx(mnist, "test")), read_cifar(*find_cifar(mnist, "test"))):
        assert len(pair.inputs) == len(pair.targets) == 0


def dump(path, held, protocol=2):
    path.write_bytes(pickle.dumps(held, protocol))


def python2(held):
    """Write as Python 2 did: every text and all pixels as byte strings."""
    out = io.BytesIO()
    out.write(b"\x80\x02}(")
    for key, value in held.items():
        out.write(b"U" + bytes([len(key)]) + key)
        if isinstance(value, np.ndarray):
            out.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR")
            out.write(b"(K\x01" + b"(" + b"".join(b"M" + struct.pack("<H", n) for n in value.shape) + b"t")
            out.write(b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
            out.write(b"\x89T" + struct.pack("<i", value.nbytes) + value.tobytes() + b"tb")
        else:
            out.write(b"](" + b"".join(b"K" + bytes([n]) for n in value) + b"e")
    out.write(b"u.")
    return out.getvalue()


def test_the_python_version_of_cifar_reads_as_python_2_and_3_write_it(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(python2({b"data": ROWS, b"labels": [3, 1, 4, 1]}))
    dump(tmp_path / "data_batch_2", {"data": ROWS, "labels": [5, 9, 2, 6], "filenames": ["a"] * 4})
    dump(tmp_path / "test_batch", {b"data": ROWS[:1], b"labels": np.array([7])}, 4)
    files, kind = find_cifar(tmp_path, "train")
    pair = read_cifar(files, kind)
    assert pair.inputs.shape == (8, 3, 32, 32)
    assert np.array_equal(pair.inputs.reshape(8, -1).numpy(), np.concatenate([ROWS, ROWS]))
    assert pair.targets.tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    assert "CIFAR-10 from data_batch_1, data_batch_2; the original has 5 batches" in pair.notes[0]
    assert read_cifar(*find_cifar(tmp_path, "test")).targets.tolist() == [7]
    for i in (3, 4, 5):
        dump(tmp_path / f"data_batch_{i}", {"data": ROWS, "labels": [0] * 4})
    ends = {"train": "data_batch_4, data_batch_5", "test": "CIFAR-10 from test_batch"}
    for split, end in ends.items():
        assert read_cifar(*find_cifar(tmp_path, split)).notes[0].endswith(end)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_cifar_files_written_again_by_python_3_14_are_read(tmp_path, core):
    """There the default is protocol 5, which writes arrays in one piece."""
    held = pickle.dumps({"data": ROWS, "labels": np.array([3, 1, 4, 1])}, 5)
    written = next(name for name in (b"numpy._core", b"numpy.core") if name + b".numeric" in held)
    names = [b"\x8c%c%s.numeric" % (len(name) + len(".numeric"), name) for name in (written, core)]
    (tmp_path / "data_batch_1").write_bytes(held[:2] + held[11:].replace(*names))  # without its one frame
    pair = read_cifar(*find_cifar(tmp_path, "train"))
    assert np.array_equal(pair.inputs.reshape(4, -1).numpy(), ROWS)
    assert pair.targets.tolist() == [3, 1, 4, 1]


def test_cifar_100_gives_its_fine_labels(tmp_path):
    for name in ("train", "test"):
        dump(tmp_path / name, {"data": ROWS, "fine_labels": [99, 1, 2, 3], "coarse_labels": [0] * 4})
    assert find_cifar(tmp_path, "train") == ([], "")  # any folder may have files of those names
    dump(tmp_path / "meta", {"fine_label_names": []})
    assert read_cifar(*find_cifar(tmp_path, "train")).targets.tolist() == [99, 1, 2, 3]


def test_a_folder_of_images_by_split_is_not_taken_for_cifar_100(tmp_path):
    for name in ("train", "test", "data_batch_1"):
        (tmp_path / name).mkdir()
    dump(tmp_path / "meta", {})
    assert find_cifar(tmp_path, "train") == find_cifar(tmp_path, "test") == ([], "")


@pytest.mark.parametrize(
    ("names", "labels"), [(("data_batch_1.bin", "test_batch.bin"), 1), (("train.bin", "test.bin"), 2)]
)
def test_the_binary_version_has_its_labels_before_the_pixels(tmp_path, names, labels):
    for name in names:
        rows = np.concatenate([np.zeros((4, labels - 1), np.uint8), np.array([[3], [1], [4], [1]], np.uint8), ROWS], 1)
        (tmp_path / name).write_bytes(rows.tobytes())
    for split in ("train", "test"):
        pair = read_cifar(*find_cifar(tmp_path, split))
        assert pair.targets.tolist() == [3, 1, 4, 1]
        assert np.array_equal(pair.inputs.reshape(4, -1).numpy(), ROWS)


def test_damaged_cifar_files_say_so(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    for content in (b"", bytes(3072)):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=rf"has {len(content):,} bytes. Expected a multiple of 3073: 1 for labels"):
            read_cifar([path], "10.bin")
    path.write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(LoadError, match=r"has no 10 classes of one label per image. It is damaged"):
        read_cifar([path], "10.bin")
    path = tmp_path / "data_batch_1"
    for held, message in [
        ({"data": ROWS, "labels": [1]}, "has no 10 classes of one label per image"),
        (
            {"data": ROWS[:, :9], "labels": [1] * 4},
            "cannot be read as CIFAR-10 (pixels (4, 9) uint8, labels (4,) int",
        ),
        (
            {"data": ROWS.astype(np.float32), "labels": [1] * 4},
            "cannot be read as CIFAR-10 (pixels (4, 3072) float32, labels (4,) int",
        ),
        ({"data": ROWS, "labels": [0.5] * 4}, "(pixels (4, 3072) uint8, labels (4,) float64). It is damaged"),
        ({"data": ROWS, "labels": [[1]] * 4}, "(pixels (4, 3072) uint8, labels (4, 1) int"),
        ({"labels": [1] * 4}, "cannot be read as CIFAR-10 ('data')"),
        ([1], "cannot be read as CIFAR-10 ('list' object"),
    ]:
        dump(path, held)
        with pytest.raises(LoadError, match=re.escape(message)):
            read_cifar([path], "10")
    path.write_bytes(pickle.dumps({"data": ROWS}, 2)[:-50])
    with pytest.raises(LoadError, match=r"cannot be read as CIFAR-10 \("):
        read_cifar([path], "10")


@pytest.mark.parametrize(("name", "kind"), [("data_batch_1", "10"), ("data_batch_1.bin", "10.bin")])
def test_a_cifar_file_that_memory_cannot_hold_is_not_read(tmp_path, monkeypatch, name, kind):
    dump(tmp_path / "data_batch_1", {"data": ROWS, "labels": [1] * 4})
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(4 * 3073))
    assert len(read_cifar([tmp_path / name], kind).targets) == 4
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 10_000)
    with pytest.raises(LoadError, match=rf"{name} takes \S+ GiB. Expected at most"):
        read_cifar([tmp_path / name], kind)


def test_a_pickle_that_names_anything_else_calls_nothing(folder):
    dump(folder / "data_batch_1", {"data": Evil()})
    with pytest.raises(LoadError, match=r"would call (posix|nt).system when loaded, which no CIFAR file does"):
        read_cifar([folder / "data_batch_1"], "10")
    assert not (folder / "sang").exists()


@pytest.mark.parametrize(
    ("name", "given"), [(b"numpy.core.multiarray\n_reconstruct", "reconstruct"), (b"numpy\ndtype", "Dtype")]
)
def test_a_pickle_sets_no_attribute_of_what_it_is_given(tmp_path, name, given):
    """As of its defaults, which every later pickle would be read with."""
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04c" + name + b"\nN}\x8c\x04markK\x01s\x86b.")
    with pytest.raises(LoadError, match="cannot be read as CIFAR-10"):
        read_cifar([tmp_path / "data_batch_1"], "10")
    assert not hasattr(getattr(stand_ins, given), "mark")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR.",
            "starts with the shape",
        ),
        (b"cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "'NoneType' object is not callable"),
        (
            b"cnumpy._core.numeric\n_frombuffer\n(U\x08AAAAAAAAcnumpy\ndtype\n(U\x02O8tRK\x01\x85U\x01CtR.",
            "bytes that are to be objects",
        ),
        (b"c_codecs\nencode\n(U\x01aU\x05idna.tR.", "text of the encoding b'idna.'"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b"x.", ""),
        (b"\x96" + struct.pack("<Q", 2**40) + b"x.", "1,099,511,627,776 bytes are declared where 2 are left"),
        (b"Nr\xff\xff\xff\x7f.", "'NoneType' object"),
    ],
)
def test_a_pickle_cannot_take_memory_or_make_other_objects(tmp_path, code, message):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04" + code)
    with pytest.raises(LoadError, match=re.escape("cannot be read as CIFAR-10 (") + ".*" + re.escape(message)):
        read_cifar([tmp_path / "data_batch_1"], "10")
