"""Hosts warn of many things of their own, which are not ours to mend."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "integrations" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("default"))
