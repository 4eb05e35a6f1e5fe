"""What a name may become, and when nothing is imported."""

import os
import re
import sys
import types

import pytest

from gapscope.errors import LoadError
from gapscope.measure.loading.trust import (
    Trust,
    check_recorded,
    importable,
    resolve,
    resolve_recorded,
    safe_globals,
    signature,
)


def recorded(spec: str, *trusted: str, embedded: bool = False, kind: str = "model") -> object:
    return resolve_recorded(spec, kind=kind, builtins={"mlp": 1}, trust=Trust(trusted, embedded))


def test_a_user_may_name_a_module_a_file_and_a_dotted_attribute(folder):
    assert resolve("zoo:Net").__name__ == "Net"
    assert resolve("zoo.py:Net").__name__ == "Net"
    assert resolve("zoo:Net.forward").__name__ == "forward"
    assert resolve("math:pi") > 3


def test_a_file_is_loaded_once_and_again_after_an_edit(folder):
    first = resolve("zoo.py:Net")
    assert resolve(f"{folder}/zoo.py:Net") is first
    (folder / "zoo.py").write_text("Net = int\n")
    assert resolve("zoo.py:Net") is int


def test_a_file_finds_the_modules_beside_it_and_the_path_is_restored(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "beside_it.py").write_text("x = 5\n")
    (folder / "sub" / "main.py").write_text("from beside_it import x\n")
    before = list(sys.path)
    assert resolve("sub/main.py:x") == 5
    assert sys.path == before
    del sys.modules["beside_it"]


def test_a_module_is_found_though_the_time_of_its_folder_does_not_tell_that_it_is_new(folder):
    """As where it is written within one tick of a coarse clock; Python remembers what a folder held."""
    resolve("zoo:Net")
    before = folder.stat()
    (folder / "written_after_zoo.py").write_text("x = 5\n")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        assert resolve("written_after_zoo:x") == 5
    finally:
        sys.modules.pop("written_after_zoo", None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zoo", "`zoo` names no object. Expected `pkg.mod:attr` or `path/file.py:attr`."),
        (":Net", "`:Net` names no object."),
        ("zoo:", "`zoo:` names no object."),
        ("absent.sub:x", "There is no module `absent.sub` here or among the installed packages."),
        ("quits.py:x", "Importing `quits.py` raised SystemExit: 3. Fix that file first."),
        ("zooo:Net", "There is no module `zooo` here or among the installed packages. Did you mean `zoo`?"),
        ("zoo:Nett", "`zoo` has no `Nett`. Did you mean `Net`?"),
        ("zoo:qqqqqq", "`zoo` has no `qqqqqq`. It defines Net, not_a_module, broken"),
        ("plain.py:x1234567", "`plain.py` has no `x1234567`. It defines no function or class."),
        ("zo.py:Net", "Cannot read `zo.py`: No such file or directory. Did you mean `zoo.py`?"),
        (f"{'long' * 99}/zoo.py:Net", "/zoo.py`: File name too long. Expected `path/file.py:attr`."),
        ("bad.py:x", "Importing `bad.py` raised ZeroDivisionError: division by zero. Fix that file first."),
        ("bad:x", "Importing `bad` raised ZeroDivisionError: division by zero. Fix that import first."),
        ("quits:x", "Importing `quits` raised SystemExit: 3. Fix that import first."),
        ("needs:x", "Importing `needs` raised ModuleNotFoundError: No module named 'absent_package'."),
    ],
)
def test_a_name_that_does_not_resolve_says_why(folder, spec, message):
    (folder / "bad.py").write_text("1 / 0\n")
    (folder / "quits.py").write_text("raise SystemExit(3)\n")
    (folder / "needs.py").write_text("import absent_package\n")
    (folder / "plain.py").write_text("def __annotate__(form): return {}\n")  # as Python 3.14 adds it
    with pytest.raises(LoadError, match=re.escape(message)):
        resolve(spec)


def test_a_file_that_fails_leaves_none_of_its_own_modules_and_all_others(folder, monkeypatch):
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").write_text("import colorsys\n")
    (folder / "pkg" / "bad.py").write_text("from . import sibling\n1 / 0\n")
    (folder / "pkg" / "sibling.py").write_text("")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = set(sys.modules)
    with pytest.raises(LoadError, match="ZeroDivisionError"):
        resolve("pkg/bad.py:x")
    assert set(sys.modules) - before == {"colorsys"}


