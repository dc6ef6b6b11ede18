"""Folders as people have them: which files are taken, and that the others are named."""

import json
import os
import sys

import pytest
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.data.pictures import BLUE, RED, encoded, picture, write
from hyper_sd.training.data import files
from hyper_sd.training.data.cache import load_pixels
from hyper_sd.training.data.folder import SPECIAL, folder_state, scan_folder
from hyper_sd.training.data.images import ImageRules
from PIL import Image

RULES = ImageRules(resolution=64, step=16, min_side=32)
ANY = ImageRules(resolution=64, step=16, min_side=32, default_caption="a picture")
GUESSED = "is not UTF-8 and was read as Windows-1252; save it as UTF-8 where letters are wrong"


def captions(found):
    return {item.name: item.caption for item in found.items}


def said(remarks):
    return {remark.name: remark.reason for remark in remarks}


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPEG", "a.gif", "a.tif", "a.TIFF", "a.apng", "a.webp", "a.avif"])
def test_endings_of_formats_that_pillow_reads_are_taken(tmp_path, name):
    ending = "." + name.rpartition(".")[2].lower()
    if ending not in files.suffixes():
        pytest.skip(f"this Pillow reads no {ending}")
    write(tmp_path, name, picture((96, 96), RED, BLUE))
    write(tmp_path, "a.txt", "halves")
    found = scan_folder(tmp_path, RULES)
    assert (captions(found), found.skipped, found.notes) == ({name: "halves"}, (), ())
    pixels = load_pixels(found.items[0])
    assert pixels[0, 32, 8] > 0.9 > -0.9 > pixels[2, 32, 8]


def test_pictures_that_are_not_read_here_are_named_with_what_to_do(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.psd", "d.cr2", "e.jxl", "f.tga"):
        write(tmp_path, name, b"whatever")
        write(tmp_path, name.rpartition(".")[0] + ".txt", "captioned")
    write(tmp_path, "g.png", picture())
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["g.png"]
    names = ("a.heic", "b.HEIC", "c.psd", "d.cr2", "e.jxl", "f.tga")
    assert said(found.skipped) == dict.fromkeys(names, "is a kind of picture that is not read here; save it as .png or .jpg")
    assert list(said(found.notes)) == ["g.png"]  # takes the default; the others' captions are told of with their pictures


def test_format_is_taken_once_a_decoder_is_there(tmp_path, monkeypatch):
    files.formats.cache_clear()
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    try:
        write(tmp_path, "a.heic", encoded(picture()))
        assert list(captions(scan_folder(tmp_path, ANY))) == ["a.heic"]
    finally:
        files.formats.cache_clear()


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png", ".tiff"])
def test_first_of_several_pictures_in_a_file_is_used_and_told(tmp_path, ending):
    write(tmp_path, f"a{ending}", picture(), save_all=True, append_images=[picture((96, 96), BLUE, RED)])
    write(tmp_path, "a.txt", "moving")
    found = scan_folder(tmp_path, RULES)
    assert said(found.notes) == {f"a{ending}": "holds several pictures, of which the first is used"}
    assert load_pixels(found.items[0])[0, 32, 8] > 0.9


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_that_cannot_become_rgb_are_skipped(tmp_path, mode):
    write(tmp_path, "a.tiff", Image.new(mode, (64, 64)))
    write(tmp_path, "b.tiff", Image.new("I;16", (64, 64), 65535))
    found = scan_folder(tmp_path, ANY)
    assert f"pixels are of the kind {mode}; save it as RGB with 8 bits" in said(found.skipped)["a.tiff"]
    assert (load_pixels(found.items[0]) == 1).all()


def test_turned_tiff_is_upright(tmp_path):
    exif = Image.Exif()
    exif[files.ORIENTATION] = 6
    write(tmp_path, "a.tiff", picture((96, 48)), exif=exif)
    (item,) = scan_folder(tmp_path, ANY).items
    assert item.bucket[0] < item.bucket[1]
    assert load_pixels(item).shape[1:] == item.bucket[::-1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.caption", "red fox"),
        ("a.TXT", "red fox"),
        ("a.PNG.txt", "red fox"),
        ("a.png.caption", " red fox "),
        ("a.json", json.dumps({"caption": "red fox"})),
        ("a.png.json", json.dumps({"text": "red fox", "score": 3})),
    ],
)
def test_caption_files_of_other_tools_are_read(tmp_path, name, content):
    write(tmp_path, "a.PNG", picture())
    write(tmp_path, name, content)
    found = scan_folder(tmp_path, ANY)  # the default must not take its place
    assert (captions(found), found.skipped, found.notes) == ({"a.PNG": "red fox"}, (), ())


