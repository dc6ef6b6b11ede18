import json

import numpy as np
import pytest
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.data.pictures import encoded, picture, write
from hyper_sd.training.data.cache import load_pixels
from hyper_sd.training.data.folder import scan_folder
from hyper_sd.training.data.images import ImageRules
from PIL import Image, ImageFile

RULES = ImageRules(resolution=64, step=16, min_side=32)
ANY = ImageRules(resolution=64, step=16, min_side=32, default_caption="a picture")


def reasons(found):
    return {entry.name: entry.reason for entry in found.skipped}


def captions(found):
    return {item.name: item.caption for item in found.items}


def test_captions_come_from_text_files_in_name_order_with_subfolders(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", "d.bmp", "a.b.jpeg"):
        write(tmp_path, name, picture())
        write(tmp_path, name.rpartition(".")[0] + ".txt", f"  caption of {name}\n")
    found = scan_folder(tmp_path, RULES)
    assert [item.name for item in found.items] == ["a.b.jpeg", "a.jpg", "b.PNG", "d.bmp", "deep/er/c.webp"]
    assert captions(found) == {name: f"caption of {name}" for name in captions(found)}
    assert found.skipped == ()
    assert found == scan_folder(str(tmp_path), RULES)


def test_hidden_and_other_files_are_left_out(tmp_path):
    for name in ("a.png", ".hidden.png", "._a.png", ".cache/b.png", "README.md", "Thumbs.db"):
        write(tmp_path, name, encoded(picture()))
    write(tmp_path, "a.txt", "a picture")
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["a.png"]
    assert found.skipped == found.notes == ()


def test_images_of_one_stem_share_their_caption(tmp_path):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "a.jpg", picture())
    write(tmp_path, "a.TXT", "both")
    assert captions(scan_folder(tmp_path, RULES)) == {"a.jpg": "both", "a.png": "both"}


def test_names_and_captions_may_be_in_any_script(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    write(tmp_path, f"日本/{decomposed}", picture())
    write(tmp_path, "дождь.png", picture())
    write(tmp_path, "дождь.txt", "\ufeff雪 ❄".encode())
    write(
        tmp_path, "metadata.jsonl", json.dumps({"file_name": f"日本/{composed}", "text": "コーヒー\u2028"}, ensure_ascii=False)
    )
    assert list(captions(scan_folder(tmp_path, RULES)).values()) == ["雪 ❄", "コーヒー"]


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl", "Metadata.CSV"])
def test_metadata_table_wins_over_text_files_unless_blank(tmp_path, table, column):
    rows = [("a.png", 'from the table, "quoted"'), ("sub\\b.png", "two\nlines"), ("c.png", " ")]
    for name, _ in rows:
        write(tmp_path, name.replace("\\", "/"), picture())
        write(tmp_path, name.replace("\\", "/").replace(".png", ".txt"), "from the text file")
    if table.lower().endswith(".csv"):
        quoted = ['{},"{}"'.format(name, text.replace('"', '""')) for name, text in rows]
        write(tmp_path, table, "\r\n".join([f"\ufefffile_name,{column}", *quoted]))
    else:
        write(tmp_path, table, "\n".join(json.dumps({"file_name": name, column: text}) for name, text in rows) + "\n\n")
    found = scan_folder(tmp_path, RULES)
    assert captions(found) == {"a.png": rows[0][1], "c.png": "from the text file", "sub/b.png": "two\nlines"}
    assert found.skipped == ()


def test_deeper_metadata_wins_over_shallower(tmp_path):
    write(tmp_path, "sub/a.png", picture())
    write(tmp_path, "sub/b.png", picture())
    write(tmp_path, "metadata.csv", "file_name,text\nsub/a.png,above\nsub/b.png,above")
    write(tmp_path, "sub/metadata.csv", "file_name,text\na.png,beside")
    assert captions(scan_folder(tmp_path, RULES)) == {"sub/a.png": "beside", "sub/b.png": "above"}


def test_bad_metadata_rows_are_listed_and_reach_nothing_outside(tmp_path):
    write(tmp_path, "outside.png", picture())
    folder = tmp_path / "set"
    write(folder, "a.png", picture())
    lines = [{"file_name": "a.png", "text": "good"}, {"file_name": "gone.png", "text": "x"}, {"text": "no name"}]
    lines += [{"file_name": "../outside.png", "text": "x"}, {"file_name": "a.png", "text": ["a list"]}]
    write(folder, "metadata.jsonl", "\n".join([*map(json.dumps, lines), "{broken", "[1]"]))
    write(folder, "metadata.csv", b"file_name,text\na.png,caf\x81")
    found = scan_folder(folder, RULES)
    assert captions(found) == {"a.png": "good"}
    assert set(reasons(found)) == {
        "gone.png", "../outside.png", "metadata.csv", *(f"metadata.jsonl, row {row}" for row in (3, 5, 6, 7)),
    }  # fmt: skip
    assert "UTF-8" in reasons(found)["metadata.csv"]
    assert "row 2 of metadata.jsonl" in reasons(found)["gone.png"]


def test_image_without_caption_is_skipped_or_takes_the_default(tmp_path):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "blank.png", picture())
    write(tmp_path, "blank.txt", " \n")
    write(tmp_path, "c.png", picture())
    write(tmp_path, "c.txt", "captioned")
    found = scan_folder(tmp_path, RULES)
    assert list(captions(found)) == ["c.png"]
    assert all("no caption" in reasons(found)[name] for name in ("a.png", "blank.png"))
    assert captions(scan_folder(tmp_path, ANY)) == {"a.png": "a picture", "blank.png": "a picture", "c.png": "captioned"}
    empty = scan_folder(tmp_path, ImageRules(resolution=64, step=16, default_caption=""))
    assert captions(empty)["a.png"] == ""