def test_the_folder_of_a_named_file_comes_before_the_current_one_and_both_before_installed_packages(folder):
    (folder / "sub").mkdir()
    for place, text in (("sub/beside_it.py", "x = 1"), ("beside_it.py", "x = 2"), ("colorsys.py", "y = 3")):
        (folder / place).write_text(text)
    (folder / "sub" / "main.py").write_text("from beside_it import x\nfrom colorsys import y\n")
    sys.modules.pop("colorsys", None)
    try:
        assert (resolve("sub/main.py:x"), resolve("sub/main.py:y")) == (1, 3)
    finally:
        for name in ("beside_it", "colorsys"):
            sys.modules.pop(name, None)


def test_only_the_folder_of_a_named_file_becomes_importable_with_the_current_one(folder):
    before = list(sys.path)
    for spec, folders in (("zoo:Net", [folder]), (":", [folder]), ("sub/net.py:Net", [folder / "sub", folder])):
        with importable(spec):
            assert sys.path == [*map(str, folders), *before]
        with importable(spec, cwd_first=False):
            assert sys.path == [*before, *map(str, folders[::-1])]
    assert sys.path == before


def test_a_recorded_builtin_needs_no_trust():
    assert recorded("mlp") == 1


@pytest.mark.parametrize("kind", ["model", "data", "test data", "loss"])
@pytest.mark.parametrize(
    "spec",
    ["os:system", "builtins:eval", "zoo:run", "zoo.py:run", "canary:build", "canary.py:build", "logging:os.system"],
)
def test_an_untrusted_recorded_name_is_refused_before_any_import(folder, kind, spec):
    with pytest.raises(
        LoadError, match=r"neither built into gapscope nor trusted by you. Nothing was imported."
    ) as error:
        recorded(spec, kind=kind)
    flag = {"model": "-m", "data": "-d", "test data": "--test-data", "loss": "--loss"}[kind]
    if spec in ("os:system", "builtins:eval"):
        assert f"can run any command: the file may be an attack. Name the {kind} yourself: `{flag} NAME`" in str(
            error.value
        )
        assert "trusted =" not in str(error.value)
    else:
        assert f"`{flag} {spec}`" in str(error.value)
        assert f'trusted = ["{spec}"]' in str(error.value)
        assert "--trust-embedded" in str(error.value)
    assert not (folder / "sang").exists()
    assert "canary" not in sys.modules
    assert "zoo" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "pattern", "real"),
    [
        ("logging:os.system", "logging:*", r"`(posix|nt):system`"),
        ("zoo:run", "zoo:*", r"`(posix|nt):system`"),
        ("zoo.py:run", "zoo.py:*", r"`(posix|nt):system`"),
        ("zoo:instance.forward", "zoo:instance*", "`zoo:Net.forward`"),
        ("zoo:instance", "zoo:instance", "`zoo:Net`"),
    ],
)
def test_a_trusted_name_for_another_modules_object_is_refused(folder, spec, pattern, real):
    with pytest.raises(LoadError, match=f"is really {real}, and no trusted pattern matches that"):
        recorded(spec, pattern)


def test_a_trusted_name_is_resolved(folder):
    assert recorded("zoo:Net", "zoo:*") is resolve("zoo:Net")
    assert recorded("zoo.py:Net", "zoo.py:*") is resolve("zoo.py:Net")
    assert recorded("zoo:run", embedded=True).__name__ == "system"


@pytest.mark.parametrize(
    "spec", ["os:system; rm", "../evil.py:x", "a/../b.py:x", "", "zoo:", "x\ny:z", "zoo:a-b", "1é:x", 7]
)
def test_a_recorded_name_of_another_form_is_refused_even_when_all_is_trusted(spec):
    with pytest.raises(
        LoadError, match=r"not of the form `pkg.mod:attr`. Nothing was imported. Name the model yourself"
    ):
        check_recorded(spec, kind="model", trust=Trust(("*",), embedded=True))


@pytest.mark.parametrize("spec", ["é:x", "e\u0301:x", "módulo.rede:Größe", "モデル.py:net"])
def test_a_recorded_name_may_have_letters_of_any_language(spec):
    check_recorded(spec, kind="model", trust=Trust((), embedded=True))


