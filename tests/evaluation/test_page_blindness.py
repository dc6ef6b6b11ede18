"""What a page's bytes tell about the arms: nothing but what the pictures look like."""

import base64
import io
import json
import os
import re
from collections import Counter

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation import page as page_module
from hyper_sd.evaluation.comparison import plan_comparison, save_key
from hyper_sd.evaluation.page import PICTURES, SOURCE, read_plain, uneven_arms, write_page
from hyper_sd.tests.evaluation.comparisons import write_arms
from PIL import Image, ImageCms, PngImagePlugin

ARMS = ("zebra-teacher", "quokka-student")
SECRET = "quokka in the metadata"


def embedded(file):
    """Returns the pictures of a page by id, in the order in which they stand there."""
    found = re.findall(rb'id="p-(\w+)">([^<]*)<', file.read_bytes())
    return {key.decode(): base64.b64decode(content) for key, content in found}


@pytest.mark.parametrize("inside", [True, False])
def test_no_name_of_an_arm_a_folder_or_a_file_is_in_what_voters_get(tmp_path, inside):
    comparison = plan_comparison(write_arms(tmp_path, ARMS, names=12))
    save_key(comparison, tmp_path)
    written = write_page(comparison, tmp_path / "send", inside=inside)
    files = [path for path in (tmp_path / "send").rglob("*") if path.is_file()]
    assert len(files) == (1 if inside else 25)
    for path in files:
        content = path.read_bytes()
        for word in (*ARMS, "drawing", str(tmp_path), tmp_path.name, "first"):
            assert word.encode() not in content.replace(b'class="first"', b"").replace(b"firstChild", b"") or word == "first"
        assert path == written.file or path.stem in comparison.pictures
    data = json.loads(re.search(r'id="data">(.*?)</script>', written.file.read_text(encoding="utf-8"))[1])
    assert data.keys() == {"comparison", "question", "pairs", "prompts", "type", "ending", "folder"}


def test_metadata_formats_and_files_own_settings_are_left_behind(tmp_path):
    folders = write_arms(tmp_path, ARMS, names=3, size=64)
    drawing = Image.effect_noise((64, 64), 60).convert("RGB")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", SECRET)
    exif = Image.Exif()
    exif[0x010E] = SECRET
    drawing.save(folders[0] / "drawing-000.png", pnginfo=notes, exif=exif, dpi=(300, 300), compress_level=1)
    (folders[1] / "drawing-000.png").unlink()
    drawing.save(folders[1] / "drawing-000.bmp")
    comparison = plan_comparison(folders)
    pictures = embedded(write_page(comparison, tmp_path / "send").file)
    same = [pictures[key] for key, picture in comparison.pictures.items() if picture.name == "drawing-000"]
    assert same[0] == same[1]
    for content in pictures.values():
        assert SECRET.encode() not in content
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})


def test_larger_pictures_are_jpeg_of_one_quality_in_both_arms(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "LOSSLESS", 1000)
    folders = write_arms(tmp_path, ARMS, names=3, size=64)
    for number in range(3):  # one arm is JPEG already, of another quality, with a comment
        path = folders[1] / f"drawing-{number:03}.png"
        Image.open(path).save(path.with_suffix(".jpg"), quality=40, comment=SECRET)
        path.unlink()
    comparison = plan_comparison(folders)
    pictures = embedded(write_page(comparison, tmp_path / "send").file)
    opened = [Image.open(io.BytesIO(content)) for content in pictures.values()]
    assert {image.format for image in opened} == {"JPEG"}
    assert len({str(image.quantization) for image in opened}) == 1
    assert len({str(sorted(image.info)) for image in opened}) == 1
    assert not any(SECRET.encode() in content for content in pictures.values())


