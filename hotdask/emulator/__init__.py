"""From labels to a normalized spectrum: broadening, the network, its training and its file."""

from hotdask.emulator.broadening import lsf_sigma, mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.weights import load_emulator, save_emulator

__all__ = ["LowRankEmulator", "load_emulator", "lsf_sigma", "mean_lsf", "save_emulator"]