def test_a_recorded_name_has_at_most_300_letters():
    check_recorded("a" * 298 + ":b", kind="model", trust=Trust((), embedded=True))
    with pytest.raises(LoadError, match="not of the form"):
        check_recorded("a" * 299 + ":b", kind="model", trust=Trust((), embedded=True))


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("../data.npz", "../data.npz"),
        ("../my data", "'../my data'"),
        ("photos", "photos"),
        ("a/../dätä.npz", "'a/../dätä.npz'"),
        ("x\ny.npz", "NAME"),
        ("", "NAME"),
        ("d" * 301, "NAME"),
        (7, "NAME"),
    ],
)
@pytest.mark.parametrize(("kind", "flag"), [("data", "-d"), ("test data", "--test-data")])
def test_recorded_data_of_another_form_are_to_be_named(spec, named, kind, flag):
    with pytest.raises(LoadError) as error:
        check_recorded(spec, kind=kind, trust=Trust(("*",), embedded=True))
    assert str(error.value) == (
        f"The checkpoint records the {kind} {str(spec)[:60]!r}, a name that gapscope does not open on a checkpoint's "
        f"word alone. Expected a file below this folder. Name it: `{flag} {named}`."
    )


def test_a_recorded_data_file_is_trusted_by_its_path():
    check_recorded("dätä.npz", kind="data", trust=Trust(("dätä.npz",)))
    check_recorded("data/train set.npz", kind="data", trust=Trust(("data/*",)))
    with pytest.raises(LoadError, match="nor trusted"):
        check_recorded("/etc/x.npz", kind="data", trust=Trust(("data/*",)))


def test_an_installed_package_is_not_shadowed_by_a_file_beside_the_checkpoint(folder):
    (folder / "this.py").write_text("open('sang', 'w').close()\n")
    (folder / "antigravity.py").write_text("open('sang', 'w').close()\n")
    with pytest.raises(LoadError, match="has no `xyzzy`"):
        recorded("colorsys:xyzzy", "colorsys:*")
    (folder / "colorsys.py").write_text("xyzzy = 1; open('sang', 'w').close()\n")
    sys.modules.pop("colorsys")
    with pytest.raises(LoadError, match="has no `xyzzy`"):
        recorded("colorsys:xyzzy", "colorsys:*")
    assert not (folder / "sang").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("posix.system", "would let the file run any code"),
        ("builtins.eval", "would let the file run any code"),
        ("__main__.Config", "was defined by the script that saved the file and cannot be imported"),
        ("nowhere.deep.Thing", "names nothing importable. Expected `package.module.Class`"),
        ("nowhere.Thing", "names nothing importable. Expected `package.module.Class`"),
        ("argparse.Namespac", "`argparse` has no `Namespac`. Did you mean `Namespace`?"),
    ],
)
def test_an_extra_class_must_exist_and_be_harmless(name, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        safe_globals(Trust(allowed_globals=(name,)))


@pytest.mark.parametrize("line", ["raise RuntimeError('no display')", "raise SystemExit(3)"])
def test_an_extra_class_whose_package_does_not_import_says_why(folder, line):
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text(line)
    (folder / "pack" / "part.py").write_text("class Thing: ...")
    with pytest.raises(LoadError, match=r"Importing `pack` raised (RuntimeError: no display|SystemExit: 3)\. Fix that"):
        safe_globals(Trust(allowed_globals=("pack.part.Thing",)))


def test_an_extra_class_may_be_nested_or_builtin(folder):
    pairs = {name: thing for thing, name in safe_globals(Trust(allowed_globals=("zoo.Net", "complex")))}
    assert pairs["zoo.Net"].__name__ == "Net"
    assert pairs["complex"] is complex


def test_an_extra_class_may_be_of_a_module_that_was_made_while_running(monkeypatch):
    made = types.ModuleType("made_while_running")
    made.Thing = type("Thing", (), {})
    monkeypatch.setitem(sys.modules, "made_while_running", made)
    assert (made.Thing, "made_while_running.Thing") in safe_globals(
        Trust(allowed_globals=("made_while_running.Thing",))
    )


@pytest.mark.skipif(sys.version_info < (3, 14), reason="earlier, such a function cannot even be defined")
def test_annotations_for_type_checkers_alone_are_not_looked_up(folder):
    (folder / "typed.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from decimal import Decimal\n"
        "def build(width: Decimal = 3) -> Decimal: ...\n"
    )
    assert list(signature(resolve("typed.py:build")).parameters) == ["width"]
