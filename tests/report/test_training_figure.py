"""The loss curve: what was measured is what is drawn."""

import numpy as np

from hotdask.report.training import loss_curve


def test_lines_are_the_losses():
    loss = {"train": [3.0, 1.0, 0.5, 0.4], "validation": [3.5, 1.5, 0.9, 1.1], "best": 3}
    axes = loss_curve(loss).axes[0]
    learned, validation, best = axes.lines
    for line, name in ((learned, "train"), (validation, "validation")):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
        np.testing.assert_array_equal(line.get_ydata(), loss[name])
    assert list(best.get_xdata()) == [3, 3]
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["learned", "validation", "best pass, 3"]


def test_one_pass(tmp_path):
    loss_curve({"train": [1.0], "validation": [2.0], "best": 1}).savefig(tmp_path / "loss.svg")
    assert b"<svg" in (tmp_path / "loss.svg").read_bytes()
