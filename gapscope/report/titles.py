"""What quantities are called wherever people read them, and the order of analyzers in a comparison.

Files, JSON and the programming interface have the names of the fields; a quantity without a title here is called by
the words of its name.
"""

TITLES = {
    "eigenvalues/top": "top eigenvalue",
    "eigenvalues/bottom": "bottom eigenvalue",
    "eigenvalues/values": "largest eigenvalues",
    "trace/frobenius": "Frobenius norm",
    "trace/blocks_trace": "trace",
    "curvature/top": "curvature top eigenvalue",
    "density/largest": "largest Ritz value",
    "density/smallest": "smallest Ritz value",
    "density/width": "Gaussian width",
    "density/cut": "near-zero cut",
    "noise/covariance_trace_blocks": "covariance trace",
    "noise/sharpness": "top eigenvalue + decay",
    "noise/sharpness_limit": "top eigenvalue limit",
    "noise/nonuniformity_limit": "nonuniformity limit",
    "plane/lowest": "lowest loss",
    "adaptive-sharpness/worst_l2": "adaptive sharpness worst l2",
    "adaptive-sharpness/worst_linf": "adaptive sharpness worst linf",
    "adaptive-sharpness/average": "adaptive sharpness average",
    "adaptive-sharpness/worst_l2_normalized": "adaptive sharpness worst l2 normalized",
    "adaptive-sharpness/worst_linf_normalized": "adaptive sharpness worst linf normalized",
    "adaptive-sharpness/average_normalized": "adaptive sharpness average normalized",
    "adaptive-sharpness/sam": "SAM sharpness",
    "adaptive-sharpness/sam_step": "SAM step",
    "adaptive-sharpness/fisher_rao": "Fisher-Rao norm",
}
FIRST = ("eigenvalues", "adaptive-sharpness", "epsilon-sharpness", "gap")


def title(analyzer: str, quantity: str) -> str:
    """Return what a quantity is called; a single word says too little without its analyzer."""
    if known := TITLES.get(f"{analyzer}/{quantity}"):
        return known
    words = quantity.replace("_", " ")
    return words if " " in words or words == analyzer else f"{analyzer} {words}"


def short_title(analyzer: str, quantity: str) -> str:
    """Return what a quantity is called under a heading that names its analyzer."""
    known = TITLES.get(f"{analyzer}/{quantity}", "")
    return known.removeprefix(f"{analyzer.replace('-', ' ')} ") or quantity.replace("_", " ")


def place(analyzer: str) -> tuple[int, str]:
    """Return a key that sorts analyzers as a comparison shows them, in whatever order they were measured."""
    return (FIRST.index(analyzer) if analyzer in FIRST else len(FIRST)), analyzer
