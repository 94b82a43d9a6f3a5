"""Launch a run on a Dask cluster from a script: connect to a scheduler, or start a cluster on this machine.

python scripts/launch.py SETTINGS.toml [--scheduler tls://host:8786 | --workers N]
"""

import argparse
import sys

import hotdask
from hotdask.errors import HotdaskError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", help="settings of the run (TOML)")
    parser.add_argument("--scheduler", help="address of a running scheduler")
    parser.add_argument("--workers", type=int, help="workers of a cluster on this machine")
    options = parser.parse_args()

    settings = hotdask.load_settings(
        options.settings, cluster__scheduler=options.scheduler, cluster__workers=options.workers
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
    except KeyboardInterrupt:
        print("launch: stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
