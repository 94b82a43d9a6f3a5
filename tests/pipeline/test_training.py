"""`hotdask train`: an emulator, its card and its loss curve, from a library file."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hotdask.cli import main
from hotdask.emulator import LowRankEmulator, PerPixelEmulator, load_emulator

N = 24
OPTIONS = ("--passes", "3", "--draws", "2", "--hidden", "4")
INVERSE = ("--inverse-draws", "400", "--inverse-passes", "1")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library file of lines whose depths answer to Teff and iron."""
    rng = np.random.default_rng(0)
    names = ["teff", "logg", "fe_h", "vmic", "n_he", "c_fe", "n_fe", "o_fe", "si_fe", "s_fe"]
    low = np.array([8000, 3, -1, 0, 0.05, -1, -1, -1, -1, -1.0])
    high = np.array([20000, 5, 0.5, 10, 0.2, 1, 1, 1, 1, 1.0])
    unit = rng.random((N, 10))
    depth = 0.1 + 0.4 * unit[:, :1] + 0.3 * unit[:, 2:3]
    pixel = np.arange(19216)
    lines = np.exp(-0.5 * ((pixel % 1500 - 750) / 12) ** 2)
    path = tmp_path_factory.mktemp("library") / "made_up.npz"
    np.savez(
        path,
        residual_intensity=np.round(60000 * (1 - depth * lines)).astype(np.uint16),
        continuum=np.tile(np.linspace(2, 1, 257), (N, 1)).astype(np.float32),
        labels=low + unit * (high - low),
        label_names=np.array(names),
    )
    return path


def train(library: Path, out: Path, *options: str) -> Result:
    few = OPTIONS if "--architecture" in options else (*OPTIONS, *INVERSE)
    return CliRunner().invoke(main, ["train", str(library), "--out", str(out), *few, *options])


def test_low_rank(library, tmp_path):
    out = tmp_path / "one.safetensors"
    result = train(library, out, "--basis", "6", "--seed", "5")
    assert result.exit_code == 0, result.output
    emulator = load_emulator(out)
    assert isinstance(emulator, LowRankEmulator)
    assert (emulator.n_basis, emulator.card["training"]["hidden"], emulator.card["training"]["seed"]) == (6, 4, 5)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"one.safetensors", "one.md", "one.loss.csv", "one.loss.svg"}
    assert emulator.id in result.output
    card = (tmp_path / "one.md").read_text(encoding="utf-8")
    assert card.startswith(f"# Emulator {emulator.id}\n")
    for text in ("Balmer cores", "What limits it", "--seed 5 --passes 3 --draws 2 --hidden 4 --basis 6", "made_up.npz"):
        assert text in card
    with (tmp_path / "one.loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation"]) for row in rows] == emulator.card["loss"]["validation"]
    assert [int(row["pass"]) for row in rows] == [1, 2, 3]
    # The residual over all pixels, which the table of the card has too, comes first.
    every, fitted = (f"{100 * emulator.card['residuals'][name]:.3f} %" for name in ("every", "all"))
    assert 0 < result.output.index(f"over all pixels {every}") < result.output.index(f"over fitted pixels {fitted}")
    assert f"| **all** | **{every.removesuffix(' %')}** |" in card
    assert f"Standard deviations: {100 * emulator.card['residuals']['rms_every']:.3f} % over all pixels" in card
    assert f"s on `cpu`,\n{emulator.card['cpu_seconds']} CPU-seconds." in card


@pytest.mark.parametrize("suffix", [".safetensors", ".md", ".loss.csv", ".loss.svg"])
def test_nothing_is_overwritten(library, tmp_path, suffix):
    taken = tmp_path / f"one{suffix}"
    taken.write_text("mine")
    result = train(library, tmp_path / "one.safetensors")
    assert result.exit_code == 2
    assert f"{taken} exists" in " ".join(result.output.split())
    assert taken.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [taken]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("one.md", (), "ends in .safetensors"),
        ("one", (), "ends in .safetensors"),
        ("absent/one.safetensors", (), "absent; make it first"),
        ("one.safetensors", ("--checkpoint", "absent/state"), "no folder absent; make it first"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_at_once(library, tmp_path, out, options, message):
    result = train(library, tmp_path / out, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--passes", "--draws", "--hidden", "--pixels", "--basis", "--inverse-draws"])
def test_sizes_are_positive(library, tmp_path, option):
    result = train(library, tmp_path / "one.safetensors", option, "0")
    assert result.exit_code == 1
    assert "= 0; give at least 1" in result.output


def test_a_single_pass_is_a_pass(library, tmp_path):
    out = tmp_path / "one.safetensors"
    result = train(library, out, "--passes", "1", "--basis", "6")
    assert result.exit_code == 0, result.output
    assert "best validation loss in pass 1 of 1" in result.output


def test_an_emulator_outlives_its_plot(library, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    out = tmp_path / "one.safetensors"
    result = train(library, out, "--basis", "6")
    assert isinstance(result.exception, OSError)
    assert load_emulator(out).n_basis == 6


def test_per_pixel(library, tmp_path):
    out, settings = tmp_path / "pixels.safetensors", tmp_path / "settings.toml"
    settings.write_text("[normalize]\nscale = 40.0\nexclude = [[4000.0, 4010.0]]\n")
    options = ("--architecture", "perpixel", "--pixels", "2000")
    result = train(library, out, *options, "--settings", str(settings))
    assert result.exit_code == 0, result.output
    emulator = load_emulator(out)
    assert isinstance(emulator, PerPixelEmulator)
    assert emulator.arrays["weight2"].shape == (3801, 4, 4)
    card = (tmp_path / "pixels.md").read_text(encoding="utf-8")
    assert "One network (17 → 4 → 4 → 1) for each pixel" in card
    # The command made of the card makes the same networks.
    command = re.search(r"`hotdask (train .*) --settings SETTINGS`", card)[1].split()
    assert "--basis" not in command
    command[command.index("made_up.npz")] = str(library)
    command[command.index("FILE")] = str(tmp_path / "again.safetensors")
    (tmp_path / "again.toml").write_text(re.search(r"```toml\n(\[normalize\].*?)```", card, re.DOTALL)[1])
    result = CliRunner().invoke(main, [*command, "--settings", str(tmp_path / "again.toml")])
    assert result.exit_code == 0, result.output
    again = load_emulator(tmp_path / "again.safetensors")
    assert again.card["training"] == emulator.card["training"]
    for name, array in emulator.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)


class TestResume:
    def test_nothing_to_resume(self, library, tmp_path):
        result = train(library, tmp_path / "one.safetensors", "--resume")
        assert result.exit_code == 2
        assert "leave out --resume" in result.output

    def test_a_checkpoint_is_not_overlooked(self, library, tmp_path):
        (tmp_path / "one.checkpoint").write_bytes(b"")
        result = train(library, tmp_path / "one.safetensors")
        assert result.exit_code == 2
        assert "give --resume, or remove it" in result.output

    def test_a_damaged_one_is_said(self, library, tmp_path):
        (tmp_path / "state").write_bytes(b"nothing")
        result = train(library, tmp_path / "one.safetensors", "--resume", "--checkpoint", str(tmp_path / "state"))
        assert result.exit_code == 1
        assert "not a checkpoint of a training" in result.output
