"""One run of LAMOST's, SDSS's and DESI's files: one row each, sound, and read again where it must be."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

import hotdask
from hotdask import windows
from hotdask.pipeline.execute import run
from hotdask.pipeline.plan import read_rejects
from hotdask.pipeline.verify import verify
from hotdask.readers.lamost import read_spectrum

N_LAMOST, N_SDSS, N_DESI = 12, 4, 9


def quiet(line: str) -> None:
    """An echo that says nothing."""


def write_sdss(path: Path, number: int, like) -> None:
    """Pixels of another survey's spectrum, in SDSS's tables."""
    log = np.log10(windows.observed_wavelength())
    pixels = {"flux": like.flux, "loglam": log, "ivar": like.ivar, "and_mask": 0 * log, "or_mask": 0 * log}
    made = [fits.Column(k, "J" if "mask" in k else "E", array=v) for k, v in pixels.items()]
    about = {"PLATE": 4055, "MJD": 55359, "FIBERID": number, "PLUG_RA": 241.5 + number, "PLUG_DEC": 5.0}
    about |= {"Z": like.meta["rv"] / windows.SPEED_OF_LIGHT, "Z_ERR": 1e-5}
    row = [fits.Column(k, "D" if isinstance(v, float) else "J", array=[v]) for k, v in about.items()]
    tables = [fits.BinTableHDU.from_columns(columns) for columns in (made, row)]
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(path)


def write_desi(coadds, folder: Path, spectra: list) -> Path:
    """Spectra of another survey as smooth curves in DESI's pixels; the last two are no use."""
    arms = coadds.make_arms(len(spectra))
    grid = windows.observed_wavelength()
    for i, spectrum in enumerate(spectra):
        good = spectrum.ivar > 0
        for camera, arrays in arms.items():
            at = coadds.wavelength(camera)
            arrays["FLUX"][i] = np.interp(at, grid[good], spectrum.flux[good])
            arrays["IVAR"][i] = np.median(spectrum.ivar[good])
    targets = 100 + np.arange(len(spectra))
    status = np.where(np.arange(len(spectra)) == len(spectra) - 1, 1 << 16, 0).astype(np.int32)
    kind = np.where(np.arange(len(spectra)) == len(spectra) - 2, b"SKY", b"TGT")
    path = coadds.write_coadd(
        folder / "coadd-main-bright-7.fits", targets, arms, fibermap={"COADD_FIBERSTATUS": status, "OBJTYPE": kind}
    )
    coadds.write_redrock(path, targets, Z=np.array([s.meta["rv"] for s in spectra]) / windows.SPEED_OF_LIGHT)
    return path


@pytest.fixture(scope="module")
def mixed(coadds, survey, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixed_surveys")
    for path in survey.good[:N_LAMOST]:
        shutil.copy2(path, folder)
    spectra = [read_spectrum(path) for path in survey.good[20 : 20 + N_SDSS + N_DESI]]
    for i, spectrum in enumerate(spectra[:N_SDSS]):
        write_sdss(folder / f"spec-4055-55359-000{i + 1}.fits", i + 1, spectrum)
    write_desi(coadds, folder, spectra[N_SDSS:])
    (folder / "coadd-main-dark-8.fits").write_bytes((folder / "coadd-main-bright-7.fits").read_bytes()[:5800])
    return folder


def test_one_row_each_and_all_of_it_sound(mixed, client, settings_for, hashes, tmp_path):
    settings = settings_for(tmp_path / "RUN", spectra=f"{mixed}/*.fits*", cube__partition_size=16)
    summary = run(settings, until="catalog", client=client, echo=quiet)
    kept = hotdask.read_catalog(settings.out)
    rejects = read_rejects(settings.out)
    assert summary["counts"]["files"] == N_LAMOST + N_SDSS + N_DESI + 1 == len(kept) + len(rejects)
    assert len(kept) == N_LAMOST + N_SDSS + N_DESI - 2
    assert kept["specid"].is_unique
    assert kept["teff"].notna().all()
    assert kept["specid"].str.contains("-DESI-main-bright-").sum() == N_DESI - 2
    assert kept["specid"].str.contains("-SDSS4055-").sum() == N_SDSS
    assert dict(zip(rejects["path"].str.rpartition("/")[2], rejects["reason"], strict=True)) == {
        "coadd-main-bright-7.fits#107": "not_a_target",
        "coadd-main-bright-7.fits#108": "no_good_pixels",
        "coadd-main-dark-8.fits": "truncated",
    }
    assert verify(settings.out, echo=quiet) == []
    power = pd.concat(pd.read_parquet(part) for part in sorted(Path(settings.out, "spectra").glob("*.parquet")))
    desi = power["planid"].str.startswith("DESI")
    assert (power.loc[~desi, "noise_power"] == 1).all()
    assert power.loc[desi, "noise_power"].between(0.2, 0.6).all()

    # Staged parts are gone: spectra of a partition that was lost come from their files once more.
    before = hashes(Path(settings.out, "catalog"))
    for receipt in Path(settings.out, "receipts", "ingest").glob("*.json"):
        receipt.unlink()
    run(settings, until="catalog", client=client, echo=quiet)
    assert hashes(Path(settings.out, "catalog")) == before
    assert verify(settings.out, echo=quiet) == []

    # A coadd that changed is another input.
    redrock = mixed / "redrock-main-bright-7.fits"
    redrock.write_bytes(redrock.read_bytes() + bytes(2880))
    with pytest.raises(hotdask.errors.RunError, match=r"7 changed|9 changed"):
        run(settings, until="catalog", client=client, echo=quiet)
