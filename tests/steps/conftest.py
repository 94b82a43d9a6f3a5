"""A per-pixel emulator small enough to make on the spot."""

import numpy as np
import pytest
import torch

from hotdask import windows
from hotdask.emulator import PerPixelEmulator, load_emulator
from hotdask.emulator.perpixel import forward
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits

HIDDEN = 12
SHIPPED = load_emulator()


def draw_inputs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels inside the library, and line spreads."""
    simulation = Simulation(stars=n, spectra=n, broken=0, seed=seed)
    visits = draw_visits(simulation, draw_stars(simulation, SHIPPED))
    return visits[[f"{name}_true" for name in LABEL_NAMES]].to_numpy(), visits[list(LSF_NAMES)].to_numpy()


@pytest.fixture(scope="session")
def perpixel() -> PerPixelEmulator:
    """Random hidden layers, and the last layer that best imitates the shipped emulator."""
    rng = np.random.default_rng(3)
    n = windows.N_REST
    shapes = {
        "weight1": (n, HIDDEN, 17),
        "bias1": (n, HIDDEN),
        "weight2": (n, HIDDEN, HIDDEN),
        "bias2": (n, HIDDEN),
        "weight3": (n, HIDDEN),
        "bias3": (n,),
    }
    arrays = {name: rng.normal(0, 0.7, size=shape).astype(np.float32) for name, shape in shapes.items()}
    labels, lsf = draw_inputs(400, 2)
    _, features, _ = forward(
        [torch.from_numpy(array) for array in arrays.values()], SHIPPED.inputs(labels, lsf).float()
    )
    features = torch.cat([features, torch.ones_like(features[..., :1])], dim=2).double()
    target = torch.from_numpy(SHIPPED.flux(labels, lsf)).double().T[..., None]
    normal = features.transpose(1, 2) @ features + 1e-3 * torch.eye(HIDDEN + 1)
    last = torch.linalg.solve(normal, features.transpose(1, 2) @ target)[..., 0].float().numpy()
    arrays |= {"weight3": last[:, :-1].copy(), "bias3": last[:, -1].copy()}
    shared = ("input_center", "input_scale", "hull", "label_low", "label_high")
    return PerPixelEmulator(arrays | {name: SHIPPED.arrays[name] for name in shared}, SHIPPED.card)


@pytest.fixture(scope="session")
def draw():
    return draw_inputs
