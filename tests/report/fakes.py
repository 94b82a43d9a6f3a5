"""Catalogs, spectra and tables as a run might give them, and what an HTML parser finds in a page."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd

from hotdask import schema
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES, LABELS
from hotdask.report import figures, spectrum
from hotdask.windows import inside, rest_wavelength

VOID = {"meta", "link", "img", "br", "hr", "input"}
N = 3300
REASONS = {"NOT_FITS": "The file is no FITS file.", "NO_DATA": "No pixel has ivar > 0."}


def fake_catalog(n: int = N, seed: int = 1) -> pd.DataFrame:
    """A catalog a survey of hot stars might give: dwarfs and giants, repeat visits, some cut, some bad."""
    rng = np.random.default_rng(seed)
    star = np.arange(n) // 2
    n_star = n // 2 + 1
    teff = 7000 + 3500 * rng.gamma(1.2, 1.1, n_star)
    truth = {lb.name: rng.normal(lb.start, 0.02 if lb.name == "n_he" else 0.2, n_star) for lb in LABELS}
    truth |= {
        "teff": teff,
        "logg": np.clip(
            rng.normal(4.1, 0.25, n_star) - rng.exponential(0.35, n_star) * (rng.random(n_star) < 0.4), 1, 5
        ),
        "vmic": rng.uniform(0, 8, n_star),
        "vsini": np.abs(rng.normal(120, 80, n_star)) * np.clip(12000 / teff, 0.2, 2),
        "fe_h": rng.normal(-0.1, 0.25, n_star),
    }
    snr = np.clip(10 ** rng.normal(1.7, 0.35, n), 2, 900)
    frame = schema.empty_frame(schema.CATALOG).reindex(range(n))
    size = dict(zip(LABEL_NAMES, (150, 0.06, 0.6, 12, 0.01, 0.1, 0.2, 0.15, 0.12, 0.2, 0.08), strict=True))
    for name in LABEL_NAMES:
        error = size[name] * 60 / snr * (truth["teff"][star] / 10000 if name == "teff" else 1)
        frame[f"{name}_err"] = error
        for column in (name, f"{name}_all", f"{name}_hmasked"):
            frame[column] = truth[name][star] + error * rng.standard_t(8, n)
    frame["vsini"] = frame["vsini"].clip(lower=0)
    flags = np.where(rng.random(n) < 0.02, Flag.BAD_CHI2.value, 0) | np.where(snr < 5, Flag.LOW_SNR.value, 0)
    flags |= np.where(frame["teff"] < 7000, Flag.COOL.value, 0) | np.where(
        frame["logg"] > 5, Flag.OUTSIDE_LIBRARY.value, 0
    )
    return frame.assign(
        specid=[f"55859-F5902-{i // 250:02d}-{i:04d}" for i in range(n)],
        obsid=np.arange(n),
        fitsname="spec.fits",
        star_id=[f"S{s:05d}" for s in star],
        uniqflag=(np.arange(n) % 2 + 1).astype("int32"),
        snr_g=snr.astype("float32"),
        mjd=(55859 + np.arange(n) % 2).astype("int32"),
        chi2_red=rng.chisquare(300, n) / 300 * np.where(flags & Flag.BAD_CHI2.value, 9, 1.1),
        chi2ratio=rng.normal(0, 1, n) + np.where(flags & Flag.BAD_CHI2.value, 14, 0),
        flags=flags.astype("int32"),
        in_sample=(flags & (Flag.LOW_SNR | Flag.COOL)) == 0,
        rv=0.0,
        **{f"corr_{a}_{b}": 0.1 for a, b in (("teff", "logg"),)},
    )


def fake_truth(catalog: pd.DataFrame, seed: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {"specid": catalog["specid"].to_numpy(object)}
    for lb in LABELS:
        error = catalog[f"{lb.name}_err"].to_numpy()
        columns[f"{lb.name}_true"] = catalog[lb.name].to_numpy() - error * rng.standard_normal(len(catalog))
        columns[f"{lb.name}_crb"] = 0.8 * error
    return pd.DataFrame(columns).sample(frac=1, random_state=3)


def fake_spectrum(number: int = 1, title: str = "An A star") -> spectrum.SpectrumView:
    rng = np.random.default_rng(number)
    wavelength = rest_wavelength()
    model = np.ones(wavelength.size)
    for center, name in figures.STRONG_LINES:
        hydrogen = name.startswith(("H", "Pa")) and not name.startswith("He")
        depth, width = (0.55, 12.0) if hydrogen else (0.12 * rng.random(), 3.0)
        model *= 1 - depth / (1 + ((wavelength - center) / width) ** 2)
    sigma = 0.012 * (1 + ((wavelength - 6500) / 2500) ** 2)
    ivar = np.where(rng.random(wavelength.size) < 0.01, 0.0, sigma**-2)
    return spectrum.SpectrumView(
        specid=f"55859-F5902-01-{number:03d}",
        wavelength=wavelength,
        flux=(model + sigma * rng.standard_normal(wavelength.size)).astype("float32"),
        ivar=ivar.astype("float32"),
        model_all=model,
        model_hmasked=model * (1 + 0.02 * np.sin(wavelength / 40) * inside(wavelength, figures.windows.HYDROGEN)),
        used=(ivar > 0) & ~inside(wavelength, figures.windows.FIT_MASK),
        labels={lb.name: lb.start for lb in LABELS},
        errors=dict(zip(LABEL_NAMES, (87.3, 0.045, 0.3, 12, 0.011, 0.1, np.nan, 0.15, 0.12, 0.2, 0.08), strict=True)),
        chi2_red=1.07,
        flags=int(Flag.REFITTED | Flag.OUTSIDE_LIBRARY),
        title=title,
    )


def fake_rejects() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": ["/data/a.fits", "/data/b.fits", "/data/c.fits"],
            "fitsname": ["a.fits", "b.fits", "<script>c.fits"],
            "specid": ["", "", ""],
            "reason": ["NOT_FITS", "NO_DATA", "NO_DATA"],
            "detail": ["starts with PK; unpack it first", "3909 pixels, all ivar 0", "no <b>data</b>"],
        }
    )


class Page(HTMLParser):
    """What a browser would take from the page; refuses tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, dict]] = []
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        opened = self.open.pop()[0]
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        for _, _, words in self.open:
            words.append(data)

    def find(self, tag=None, **attributes):
        return [
            (t, a, " ".join("".join(w).split()))
            for t, a, w in self.elements
            if (tag is None or t == tag) and all(a.get(k.replace("_", "-")) == v for k, v in attributes.items())
        ]

    def text(self, tag=None, **attributes) -> str:
        (found,) = self.find(tag, **attributes)
        return found[2]

    def number(self, **attributes) -> int:
        return int(re.sub(r"\D", "", self.text(**attributes)))
