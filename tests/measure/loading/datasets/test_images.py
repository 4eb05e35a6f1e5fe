"""Folders of images by class read as ToTensor would, and refuse what has no one size."""

import contextlib
import io
import re
import struct
import sys
import zlib

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.images import decoded, is_image_folder, pixels_of, read_image_folder

Image = pytest.importorskip("PIL.Image")


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(path)


@pytest.fixture
def root(tmp_path):
    for split, names in (("train", ("cat", "dog")), ("val", ("dog",))):
        for i, name in enumerate(names):
            for k in range(2):
                save(tmp_path / split / name / f"{k}.png", np.full((4, 5, 3), [10 * i, k, 200]))
    return tmp_path


def test_classes_are_folders_in_sorted_order(root):
    pair = read_image_folder(root / "train", "train", whole=False)
    assert pair.inputs.shape == (4, 3, 4, 5)
    assert pair.inputs.dtype == torch.uint8
    assert pair.inputs[:, :, 0, 0].tolist() == [[0, 0, 200], [0, 1, 200], [10, 0, 200], [10, 1, 200]]
    assert pair.targets.tolist() == [0, 0, 1, 1]
    assert pair.classes == ("cat", "dog")
    assert pair.pixels
    assert "classes 0 = cat, 1 = dog" in pair.notes[0]
    assert read_image_folder(root / "train", "test", whole=False) is None
    assert len(read_image_folder(root / "train", "test", whole=True).targets) == 4


def test_a_test_folder_without_a_class_keeps_the_numbers_of_training(root):
    assert is_image_folder(root)
    (root / "test").mkdir()  # whose images are not there yet
    assert read_image_folder(root, "test", whole=False).targets.tolist() == [1, 1]
    assert read_image_folder(root, "train", whole=False).targets.tolist() == [0, 0, 1, 1]


def test_a_class_that_training_lacks_is_refused(root):
    save(root / "val" / "emu" / "0.png", np.zeros((4, 5, 3)))
    with pytest.raises(LoadError, match=r"val has the class `emu`, which .*train lacks. Expected the same classes"):
        read_image_folder(root, "test", whole=False)


def test_gray_images_have_one_channel_unless_others_have_colour(tmp_path):
    for i, mode in enumerate(("L", "1")):
        save(tmp_path / "a" / f"{i}.png", np.full((2, 2), 255), mode)
    assert read_image_folder(tmp_path, "train", whole=False).inputs.unique().tolist() == [255]
    assert read_image_folder(tmp_path, "train", whole=False).inputs.shape == (2, 1, 2, 2)
    for mode in ("P", "RGBA", "LA", "RGB"):
        save(tmp_path / "b" / f"{mode}.png", np.full((2, 2, 3), 9), mode)
    pixels = read_image_folder(tmp_path, "train", whole=False).inputs
    assert pixels.shape == (6, 3, 2, 2)
    assert pixels[:2].unique().tolist() == [255]  # the gray ones, in all three channels


def test_pixels_of_eight_bits_of_every_kind_are_read():
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert pixels_of(Image.new("RGB", (3, 2)).convert(mode), "row 0").shape[1:] == (2, 3)


@pytest.mark.parametrize("name", ["test", "validation", "valid", "val"])
def test_the_test_images_lie_in_a_folder_of_a_usual_name(tmp_path, name):
    for part, count in (("train", 3), (name, 2)):
        for i in range(count):
            save(tmp_path / part / "cat" / f"{i}.png", np.zeros((2, 2)))
    assert [len(read_image_folder(tmp_path, part, whole=False).targets) for part in ("train", "test")] == [3, 2]


def test_pictures_of_every_usual_format_are_found(tmp_path):
    for end in ("png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm"):
        save(tmp_path / "a" / f"0.{end}", np.full((2, 2, 3), 9))
    save(tmp_path / "a" / "0.pgm", np.full((2, 2), 9))
    save(tmp_path / "a" / "1.JPG", np.full((2, 2, 3), 9), "CMYK")  # of the press
    (tmp_path / "a" / "notes.txt").write_text("where they were taken")
    pixels = read_image_folder(tmp_path, "train", whole=False).inputs
    assert pixels.shape == (11, 3, 2, 2)
    assert pixels.float().sub(9).abs().max() <= 2  # some formats lose


def test_images_of_several_sizes_are_refused(root):
    for i, height in ((8, 9), (9, 7)):
        save(root / "train" / "dog" / f"{i}.png", np.zeros((height, 5, 3)))
    with pytest.raises(LoadError, match=r"has 5 x 4 pixels, .*8.png 5 x 9. Expected one size for all: resize them"):
        read_image_folder(root, "train", whole=False)


def test_deep_pixels_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a" / "0.png")
    with pytest.raises(LoadError, match=r"has pixels of the kind I(;16)?, not bytes. Expected 8-bit images"):
        read_image_folder(tmp_path, "train", whole=False)


def png(width, height, content=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "kind"),
    [(png(60000, 60000), "DecompressionBomb"), (png(4, 4), "OSError|ValueError"), (b"%!PS-Adobe", "UnidentifiedImage")],
)
def test_bombs_damage_and_programs_are_no_images(content, kind):
    with pytest.raises(LoadError, match=rf"row 3 cannot be read as an image \(({kind}).*Expected an undamaged image"):
        decoded(content, "row 3")


def test_encoded_images_decode():
    file = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).save(file, "PNG")
    assert decoded(file.getvalue(), "row 0").tolist() == [[[0, 3], [6, 9]], [[1, 4], [7, 10]], [[2, 5], [8, 11]]]


def test_without_pillow_the_command_that_installs_it_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(LoadError, match=r"takes Pillow, which is not installed. `pip install pillow`."):
        read_image_folder(root, "train", whole=False)


def test_files_that_only_look_like_images_of_a_class_are_no_folder_of_images(tmp_path):
    save(tmp_path / "cat" / "._0.png", np.zeros((2, 2)))
    (tmp_path / "cat" / "notes.txt").write_text("no pictures yet")
    assert not is_image_folder(tmp_path)


def test_memory_is_bounded_before_it_is_taken(root, monkeypatch):
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "0.png").write_bytes(png(5, 6))  # no pixels are there: none are unpacked
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 100)
    for folder in (root, root / "a"):
        with pytest.raises(LoadError, match=re.escape("GiB. Expected at most")):
            read_image_folder(folder, "train", whole=False)
    for most, fits in ((4 * 60 * 4, True), (4 * 60 * 4 - 1, False)):  # as floats, which they become
        monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", most)
        with contextlib.nullcontext() if fits else pytest.raises(LoadError, match="Expected at most"):
            assert len(read_image_folder(root, "train", whole=False).targets) == 4
