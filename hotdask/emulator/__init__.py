"""From labels to a normalized spectrum: broadening, the networks, their training and their files."""

from hotdask.emulator.base import Emulator
from hotdask.emulator.broadening import lsf_sigma, mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.perpixel import PerPixelEmulator
from hotdask.emulator.weights import load_emulator, save_emulator

__all__ = ["Emulator", "LowRankEmulator", "PerPixelEmulator", "load_emulator", "lsf_sigma", "mean_lsf", "save_emulator"]
