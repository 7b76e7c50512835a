"""Fixtures: one real Slurm cluster for the whole test session, and a project folder on it for each test."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import EXIT_UNAVAILABLE, TESTCLUSTER, Cluster, ClusterUnavailable, left_out
from truba import Truba

_names = (f"project{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster, shared by all tests."""
    try:
        running = Cluster()
    except ClusterUnavailable as error:
        left_out(f"no Slurm test cluster: {error}")
    with running:
        yield running


@pytest.fixture(scope="session")
def software() -> Path:
    """A folder with Apptainer, images and a module, built if it does not exist yet."""
    built = subprocess.run([TESTCLUSTER / "software"], capture_output=True, text=True, check=False)
    if built.returncode == EXIT_UNAVAILABLE:
        left_out(f"no Apptainer or Lmod: {' '.join(built.stderr.split())}")
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.fixture
def truba(cluster: Cluster) -> Iterator[Truba]:
    """A project of ayse's; its remaining jobs are cancelled at the end."""
    made = Truba(cluster, next(_names))
    yield made
    made.clear()
