"""Launch a run on a Dask cluster from a script: connect to a scheduler, have Dask start a cluster, or start one here.

python scripts/launch.py SETTINGS.toml [--scheduler tls://HOST:8786 | --cluster deploy/PLACE/cluster.toml | --workers N]
"""

import argparse
import sys

import hotdask
from hotdask.errors import HotdaskError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", help="settings of the run (TOML)")
    parser.add_argument("--scheduler", help="address of a running scheduler")
    parser.add_argument("--cluster", help="cluster that Dask shall start (TOML: kind and arguments)")
    parser.add_argument("--certificates", help="folder that `hotdask certificates` made")
    parser.add_argument("--workers", type=int, help="workers of a cluster on this machine")
    options = parser.parse_args()

    settings = hotdask.load_settings(
        options.settings,
        cluster__scheduler=options.scheduler,
        cluster__start=options.cluster,
        cluster__certificates=options.certificates,
        cluster__workers=options.workers,
    )
    summary = hotdask.run(settings)
    counts = summary["counts"]
    print(f"{counts['files']} files: {counts['spectra']} spectra labelled, {counts['rejects']} rejected")
    print(f"catalog: {settings.out}/catalog, report: {settings.out}/report/index.html")


# Worker processes import this file: without the guard each would launch a run of its own.
if __name__ == "__main__":
    try:
        main()
    except HotdaskError as error:
        sys.exit(f"launch: {error}")
