"""Several images side by side on one sheet, each with a label, under one title."""

import math

from PIL import Image, ImageDraw, ImageFont

TILE = 256  # smaller images are enlarged to this width, to be seen
MARGIN, GAP, LABEL_SIZE, TITLE_SIZE = 24, 16, 20, 26
LABELS_WIDTH = 210  # pixels for the labels beside the rows of a grid
PAPER, INK = (255, 255, 255), (32, 32, 32)


def _font(size: int):
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1 has one size only
        return ImageFont.load_default()


def _lines(text: str, font, width: int) -> list[str]:
    """Breaks a text into lines that fit the width, between words, or inside one that is too long by itself."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        while font.getlength(word) > width and len(word) > 1:
            fits = next(count for count in range(len(word) - 1, 0, -1) if count == 1 or font.getlength(word[:count]) <= width)
            lines.append(word[:fits])
            word = word[fits:]  # noqa: PLW2901 - what is left of the word
        lines.append(word)
    return lines


def _fit(image: Image.Image, tile: tuple[int, int]) -> Image.Image:
    """Scales an image into the tile, keeping its proportions."""
    scale = min(tile[0] / image.width, tile[1] / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    image = image.convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def contact_sheet(images: list[Image.Image], labels: list[str], columns: int | None = None, title: str = "") -> Image.Image:
    """Returns one RGB sheet with every image on a tile of the same size, its label below it.

    Args:
        images: at least one.
        labels: one for each image.
        columns: tiles in a row; None takes as many as there are images, at most five.
        title: a line at the top, broken where it is wider than the sheet.
    Raises: ValueError when images and labels do not match or columns is less than 1.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"A sheet needs one label for each image and at least one image, got {len(images)} and {len(labels)}.")
    columns = min(len(images), 5) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    width, height = max(image.width for image in images), max(image.height for image in images)
    zoom = max(TILE / width, 1)
    tile = (round(width * zoom), round(height * zoom))
    pitch = (tile[0] + GAP, tile[1] + LABEL_SIZE * 2 + GAP)
    sheet_width = 2 * MARGIN + columns * pitch[0] - GAP
    heading, font = _lines(title, _font(TITLE_SIZE), sheet_width - 2 * MARGIN), _font(LABEL_SIZE)
    top = MARGIN + len(heading) * round(TITLE_SIZE * 1.4) + (GAP if heading else 0)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (sheet_width, top + rows * pitch[1] - GAP + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, line in enumerate(heading):
        pen.text((MARGIN, MARGIN + row * round(TITLE_SIZE * 1.4)), line, fill=INK, font=_font(TITLE_SIZE))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, upper = MARGIN + index % columns * pitch[0], top + index // columns * pitch[1]
        fitted = _fit(image, tile)
        sheet.paste(fitted, (left + (tile[0] - fitted.width) // 2, upper + (tile[1] - fitted.height) // 2))
        pen.text((left + (tile[0] - font.getlength(label)) / 2, upper + tile[1] + LABEL_SIZE // 2), label, fill=INK, font=font)
    return sheet


def grid_sheet(rows: list[list[Image.Image]], labels: list[str], headings: list[str], title: str = "") -> Image.Image:
    """Returns one RGB sheet whose rows have their labels at the left and whose columns have headings above.

    Args:
        rows: images, the same number in each.
        labels: one for each row.
        headings: one for each column, broken where it is wider than the images.
        title: a line at the top.
    Raises: ValueError when images, labels and headings do not match.
    """
    if not rows or len(rows) != len(labels) or {len(row) for row in rows} != {len(headings)} or not headings:
        raise ValueError(f"A sheet needs a label for each row and a heading for each column, got {labels} and {headings}.")
    tile = TILE if max(image.width for row in rows for image in row) >= 2 * TILE else TILE // 2
    font, size = _font(LABEL_SIZE - 4), round((LABEL_SIZE - 4) * 1.3)
    aside = [_lines(label, font, LABELS_WIDTH) for label in labels]
    above = [_lines(heading, font, tile) for heading in headings]
    left = MARGIN + LABELS_WIDTH + GAP
    width = left + len(headings) * (tile + GAP // 2) - GAP // 2 + MARGIN
    lines, large = _lines(title, _font(TITLE_SIZE), width - 2 * MARGIN), round(TITLE_SIZE * 1.4)
    top = MARGIN + len(lines) * large + max(map(len, above)) * size + GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (tile + GAP // 2) - GAP // 2 + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * large), line, fill=INK, font=_font(TITLE_SIZE))
    for column, words in enumerate(above):
        for number, line in enumerate(reversed(words), 1):
            place = left + column * (tile + GAP // 2) + (tile - font.getlength(line)) / 2
            pen.text((place, top - GAP // 2 - number * size), line, fill=INK, font=font)
    for number, (row, words) in enumerate(zip(rows, aside, strict=True)):
        upper = top + number * (tile + GAP // 2)
        for line_number, line in enumerate(words):
            pen.text((MARGIN, upper + (tile - len(words) * size) / 2 + line_number * size), line, fill=INK, font=font)
        for column, image in enumerate(row):
            fitted = _fit(image, (tile, tile))
            sheet.paste(fitted, (left + column * (tile + GAP // 2) + (tile - fitted.width) // 2, upper))
    return sheet
