"""Models of other libraries by name: `hf`, `timm:NAME`, `torchvision:NAME`, and Lightning's own classes.

They are only ever built, never downloaded: the weights come from the checkpoint, read and fitted as everybody's.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.batches import Inputs, tensors
from gapscope.measure.loading.checkpoints.checkpoint import SETTINGS
from gapscope.measure.loading.datasets.columns import IGNORED
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.trust import one_line, signature

Factory = Callable[..., nn.Module]
LIBRARIES = ("hf", "timm", "torchvision")
# of a Hugging Face config: nothing is fetched or kept, and nothing fused, which has no second derivatives
_CHANGED = {"use_cache": False, "use_pretrained_backbone": False, "_experts_implementation": "eager"}
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def named_source(spec: str, folder: Path | None) -> Factory:
    """Return the factory of `hf`, `hf:CLASS`, `hf:FOLDER`, `timm:NAME` or `torchvision:NAME`.

    `folder` is the checkpoint's: what `hf` alone reads its config.json from.  Raises LoadError where the library, the
    name or the folder does not exist.
    """
    library, _, name = spec.partition(":")
    if library == "hf":
        is_folder = os.path.isdir(name)
        return partial(_hugging_face, Path(name) if is_folder else folder, "" if is_folder else name)
    if library == "timm":
        timm = _library("timm", "timm", spec)
        _known(name, timm.list_models(), spec)
        return partial(_timm, timm, name)
    models = _library("torchvision.models", "torchvision", spec)
    _known(name, models.list_models(), spec)
    return partial(_torchvision, models, name)


def holds_config(folder: Path) -> bool:
    """Return whether a folder's config.json describes a Hugging Face model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and ("architectures" in config or "model_type" in config)


def _hugging_face(folder: Path | None, kind: str, **changes: Any) -> nn.Module:
    """Return the model that config.json describes, with other settings where named, freshly initialised in float32."""
    transformers = _library("transformers", "transformers", "hf")
    if folder is None or not holds_config(folder):
        raise LoadError(
            f"There is no config.json of a Hugging Face model in {folder or 'the folder'}. Expected the folder that "
            "`save_pretrained` wrote. Give it as the checkpoint, or name it: `-m hf:path/to/folder`."
        )
    with _quiet(transformers):
        try:
            own = _read_config(transformers, folder)
            for name in changes:
                if not hasattr(own, name):
                    raise LoadError(
                        f"{folder}/config.json has no setting `{name}`.{did_you_mean(name, dir(own))} Expected one of "
                        "its own. Mend `-a`."
                    )
            own = _read_config(transformers, folder, **changes) if changes else own
        except LoadError:
            raise
        except Exception as error:
            raise LoadError(
                f"{folder}/config.json cannot be used: {one_line(error)}. Expected a model that transformers "
                f"{transformers.__version__} itself defines, because code of the folder is never run. Name a factory "
                "of yours: `-m path/file.py:factory`."
            ) from error
        if getattr(own, "quantization_config", None):
            raise LoadError(
                f"{folder} holds quantized weights, whose loss has no derivatives. Expected real numbers. Give the "
                "folder of the model before it was quantized."
            )
        for name, value in _CHANGED.items():
            if hasattr(own, name):
                setattr(own, name, value)
        found: nn.Module = _class_of(transformers, own, kind, folder)._from_config(
            own, attn_implementation="eager", dtype=torch.float32
        )
    return found


def _read_config(transformers: Any, folder: Path, **changes: Any) -> Any:
    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **changes)


def _class_of(transformers: Any, config: Any, kind: str, folder: Path) -> Any:
    """Return a model class that transformers itself defines, by the name given or the config's first architecture."""
    name = kind or next(iter(getattr(config, "architectures", None) or ()), "")
    if not name:
        raise LoadError(
            f"{folder}/config.json names no architecture. Expected its class. Name it: "
            "`-m hf:BertForSequenceClassification`."
        )
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        known = [one for one in dir(transformers) if "For" in one or one.endswith("Model")]
        hint = did_you_mean(name, [one for one in known if not one.startswith("Auto")])
        raise LoadError(
            f"transformers {transformers.__version__} has no model class `{name}`.{hint} Expected one that it defines "
            f"itself, because code of {folder} is never run. Name another: `-m hf:CLASS` or `-m path/file.py:factory`."
        )
    return found


