"""The files of deploy/: every one is read by what reads it."""

import re
from pathlib import Path

import pytest
import yaml

from hotdask.cluster.daskconfig import DASK, dask_yaml
from hotdask.config import load_settings, load_start

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
PLACES = ("local", "ssh", "slurm", "kubernetes")


@pytest.mark.parametrize("place", PLACES)
def test_settings_are_good_and_closed(place: str) -> None:
    settings = load_settings(DEPLOY / place / "settings.toml")
    assert not settings.cluster.insecure
    if settings.cluster.start is not None:
        load_start(PROJECT / settings.cluster.start)


def test_every_cluster_file_is_read() -> None:
    kinds = {path.parent.name: load_start(path).kind for path in DEPLOY.glob("*/cluster.toml")}
    assert kinds == {"ssh": "distributed.SSHCluster", "slurm": "dask_jobqueue.SLURMCluster"}


def test_settings_of_distributed_are_those_of_a_run() -> None:
    assert yaml.safe_load((DEPLOY / "distributed.yaml").read_text()) == yaml.safe_load(dask_yaml(DASK))


@pytest.mark.parametrize("place", PLACES)
def test_a_page_says_how(place: str) -> None:
    text = (DEPLOY / place / "README.md").read_text()
    assert len(text.splitlines()) <= 50
    named = set(re.findall(r"\b(?:deploy|scripts|tests)/[\w./-]+\w", text + (DEPLOY / "README.md").read_text()))
    missing = {name for name in named if not (PROJECT / name).exists()}
    # What `hotdask certificates` makes is nobody's file.
    assert missing <= {"deploy/kubernetes/certificates", "deploy/PLACE/cluster.toml"}
    if place != "local":
        assert "**Not tried**" in text or "**Not\ntried**" in text
