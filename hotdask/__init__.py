"""Stellar labels for hot stars, for a whole spectroscopic survey, on Dask."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "run": "hotdask.pipeline.execute",
    "simulate": "hotdask.simulation.survey",
    "train": "hotdask.emulator.training",
    "status": "hotdask.pipeline.status",
    "read": "hotdask.readers.generic",
    "label": "hotdask.single.label",
    "Spectrum": "hotdask.spectra.spectrum",
    "load_settings": "hotdask.config",
    "make_settings": "hotdask.config",
    "Labeler": "hotdask.steps.label",
    "load_emulator": "hotdask.emulator",
    "cramer_rao_bound": "hotdask.steps.information",
    "open_cube": "hotdask.store.cube",
    "read_catalog": "hotdask.store.catalog",
    "read_covariance": "hotdask.pipeline.covariance",
    "read_rejects": "hotdask.pipeline.plan",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    # Torch and Dask take seconds to import; nobody should wait for what they do not use.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hotdask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
