import numpy as np
import pytest
import torch


def test_a_trained_checkpoint_is_measured_without_a_flag(run, tmp_path):
    outcome = run("train", "--epochs", "2", "-a", "hidden=[8]", "-o", "x.pt", "-q")
    assert outcome.code == 0
    assert outcome.out.startswith("x.pt: 2 epochs done, after 82 steps; training loss ")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert set(content) == {"gapscope", "model", "initial"}
    assert content["gapscope"]["training"]["batch_size"] == 32
    assert run("gap", "x.pt", "-q").code == 0


def test_train_reads_its_own_table_and_the_keys_that_mean_the_same(run, tmp_path):
    (tmp_path / "gapscope.toml").write_text(
        'model-arg = { hidden = [4] }\nbatch-size = 100\noutput = "report.h5"\n'
        '[train]\nsteps = 3\nbatch-size = 13\noutput = "y.pt"'
    )
    outcome = run("train")
    assert outcome.code == 0
    assert "y.pt: 3 steps done" in outcome.out
    content = torch.load(tmp_path / "y.pt", weights_only=True)
    assert content["gapscope"]["training"]["batch_size"] == 13
    assert content["gapscope"]["model_args"] == {"hidden": [4]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Nothing stops this training. Expected `--epochs`, `--steps`, `--until-loss` or `--patience`."),
        (("--epochs", "0"), "epochs 0"),
        (("--epochs", "1", "--lr", "-1"), "rate -1.0"),
        (("--epochs", "1", "--batch-size", "0"), "batch size 0"),
        (("--epochs", "1", "--check-every", "0"), "looked at every 0 steps"),
        (("--epochs", "1", "--threads", "0"), "There are 0 threads"),
        (("--epochs", "1", "-o", "none/x.pt"), "The folder of none/x.pt does not exist"),
        (("--epochs", "1", "-m", "mpl"), "Did you mean `mlp`?"),
        (("--epochs", "1", "-d", "digit"), "Did you mean `digits`?"),
        (("--epochs", "1", "--lr", "1e30"), "The training loss became"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(run, tmp_path, words, message):
    outcome = run("train", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "checkpoint.pt").exists()


def test_labels_that_the_model_has_no_output_for_are_refused_before_training(run, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 64), np.float32), y=np.arange(6) + 9)
    outcome = run("train", "-d", "data.npz", "--epochs", "1", "-o", "net.pt")
    assert outcome.code == 2
    assert "has labels up to 14" in outcome.err
    assert not (tmp_path / "net.pt").exists()
