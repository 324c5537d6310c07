"""A missing browser: its tests are skipped with the way to get one, or fail where required."""

from __future__ import annotations

import pytest

from browser import programs


def test_a_missing_browser_skips_and_says_how_to_install_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GRADSCALE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"chromium-driver.*make browser"):
        programs()


def test_a_missing_browser_fails_where_one_is_required(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("GRADSCALE_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match=r"this run requires one.*make browser"):
        programs()
