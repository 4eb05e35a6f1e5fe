"""What is installed with gapscope, under which licences, and what its own packages hold."""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

# what `pip install gapscope` brings beside the CPU build of torch; another name here is looked at before it is added
EXPECTED = {
    "torch": "BSD Apache MIT BSL ISC Zlib",
    "typer": "MIT",
    "rich": "MIT",
    "scipy": "BSD",
    "h5py": "BSD",
    "numpy": "BSD 0BSD MIT Zlib CC0",
    "pyhessian": "MIT",
    "safetensors": "Apache",
    # of torch
    "filelock": "MIT Unlicense",
    "fsspec": "BSD",
    "jinja2": "BSD",
    "markupsafe": "BSD",
    "mpmath": "BSD",
    "networkx": "BSD",
    "setuptools": "MIT",
    "sympy": "BSD",
    "typing-extensions": "PSF",
    # of typer and rich
    "annotated-doc": "MIT",
    "markdown-it-py": "MIT",
    "mdurl": "MIT",
    "pygments": "BSD",
    "shellingham": "ISC",
    "colorama": "BSD",
    "click": "BSD",
    # of safetensors and others, by version
    "annotated-types": "MIT",
    "pydantic": "MIT",
    "pydantic-core": "MIT",
    "typing-inspection": "MIT",
    "packaging": "Apache BSD",
}
OF_TORCH_WITH_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")  # NVIDIA's own licence: not from here
ALLOWED = {"MIT", "BSD", "0BSD", "Apache", "ISC", "PSF", "Zlib", "CC0", "BSL", "Unlicense"}


def closure(root):
    """Return the distributions that a plain install of `root` needs here, by name."""
    found, waiting = {}, [root]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or OF_TORCH_WITH_CUDA.fullmatch(name):
            continue
        found[name] = importlib.metadata.distribution(name)
        wanted = [Requirement(text) for text in found[name].requires or ()]
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def families(distribution):
    """Return the families of licences that a distribution's metadata name."""
    known = distribution.metadata
    texts = [known.get("License-Expression") or ""]
    texts += [one for one in known.get_all("Classifier", []) if one.startswith("License ::")]
    text = " ".join(texts) if any(texts) else (known.get("License") or "").splitlines()[0]
    words = {"Python Software Foundation": "PSF", "Boost": "BSL"}
    for long, short in words.items():
        text = text.replace(long, short)
    every = set(re.findall(r"[A-Za-z0-9]+(?=[-. ]|$|\))", text))
    bad = {one for one in every if re.fullmatch(r"[AL]?GPL.*|SSPL.*|EUPL.*|MPL.*|CDDL.*|Proprietary|Commercial", one)}
    return {one for one in ALLOWED if one in every} | bad


def test_nothing_unexpected_is_installed_and_every_licence_is_permissive():
    found = closure("gapscope")
    assert set(found) - {"gapscope"} <= set(EXPECTED), "look at the new ones, then add them"
    for name, distribution in found.items():
        told = families(distribution)
        assert told, f"{name} names no licence that is known: {distribution.metadata.get('License')}"
        assert told <= set(EXPECTED.get(name, "MIT").split()), (name, told)


@pytest.mark.parametrize("text", ["GPL-3.0-only", "LGPL-2.1", "AGPL-3.0", "MPL-2.0", "Proprietary"])
def test_a_licence_of_another_kind_would_be_seen(text, tmp_path):
    (tmp_path / "other-1.dist-info").mkdir()
    (tmp_path / "other-1.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: other\nVersion: 1\nLicense-Expression: {text}\n"
    )
    distribution = next(iter(importlib.metadata.distributions(path=[str(tmp_path)])))
    assert not families(distribution) <= ALLOWED


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both packages as an installer would, offline."""
    out = tmp_path_factory.mktemp("dist")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return out


def tracked(*folders):
    """Return the files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout to compare with")
    return set(listed.stdout.splitlines())


def test_the_wheel_holds_the_package_and_its_licences_and_nothing_else(built):
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert {name.split(".dist-info/")[1] for name in about} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
        "licenses/gapscope/measure/loading/digits.LICENSE",
    }
    assert names - about == tracked("gapscope")
    kinds = {Path(name).suffix for name in names - about}
    assert kinds == {".py", ".typed", ".toml", ".npz", ".LICENSE", ".bib"}


def test_the_source_package_holds_what_git_knows_and_nothing_else(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
        owners = {(member.uname, member.gname) for member in archive.getmembers()}
    assert names - {"PKG-INFO"} <= tracked()
    assert {"gapscope/__init__.py", "tests/conftest.py", "README.md", "LICENSE"} <= names
    assert owners == {("", "")}


def test_no_package_names_the_folder_it_was_built_in(built):
    for path in built.iterdir():
        with zipfile.ZipFile(path) if path.suffix == ".whl" else tarfile.open(path) as archive:
            if isinstance(archive, zipfile.ZipFile):
                contents = [archive.read(name) for name in archive.namelist()]
            else:
                contents = [archive.extractfile(one).read() for one in archive.getmembers() if one.isfile()]
        assert not [one for one in contents if str(ROOT).encode() in one]
