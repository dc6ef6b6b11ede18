import pytest
from hyper_sd.evaluation.contact_sheet import GAP, LABELS_WIDTH, MARGIN, TILE, contact_sheet, grid_sheet
from PIL import Image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def square(colour, size=128):
    return Image.new("RGB", (size, size), colour)


def bottom_of(sheet, colour):
    """Rows that hold the colour."""
    return [y for y in range(sheet.height) if any(sheet.getpixel((x, y)) == colour for x in range(0, sheet.width, 8))]


def test_small_images_are_enlarged_side_by_side():
    sheet = contact_sheet([square(RED), square(BLUE)], ["1 step", "2 steps"])
    assert sheet.width == 2 * MARGIN + 2 * TILE + GAP
    assert sheet.getpixel((MARGIN, MARGIN)) == RED
    assert sheet.getpixel((MARGIN + TILE - 1, MARGIN + TILE - 1)) == RED
    assert sheet.getpixel((MARGIN + TILE + GAP, MARGIN)) == BLUE
    assert sheet.getpixel((MARGIN + TILE + GAP // 2, MARGIN)) == (255, 255, 255)


def test_large_images_keep_their_size():
    sheet = contact_sheet([square(RED, 512)], ["1 step"])
    assert len(bottom_of(sheet, RED)) == 512


def test_label_is_drawn_below_its_image():
    plain, labelled = contact_sheet([square(RED)], [""]), contact_sheet([square(RED)], ["25 steps"])
    changed = [
        y for y in range(plain.height) if any(plain.getpixel((x, y)) != labelled.getpixel((x, y)) for x in range(plain.width))
    ]
    assert plain.size == labelled.size
    assert changed
    assert min(changed) >= MARGIN + TILE
    assert max(changed) < plain.height


def test_title_moves_the_images_down_and_breaks_into_lines():
    short = contact_sheet([square(RED)], [""], title="red apple")
    long = contact_sheet([square(RED)], [""], title="a red apple on a table " * 4)
    unbroken = contact_sheet([square(RED)], [""], title="apple" * 40)
    assert MARGIN < bottom_of(short, RED)[0] < bottom_of(long, RED)[0]
    assert long.width == short.width == unbroken.width


def test_columns_make_rows():
    sheet = contact_sheet([square(RED), square(BLUE), square(RED)], ["", "", ""], columns=2)
    assert sheet.width == 2 * MARGIN + 2 * TILE + GAP
    assert len(bottom_of(sheet, RED)) == 2 * TILE


def test_image_of_another_shape_is_fitted_whole():
    sheet = contact_sheet([square(RED, 256), Image.new("RGB", (256, 128), BLUE)], ["", ""])
    assert len(bottom_of(sheet, BLUE)) == 128


@pytest.mark.parametrize(("count", "labels"), [(0, []), (1, []), (1, ["a", "b"])])
def test_labels_must_match_the_images(count, labels):
    with pytest.raises(ValueError, match="one label for each image"):
        contact_sheet([square(RED)] * count, labels)


def test_columns_below_one_are_refused():
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        contact_sheet([square(RED)], ["a"], columns=0)


def test_grid_has_labels_beside_its_rows_and_headings_above_its_columns():
    sheet = grid_sheet([[square(RED), square(BLUE)], [square(BLUE), square(RED)]], ["one", "two"], ["a", "b"], "title")
    left, gap, tile = MARGIN + LABELS_WIDTH + GAP, GAP // 2, TILE // 2
    assert sheet.width == left + 2 * tile + gap + MARGIN
    top = bottom_of(sheet, RED)[0]
    colours = [[sheet.getpixel((left + c * (tile + gap) + 5, top + r * (tile + gap) + 5)) for c in (0, 1)] for r in (0, 1)]
    assert colours == [[RED, BLUE], [BLUE, RED]]
    assert sheet.height == top + 2 * tile + gap + MARGIN
    beside = sheet.crop((0, top, left - 1, sheet.height)).getcolors(10000)
    above = sheet.crop((left, MARGIN, sheet.width, top)).getcolors(10000)
    assert min(len(beside), len(above)) > 1


def test_grid_of_large_images_shows_them_larger():
    assert grid_sheet([[square(RED, 1024)]], ["one"], ["a"]).width == MARGIN + LABELS_WIDTH + GAP + TILE + MARGIN


@pytest.mark.parametrize(
    ("rows", "labels", "headings"), [([], [], ["a"]), ([[1]], ["one", "two"], ["a"]), ([[1]], ["one"], ["a", "b"])]
)
def test_grid_refuses_labels_that_do_not_match(rows, labels, headings):
    with pytest.raises(ValueError, match="a label for each row"):
        grid_sheet(rows, labels, headings)
