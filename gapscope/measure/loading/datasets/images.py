"""Pictures as bytes (channels, height, width): folders with one folder per class, and encoded images in tables."""

import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import PARTS, Pair, Split, check_size
from gapscope.measure.loading.datasets.columns import classes_note
from gapscope.measure.loading.trust import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# named, because Pillow would also start Ghostscript for an .eps
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


def is_image_folder(root: Path) -> bool:
    """Return whether there is an image in root/class/ or in root/train/class/."""
    return any(_classes(place) for place in (root, root / "train") if place.is_dir())


def read_image_folder(root: Path, split: Split, *, whole: bool) -> Pair | None:
    """Return the images of root/class/, or of root/train/class/ and root/test/class/; classes in sorted order."""
    train = _part(root, "train")
    own = _part(root, split)
    if own is None and split == "test" and not whole:
        return None
    # a test folder without one of the classes must not shift the numbers of the others
    classes, folder = _classes(train or root), own or root
    foreign = sorted(set(_classes(folder)) - set(classes))
    if foreign:
        raise LoadError(
            f"{folder} has the class `{foreign[0]}`, which {train} lacks. Expected the same classes in both: "
            "rename or remove it."
        )
    files = [(file, i) for i, name in enumerate(classes) for file in _files(folder / name)]
    pixels = _stacked([file for file, _ in files])
    return Pair(
        pixels, torch.tensor([i for _, i in files]), (classes_note(classes, str(folder)),), True, tuple(classes)
    )


def pixels_of(image: Any, where: str) -> Tensor:
    """Return a Pillow image as bytes (channels, height, width): one channel of a gray one, else three."""
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise LoadError(
            f"{where} has pixels of the kind {image.mode}, not bytes. Expected 8-bit images: convert them, or read "
            "them in a factory: `path/file.py:factory`."
        )
    gray = is_gray(image)
    array = np.array(image.convert("L" if gray else "RGB"))
    return torch.from_numpy(array[None] if gray else np.ascontiguousarray(array.transpose(2, 0, 1)))


def is_gray(image: Any) -> bool:
    """Return whether a Pillow image has brightness alone."""
    return image.mode in ("1", "L")


def decoded(content: bytes, where: str) -> Tensor:
    """Return an encoded image (.png, .jpg, ...) as bytes (channels, height, width)."""
    return pixels_of(_opened(io.BytesIO(content), where), where)


def _part(root: Path, split: Split) -> Path | None:
    found = [root / name for name in PARTS[split] if (root / name).is_dir()]
    return next((path for path in found if _classes(path)), None)


def _classes(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and _files(path))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _stacked(files: list[Path]) -> Tensor:
    images = [_opened(file, str(file), header=True) for file in files]
    sizes = {image.size: file for image, file in zip(images, files, strict=True)}
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise LoadError(
            f"{first} has {a[0]} x {a[1]} pixels, {second} {b[0]} x {b[1]}. Expected one size for all: resize them as "
            "the network saw them, in a factory that returns a Dataset: `-d path/file.py:factory`."
        )
    width, height = next(iter(sizes))
    shape = (len(files), 1 if all(map(is_gray, images)) else 3, height, width)
    check_size(4 * int(np.prod(shape, dtype=object)), str(files[0].parent.parent))
    pixels = torch.empty(shape, dtype=torch.uint8)
    for i, file in enumerate(files):
        pixels[i] = pixels_of(_opened(file, str(file)), str(file))  # beside colors, a gray one fills all three channels
    return pixels


def _opened(source: Path | io.BytesIO, where: str, *, header: bool = False) -> Any:
    """Open an image and, unless only its header is asked for, decode it."""
    pillow = _pillow()
    try:
        with pillow.open(source, formats=_FORMATS) as image:
            if not header:
                image.load()
            return image
    except Exception as error:  # a damaged image can raise anything; a bomb raises by its declared size
        raise LoadError(
            f"{where} cannot be read as an image ({one_line(error)}). Expected an undamaged image "
            f"({', '.join(_FORMATS)}): copy it again or remove it."
        ) from None


def _pillow() -> ModuleType:
    try:
        import PIL.Image
    except ImportError:
        raise LoadError("Reading images takes Pillow, which is not installed. `pip install pillow`.") from None
    return PIL.Image
