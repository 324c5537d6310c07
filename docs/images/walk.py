"""Draws walk.svg: the files that a training step goes through, and the parts that each touches.

Run `python docs/images/walk.py` from the repository root. What it touches is read off the source.
"""

from __future__ import annotations

from pathlib import Path

SCALER = Path("src/gradscale/scaler")
STATIONS = (
    ("scaler.py", "the loop's verbs", "loss, optimizer"),
    ("scaling.py", "loss × S", "loss → scale"),
    ("dividing.py", "gradient / S, finite?", "gradient → unscale"),
    ("stepping.py", "take it or leave it", "step or skip"),
    ("advancing.py", "what the policy sees", "the step ends"),
    ("held_scale.py", "policy → state", "the next scale"),
)
PARTS = (
    ("HeldScale", "the scale", "policy, plan, state, known bound"),
    ("CurrentStep", "the step under way", "records, evidence, gradients, outcome"),
    ("Books", "the books", "ledger, alarm, meter"),
)
WIDTH, HEIGHT, GAP, TOP, LEFT = 130, 66, 22, 40, 16
PART_WIDTH, PART_TOP = 270, 196
STYLE = (
    ".b{fill:#eef3f8;stroke:#3b6ea5;stroke-width:1.2}.p{fill:#e8f1e4;stroke:#5b8a4a;stroke-width:1.2}"
    ".n{font-weight:bold;fill:#1d1d1d}.t{fill:#444;font-size:11px}.m{font-family:monospace;font-size:12px}"
    ".l{stroke:#555;stroke-width:1.3;fill:none}.u{stroke:#9ab08f;stroke-width:1.2;fill:none}"
)
ARROW = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>'
)


def touched(file: str) -> list[int]:
    """Which of the parts a file names, by number; the scale goes by `held`, too."""
    source = (SCALER / file).read_text()
    words = {"HeldScale": ("HeldScale", ".held")}
    return [
        number
        for number, (name, _, _) in enumerate(PARTS)
        if any(word in source for word in words.get(name, (name,)))
    ]


def box(x: float, y: float, width: float, kind: str, lines: tuple[str, str, str]) -> list[str]:
    """A box of three lines, the first one code."""
    middle = x + width / 2
    classes = ("n m", "t", "t")
    texts = [
        f'<text x="{middle}" y="{y + 20 + 17 * row}" text-anchor="middle" class="{classes[row]}">'
        f"{line}</text>"
        for row, line in enumerate(lines)
    ]
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" class="{kind}"/>',
        *texts,
    ]


def drawing() -> str:
    """The whole picture."""
    width = 2 * LEFT + len(STATIONS) * WIDTH + (len(STATIONS) - 1) * GAP
    spread = (width - 2 * LEFT - len(PARTS) * PART_WIDTH) / (len(PARTS) - 1)
    parts = [LEFT + number * (PART_WIDTH + spread) for number in range(len(PARTS))]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {PART_TOP + HEIGHT + 16}" '
        'role="img" font-family="sans-serif" font-size="12">',
        "<title>A training step through six files, and the parts they work on</title>",
        f"<style>{STYLE}</style>{ARROW}",
        f'<rect width="{width}" height="{PART_TOP + HEIGHT + 16}" fill="white"/>',
        f'<text x="{LEFT}" y="24" class="t">src/gradscale/scaler/</text>',
    ]
    for number, (file, does, walk) in enumerate(STATIONS):
        x = LEFT + number * (WIDTH + GAP)
        if number:
            out.append(
                f'<path d="M{x - GAP},{TOP + HEIGHT / 2} H{x - 2}" class="l" marker-end="url(#a)"/>'
            )
        for part in touched(file):
            end = parts[part] + PART_WIDTH * (number + 1) / (len(STATIONS) + 1)
            start = x + WIDTH * (part + 1) / (len(PARTS) + 1)
            out.append(f'<path d="M{start},{TOP + HEIGHT} L{end},{PART_TOP}" class="u"/>')
        out += box(x, TOP, WIDTH, "b", (file, walk, does))
    for x, (name, noun, holds) in zip(parts, PARTS, strict=True):
        out += box(x, PART_TOP, PART_WIDTH, "p", (name, noun, holds))
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "walk.svg").write_text(drawing())