def _timm(timm: Any, name: str, /, **args: Any) -> nn.Module:
    _refuse_weights(f"timm:{name}", args, "pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
    made: nn.Module = timm.create_model(name, pretrained=False, **args)
    return made


def _torchvision(models: Any, name: str, /, **args: Any) -> nn.Module:
    _refuse_weights(f"torchvision:{name}", args, "weights", "weights_backbone", "pretrained")
    made: nn.Module = models.get_model(name, weights=None, **args)
    return made


def _refuse_weights(spec: str, args: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name in args:
            raise LoadError(
                f"`{spec}` was given `-a {name}=...`. Expected arguments of the architecture alone, because the "
                "weights are the checkpoint's. Leave it out."
            )


def _known(name: str, names: list[str], spec: str) -> None:
    if name not in names:
        library = spec.partition(":")[0]
        raise LoadError(
            f"{library} has no model `{name}`.{did_you_mean(name, names)} Expected one of its {len(names)}. Name it: "
            f"`-m {library}:NAME`."
        )


def _library(module: str, package: str, spec: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision raises a RuntimeError beside another torch than its own
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        why = f"the package {package} is not installed" if missing else f"importing {package} raised {one_line(error)}"
        raise LoadError(
            f"`-m {spec}`: {why}. Expected one that imports beside torch {torch.__version__}. Install it: "
            f"`pip install {package}`."
        ) from error


def in_own_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return weights of a Hugging Face file as the model names and cuts them: transformers stores some in other ways.

    None where transformers has no such way for all of them: the file's own names then say best what does not fit.
    """
    transformers = _library("transformers", "transformers", "hf")
    if tensors.keys() <= model.state_dict().keys():
        return None
    kind = type(model)
    # what transformers would leave at its random start without a word
    strict: Any = type(kind.__name__, (kind,), {"__module__": kind.__module__, "_keys_to_ignore_on_load_missing": None})
    stored = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    dtype = stored.pop() if len(stored) == 1 else torch.float32
    with _quiet(transformers):
        try:
            loaded, found = strict.from_pretrained(
                None, config=model.config, state_dict=dict(tensors), output_loading_info=True, dtype=dtype
            )
        except Exception:
            return None
    state: dict[str, Tensor] = loaded.state_dict()
    return None if any(found.values()) else state


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from printing what is no news here, such as weights that are not initialised."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


class Settings(dict[str, Any]):
    """Recorded settings as one object, `settings.width` or `settings["width"]`, as Lightning hands them over."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the checkpoint recorded no setting `{name}`") from None


def own_settings(factory: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Lightning class takes of the settings that its checkpoint recorded.

    Any factory whose only required argument is called `config` or the like gets all of them as one object.
    """
    known = signature(factory)
    parameters = known.parameters.values() if known else ()
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if settings and len(required) == 1 and required[0] in SETTINGS and required[0] not in settings:
        return {required[0]: Settings(settings)}
    if not (isinstance(factory, type) and _is_lightning(factory)):
        return {}
    # LightningCLI records words of its own, such as `_instantiator`
    return {k: value for k, value in settings.items() if (everything and not k.startswith("_")) or k in names}


def _is_lightning(kind: type) -> bool:
    packages = ("lightning", "pytorch_lightning")
    return any(
        base.__name__ == "LightningModule" and base.__module__.partition(".")[0] in packages for base in kind.__mro__
    )


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model inside of compiled and parallel wrappers, on the CPU, and what was done to it."""
    model, notes = taken_out(model)
    places = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())} - {"cpu", "meta"}
    if places:
        notes += (f"model: built on {', '.join(sorted(places))}, placed anew",)
        model = model.cpu()
    return model, notes


def taken_out(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model inside of compiled and parallel wrappers, where it is, and what it was taken out of."""
    notes = []
    while (kind := type(model).__name__) in _WRAPPERS and hasattr(model, _WRAPPERS[kind]):
        model = getattr(model, _WRAPPERS[kind])
        notes.append(f"model: taken out of {kind}")
    return model, tuple(notes)


def completed(model: nn.Module, data: Data) -> Data:
    """Return data with the decoder's inputs where a sequence-to-sequence model makes them from its labels."""
    prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    config = getattr(model, "config", None)
    if prepare is None and getattr(config, "is_encoder_decoder", False) and hasattr(model, "main_input_name"):
        prepare = partial(_shifted, config)
    if isinstance(data.inputs, Tensor):
        inputs: dict[str, Tensor] = {getattr(model, "main_input_name", "input_ids"): data.inputs}
    else:
        inputs = _by_name(model, data.inputs)
    if prepare is None or "decoder_input_ids" in inputs or data.targets.is_floating_point() or data.targets.ndim < 2:
        return data
    if len(inputs) < len(tensors(data.inputs)):  # names are missing, and none of the inputs may be
        return data
    try:
        shifted = prepare(labels=data.targets)
    except (ValueError, AttributeError, TypeError) as error:  # what transformers raise for want of a token's number
        raise LoadError(
            f"{type(model).__name__} cannot make the decoder's inputs from the labels: {one_line(error)}. Expected its "
            "start token and its padding. Set `decoder_start_token_id` and `pad_token_id` in config.json, or give "
            "`decoder_input_ids` in the data."
        ) from error
    note = f"data: {data.name}: the decoder's inputs are made from the labels, as {type(model).__name__} does"
    made = {**inputs, "decoder_input_ids": shifted}
    return replace(data, inputs=made, notes=(*data.notes, note))


def _shifted(config: Any, labels: Tensor) -> Tensor:
    """Return the start token and then all labels but the last, as models do that have no method for it."""
    before = torch.cat([torch.full_like(labels[:, :1], config.decoder_start_token_id), labels[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, config.pad_token_id)


def _by_name(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs by the names that forward has for them, those alone that it has a name for."""
    if isinstance(inputs, dict):
        return inputs
    known = signature(model.forward)
    names = [p.name for p in known.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD] if known else []
    return dict(zip(names, tensors(inputs), strict=False))


def own_loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> float | None:
    """Return the loss that a model which takes labels computes itself, as those of transformers do; None elsewhere."""
    known = signature(model.forward)
    if known is None or "labels" not in known.parameters:
        return None
    named = _by_name(model, inputs)
    transformers = sys.modules.get("transformers")
    with _quiet(transformers) if transformers else contextlib.nullcontext():
        try:
            found = getattr(model(**named, labels=targets), "loss", None)
        except Exception:  # labels of another kind than it takes
            return None
    return float(found.detach()) if isinstance(found, Tensor) and found.ndim == 0 else None
