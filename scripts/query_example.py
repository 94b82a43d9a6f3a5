"""Five questions to a catalog, asked with pandas.

python scripts/query_example.py RUN
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from hotdask.flags import Flag


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    catalog = Path(parser.parse_args().run) / "catalog"

    print("1. How many hot stars are there, by temperature? (one row a star: its best spectrum)")
    stars = pd.read_parquet(
        catalog, columns=["teff", "snr_g"], filters=[("in_sample", "==", True), ("uniqflag", "==", 1)]
    )
    classes = pd.cut(stars["teff"], [7000, 10000, 15000, 20000, 30000, np.inf], right=False)
    print(stars.groupby(classes, observed=True)["snr_g"].agg(stars="size", median_snr="median").round(1), end="\n\n")

    print("2. Which B stars rotate fastest, surely?")
    columns = ["star_id", "teff", "logg", "vsini", "vsini_err", "snr_g", "flags"]
    b_stars = pd.read_parquet(catalog, columns=columns, filters=[("teff", ">", 10000), ("in_sample", "==", True)])
    clean = b_stars[b_stars["flags"] & int(Flag.BAD_CHI2 | Flag.NOT_CONVERGED | Flag.AT_BOUND) == 0]
    fast = clean[clean["vsini"] > 5 * clean["vsini_err"]].nlargest(5, "vsini")
    print(fast.drop(columns="flags").round(2).to_string(index=False), end="\n\n")

    print("3. How precise are the labels at S/N above and below 50?")
    errors = ["teff_err", "logg_err", "vsini_err", "fe_h_err", "si_h_err"]
    sample = pd.read_parquet(catalog, columns=["snr_g", *errors], filters=[("in_sample", "==", True)])
    side = np.where(sample["snr_g"] > 50, "S/N > 50", "S/N <= 50")
    print(sample.groupby(side)[errors].median().round(3), end="\n\n")

    print("4. Which stars changed temperature between visits by more than their errors allow?")
    visits = pd.read_parquet(
        catalog, columns=["star_id", "mjd", "teff", "teff_err"], filters=[("in_sample", "==", True)]
    )
    visits["weight"] = visits["teff_err"] ** -2.0
    visits["weighted"] = visits["teff"] * visits["weight"]
    sums = visits.groupby("star_id")[["weight", "weighted"]].transform("sum")
    visits["chi2"] = (visits["teff"] - sums["weighted"] / sums["weight"]) ** 2 * visits["weight"]
    per_star = visits.groupby("star_id").agg(visits=("mjd", "nunique"), chi2=("chi2", "sum"), teff=("teff", "mean"))
    repeated = per_star[per_star["visits"] > 1]
    variable = repeated[repeated["chi2"] / (repeated["visits"] - 1) > 9]
    print(f"{len(variable)} of {len(repeated)} stars with repeat visits")
    print(variable.nlargest(5, "chi2").round(1), end="\n\n")

    print("5. Where are the chemically peculiar candidates: iron- and silicon-rich, slowly rotating?")
    columns = ["star_id", "ra", "dec", "teff", "vsini", "fe_h", "fe_h_err", "si_h", "si_h_err"]
    rich = pd.read_parquet(
        catalog, columns=columns, filters=[("fe_h", ">", 0.3), ("si_h", ">", 0.3), ("vsini", "<", 150)]
    )
    sure = rich[(rich["fe_h"] > 3 * rich["fe_h_err"]) & (rich["si_h"] > 3 * rich["si_h_err"])]
    print(sure.nlargest(5, "fe_h").round(2).to_string(index=False), end="\n\n")

    part = next(catalog.glob("*.parquet"))
    units = {f.name: f.metadata[b"unit"].decode() for f in pq.read_schema(part) if f.name in columns}
    print("Units stand in the Parquet metadata:", {k: v for k, v in units.items() if v})


if __name__ == "__main__":
    main()
