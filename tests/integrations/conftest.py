"""Hosts warn of many things of their own; ours are errors here, too."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "integrations" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("error:.*`[a-zA-Z_.]+\\(.*"))
