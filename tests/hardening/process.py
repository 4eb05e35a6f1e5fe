"""Everything of a process and a model that a caller may count on to stay as it is, in one comparable picture."""

import ctypes
import gc
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from scipy.linalg import lapack
from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_post_hooks",
)


def picture(model: nn.Module) -> dict[str, Any]:
    """Return what is compared, by name: a difference then says what moved."""
    return of_model(model) | of_process()


def of_model(model: nn.Module) -> dict[str, Any]:
    """Return weights, gradients, flags, modes and hooks."""
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        found[f"parameter {name}"] = (id(parameter), bits(parameter), parameter.requires_grad, parameter._version)
        found[f"gradient {name}"] = None if parameter.grad is None else (id(parameter.grad), bits(parameter.grad))
        found[f"hooks of {name}"] = len(parameter._backward_hooks or ())
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = (id(buffer), bits(buffer))
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
        found[f"hooks {name}"] = tuple(tuple(getattr(module, kind, ())) for kind in _HOOKS)
        found[f"attributes {name}"] = sorted(vars(module))
    return found


def of_process() -> dict[str, Any]:
    """Return random states, switches, handlers, environment, folder and open files."""
    python = torch.nn.modules.module
    return {
        "torch random": bits(torch.get_rng_state()),
        "cuda random": [bits(one) for one in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "numpy random": str(np.random.get_state()),
        "python random": random.getstate(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "anomaly": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "scipy threads": scipy_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": tuple(getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
        "precision": precisions(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention": tuple(getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "math")),
        "functions": (
            torch._weight_norm,
            nn.functional.embedding_bag,
            torch.utils.checkpoint.CheckpointFunction,
            torch.utils.checkpoint._checkpoint_without_reentrant_generator,
            vars(torch.utils.checkpoint).get("_checkpoint_without_reentrant_generator_impl"),  # since torch 2.15
        ),
        "modes": torch._C._len_torch_function_stack(),
        "global hooks": (len(python._global_forward_hooks), len(python._global_forward_pre_hooks)),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "numpy errors": np.geterr(),
        "signals": {
            one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM)
        },
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "import path": list(sys.path),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "trace": (sys.gettrace(), sys.getprofile(), sys.getrecursionlimit()),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "running threads": threading.active_count(),
        "files": open_files(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs."""
    return [name for name in before | after if before.get(name, "gone") != after.get(name, "gone")]


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor: NaN equals itself there."""
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def precisions(*, turned: bool = True) -> tuple[str, ...]:
    """Return TF32 switches, as far as this torch has them, and what each becomes when the general one is `turned`."""
    known: Any = torch.backends
    if not hasattr(getattr(known.cudnn, "conv", None), "fp32_precision"):
        return (str(known.cudnn.allow_tf32), str(known.cuda.matmul.allow_tf32), torch.get_float32_matmul_precision())
    owners = (known, known.cudnn, known.mkldnn, known.cudnn.conv, known.cudnn.rnn, known.cuda.matmul)
    owners += (known.mkldnn.conv, known.mkldnn.matmul)

    def now() -> tuple[str, ...]:
        return tuple(one.fp32_precision for one in owners)

    found, own = now(), known.fp32_precision
    try:
        for general in ("ieee", "tf32") if turned else ():
            known.fp32_precision = general
            found += now()
    finally:
        known.fp32_precision = own
    return found


def scipy_threads() -> int:
    """Return the threads of the OpenBLAS in SciPy's wheels, 0 where there is none."""
    compiled = getattr(lapack, "_flapack", None)
    asked = getattr(ctypes.CDLL(compiled.__file__), "scipy_openblas_get_num_threads", None) if compiled else None
    return asked() if asked else 0


def open_files() -> list[str]:
    """Return what the open descriptors of this process lead to."""
    folder, found = Path("/proc/self/fd"), []
    for entry in os.listdir(folder) if folder.is_dir() else ():
        try:
            found.append(os.readlink(folder / entry))
        except OSError:  # the one that lists
            continue
    return sorted(one for one in found if not one.startswith(("/proc", "anon_inode")))