def test_caption_that_is_not_text_skips_its_image(tmp_path):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "a.txt", b"\xff\xfe\x00")
    write(tmp_path, "b.png", picture())
    write(tmp_path, "b.txt", "fine")
    assert "UTF-8" in reasons(scan_folder(tmp_path, RULES))["a.png"]


def test_lone_surrogate_in_a_caption_is_replaced(tmp_path):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "metadata.jsonl", r'{"file_name": "a.png", "text": "odd \ud800 text"}')
    assert captions(scan_folder(tmp_path, RULES)) == {"a.png": "odd ? text"}


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tiff"])
def test_truncated_image_is_skipped_even_where_the_host_lets_pillow_fill_it_up(tmp_path, monkeypatch, suffix, tolerant):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    data = encoded(noise, suffix)
    write(tmp_path, "whole" + suffix, data)
    for share in (0.0, 0.01, 0.3, 0.9, 0.99):
        write(tmp_path, f"cut{share}{suffix}", data[: int(share * len(data))])
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["whole" + suffix]
    assert len(found.skipped) == 5
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_files_that_are_no_image_of_a_taken_format_are_skipped(tmp_path):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "empty.png", b"")
    write(tmp_path, "text.jpg", "hello")
    write(tmp_path, "ppm.png", encoded(picture(), ".ppm"))
    write(tmp_path, "script.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n")
    write(tmp_path, "jpeg.png", encoded(picture(), ".jpg"))  # the content counts
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["a.png", "jpeg.png"]
    assert {name: "is not a PNG" in reason for name, reason in reasons(found).items()} == dict.fromkeys(
        ("empty.png", "ppm.png", "script.jpg", "text.jpg"), True
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tiff", ".avif"])
def test_damaged_image_is_skipped_or_loads(tmp_path, suffix):
    rng = np.random.default_rng(1)
    data = encoded(Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)), suffix)
    write(tmp_path, "whole" + suffix, data)
    for number in range(40):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(data) if number % 2 else 60, 4)
        damaged[places] = rng.integers(0, 256, 4)
        write(tmp_path, f"{number}{suffix}", damaged.tobytes())
    found = scan_folder(tmp_path, ANY)
    assert len(found.items) + len(found.skipped) == 41
    assert all(load_pixels(item).isfinite().all() for item in found.items)


def test_decompression_bomb_is_skipped(tmp_path, monkeypatch):
    write(tmp_path, "a.png", picture((64, 64)))
    write(tmp_path, "bomb.png", picture((128, 128)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["a.png"]
    assert "bomb" in reasons(found)["bomb.png"]


def test_image_below_the_smallest_side_is_skipped(tmp_path):
    for side in (31, 32):
        write(tmp_path, f"{side}.png", picture((200, side)))
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["32.png"]
    assert "200 x 31" in reasons(found)["31.png"]
    assert "32" in reasons(found)["31.png"]
    assert ImageRules(resolution=512).smallest == 256


def test_folder_with_nothing_usable_says_why_and_what_is_taken(tmp_path):
    with pytest.raises(TrainingError, match=r"there is no image.*\.png.*caption"):
        scan_folder(tmp_path, RULES)
    write(tmp_path, "a.png", picture())
    with pytest.raises(TrainingError, match=r"a\.png has no caption.*default_caption"):
        scan_folder(tmp_path, RULES)
    with pytest.raises(TrainingError, match="not a folder"):
        scan_folder(tmp_path / "a.png", RULES)


@pytest.mark.parametrize(
    "bad", [{"resolution": 32}, {"step": 0}, {"max_aspect": 0.5}, {"max_aspect": float("nan")}, {"min_side": 0}]
)
def test_rules_out_of_range_are_refused(bad):
    with pytest.raises(TrainingError, match=next(iter(bad)).replace("step", "resolution")):
        ImageRules(**bad)


def test_progress_counts_every_image_and_may_stop_the_scan(tmp_path):
    for number in range(4):
        write(tmp_path, f"{number}.png", picture() if number else b"")
    seen = []
    scan_folder(tmp_path, ANY, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_folder(tmp_path, ANY, stop)
