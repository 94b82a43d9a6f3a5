"""One spectrum, or a few, in a notebook: labels without a run and without Dask."""
