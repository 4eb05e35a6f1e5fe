import pytest

from gapscope.cli import tables
from gapscope.cli.settings import parse_batch_size, parse_bytes, read_configuration
from gapscope.errors import UsageError


@pytest.fixture
def read(tmp_path):
    def read(own="", project=""):
        (tmp_path / "gapscope.toml").write_text(own)
        (tmp_path / "pyproject.toml").write_text(project)
        return read_configuration(tmp_path, tables)

    return read


def test_no_files_say_nothing(tmp_path):
    found = read_configuration(tmp_path, tables)
    assert (found.common, found.measure) == ({}, {})


def test_gapscope_toml_wins_over_pyproject_key_by_key(read):
    found = read(
        'seed = 1\n[measure.eigenvalues]\nk = 2\n[train]\nlr = 0.5\n[compare]\nlabels = "a,b"',
        "[tool.gapscope]\nseed = 7\nlimit = 9\n[tool.gapscope.measure.eigenvalues]\nk = 5\ntolerance = 0.1",
    )
    assert found.common == {"seed": "1", "limit": "9"}
    assert found.measure["eigenvalues"] == {"k": "2", "tolerance": "0.1"}
    assert found.commands["train"] == {"lr": "0.5"}
    assert found.commands["compare"] == {"labels": "a,b"}


def test_what_may_run_code_is_known_by_its_file(read):
    own = 'model = "net.py:Net"\ndata = "digits:size=32"\nloss = "mse"\ntrust-file = true\ntrust-embedded = false'
    found = read(own, '[tool.gapscope]\ntrusted = ["net:*"]')
    assert found.trusted == {
        ("", "[tool.gapscope] of pyproject.toml"): ["trusted"],
        ("", "gapscope.toml"): ["model", "trust-file"],
    }
    assert read('data = "data.npz"\nmodel = "mlp"').trusted == {}


def test_limits_of_both_files_add_up_key_by_key(read):
    found = read(
        '[gate]\nbaseline = "b.h5"\n[gate.thresholds]\n"eigenvalues/top" = { max = 50 }',
        '[tool.gapscope.gate.thresholds]\n"eigenvalues/top" = { max = 9, level = "warn" }\n"gap/*" = { min = 0 }',
    )
    assert found.thresholds == {"eigenvalues/top": {"max": 50, "level": "warn"}, "gap/*": {"min": 0}}
    assert found.commands["gate"] == {"baseline": "b.h5"}


def test_a_model_arg_table_is_a_list_of_arguments(read):
    found = read('model-arg = { hidden = [32, 16], activation = "tanh", bias = true, x = 1.5 }')
    assert found.common["model_arg"] == ["hidden=[32, 16]", 'activation="tanh"', "bias=true", "x=1.5"]
    assert read('model-arg = ["hidden=[32]"]').common["model_arg"] == ["hidden=[32]"]


def test_other_tables_of_pyproject_are_none_of_our_business(read):
    assert read("", "[tool.other]\nlimt = 3\n[project]\nname = 'x'").common == {}
    assert read("", "tool = 3").common == {}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("limt = 3", "unknown key `limt`. Did you mean `limit`?"),
        (
            "tolerance = 3",
            "unknown key `tolerance`. It belongs to [measure.curvature] or [measure.density] or [measure.eigenvalues]",
        ),
        ("[trian]\nlr = 1", "Did you mean `train`?"),
        ("[train]\nrate = 1", "[train] in gapscope.toml has an unknown key `rate`"),
        ('limit = "abc"', '`limit = "abc"`. Expected a whole number.'),
        ("limit = 3.5", "Expected a whole number."),
        ('split = "both"', 'Expected "train" or "test".'),
        ('trusted = "x"', 'Expected a list, like ["text"].'),
        ("json = 1", "Expected true or false."),
        (
            "[measure.eigenvalue]\nk = 3",
            "[measure.eigenvalue]. Expected one of [measure.adaptive-sharpness], [measure.curvature]",
        ),
        ("[measure.eigenvalues]\nkk = 3", "[measure.eigenvalues] in gapscope.toml has an unknown key `kk`"),
        ('[measure.eigenvalues]\nk = "x"', '[measure.eigenvalues] in gapscope.toml has `k = "x"`'),
        ("measure = 3", "gapscope.toml has 3 where a table is due. Expected [measure.NAME]."),
        ("[measure]\ngap = 3", "Expected [measure.gap]."),
        ("model-arg = { when = 1979-05-27 }", 'has `"1979-05-27"` for the model. Expected a number'),
        ("gate = 3", "gapscope.toml has 3 where a table is due. Expected [gate]."),
        ("[gate]\nthresholds = 3", "Expected [gate.thresholds]."),
        ("[gate]\nbase = 3", "[gate] in gapscope.toml has an unknown key `base`"),
        ('[gate.thresholds]\n"a/b" = 3', '"a/b" in [gate.thresholds] of gapscope.toml is 3. Expected a table'),
        ("limit = =", "gapscope.toml cannot be read"),
    ],
)
def test_what_a_file_cannot_say_is_refused(read, own, message):
    with pytest.raises(UsageError) as refused:
        read(own)
    assert message in str(refused.value)


def test_a_tool_table_that_is_none_is_refused(read):
    with pytest.raises(UsageError, match=r"pyproject.toml has 3 where a table is due. Expected \[tool.gapscope\]"):
        read("", "[tool]\ngapscope = 3")


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("2GiB", 2 << 30), ("4G", 4_000_000_000), ("12", 12)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "4 XB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="Expected bytes, like 500MB or 4GB"):
        parse_bytes(text)


def test_batch_sizes():
    assert parse_batch_size("auto") is None
    assert parse_batch_size("64") == 64
    for text in ("0", "many", "-3", "1.5"):
        with pytest.raises(UsageError, match="Expected a positive number or auto"):
            parse_batch_size(text)
