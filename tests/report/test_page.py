"""The report in a real browser: what it shows, what it counts, and how it is walked through."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from browser import Page, chromium
from gradscale.formats import FloatFormat
from gradscale.recording import read
from gradscale.report import write_report
from gradscale.report.run import Run
from gradscale.report.summary import summary_of
from report_recordings import MadeUp, from_tensors

pytestmark = pytest.mark.slow

DOWN, UP, LEFT, RIGHT, END, HOME, TAB, ENTER = (
    "\ue015", "\ue013", "\ue012", "\ue014", "\ue010", "\ue011", "\ue004", "\ue007",
)  # fmt: skip
SCALES = range(-14, 47, 5)


def gradients() -> dict[str, torch.Tensor]:
    """Magnitudes wider than any of the formats, zeros among them, none of them a power of two."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, torch.Tensor] = {}
    for i, name in enumerate(("head.weight", "layers.1.weight", "layers.0.weight", "embed.weight")):
        octaves = torch.randint(-34 - 5 * i, -2 - 5 * i, (3000,), generator=generator)
        mantissa = 1.02 + 0.96 * torch.rand(3000, generator=generator)
        kept = torch.rand(3000, generator=generator) > 0.2
        found[name] = torch.ldexp(mantissa, octaves) * kept
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    MadeUp().write(folder / "planned" / "recording.jsonl")
    MadeUp(plan=False, seed=1, shrink=44).write(folder / "plain" / "recording.jsonl")
    from_tensors(folder / "tensors" / "recording.jsonl", gradients())
    write_report(folder / "planned", folder / "planned.html")
    write_report(folder / "tensors", folder / "tensors.html")
    write_report([folder / "planned", folder / "plain"], folder / "two.html", title="Two <runs>")
    return folder


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.emulate(prefers_color_scheme="light")
    yield browser
    assert browser.errors() == []
    assert browser.requests() == []


@pytest.mark.parametrize("width", [1300, 1600])
def test_no_table_is_cut(width, reports):
    with chromium(width, 900) as wide:
        wide.open(reports / "two.html")
        for table in ("run-table", "row-table"):
            overhang = (
                f"const e = document.getElementById('{table}').parentElement;"
                "return e.scrollWidth - e.clientWidth"
            )
            assert wide.run(overhang) <= 1, table


def test_small_shares_have_no_exponent(page, reports):
    page.open(reports / "planned.html")
    assert "^" not in re.sub(r"2\^-?\d+(\.\d+)?", "", page.text("#report"))


def test_names_in_the_drawing_of_the_network_do_not_meet(page, reports):
    page.open(reports / "planned.html")
    boxes = page.run(
        "return [...document.querySelectorAll('#plan-plot .annotation')].map(e => {"
        "const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]})"
    )
    assert len(boxes) > 10
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top
            assert apart, (boxes[index], other)


def test_the_page_shows_every_part_and_asks_for_nothing(page, reports):
    page.open(reports / "planned.html")
    sections = (
        "return [...document.querySelectorAll('section')].filter(s => !s.hidden).map(s => s.id)"
    )
    assert page.run(sections) == [
        "verdict", "timeline", "heat", "scale", "plan", "rows", "words",
    ]  # fmt: skip
    assert page.run("return document.querySelectorAll('.plot .main-svg').length") >= 6
    it = summary_of(Run.of(read(reports / "planned")))
    tiles = page.text("#tiles")
    assert "400" in tiles and "overflow 4" in tiles
    assert it["worst"][0]["row"] in tiles and f"2^{it['best']['log2_scale']}" in tiles


def test_the_file_names_no_address_to_load_from(reports):
    text = (reports / "planned.html").read_text()
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", text) == []
    assert "default-src 'none'" in text


def lost_in(tensors: dict[str, torch.Tensor], format: FloatFormat, scale: int) -> int:
    stored = {name: t.double() * 2.0**scale for name, t in tensors.items()}
    return sum(
        int(((format.round(stored[name].float()) == 0) & (t != 0)).sum())
        for name, t in tensors.items()
    )


