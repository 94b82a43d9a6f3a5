"""What the pages of a finished run are made of, against other ways to the same numbers."""

import numpy as np

from hotdask.emulator import load_emulator
from hotdask.labels import LABEL_NAMES
from hotdask.pipeline.pages import catalog_of, label_bounds, spectrum_views
from hotdask.steps.flag import galactic_latitude
from hotdask.steps.information import cramer_rao_bound
from hotdask.store.catalog import read_catalog


def test_bounds_are_those_of_each_spectrums_own_noise(finished, survey):
    """By the emulator's gradients in pixels at the fitted labels; and by those of the simulation at the true ones."""
    catalog = read_catalog(finished.folder)
    bounds = label_bounds(finished.folder)
    assert sorted(bounds["specid"]) == sorted(catalog["specid"])
    chosen = catalog[catalog["in_sample"]].iloc[:40:5]
    views = spectrum_views(finished.folder, finished.settings, load_emulator().id, chosen)
    assert [view.specid for view in views] == chosen["specid"].tolist()
    ours = bounds.set_index("specid").loc[chosen["specid"], [f"{name}_crb" for name in LABEL_NAMES]].to_numpy()
    labels = chosen[[f"{name}_all" for name in LABEL_NAMES]].to_numpy()
    direct = cramer_rao_bound(load_emulator(), labels, np.array([view.ivar for view in views]))
    np.testing.assert_allclose(ours, np.sqrt(np.diagonal(direct, axis1=1, axis2=2)), rtol=0.05)

    both = bounds.merge(survey.truth, on="specid", suffixes=("", "_simulated"))
    for name in LABEL_NAMES:
        ratio = both[f"{name}_crb"] / both[f"{name}_crb_simulated"]
        # Of a star whose lines of an element are too weak to be seen, what is fitted and what is true differ most.
        assert abs(np.median(ratio) - 1) < 0.07, name


def test_pages_know_how_far_a_star_is_from_the_plane(finished):
    catalog = catalog_of(finished.folder)
    latitude = galactic_latitude(catalog["ra"].to_numpy(), catalog["dec"].to_numpy())
    np.testing.assert_array_equal(catalog["abs_b"], np.abs(latitude))
    assert "bp_rp" not in catalog
