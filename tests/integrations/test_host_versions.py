"""The table of host versions says what is installed where the hosts are."""

from __future__ import annotations

import runpy
from importlib.metadata import version
from pathlib import Path

from hosts import host

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "versions.py"


def test_the_table_on_the_page_is_that_of_this_environment():
    versions = runpy.run_path(str(PAGE))
    host("accelerate")
    host("deepspeed")
    assert versions["written"]() == versions["table"](), f"run python {PAGE}"


def test_every_package_of_the_table_is_named_by_its_distribution():
    for packages in runpy.run_path(str(PAGE))["HOSTS"].values():
        for package in packages:
            host(
                {"pytorch-ignite": "ignite", "megatron-core": "megatron.core"}.get(
                    package, package.replace("-", "_")
                )
            )
            assert version(package)