def beyond(tensors: dict[str, torch.Tensor], format: FloatFormat, scale: int) -> int:
    """Elements above the octave in which the format ends."""
    end = 2.0 ** (format.max_exponent + 1)
    return sum(int((t.double().abs() * 2.0**scale >= end).sum()) for t in tensors.values())


def test_the_slider_counts_what_rounding_at_that_scale_does(page, reports):
    tensors = gradients()
    page.open(reports / "tensors.html")
    assert page.number("#nonzero-count") == sum(int((t != 0).sum()) for t in tensors.values())
    for name in ("", "bf16", "e5m2", "e4m3"):
        page.set("#format", name, "change")
        format = FloatFormat.of(name or "fp16")
        for scale in SCALES:
            page.set("#scale-slider", scale)
            assert page.number("#scale-value") == scale
            assert page.number("#lost-count") == lost_in(tensors, format, scale), (name, scale)
            assert page.number("#overflow-count") == beyond(tensors, format, scale), (name, scale)


def test_every_row_counts_for_itself(page, reports):
    tensors = gradients()
    page.open(reports / "tensors.html")
    page.set("#scale-slider", 8)
    half = FloatFormat.of("fp16")
    for line in page.run(
        "return [...document.querySelectorAll('#row-table tbody tr')]"
        ".map(r => [r.cells[0].innerText, r.querySelector('[data-live=tried]').innerText])"
    ):
        tensor = tensors[line[0]]
        share = lost_in({"": tensor}, half, 8) / int((tensor != 0).sum())
        assert line[1] == f"{float(f'{100 * share:.2g}'):g} %"


def test_the_buttons_go_to_the_recorded_scale_and_to_the_best_one(page, reports):
    page.open(reports / "tensors.html")
    best = summary_of(Run.of(read(reports / "tensors")))["best"]
    page.run("document.getElementById('scale-best').click()")
    page.settle()
    assert page.number("#scale-value") == best["log2_scale"]
    assert page.number("#lost-count") == best["lost"]
    page.run("document.getElementById('scale-recorded').click()")
    page.settle()
    assert page.number("#scale-value") == 16 == best["recorded"]["log2_scale"]
    assert page.number("#lost-count") == best["recorded"]["lost"]


def test_arrow_keys_move_the_slider(page, reports):
    page.open(reports / "tensors.html")
    page.run("document.getElementById('scale-slider').focus()")
    page.keys(LEFT, LEFT, LEFT)
    assert page.number("#scale-value") == 13
    assert page.number("#lost-count") == lost_in(gradients(), FloatFormat.of("fp16"), 13)
    assert "more elements would be lost than at 2^16" in page.text("#scale-words")


def names(page: Page) -> list[str]:
    script = "return [...document.querySelectorAll('#row-table tbody tr')]"
    return page.run(f"{script}.map(r => r.cells[0].innerText)")


def sort_by(page: Page, key: str) -> str:
    page.run("document.querySelector(`[data-sort=${arguments[0]}]`).focus()", key)
    page.keys(ENTER)
    script = "return document.querySelector(`[data-sort=${arguments[0]}]`).closest('th').ariaSort"
    return page.run(script, key)


