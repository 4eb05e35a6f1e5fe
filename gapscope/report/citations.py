"""What each analyzer measures in one sentence and who defined it: for pages and for `gapscope show --cite`.

The bibliography stands in `citations.bib`.
"""

import re
from importlib.resources import files

from gapscope.report.records import Comparison, Facts, Record, Report
from gapscope.report.terminal import harmless

# analyzer: what it is, and the keys of what defined it
DEFINITIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "eigenvalues": (
        "The largest algebraic eigenvalues of the Hessian of the mean loss, by Lanczos iteration with recomputed "
        "residuals; the stability number compares them with the recorded learning rate.",
        ("cohen2021gradient",),
    ),
    "epsilon-sharpness": (
        "Metric 2.1 of Keskar et al.: phi = 100 (max f(x + A y) - f(x)) / (1 + f(x)) over the box "
        "|y_i| <= epsilon (|(A+ x)_i| + 1), in the full space and on random manifolds.",
        ("keskar2017large",),
    ),
    "adaptive-sharpness": (
        "The rise of the loss when every weight moves in proportion to its size, at worst and on average, so that "
        "rescaling layers does not change it; beside it SAM sharpness, relative flatness and the Fisher-Rao norm.",
        ("kwon2021asam", "andriushchenko2023modern", "foret2021sharpness", "petzka2021relative", "liang2019fisher"),
    ),
    "gap": ("Losses and accuracies on training and test data, and their differences: the generalization gap.", ()),
    "near-rank": (
        "Singular values of the activations of every layer, and how many of them lie above a stated cut.",
        ("oyedotun2022new",),
    ),
    "curvature": (
        "The median over each layer of the curvature of its parameters, by definitions of gapscope's own that follow "
        "the abstract of Gao and Zhong.",
        ("gao2020study",),
    ),
    "trace": ("Trace and Frobenius norm of the Hessian from random probes.", ("meyer2021hutch",)),
    "density": (
        "Spectral density of the Hessian by stochastic Lanczos quadrature, broadened by Gaussians.",
        ("ghorbani2019investigation",),
    ),
    "noise": (
        "Gradient noise: its covariance and scale, the critical batch size, and limits of linear stability.",
        ("mccandlish2018empirical", "wu2018how"),
    ),
    "path": (
        "Loss and accuracy on the straight line f(a x1 + (1 - a) x0) and on the curved path "
        "f(sin(a pi/2) x1 + cos(a pi/2) x0) between two checkpoints.",
        ("keskar2017large",),
    ),
    "plane": ("Loss and accuracy on a plane through checkpoints or along random directions.", ("li2018visualizing",)),
    "escape": (
        "Diffusion of SGD, the barrier in units of it, and the odds of two basins under isotropic noise.",
        ("dai2018towards",),
    ),
}


STUDIES = {  # the papers that studies repeat
    "keskar": "keskar2017large",
    "oyedotun": "oyedotun2022new",
    "gao-zhong": "gao2020study",
    "dai-zhu": "dai2018towards",
    "sngm": "zhao2020stochastic",
}


def analyzers(content: Report | Comparison) -> list[str]:
    """Return the names of what was measured, each once, in the order in which it is shown.

    A study has its own parts first, then what measured its runs.
    """
    if isinstance(content, Comparison):
        return list(dict.fromkeys((*(row.path.partition("/")[0] for row in content.rows), *content.results)))
    return list(dict.fromkeys((*content.results, *str(content.identity.get("analyzers", "")).split())))


def citation(content: Report | Comparison) -> str:
    """Return a paragraph on the methods and the BibTeX entries of the definitions that were used."""
    text = files("gapscope.report").joinpath("citations.bib").read_text(encoding="utf-8")
    entries = {re.split("[{,]", entry, maxsplit=2)[1]: entry for entry in text.strip().split("\n\n")}
    paper = STUDIES.get(str(content.identity.get("study"))) if isinstance(content, Report) else None
    used = (key for name in analyzers(content) for key in DEFINITIONS.get(name, ("", ()))[1])
    keys = dict.fromkeys((*filter(None, (paper,)), *used))
    return "\n\n".join((harmless(methods(content)), *(entries[key] for key in keys)))


def methods(content: Report | Comparison) -> str:
    """Return what was measured, on what, how, with which settings and versions, as one paragraph."""
    subject = content if isinstance(content, Report) else content.subjects[0]
    study = "study" in subject.identity  # whose own parts are worked out of what was measured
    parts = [
        f"{_who(content)} measured with gapscope{_versions(content.environment)}{_on(subject.conditions)}.",
        *(_how(name, content.results.get(name)) for name in analyzers(content) if name in DEFINITIONS or not study),
    ]
    return " ".join(parts)


def _who(content: Report | Comparison) -> str:
    if isinstance(content, Report):
        return f"{_named(content.identity.get('checkpoint', 'A model'), content.identity, content.training)} was"
    named = [_named(subject.label, subject.identity, subject.training) for subject in content.subjects]
    return f"{', '.join(named[:-1])} and {named[-1]} were"


def _named(name: object, identity: Facts, training: Facts) -> str:
    trained = ", ".join(
        f"{word} {training[key]}"
        for key, word in (
            ("optimizer", "optimizer"),
            ("lr", "learning rate"),
            ("momentum", "momentum"),
            ("batch_size", "batch size"),
            ("steps", "steps"),
        )
        if key in training
    )
    size = f"{identity['parameters']:,} parameters" if isinstance(identity.get("parameters"), int) else ""
    model = f"{identity.get('model', '')} {identity.get('model_args', '')}".strip()
    about = "; ".join(filter(None, (model, size, trained and f"trained with {trained}")))
    return f"{name} ({about})" if about else str(name)


def _versions(environment: Facts) -> str:
    known = [f"{name} {environment[name]}" for name in ("torch", "python", "device") if name in environment]
    version = f" {environment['gapscope']}" if "gapscope" in environment else ""
    return version + (f" ({', '.join(known)})" if known else "")


def _on(conditions: Facts) -> str:
    """Return " on 1,300 train samples, cross-entropy loss, BatchNorm in eval mode, float32"."""
    samples = conditions.get("samples")
    amount = f"{samples:,} " if isinstance(samples, int) else ""
    parts = [f"{amount}{conditions['split']} samples"] if "split" in conditions else []
    words = (("loss", "{} loss"), ("batchnorm", "BatchNorm in {} mode"), ("dtype", "{}"), ("limit", "a subset of {}"))
    parts += [pattern.format(conditions[key]) for key, pattern in words if conditions.get(key)]
    return f" on {', '.join(parts)}" if parts else ""


def _how(name: str, record: Record | None) -> str:
    what = f"{name}: {DEFINITIONS[name][0]}" if name in DEFINITIONS else f"{name}."
    if record is None:
        return what
    settings = ", ".join(f"{key} {value}" for key, value in sorted(record.settings.items()))
    return f"{what} Version {record.version}{f', {settings}' if settings else ''}; {record.message}."
