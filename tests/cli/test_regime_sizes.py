import pytest

from gapscope.cli.regime_sizes import refuse_idle, regime_sizes
from gapscope.errors import UsageError


@pytest.mark.parametrize(
    ("given", "small", "large", "sizes"),
    [
        ("small,large", None, None, [32, 130]),
        ("large, small", 8, 65, [65, 8]),
        ("16,64,1300", None, None, [16, 64, 1300]),
    ],
)
def test_sizes_come_in_the_order_given(given, small, large, sizes):
    assert regime_sizes(given, 1300, small, large) == sizes


@pytest.mark.parametrize(
    ("given", "small", "large", "message"),
    [
        ("smal", None, None, "There is no regime `smal`. Did you mean `small`? Expected small, large or a batch size."),
        ("130,large", None, None, "has the batch sizes 130, 130. Expected each once."),
        ("8,1301", None, None, "The batch size is `1301` of 1,300 samples. Expected 1 to 1,300. Mend `--regimes`."),
        ("small", 0, None, "The batch size is `0` of 1,300 samples. Expected 1 to 1,300. Mend `--small-batch`."),
        ("large", None, 9999, "The batch size is `9999` of 1,300 samples. Expected 1 to 1,300. Mend `--large-batch`."),
    ],
)
def test_sizes_that_cannot_be_are_refused(given, small, large, message):
    with pytest.raises(UsageError) as error:
        regime_sizes(given, 1300, small, large)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "small", "large", "said"),
    [
        (None, None, 99, "`--large-batch 99` was given, and no regime `large`. Expected both or neither."),
        ("large,64", 8, 99, "`--small-batch 8` was given, and no regime `small`. Expected both or neither."),
    ],
)
def test_a_size_of_no_regime_is_refused(given, small, large, said):
    with pytest.raises(UsageError) as error:
        refuse_idle(given, small, large)
    assert str(error.value).startswith(said)


def test_a_size_of_a_regime_is_not():
    refuse_idle("small, large", 8, 99)
    refuse_idle(None, None, None)
