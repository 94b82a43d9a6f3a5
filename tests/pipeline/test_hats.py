"""The catalog as lsdb reads it; only where hats-import and lsdb are installed."""

import numpy as np
import pandas as pd
import pytest

from hotdask.errors import InputError
from hotdask.store.catalog import read_catalog


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
def test_lsdb_opens_the_catalog(finished, client, tmp_path):
    pytest.importorskip("hats_import")
    lsdb = pytest.importorskip("lsdb")
    from hotdask.pipeline.hats import export_hats

    assert export_hats(finished.folder, tmp_path / "hot", client=client, rows=100) == 240
    with client.as_current():
        catalog = lsdb.open_catalog(tmp_path / "hot")
        found = catalog.compute().set_index("specid")
    expected = read_catalog(finished.folder).set_index("specid")
    assert found.index.is_unique
    found = found.loc[expected.index]
    np.testing.assert_array_equal(found["teff"].to_numpy(float), expected["teff"])
    assert found["star_id"].tolist() == expected["star_id"].tolist()
    pd.testing.assert_index_equal(
        pd.Index(catalog.columns), pd.Index(expected.reset_index().columns), check_names=False
    )
    with pytest.raises(InputError, match="exists"):
        export_hats(finished.folder, tmp_path / "hot", client=client)