def test_headings_sort_and_sort_the_other_way(page, reports):
    page.open(reports / "planned.html")
    rows = {row.info.name: row for row in Run.of(read(reports / "planned")).rows}
    shares = [rows[name].lost_share for name in names(page)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0
    assert sort_by(page, "share") == "ascending"
    assert [rows[name].lost_share for name in names(page)] == sorted(shares)
    assert sort_by(page, "name") == "ascending"
    assert names(page) == sorted(names(page), key=str.lower)
    assert page.run("return document.activeElement.dataset.sort") == "name"


def test_the_search_finds_rows_in_the_table_and_in_the_plots(page, reports):
    page.open(reports / "planned.html")
    page.set("#search", "LAYERS.1.qkv")
    page.until("return document.querySelectorAll('#row-table tbody tr').length === 1")
    assert names(page) == ["layers.1.qkv.weight"]
    assert page.run("return document.getElementById('heat-plot').data[0].z.length") == 1
    page.set("#search", "no such row")
    page.until("return document.querySelectorAll('#row-table tbody tr').length === 0")
    assert "No row has such a name" in page.text("#heat-plot")
    page.set("#search", "")
    page.until("return document.querySelectorAll('#row-table tbody tr').length === 20")
    page.settle()
    assert page.run("return document.getElementById('heat-plot').data[0].z.length") == 20


def test_arrow_keys_walk_through_the_table_and_the_plots_follow(page, reports):
    page.open(reports / "planned.html")
    page.run("document.querySelector('#row-table tbody tr').focus()")
    page.keys(DOWN, DOWN)
    third = names(page)[2]
    chosen = "return document.querySelector('#row-table tr[aria-selected=true]').cells[0].innerText"
    assert page.run(chosen) == third
    assert page.run("return document.activeElement.cells[0].innerText") == third
    assert page.text("#row-caption") == third
    assert page.text("#heat-cell").startswith(third)
    page.keys(END)
    assert page.run(chosen) == names(page)[-1]


def test_arrow_keys_walk_through_the_heat_map(page, reports):
    page.open(reports / "planned.html")
    run = Run.of(read(reports / "planned"))
    page.run("document.getElementById('heat-plot').focus()")
    page.keys(HOME)
    rows = [row for row in run.order if run.rows[row].alarming]
    first = run.recording.measured[0].seen
    worst = rows[-1]
    share = first.flushed[worst] / first.nonzero[worst]
    assert page.text("#heat-cell").startswith(f"{run.rows[worst].info.name} · step 0: ")
    told = re.search(r"([\d.]+) % lost", page.text("#heat-cell"))
    assert told and float(told[1]) == pytest.approx(100 * share, rel=0.05)
    page.keys(UP, RIGHT, RIGHT)
    assert page.text("#heat-cell").startswith(f"{run.rows[rows[-2]].info.name} · step 40: ")


def test_every_control_can_be_reached_by_the_tab_key_in_the_order_of_the_page(page, reports):
    page.open(reports / "planned.html")
    page.run("document.querySelector('.skip-link').focus()")
    reached = []
    for _ in range(60):
        page.keys(TAB)
        reached.append(
            page.run(
                "const e = document.activeElement;"
                "const { sort, save } = e.dataset;"
                "return e.id || (sort && 'sort ' + sort) || (save && 'save ' + save) || e.tagName"
            )
        )
        outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
        if reached[-1] == "TR":
            break
    wanted = ["theme", "kind", "search", "plane", "heat-plot", "scale-slider", "scale-recorded",
              "format", "snapshot", "sort name", "sort share", "TR"]  # fmt: skip
    assert [name for name in reached if name in wanted] == wanted


def test_everything_that_is_worked_with_has_a_name(page, reports):
    page.open(reports / "two.html")
    unnamed = page.run(
        """const worked = 'button, select, input, [tabindex="0"], [role=img]';
        return [...document.querySelectorAll(worked)]
        .filter(e => e.offsetParent && e.tagName !== 'TR')
        .filter(e => !(e.innerText.trim() || e.ariaLabel || (e.labels && e.labels.length)))
        .filter(e => !e.getAttribute('aria-labelledby'))
        .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []


def test_hovering_over_the_heat_map_says_what_is_under_the_pointer(page, reports):
    page.open(reports / "planned.html")
    page.hover("#heat-plot", 0, 20)
    page.until("return !document.getElementById('tip').hidden")
    tip = page.text("#tip")
    assert re.search(r"^(layers|cast).*\nstep \d+: .* lost", tip)
    page.hover("#rows-lead")
    page.until("return document.getElementById('tip').hidden")


def test_hovering_over_the_scale_tells_step_and_scale(page, reports):
    page.open(reports / "planned.html")
    page.hover("#timeline-plot", 0, -120)
    hover = "return document.querySelector('#timeline-plot .hoverlayer')?.textContent"
    page.until(hover)
    assert re.search(r"step \d+: scale 2\^1[67]", page.run(hover))


def test_a_stretch_of_the_timeline_shows_every_step_of_it(page, tmp_path):
    path = MadeUp(steps=30_000, rows=3, every=1000, plan=False).write(tmp_path / "recording.jsonl")
    page.open(write_report(path, tmp_path / "report.html"))
    points = "return document.getElementById('timeline-plot').data[0].x.length"
    assert page.run(points) <= 1300
    page.driver.execute_script(
        "const e = document.getElementById('timeline-plot');"
        "e.emit('plotly_relayout', {'xaxis.range[0]': 100, 'xaxis.range[1]': 300})"
    )
    page.settle()
    x = page.run("return document.getElementById('timeline-plot').data[0].x")
    assert x == list(range(99, 302))


def test_dark_follows_the_system_and_the_button_overrides_it(page, reports):
    page.open(reports / "planned.html")
    background = "return getComputedStyle(document.body).backgroundColor"
    plot = "return document.getElementById('heat-plot').layout.paper_bgcolor"
    assert page.run(background) == "rgb(255, 255, 255)" and page.run(plot) == "#ffffff"
    page.emulate(prefers_color_scheme="dark")
    page.settle()
    assert page.run(background) == "rgb(17, 22, 28)" and page.run(plot) == "#11161c"
    page.run("document.getElementById('theme').click()")
    page.settle()
    assert page.text("#theme") == "Theme: light"
    assert page.run(background) == "rgb(255, 255, 255)" and page.run(plot) == "#ffffff"
    page.run("localStorage.clear()")


def test_the_colors_of_text_have_enough_contrast_in_both_themes(page, reports):
    page.open(reports / "planned.html")
    pairs = (
        ("ink", "paper"),
        ("quiet", "paper"),
        ("quiet", "panel"),
        ("ink", "chosen"),
        ("warn", "paper"),
        ("ink", "warn-paper"),
        ("accent", "paper"),
    )
    for theme in ("light", "dark"):
        page.run("document.documentElement.dataset.theme = arguments[0]", theme)
        for text, ground in pairs:
            assert contrast(color(page, text), color(page, ground)) >= 4.5, (theme, text, ground)


def color(page: Page, name: str) -> str:
    style = "return getComputedStyle(document.documentElement)"
    return page.run(f"{style}.getPropertyValue('--{name}').trim()")


def contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_two_runs_are_compared_and_either_can_be_looked_into(page, reports):
    page.open(reports / "two.html")
    assert page.text("h1") == "Two <runs>"
    assert page.run("return document.querySelectorAll('#run-table tbody tr').length") == 2
    assert page.run("return document.getElementById('compared-plot').data[0].z[0].length") == 2
    before = page.text("#tiles")
    page.run("document.querySelectorAll('#run-table tbody button')[1].click()")
    page.settle()
    assert page.text("#tiles") != before and "plain" in page.text("#subtitle")
    lines = "return new Set(document.getElementById('timeline-plot').data.map(t => t.name)).size"
    assert page.run(lines) == 2
    page.run("document.querySelectorAll('#run-table tbody input')[0].click()")
    page.settle()
    assert page.run(lines) == 1


def test_skipped_steps_are_told_one_by_one(page, reports):
    page.open(reports / "planned.html")
    page.run("document.getElementById('skips').open = true")
    first = page.run("return document.querySelector('#skip-table tbody tr').innerText")
    assert first.split("\t")[:2] == ["89", "overflow"] and "layers.4.mlp.weight" in first


def test_the_plan_colors_every_group_and_marks_where_scales_meet(page, reports):
    page.open(reports / "planned.html")
    assert page.run("return document.querySelectorAll('#plan-words li').length") == 3
    assert "3 groups have a scale of their own" in page.text("#plan-lead")
    data = page.run("return document.getElementById('plan-plot').data.map(t => t.x.length)")
    assert data[1] > 0 and data[2] == 20  # edges between groups, and one mark a part


def test_it_prints_in_light_on_white_paper_with_nothing_cut_off(page, reports):
    page.open(reports / "planned.html")
    page.emulate(prefers_color_scheme="dark")
    assert page.run(
        "dispatchEvent(new Event('beforeprint'));"
        "const e = document.getElementById('heat-plot');"
        "return [document.documentElement.dataset.theme, e.layout.paper_bgcolor, e.layout.width]"
    ) == ["light", "#ffffff", 700]
    page.run("dispatchEvent(new Event('afterprint'))")
    page.settle()
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    pdf = page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(pdf["data"]) > 20_000


ODD = {
    "no step": [{"kind": "run", "version": 1}],
    "one step": [{"step": 0, "loss": 2.0, "scale": 2.0, "skipped": False}],
    "nothing finite": [
        {"step": i, "loss": "nan", "scale": "nan", "skipped": True, "reason": None}
        for i in range(9)
    ],
    "no scaler": [{"step": i, "loss": 1.0, "scale": "nan", "skipped": False} for i in range(9)],
}


@pytest.mark.parametrize("name", ODD)
def test_a_poor_recording_is_shown_as_far_as_it_goes(page, tmp_path, name):
    path = tmp_path / ("recording.jsonl" if "kind" in ODD[name][0] else "steps.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in ODD[name]))
    page.open(write_report(path, tmp_path / "report.html"))
    assert page.run("return document.getElementById('heat').hidden")
    assert len(page.texts("#notes li")) >= 1


@pytest.mark.parametrize(
    "change", [{"rows": 1}, {"steps": 1}, {"skip_every": 0}, {"rows": 1, "steps": 1}]
)
def test_a_small_recording_is_shown_whole(page, tmp_path, change):
    path = MadeUp(**change).write(tmp_path / "recording.jsonl")
    page.open(write_report(path, tmp_path / "report.html"))
    assert len(names(page)) >= 1
    page.set("#scale-slider", 20)
    assert page.number("#scale-value") == 20


def test_rows_of_zeros_infinities_and_unknown_formats_break_nothing(page, tmp_path):
    tensors = {"<b>zeros</b>": torch.zeros(4), "w": torch.tensor([1.5, 0.0])}
    path = from_tensors(tmp_path / "recording.jsonl", tensors)
    text = path.read_text().replace('"nonfinite": [0, 0]', '"nonfinite": [4, 1]')
    lines = text.splitlines()
    lines[1] = lines[1].replace('"fp16", "numel": 2', '"of the future", "numel": 2')
    path.write_text("\n".join(lines) + '\n{"kind": "st')
    page.open(write_report(path, tmp_path / "report.html"))
    assert sorted(names(page)) == ["<b>zeros</b>", "w"]
    assert "cut off" in page.text("#notes")
    assert "infinite or NaN" in page.text("#heat-lead")


def test_a_hundred_thousand_steps_of_five_hundred_rows_stay_quick(page, tmp_path):
    """Bounded generously: the waits say when something has gone badly wrong, not how fast it is."""
    made = MadeUp(steps=100_000, rows=500, every=100, octaves_every=1000)
    path = made.write(tmp_path / "recording.jsonl")
    report = write_report(path, tmp_path / "report.html")
    assert report.stat().st_size < 12_000_000
    page.open(report, timeout=60)
    assert page.run("return document.getElementById('heat-plot').data[0].z[0].length") == 1000
    assert page.run("return document.getElementById('heat-plot').data[0].z.length") == 400
    before = page.number("#lost-count")
    page.set("#scale-slider", 20)
    page.until(f"return document.getElementById('lost-count').dataset.value != {before}", 10)
    page.run("document.getElementById('heat-plot').focus()")
    page.keys(UP, LEFT)
    page.until("return document.getElementById('heat-cell').innerText.includes('99,800')", 10)
    page.set("#search", "layers.7")
    page.until("return document.querySelectorAll('#row-table tbody tr').length < 100", 10)


def test_a_figure_is_saved_as_svg(page, reports, tmp_path):
    page.open(reports / "planned.html")
    page.driver.execute_cdp_cmd(
        "Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.run("document.querySelector('[data-save=row-plot]').click()")
    saved = tmp_path / "gradscale-row.svg"
    page.until("return true")
    for _ in range(200):
        if saved.exists():
            break
        time.sleep(0.05)
    assert saved.read_text().startswith("<svg")
