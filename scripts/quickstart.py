"""Simulate a small survey, run the whole pipeline on it, and say how well the labels came back."""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

import hotdask
from hotdask.cluster.client import open_client
from hotdask.cluster.progress import duration
from hotdask.config import Cluster, make_settings
from hotdask.errors import HotdaskError
from hotdask.pipeline.state import REPORT
from hotdask.report.page import recovery_table
from hotdask.simulation.visits import Simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="quickstart", help="new folder for survey and run")
    parser.add_argument("--stars", type=int, default=2000)
    parser.add_argument("--spectra", type=int, default=3000)
    parser.add_argument("--broken", type=int, default=24)
    parser.add_argument("--dashboard", default="127.0.0.1:8787", help="address of the dashboard; port 0: any free one")
    options = parser.parse_args()

    began = time.monotonic()
    folder = Path(options.folder)
    survey, out = folder / "survey", folder / "run"
    cluster = Cluster(dashboard=options.dashboard)
    simulation = Simulation(stars=options.stars, spectra=options.spectra, broken=options.broken)
    with open_client(cluster) as client:
        truth = survey / "truth.parquet"
        if truth.exists():
            print(f"the survey in {survey} is used again")
        else:
            hotdask.simulate(survey, simulation, client=client)
        settings = make_settings(
            {
                "out": str(out),
                "input": {"spectra": str(survey / "**" / "*.fits*")},
                "report": {"truth": str(truth)},
            }
        )
        hotdask.run(settings, client=client)

    catalog = hotdask.read_catalog(out)
    table = recovery_table(catalog, pd.read_parquet(truth))
    print()
    print("Scatter of recovered minus true labels, beside the Cramér-Rao bound. A self-consistency check: the emulator")
    print("that fits these stars also made them; reddening, velocity errors, LSF scatter and bad pixels were added.")
    print()
    print(f"{'label':<7}{'unit':<13}{'spectra':>8}{'scatter':>10}{'bound':>10}{'ratio':>7}{'pull':>7}")
    for label, row in table.iterrows():
        print(
            f"{label:<7}{row['unit']:<13}{row['n']:>8.0f}{row['scatter']:>10.3g}{row['crb']:>10.3g}"
            f"{row['ratio']:>7.2f}{row['pull']:>7.2f}"
        )
    print("ratio: scatter in units of each spectrum's own bound; pull: in units of its catalog error")
    print()
    print(f"catalog  {out / 'catalog'}    pd.read_parquet('{out / 'catalog'}', filters=[('teff', '>', 10000)])")
    print(f"report   {out / REPORT}    open it in a browser")
    print(f"time     {duration(time.monotonic() - began)}")


if __name__ == "__main__":
    try:
        main()
    except HotdaskError as error:
        sys.exit(f"quickstart: {error}")
