"""Everything about Dask that is not the survey: clients, tasks on clusters that lose workers, signals, certificates."""
