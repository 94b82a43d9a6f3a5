"""Bad spectra and odd stars in a simulated survey: what chi2ratio finds, and what the residuals tell."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from hotdask import windows
from hotdask.emulator import load_emulator
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.schema import RESIDUALS
from hotdask.simulation import corruption
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits, make_spectra
from hotdask.steps.flag import catalog_flags, chi2_statistics, fit_chi2_model
from hotdask.steps.label import Labeler
from hotdask.steps.polynomial import assign_cells
from hotdask.steps.residuals import COMPANION_SHIFTS

EMULATOR = load_emulator()
LABELER = Labeler(EMULATOR)
TRUE = [f"{name}_true" for name in LABEL_NAMES]
VISIBLE = 0.5
"""A corrupted spectrum is visibly bad if its fit has a reduced χ² higher by this than that of the same spectrum, with
the same noise, before it was corrupted."""


@dataclass
class Observed:
    visits: pd.DataFrame
    flux: np.ndarray
    ivar: np.ndarray
    lsf: np.ndarray

    @property
    def rv_true(self) -> np.ndarray:
        return self.visits["rv_true"].to_numpy()

    def label(self, rows=slice(None), *, flux=None, rv=None) -> pd.DataFrame:
        flux = self.flux if flux is None else flux
        rv = self.visits["rv"].to_numpy() if rv is None else rv
        found = LABELER.label(flux[rows], self.ivar[rows], rv[rows], self.lsf[rows])
        return pd.DataFrame({k: v for k, v in found.items() if v.ndim == 1})


def observe(n: int, **settings) -> Observed:
    simulation = Simulation(**{"stars": n, "spectra": n, "broken": 0, "seed": 5, **settings})
    visits = draw_visits(simulation, draw_stars(simulation, EMULATOR))
    parts = [make_spectra(visits.iloc[i : i + 500], EMULATOR, simulation)[0] for i in range(0, n, 500)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ivar = LABELER.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    return Observed(visits, arrays["flux"], ivar, visits[list(LSF_NAMES)].to_numpy())


def corrupt(observed: Observed, kind: str, rows, rng) -> pd.DataFrame:
    """Fits of some spectra after something went wrong."""
    flux, rv = observed.flux.copy(), observed.visits["rv"].to_numpy().copy()
    n = np.arange(len(flux))[rows].size
    sign = rng.choice([-1, 1], n)
    if kind == "emission":
        flux[rows] = corruption.add_emission(flux[rows], observed.rv_true[rows], rng.uniform(1, 8, n))
    elif kind == "velocity":
        rv[rows] += sign * rng.uniform(100, 300, n)
    elif kind == "cosmic rays":
        flux[rows] = corruption.add_cosmic_rays(flux[rows], rng)
    elif kind == "calibration":
        flux[rows] = corruption.bend_calibration(flux[rows], rng)
    elif kind == "companion":
        flux[rows] = corruption.add_companion(flux[rows], sign * rng.uniform(180, 350, n), 0.35)
    return observed.label(rows, flux=flux, rv=rv)


KINDS = ("emission", "velocity", "cosmic rays", "calibration")


def judge(observed: Observed, fits: pd.DataFrame) -> pd.DataFrame:
    frame = fits.assign(**{name: observed.visits[name].to_numpy() for name in ("ra", "dec", "rv")})
    frame["snr_g"] = observed.visits["snr"].to_numpy()
    frame["cell"] = assign_cells(frame["teff"], frame["snr_g"])
    model = fit_chi2_model(chi2_statistics(frame))
    # Of a hundred spectra, no cell has enough to compare with.
    frame["chi2ratio"] = np.nan if model is None else model.ratio(frame["teff"], frame["snr_g"], frame["chi2_red"])
    return frame.assign(flags=catalog_flags(frame, min_teff=7000, min_snr=5, max_chi2ratio=10)["flags"])


def corrupted_survey(n: int, share: float, **settings) -> pd.DataFrame:
    """A survey of which a share is corrupted: its catalog, with ``kind`` and the ``excess`` of chi2_red."""
    observed, rng = observe(n, **settings), np.random.default_rng(6)
    fits = pd.concat([observed.label(slice(i, i + 1000)) for i in range(0, n, 1000)], ignore_index=True)
    clean, kind = fits["chi2_red"].copy(), np.full(n, "", dtype=object)
    chosen = rng.permutation(n)[: round(share * n)]
    for k, name in enumerate(KINDS):
        rows = np.sort(chosen[k :: len(KINDS)])
        kind[rows] = name
        fits.loc[rows] = corrupt(observed, name, rows, rng).set_index(rows)
    return judge(observed, fits.astype({"flags": "int32"})).assign(kind=kind, excess=fits["chi2_red"] - clean)


def raised(frame: pd.DataFrame, flag: Flag) -> np.ndarray:
    return (frame["flags"].to_numpy() & int(flag)) != 0


def check_survey(frame: pd.DataFrame) -> None:
    good = (frame["kind"] == "").to_numpy()
    bad = ~good & (frame["excess"] > VISIBLE).to_numpy() & np.isfinite(frame["chi2ratio"])
    found = raised(frame, Flag.BAD_CHI2)
    assert bad.sum() > 0.5 * (~good).sum()
    assert found[bad].mean() >= 0.9
    assert found[good].mean() <= 0.005
    for flag, kind in ((Flag.EMISSION, "emission"), (Flag.VELOCITY_SUSPECT, "velocity")):
        assert raised(frame, flag)[frame["kind"] == kind].mean() >= 0.9, kind
    for flag in (Flag.EMISSION, Flag.VELOCITY_SUSPECT, Flag.BINARY):
        assert raised(frame, flag)[good].mean() <= 0.005, flag


def test_bad_spectra_of_a_small_survey_are_found():
    check_survey(corrupted_survey(320, 0.05, teff=(8000.0, 10000.0), snr=(40.0, 100.0)))


@pytest.mark.long
def test_bad_spectra_of_a_survey_are_found():
    check_survey(corrupted_survey(3000, 0.02))


@pytest.fixture(scope="module")
def observed() -> Observed:
    return observe(96, snr=(60.0, 200.0))


@pytest.fixture(scope="module")
def fits(observed) -> pd.DataFrame:
    return observed.label()


def test_velocities_come_back_within_their_errors(observed, fits):
    for offset in (0.0, 20.0):
        found = fits if not offset else observed.label(rv=observed.visits["rv"].to_numpy() + offset)
        missing = observed.rv_true - observed.visits["rv"].to_numpy() - offset
        pull = (found["rv_shift"] - missing) / found["rv_shift_err"]
        low, middle, high = np.percentile(pull, [15.87, 50, 84.13])
        # The pattern is linear in velocity: of 20 km/s a little is lost.
        assert abs(middle) < (0.4 if not offset else 0.8)
        assert 0.75 < (high - low) / 2 < 1.4


def test_emission_is_measured(observed, fits):
    width = np.full(len(fits), 4.0)
    found = observed.label(flux=corruption.add_emission(observed.flux, observed.rv_true, width))
    gained = found["halpha_excess"] - fits["halpha_excess"]
    # The fit follows with shallower lines, and the wings lie outside the core.
    assert 0.6 < np.nanmedian(gained) / 4.0 < 1.0
    whole = np.isfinite(gained)
    assert (gained[whole] > 1.0).mean() > 0.97
    assert (found["halpha_excess_err"][whole] < 0.2).mean() > 0.9


def test_companions_are_told_from_single_stars(observed, fits):
    double = corrupt(observed, "companion", slice(None), np.random.default_rng(8))
    single = fits["binary_score"]
    assert np.percentile(single, 98) < 15
    assert np.median(double["binary_score"]) > 10 * max(np.median(single), 1.0)

    def flagged(frame: pd.DataFrame, flags: Flag) -> np.ndarray:
        return raised(judge(observed, frame.astype({"flags": "int32"})), flags)

    assert not flagged(fits, Flag.BINARY).any()
    # A faint one leaves lines of its own; one with a third of the light takes the fit with it.
    shift = np.random.default_rng(9).uniform(180, 350, len(fits))
    faint = observed.label(flux=corruption.add_companion(observed.flux, shift, 0.15))
    assert flagged(faint, Flag.BINARY).mean() > 0.6
    assert flagged(double, Flag.BINARY).mean() > 0.25
    assert flagged(double, Flag.BINARY | Flag.VELOCITY_SUSPECT).mean() > 0.97


KIND_LABELS = {
    Flag.HALO: {"fe_h": -1.7, "teff": 9000.0, "vsini": 20.0},
    Flag.PECULIAR: {"fe_h": 0.45, "si_h": 0.8, "vsini": 60.0, "teff": 11000.0},
    Flag.SUBDWARF: {"logg": 5.4, "teff": 22000.0},
    Flag.NLTE: {"teff": 33000.0},
}


def test_kinds_of_stars_are_those_that_were_made():
    """Completeness and purity of flags by labels, among as many ordinary stars."""
    n = 40
    observed = observe(2 * n * len(KIND_LABELS), snr=(50.0, 150.0), teff=(8000.0, 20000.0))
    visits = observed.visits.assign(dec=80.0)
    kinds = np.repeat([*KIND_LABELS, None], [*[n] * len(KIND_LABELS), n * len(KIND_LABELS)])
    for kind, labels in KIND_LABELS.items():
        for name, value in labels.items():
            visits.loc[kinds == kind, f"{name}_true"] = value
    arrays, _ = make_spectra(visits, EMULATOR, Simulation(seed=5))
    ivar = LABELER.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    made = Observed(visits, arrays["flux"], ivar, observed.lsf)
    found = judge(made, made.label().astype({"flags": "int32"}))
    for kind in KIND_LABELS:
        flagged, is_one = raised(found, kind), kinds == kind
        assert flagged[is_one].mean() > 0.85, kind
        assert is_one[flagged].mean() > 0.8, kind


def test_shift_and_score_are_those_of_least_squares(observed, fits):
    """Against numpy's solution with all labels, the velocity and one companion as columns."""
    prepared = LABELER.prepare(
        observed.flux[:8], observed.ivar[:8], observed.visits["rv"].to_numpy()[:8], observed.lsf[:8]
    )
    labels = fits[[f"{name}_all" for name in LABEL_NAMES]].to_numpy()[:8]
    model, jacobian = EMULATOR.flux_and_jacobian(labels, prepared.lsf)
    frequency = 2 * np.pi * np.fft.rfftfreq(windows.N_REST)
    fitted = ~windows.inside(windows.rest_wavelength(), windows.FIT_MASK)
    pixel = windows.SPEED_OF_LIGHT * np.log(10) * windows.LOG_STEP
    for i in range(8):
        # The spectrum's ends are masked, so that it may be taken as periodic.
        slope = np.fft.irfft(1j * frequency * np.fft.rfft(model[i] - 1), windows.N_REST) / -pixel
        root = np.sqrt(prepared.ivar[i]) * fitted
        residual = (prepared.flux[i] - model[i]) * root

        def fit(*patterns, i=i, root=root, residual=residual):
            scale = np.linalg.norm(jacobian[i] * root, axis=1)[:, None]
            design = (np.vstack([jacobian[i] / scale, *patterns]) * root).T
            amplitude, chi2, _, _ = np.linalg.lstsq(design, residual, rcond=None)
            error = np.sqrt(np.linalg.inv(design.T @ design)[11, 11])
            return amplitude[11:], error, chi2[0]

        shift, error, chi2 = fit(slope)
        # The fit's covariance takes weights as constant over four pixels, hence the tolerances.
        assert fits["rv_shift_err"][i] == pytest.approx(error, rel=0.03)
        assert fits["rv_shift"][i] == pytest.approx(shift[0], abs=0.1 * error)
        gain = 0.0
        for k in COMPANION_SHIFTS:
            amplitude, _, better = fit(slope, np.roll(model[i], k) - model[i])
            gain = max(gain, chi2 - better if amplitude[1] > 0 else 0.0)
        expected = np.sqrt(gain / max(fits["chi2_red_all"][i], 1))
        assert np.sqrt(fits["binary_score"][i]) == pytest.approx(expected, rel=0.05, abs=0.15)


def test_residuals_do_not_depend_on_company(observed, fits):
    names = [c.name for c in RESIDUALS]
    some = observed.label(np.array([40, 3, 77]))
    np.testing.assert_array_equal(some[names], fits[names].iloc[[40, 3, 77]])


def test_what_was_not_seen_is_not_judged(observed, fits):
    ivar = observed.ivar.copy()
    wavelength = windows.observed_wavelength()
    ivar[0] = 0
    ivar[1, (wavelength > 6550) & (wavelength < 6575)] = 0
    rows = slice(0, 2)
    seen = Observed(observed.visits[rows], observed.flux[rows], ivar[rows], observed.lsf[rows])
    found = seen.label()[[c.name for c in RESIDUALS]]
    assert found.iloc[0].isna().all()
    assert found.columns[found.iloc[1].isna()].tolist()[:2] == ["halpha_excess", "halpha_excess_err"]
    assert np.isfinite(found["rv_shift"][1])
