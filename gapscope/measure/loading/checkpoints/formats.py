"""Tell what a file or folder is from its first bytes and the names inside: nothing is unpickled, no suffix believed."""

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gapscope.errors import LoadError, did_you_mean

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save before 1.6, pickled by protocol 2 or 3
_HEADER = 100_000_000  # bytes: the longest header that safetensors itself reads


@dataclass(frozen=True)
class Format:
    """What a file is, in words; `instead` is empty where it can be read, else says what to do."""

    name: str
    instead: str = ""


TORCH = Format("torch checkpoint")
LEGACY = Format("torch checkpoint of before 1.6")
LIGHTNING = Format("Lightning checkpoint")
MODULE = Format("pickled module")
PICKLE = Format("plain pickle")
SAFETENSORS = Format("safetensors file")
SHARDED = Format("sharded safetensors")
HUGGINGFACE = Format("Hugging Face folder")
DISTRIBUTED = Format("torch distributed checkpoint")
TORCHSCRIPT = Format("TorchScript program")
EXPORTED = Format("exported program (.pt2)")
NPZ = Format("NumPy archive (.npz)")
UNKNOWN = "file of an unknown kind"  # how the name of every other begins

_SAVE = 'Save the weights where it was made: `torch.save(model.state_dict(), "weights.pt")`.'
_KERAS = (
    "Expected PyTorch weights. Write them in Keras: `np.savez(path, **{w.path: w.numpy() for w in model.weights})`."
)
_TENSORFLOW = Format(
    "TensorFlow model", "Expected PyTorch weights. Write them with `np.savez(path, **weights)` where TensorFlow is."
)
_SIGNATURES = (
    (
        b"\x89HDF\r\n\x1a\n",
        "HDF5 file",
        f"If it is a gapscope report: `gapscope show {{path}}`. If Keras made it: {_KERAS}",
    ),
    (b"\x93NUMPY", "NumPy array", "Give data with `-d`; weights need names: `np.savez(path, **weights)`."),
    (b"\x1f\x8b", "gzip-compressed file", "Expected it unpacked: `gunzip`."),
    (b"version https://git-lfs", "Git LFS pointer, not the file itself", "Fetch it: `git lfs pull`."),
    (b"GGUF", "GGUF file of quantized weights", "Expected the PyTorch or safetensors original. Fetch that."),
    (b"<", "web page or XML: the download probably failed", "Expected a checkpoint. Fetch it again."),
)
_FOLDERS: Sequence[tuple[Format, Callable[[str], bool]]] = (
    (DISTRIBUTED, lambda name: name == ".metadata"),
    (HUGGINGFACE, lambda name: name in (*INDEXES, *WHOLE)),
    (SHARDED, lambda name: name.endswith(".safetensors.index.json")),
    (
        Format(
            "PEFT adapter folder",
            "It holds adapters without their model. Merge them: `model.merge_and_unload().save_pretrained(FOLDER)`.",
        ),
        lambda name: name == "adapter_config.json",
    ),
    (
        Format(
            "DeepSpeed folder",
            "Expected weights of all ranks in one file. Convert it in that folder: `python zero_to_fp32.py . OUT`.",
        ),
        lambda name: name == "zero_to_fp32.py" or name.endswith(("_model_states.pt", "_optim_states.pt")),
    ),
    (
        Format(
            "Megatron folder",
            "Expected weights of all ranks in one place. Convert it to a Hugging Face folder with Megatron's "
            "`tools/checkpoint/convert.py`.",
        ),
        lambda name: name == "latest_checkpointed_iteration.txt" or name.startswith("mp_rank_"),
    ),
    (_TENSORFLOW, lambda name: name == "saved_model.pb" or ".data-00000-of-" in name),
)


def sniff(path: Path) -> Format:
    """Return what is at a path.

    Raises: LoadError if nothing readable is there.
    """
    if os.path.isdir(path):  # of a name too long for the system, Path raises
        return _folder(path)
    head = _first_bytes(path)
    if head.startswith(b"PK"):
        return _archive(path)
    if head[:1] == b"\x80" and head[2:].startswith(_LEGACY):
        return LEGACY
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER:
        return SAFETENSORS
    if head.startswith(b"{") and path.name.endswith(".index.json"):
        return SHARDED
    if head[257:262] == b"ustar" or head.startswith(b"sys_info\0"):
        return Format("tar archive, perhaps of torch before 0.4", f"Expected a file of a later torch. {_SAVE}")
    if head[:1] == b"\x80" and head[1] in range(2, 6):
        return PICKLE
    if head[4:8] == b"TFL3" or (head[:3] == b"\x08\x01\x12" and path.name == "saved_model.pb"):
        return _TENSORFLOW
    if head[:1] == b"\x08" and head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42):  # ir_version, then a name
        return Format("ONNX graph", f"Its nodes are no PyTorch modules. {_SAVE}")
    for magic, name, instead in _SIGNATURES:
        if head.startswith(magic):
            return Format(name, instead.replace("{path}", str(path)))
    return Format(f"{UNKNOWN} (it starts with {head[:16]!r})", f"Expected a checkpoint. {_SAVE}")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        beside = [str(p) for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
        raise LoadError(
            f"{path} does not exist.{did_you_mean(str(path), beside)} Expected a checkpoint file."
        ) from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}. Expected a readable file.") from None
    if not head:
        raise LoadError(f"{path} is empty (0 bytes). The save or the copy probably failed; make it again.")
    return head.ljust(16, b"\0")


def _archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise LoadError(f"{path} is truncated: the end of its archive is missing. Copy or save it again.") from None
    ends = {name.rpartition("/")[2] for name in names}
    if ends & {"archive_format", "serialized_exported_program.json"}:
        return EXPORTED
    if "constants.pkl" in ends or any("/code/__torch__" in name for name in names):
        return TORCHSCRIPT
    if "data.pkl" in ends:
        return TORCH
    if "model.weights.h5" in ends:
        return Format("Keras archive", _KERAS)
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    return Format("zip of something else", f"Expected a file made by `torch.save`. {_SAVE}")


def _folder(path: Path) -> Format:
    try:
        names = sorted(child.name for child in path.iterdir())
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}. Expected a readable folder.") from None
    for found, fits in _FOLDERS:
        if any(map(fits, names)):
            return found
    inside = [name for name in names if Path(name).suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")]
    such = f", such as {path / inside[0]}" if inside else ", or a folder with `model.safetensors` or `.metadata`"
    return Format("folder", f"Expected a file{such}.")