def test_caption_file_with_the_whole_name_belongs_to_that_picture_alone(tmp_path):
    for name in ("a.png", "a.jpg"):
        write(tmp_path, name, picture())
    write(tmp_path, "a.jpg.txt", "the photo")
    write(tmp_path, "a.txt", "the drawing")
    assert captions(scan_folder(tmp_path, RULES)) == {"a.jpg": "the photo", "a.png": "the drawing"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take both names for one file")
def test_second_caption_of_one_name_in_another_case_is_told(tmp_path):
    write(tmp_path, "a.png", picture())
    for name in ("a.TXT", "a.txt"):
        write(tmp_path, name, name)
    found = scan_folder(tmp_path, RULES)
    assert captions(found) == {"a.png": "a.TXT"}
    assert [(note.name, note.reason) for note in found.notes] == [("a.txt", "is not used, a.TXT has the same name")]


def test_blank_caption_gives_way_to_the_next_and_unused_ones_are_told(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path, name, picture())
    write(tmp_path, "a.txt", " \n")
    write(tmp_path, "a.caption", "from the second")
    write(tmp_path, "b.txt", "from the first")
    write(tmp_path, "b.caption", "not read")
    write(tmp_path, "c.json", '{"prompt": "x"}')
    write(tmp_path, "notes.txt", "mine")
    found = scan_folder(tmp_path, ANY)
    assert captions(found) == {"a.png": "from the second", "b.png": "from the first", "c.png": "a picture"}
    assert [(note.name, note.reason) for note in found.notes] == [
        ("c.json", 'holds no "text" or "caption"'),
        ("b.caption", "is not used, its picture's caption stands elsewhere"),
        ("notes.txt", "belongs to no picture"),
        ("c.png", "has no caption of its own and takes default_caption"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
def test_texts_are_read_by_their_mark_and_a_guess_is_told(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    write(tmp_path, "a.png", picture())
    write(tmp_path, "b.png", picture())
    write(tmp_path, "a.txt", (mark + "café “Zoë”").encode(encoding))
    write(tmp_path, "metadata.csv", (mark + "file_name,text\nb.png,naïve").encode(encoding))
    found = scan_folder(tmp_path, RULES)
    assert captions(found) == {"a.png": "café “Zoë”", "b.png": "naïve"}
    assert said(found.notes) == (dict.fromkeys(("metadata.csv", "a.txt"), GUESSED) if encoding == "cp1252" else {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\xff\xfeA"),
        ("a.txt", b"\x89\0\1"),
        ("a.txt", b"caf\x81"),
        ("a.json", "{broken"),
        ("a.caption", b"\xff\xfe\0"),
    ],
)
def test_caption_that_cannot_be_read_skips_its_image(tmp_path, name, content):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "b.png", picture())
    write(tmp_path, name, content)
    found = scan_folder(tmp_path, ANY)
    assert list(captions(found)) == ["b.png"]
    assert "its caption cannot be read" in said(found.skipped)["a.png"]
    assert "save it as UTF-8" in said(found.skipped)["a.png"]


def test_whatever_else_lies_there_is_named(tmp_path):
    write(tmp_path, "a.png", picture())
    for name in ("a.npz", "clip.mp4", "more.zip", "captions", "README.md", "LICENSE", "desktop.ini"):
        write(tmp_path, name, "x")
    found = scan_folder(tmp_path, ANY)
    reason = "is neither a picture nor a caption, and is not read"
    assert {name for name, told in said(found.notes).items() if told == reason} == {"a.npz", "clip.mp4", "more.zip", "captions"}


def test_linked_folder_is_named(tmp_path):
    write(tmp_path / "set", "a.png", picture())
    write(tmp_path / "other", "b.png", picture())
    try:
        (tmp_path / "set" / "more").symlink_to(tmp_path / "other", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links without more rights")
    found = scan_folder(tmp_path / "set", ANY)
    assert list(captions(found)) == ["a.png"]
    assert said(found.notes)["more"] == "is a link to another folder, and is not followed"


def test_error_of_a_folder_without_a_usable_picture_names_what_lies_there(tmp_path):
    for number in range(17):
        write(tmp_path, f"{number:02}.heic", b"x")
    with pytest.raises(TrainingError, match=r"00\.heic, 01\.heic, 02\.heic and 14 more: each is a kind of picture.*\.jfif"):
        scan_folder(tmp_path, ANY)


def test_state_of_a_folder_follows_names_and_what_is_read(tmp_path):
    write(tmp_path, "a.jfif", picture())
    states = [list(folder_state(tmp_path))]
    for name, content in (("a.caption", "x"), ("a.caption", "longer"), ("b.heic", "x"), ("notes.md", "x")):
        write(tmp_path, name, content)
        states.append(list(folder_state(tmp_path)))
    assert len({tuple(state) for state in states}) == 5
    write(tmp_path, "notes.md", "more")
    assert list(folder_state(tmp_path)) == states[-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipes_and_devices_are_told_and_nobody_waits_for_them(tmp_path):
    write(tmp_path, "a.png", picture((64, 64), RED))
    write(tmp_path, "a.txt", "a caption")
    names = ("pipe.png", "pipe.txt", "a.caption", "metadata.csv", "metadata.jsonl")
    for name in names:
        os.mkfifo(tmp_path / name)
    (tmp_path / "device.png").symlink_to("/dev/zero")
    found = scan_folder(tmp_path, RULES)
    assert [item.name for item in found.items] == ["a.png"]
    assert {remark.name for remark in found.skipped if remark.reason == SPECIAL} == {*names, "device.png"}
    assert list(folder_state(tmp_path))