def test_ids_their_order_and_the_files_times_do_not_follow_the_arms(tmp_path):
    folders, places = write_arms(tmp_path, ARMS, names=20, size=8), Counter()
    for round_ in range(10):
        comparison = plan_comparison(folders)
        order = list(embedded(write_page(comparison, tmp_path / f"send-{round_}").file))
        assert order == sorted(order)
        for place, key in enumerate(order):
            places[place < 20, comparison.pictures[key].arm] += 1
            assert re.fullmatch(r"[0-9a-f]{16}", key)
    assert all(70 < count < 130 for count in places.values())
    written = write_page(comparison, tmp_path / "beside", inside=False)
    files = sorted((written.file.parent / PICTURES).iterdir())
    times = [os.stat(path).st_mtime_ns for path in files]
    assert times == sorted(times)


def test_pictures_of_one_name_get_one_size_and_uneven_arms_are_named(tmp_path):
    folders = write_arms(tmp_path, ARMS, names=2, size=32)
    comparison = plan_comparison(folders)
    assert uneven_arms(comparison) == {}
    Image.new("RGB", (64, 48)).save(folders[1] / "drawing-000.png")
    assert uneven_arms(comparison) == {"zebra-teacher": 32, "quokka-student": 64}
    pictures = embedded(write_page(comparison, tmp_path / "send").file)
    sizes = {(p.name, max(Image.open(io.BytesIO(pictures[key])).size)) for key, p in comparison.pictures.items()}
    assert sizes == {("drawing-000", 64), ("drawing-001", 32)}
    pictures = embedded(write_page(comparison, tmp_path / "send", longest=24).file)
    assert {max(Image.open(io.BytesIO(content)).size) for content in pictures.values()} == {24}


def test_many_bytes_go_beside_the_page_and_a_second_page_replaces_the_first(tmp_path, monkeypatch):
    comparison = plan_comparison(write_arms(tmp_path, ARMS, names=4))
    monkeypatch.setattr(page_module, "INSIDE", 100)
    first = write_page(comparison, tmp_path / "send")
    assert not first.inside
    (tmp_path / "send" / PICTURES / "left over.png").write_bytes(b"")
    seen = []
    second = write_page(comparison, tmp_path / "send", progress=lambda done, total: seen.append((done, total)))
    assert len(list((tmp_path / "send" / PICTURES).iterdir())) == 8
    assert second.size == sum(path.stat().st_size for path in (tmp_path / "send").rglob("*") if path.is_file())
    assert seen == [(number, 8) for number in range(1, 9)]
    assert sorted(path.name for path in (tmp_path / "send").iterdir()) == ["compare.html", PICTURES]


def test_pictures_are_turned_and_laid_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_plain(tmp_path / "turned.jpg").size == (10, 20)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_plain(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("I;16", (8, 8), 257 * 128).save(tmp_path / "deep.png")
    assert read_plain(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (8, 8), (90, 80, 70)).save(tmp_path / "usual.png", icc_profile=profile)
    assert read_plain(tmp_path / "usual.png").getpixel((0, 0)) == pytest.approx((90, 80, 70), abs=1)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "odd.png", icc_profile=b"no profile")
    assert read_plain(tmp_path / "odd.png").getpixel((0, 0)) == (9, 8, 7)


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    folders = write_arms(tmp_path, ARMS, names=2)
    comparison = plan_comparison(folders)
    with pytest.raises(EvaluationError, match="longest must be at least 16 pixels, got 4"):
        write_page(comparison, tmp_path / "send", longest=4)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EvaluationError, match="page was not written"):
        write_page(comparison, tmp_path / "file")
    whole = (folders[0] / "drawing-001.png").read_bytes()
    (folders[0] / "drawing-001.png").write_bytes(whole[:-30])
    with pytest.raises(EvaluationError, match=r"drawing-001\.png cannot be read"):
        write_page(comparison, tmp_path / "send")
    assert not (tmp_path / "send" / "compare.html").exists()
    assert list((tmp_path / "send").iterdir()) == []


def luminance(colour):
    """Returns the relative luminance of "#rrggbb", as WCAG 2 defines it."""
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_texts_stand_out_in_light_and_in_dark(theme):
    blocks = re.findall(r":root \{(.*?)\}", (SOURCE / "page.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[theme]))
    for ink, paper in [("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("on-accent", "accent")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
