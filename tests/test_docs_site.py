"""The built site: what is documented is what it says, and it works opened from a disk."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser import chromium

griffe = pytest.importorskip("griffe", reason='needs the extra "docs"')
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return path


def test_every_entry_of_the_reference_is_the_thing_that_python_has_under_its_name():
    package = griffe.load("gradscale", search_paths=[ROOT / "src"], resolve_aliases=True)
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for target in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            owner, _, name = target.rpartition(".")
            found = getattr(importlib.import_module(owner), name)
            documented = package[target.removeprefix("gradscale.")]
            kind = documented.final_target.kind if documented.is_alias else documented.kind
            assert (kind is griffe.Kind.MODULE) == isinstance(found, types.ModuleType), target


class Structure(HTMLParser):
    """The nesting of quotations, and the text of blocks of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.quotations = 0
        self.nested = 0
        self.sections: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "blockquote":
            self.quotations += 1
            self.nested = max(self.nested, self.quotations)
        elif tag == "span" and given.get("class") == "doc-section-title":
            self.sections.append(self.get_starttag_text() or "")
        elif tag in ("script", "link", "img"):
            self.links += [value for name in ("src", "href") if (value := given.get(name))]

    def handle_endtag(self, tag: str) -> None:
        self.quotations -= tag == "blockquote"


def structure_of(page: Path) -> Structure:
    found = Structure()
    found.feed(page.read_text())
    return found


def test_examples_of_docstrings_are_code(site):
    prompts = 0
    for page in sorted((site / "reference").glob("*.html")):
        assert structure_of(page).nested == 0, f"{page.name} quotes a doctest"
        prompts += page.read_text().count('<span class="gp">&gt;&gt;&gt; </span>')
    assert prompts > 300


def test_the_function_watch_is_documented(site):
    page = (site / "reference" / "watching.html").read_text()
    assert 'id="gradscale.watching.start.watch"' in page and "steps between two" in page


def test_nothing_is_fetched_from_elsewhere(site):
    for page in sorted(site.rglob("*.html")):
        loaded = [link for link in structure_of(page).links if re.match("(https?:)?//", link)]
        assert loaded == [], page.name


def test_the_start_page_shows_what_the_readme_shows(site):
    page = re.sub(r"<[^>]+>", "", (site / "index.html").read_text())
    readme = (ROOT / "README.md").read_text()
    assert "scaler = gradscale.GradScaler(device)" in page
    rows = [line.split("|")[1:3] for line in readme.splitlines() if line.startswith("| fp16, ")]
    assert len(rows) == 7
    for name, accuracy in rows:
        assert name.strip().replace("`", "").replace("*", "") in page
        assert accuracy.strip().replace(" ", "\u00a0") in page.replace("&#160;", "\u00a0")


def test_pages_opened_from_a_disk_can_be_searched(site):
    from selenium.webdriver.common.by import By

    with chromium() as page:
        page.driver.get((site / "index.html").as_uri())
        page.driver.find_element(By.CSS_SELECTOR, ".md-search__input").click()
        page.keys("hysteresis")
        deadline = time.monotonic() + 20
        while not page.texts(".md-search-result__item h1") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "Choosing a policy" in page.texts(".md-search-result__item h1")
        assert page.errors() == []


@pytest.mark.parametrize("name", ["index", "policies", "moving", "layerwise", "beside"])
def test_no_name_in_a_table_is_broken_and_no_page_is_wider_than_its_window(name, site):
    with chromium(1280, 900) as page:
        page.driver.get((site / f"{name}.html").as_uri())
        broken = page.run(
            "return [...document.querySelectorAll('.md-typeset table code')]"
            ".filter(e => e.getClientRects().length > 1).map(e => e.innerText)"
        )
        assert broken == []
        assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
