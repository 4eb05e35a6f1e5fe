"""Write one state_dict of a checkpoint as safetensors: a format that holds tensors and can run nothing."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from gapscope.errors import LoadError, UsageError, did_you_mean
from gapscope.measure.loading.checkpoints.checkpoint import ROOT, Checkpoint, read_checkpoint
from gapscope.measure.loading.checkpoints.fitting import is_averaged
from gapscope.measure.loading.checkpoints.pickles import dense
from gapscope.measure.loading.trust import Trust, one_line
from gapscope.replacing import replacing

_EXPANSION = 50  # an expanded view may be this much larger than its storage; more is no weight


def convert(path: Path, out: Path, trust: Trust, weights: str | None = None, *, force: bool = False) -> list[str]:
    """Write the chosen weights, in one step, and return what was decided.

    Raises: UsageError where `out` cannot be written, LoadError where the file cannot be read or lacks the weights.
    """
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise UsageError(f"{out} cannot be written: it is a folder, or in none. Expected a file name. Mend it.")
    if out.exists() and not force:
        raise UsageError(f"{out} is there already. Expected a new name. Choose one, or replace the file: `--force`.")
    checkpoint = read_checkpoint(path, trust)
    key, said = _chosen(checkpoint, weights)
    tensors = _below(checkpoint, key)
    whole, copied = _apart(checkpoint.name, tensors)
    metadata = {"format": "pt", "source": checkpoint.name, "source_sha256": checkpoint.sha256, "weights": key}
    _write(whole, metadata, out)
    numbers = sum(tensor.numel() for tensor in whole.values())
    said.insert(0, f"{out}: {len(whole):,} tensors of {numbers:,} numbers, `{key}` of {checkpoint.name}")
    if copied:
        said.append(f"{copied} tensors shared memory with others and were written apart")
    return said


def _chosen(checkpoint: Checkpoint, weights: str | None) -> tuple[str, list[str]]:
    """Return the key of the weights to write: raw ones, the largest first, unless the user names others."""
    known = checkpoint.tensors
    if weights is not None and weights not in ("raw", "ema"):
        return weights, []
    if weights in known:
        return str(weights), []
    averaged = [key for key in known if is_averaged(key, known[key])]
    kept = averaged if weights == "ema" else [key for key in known if key not in averaged]
    kept = kept or ([] if weights else averaged)
    if not kept:
        places = ", ".join(f"`{key}`" for key in known)
        raise LoadError(f"{checkpoint.name} holds no {weights} weights. Expected one of {places}. Mend `--weights`.")
    key = max(kept, key=lambda one: sum(tensor.numel() for tensor in known[one].values()))
    others = [f"`{other}`" for other in known if other != key]
    return key, [f"other weights were left out: {', '.join(others)}; choose with `--weights KEY`"] if others else []


def _below(checkpoint: Checkpoint, key: str) -> Mapping[str, Tensor]:
    """Return a state_dict, or the part of one below a prefix, which is taken off."""
    if key in checkpoint.tensors:
        return checkpoint.tensors[key]
    for at, state in checkpoint.tensors.items():
        prefix = f"{key}.".removeprefix(f"{at}.")
        if at == ROOT or key.startswith(f"{at}."):
            part = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            if part:
                return part
    raise LoadError(
        f"{checkpoint.name} has no weights under `{key}`.{did_you_mean(key, checkpoint.tensors)} Expected one of "
        f"{', '.join(f'`{at}`' for at in checkpoint.tensors)}. Mend `--weights`."
    )


def _apart(name: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return dense tensors of their own memory, and how many had shared theirs."""
    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    copied = 0
    for key, tensor in tensors.items():
        if tensor.is_quantized:
            raise LoadError(
                f"{name}: `{key}` is quantized, which safetensors cannot hold. Expected real numbers. Save the weights "
                "unquantized where they were made."
            )
        written = dense(tensor.detach())
        storage = written.untyped_storage()
        if written.nbytes > _EXPANSION * max(storage.nbytes(), 2**20):
            raise LoadError(
                f"{name}: `{key}` repeats {storage.nbytes():,} bytes as {written.nbytes:,}. Expected its own numbers: "
                "it may be an attack. Save the weights again with `.contiguous()`."
            )
        copied += storage.data_ptr() in seen and written.numel() > 0
        seen.add(storage.data_ptr())
        whole[key] = written.clone(memory_format=torch.contiguous_format)
    return whole, copied


def _write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], out: Path) -> None:
    try:
        with replacing(out) as file:
            safetensors.torch.save_file(dict(tensors), file.name, metadata=dict(metadata))
    except KeyError as error:  # of safetensors' own table of types
        lacking = next((key for key, tensor in tensors.items() if tensor.dtype in error.args), None)
        if lacking is None:
            raise
        raise LoadError(
            f"{metadata['source']}: `{lacking}` is {str(tensors[lacking].dtype)[6:]}, which safetensors cannot hold. "
            "Expected another type of numbers, such as float64. Convert it where it was made."
        ) from None
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise UsageError(
            f"{out} cannot be written: {one_line(error)}. What was there is unchanged. Choose a folder that is "
            "writable and has room."
        ) from error
