"""Settings of distributed that a run wants, and the YAML that gives them to processes started by hand."""

import yaml

DASK: dict[str, str | int | bool] = {
    # A worker that dies twice in quick succession must come back; `tasks` ends a run whose workers are all gone.
    "distributed.deploy.lost-worker-timeout": "120s",
    "distributed.scheduler.allowed-failures": 3,
    # Distributed has workers give memory back after every array; what is asked for again at once costs twice the time.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**28,
}
"""By dotted name; ``deploy/distributed.yaml`` has them for schedulers and workers started by hand."""


def dask_yaml(settings: dict[str, str | int | bool]) -> str:
    """Settings by dotted name as a YAML file for ``DASK_CONFIG``.

    Examples
    --------
    >>> print(dask_yaml({"distributed.comm.require-encryption": True}), end="")
    distributed:
      comm:
        require-encryption: true
    """
    nested: dict = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return yaml.safe_dump(nested, sort_keys=False)
