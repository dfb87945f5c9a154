"""Compose the demo's contact sheet: rows of prompts, before | after. Needs Pillow."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
GAP, MARGIN, MIDDLE = 6, 24, 36
TITLE_SIZE, HEAD_SIZE, LABEL_SIZE = 26, 20, 18
INK, FAINT, PAPER = (24, 24, 24), (110, 110, 110), (255, 255, 255)


def contact_sheet(title: str, heads: tuple[str, str], rows: list) -> Image.Image:
    """`rows` holds (label, pictures before, pictures after); all pictures are of one size, all lists of one length."""
    first = rows[0][1][0]
    width, height = first.width * SCALE, first.height * SCALE
    count = max(len(pictures) for row in rows for pictures in row[1:])
    half = count * width + (count - 1) * GAP
    columns = (MARGIN, MARGIN + half + MIDDLE)
    top = MARGIN + TITLE_SIZE + 14 + HEAD_SIZE + 10
    row_height = LABEL_SIZE + 8 + height + 18
    sheet = Image.new("RGB", (columns[1] + half + MARGIN, top + len(rows) * row_height + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, _font(TITLE_SIZE))
    for left, head in zip(columns, heads, strict=True):
        draw.text((left, top - HEAD_SIZE - 10), head, FAINT, _font(HEAD_SIZE))
    for index, (label, before, after) in enumerate(rows):
        y = top + index * row_height
        draw.text((MARGIN, y), label, INK, _font(LABEL_SIZE))
        for left, pictures in zip(columns, (before, after), strict=True):
            for place, picture in enumerate(pictures):
                enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
                sheet.paste(enlarged, (left + place * (width + GAP), y + LABEL_SIZE + 8))
    middle = columns[1] - MIDDLE // 2
    draw.line([(middle, top - HEAD_SIZE - 10), (middle, sheet.height - MARGIN)], (200, 200, 200), 2)
    return sheet


def _font(size: int):
    return ImageFont.load_default(size=size)


def set_aside(path: Path) -> Path | None:
    """Rename what is at `path` to the first free numbered name; returns that name, or None."""
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.stem}_{number:03d}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
    return aside
