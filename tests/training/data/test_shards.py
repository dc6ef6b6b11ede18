import gzip
import os
import tarfile

import numpy as np
import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.data.pictures import encoded, picture, shard, write
from hyper_sd.training.data.cache import load_pixels
from hyper_sd.training.data.folder import scan_folder
from hyper_sd.training.data.images import ImageRules
from hyper_sd.training.data.shards import expand_braces, scan_shards, shard_paths

RULES = ImageRules(resolution=64, step=16, min_side=32)


def samples(count, prefix=""):
    """Members of `count` different images with captions."""
    for number in range(count):
        yield f"{prefix}{number:04}.png", encoded(picture((64 + number, 64)))
        yield f"{prefix}{number:04}.txt", f"caption {number}"


def captions(found):
    return {item.name: item.caption for item in found.items}


def reasons(found):
    return {entry.name: entry.reason for entry in found.skipped}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_members_of_one_stem(tmp_path, form):
    image = encoded(picture())
    members = [
        ("b.txt", "from text"), ("b.JPG", encoded(picture(), ".jpg")), ("b.json", '{"text": "from json"}'),
        ("a.png", image), ("a.json", '{"width": 96, "caption": "json caption"}'),
        ("dir", tarfile.DIRTYPE), ("dir/雪" + "x" * 90 + ".webp", encoded(picture(), ".webp")),
        ("dir/雪" + "x" * 90 + ".JSON", '\ufeff{"text": "json text", "caption": "other"}'),
        ("c.png", image), ("c.txt", " "), ("c.json", '{"text": "where the text file is blank"}'),
        ("c.cls", "3"), (".hidden.png", image),
    ]  # fmt: skip
    found = scan_shards(shard(tmp_path / "s.tar", members, form), RULES)
    assert captions(found) == {
        "s.tar/b.JPG": "from text",
        "s.tar/a.png": "json caption",
        "s.tar/dir/雪" + "x" * 90 + ".webp": "json text",
        "s.tar/c.png": "where the text file is blank",
    }
    assert found.skipped == ()


def test_members_are_read_as_the_same_files_in_a_folder(tmp_path):
    path = shard(tmp_path / "s.tar", samples(5))
    for name, content in samples(5):
        write(tmp_path / "folder", name, content)
    in_tar, in_folder = scan_shards(path, RULES).items, scan_folder(tmp_path / "folder", RULES).items
    facts = [[(item.caption, item.bucket, item.digest) for item in items] for items in (in_tar, in_folder)]
    assert facts[0] == facts[1]
    for one, other in zip(reversed(in_tar), reversed(in_folder), strict=True):
        assert torch.equal(load_pixels(one), load_pixels(other))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "s.tar"]


def test_links_and_paths_in_a_shard_are_not_followed(tmp_path):
    write(tmp_path, "secret.png", picture())
    members = [("link.png", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("note.txt", tarfile.SYMTYPE)]
    members += [
        ("../secret.png", b"not an image"),
        ("../secret.txt", "x"),
        ("../../up.png", encoded(picture())),
        ("../../up.txt", "up"),
    ]
    found = scan_shards(shard(tmp_path / "in" / "s.tar", members), RULES)
    assert captions(found) == {"s.tar/../../up.png": "up"}
    assert found.items[0].source.path == tmp_path / "in" / "s.tar"
    assert {name: "link" in reason for name, reason in reasons(found).items()} == {
        "s.tar/link.png": True,
        "s.tar/hard.jpg": True,
        "s.tar/note.txt": True,
        "s.tar/../secret.png": False,
    }


def test_member_that_comes_twice_is_used_once(tmp_path):
    members = [("a.png", encoded(picture())), ("a.txt", "first"), ("a.png", encoded(picture((64, 64)))), ("a.txt", "second")]
    found = scan_shards(shard(tmp_path / "s.tar", members), RULES)
    assert captions(found) == {"s.tar/a.png": "first"}
    assert [entry.name for entry in found.skipped] == ["s.tar/a.png", "s.tar/a.txt"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([("bad.png", b"")], "no caption"),
        ([("bad.png", b""), ("bad.txt", "x")], "is not a PNG"),
        ([("bad.png", encoded(picture())[:200]), ("bad.txt", "x")], "cannot be read"),
        ([("bad.png", encoded(picture())), ("bad.json", "{broken")], "its caption cannot be read"),
        ([("bad.png", encoded(picture())), ("bad.json", "[1]")], "no caption"),
        ([("bad.png", encoded(picture())), ("bad.json", '{"text": 5}')], "no caption"),
        ([("bad.png", encoded(picture())), ("bad.txt", b"\xff\0")], "its caption cannot be read"),
        ([("bad.png", encoded(picture((20, 90)))), ("bad.txt", "x")], "20 x 90"),
    ],
)
def test_bad_sample_is_listed_and_the_others_are_used(tmp_path, bad, reason):
    found = scan_shards(shard(tmp_path / "s.tar", [*bad, *samples(1)]), RULES)
    assert list(captions(found)) == ["s.tar/0000.png"]
    assert reason in reasons(found)["s.tar/bad.png"]


def test_members_that_are_not_read_are_told(tmp_path):
    members = [*samples(1), ("0000.cls", "3"), ("old.heic", b"x"), ("0000.json", '{"text": "other"}'), ("alone.caption", "x")]
    found = scan_shards(shard(tmp_path / "s.tar", members), RULES)
    assert "save it as .png or .jpg" in reasons(found)["s.tar/old.heic"]
    assert {note.name: note.reason for note in found.notes} == {
        "s.tar/0000.json": "is not used, its picture's caption stands elsewhere",
        "s.tar/alone.caption": "belongs to no picture",
        "s.tar/0000.cls": "is neither a picture nor a caption, and is not read",
    }


def broken_shards(data):
    """(bytes, what the reason says) of shards that cannot be used."""
    body = len(data.rstrip(b"\0"))
    yield b"", "damaged"
    yield b"hello " * 300, "damaged"
    yield gzip.compress(data), r"compressed \(gzip\).*uncompressed tar"
    yield b"\7" * 512 + data[512:], "damaged"
    yield from ((data[: int(body * share)], "damaged") for share in (0.1, 0.5, 0.9, 0.999))


def test_broken_shard_is_skipped_whole_and_the_others_are_used(tmp_path):
    data = shard(tmp_path / "whole.tar", samples(4)).read_bytes()
    for content, reason in broken_shards(data):
        write(tmp_path / "set", "broken.tar", content)
        write(tmp_path / "set", "good.tar", data)
        found = scan_shards(tmp_path / "set", RULES)
        assert [item.name for item in found.items] == [f"good.tar/{number:04}.png" for number in range(4)]
        with pytest.raises(TrainingError, match=rf"broken\.tar is not used: .*{reason}"):
            scan_shards(tmp_path / "set" / "broken.tar", RULES)


def test_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = shard(tmp_path / "s.tar", samples(3))
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[3].offset
    data = bytearray(path.read_bytes())
    data[offset + 200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(TrainingError, match="damaged or ends early"):
        scan_shards(path, RULES)


def test_any_cut_of_a_shard_is_noticed(tmp_path):
    path = shard(tmp_path / "s.tar", samples(2))
    data = path.read_bytes()
    last_byte = len(data.rstrip(b"\0"))
    for length in np.random.default_rng(0).integers(0, last_byte, 40):
        write(tmp_path, "cut.tar", data[:length])
        with pytest.raises(TrainingError, match=r"cut\.tar is not used"):
            scan_shards(tmp_path / "cut.tar", RULES)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("d-{000..002}.tar", ["d-000.tar", "d-001.tar", "d-002.tar"]),
        ("d-{8..11}.tar", ["d-8.tar", "d-9.tar", "d-10.tar", "d-11.tar"]),
        ("{b,a}/{0..1}.tar", ["b/0.tar", "b/1.tar", "a/0.tar", "a/1.tar"]),
        ("{a-{0..1},b}", ["a-0", "b", "a-1", "b"]),
        ("{x}.tar", ["{x}.tar"]),
        ("{3..1}.tar", []),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, names):
    assert expand_braces(pattern) == names


def test_patterns_folders_and_globs_give_files_in_order(tmp_path):
    for name in ("d-001.tar", "d-000.tar", "e.TAR", "other.zip", ".hidden.tar", "sub/f.tar", "[x].tar"):
        write(tmp_path, name, "")
    root = str(tmp_path)

    def names(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in shard_paths(pattern)]

    assert names(tmp_path) == ["[x].tar", "d-000.tar", "d-001.tar", "e.TAR"]
    assert names(f"{root}/d-*.tar") == ["d-000.tar", "d-001.tar"]
    assert names(f"{root}/**/*.tar")[-1] == "sub/f.tar"
    assert names(f"{root}/[x].tar") == ["[x].tar"]
    assert names(f"{root}/{{d-000,d-000}}.tar") == ["d-000.tar"]
    assert names(f"{root}/{{sub,d-001.tar}}") == ["sub/f.tar", "d-001.tar"]


def test_missing_shard_of_a_pattern_is_listed(tmp_path):
    shard(tmp_path / "d-0.tar", samples(1))
    found = scan_shards(f"{tmp_path}/d-{{0..1}}.tar", RULES)
    assert list(captions(found)) == ["d-0.tar/0000.png"]
    assert "is not used" in reasons(found)["d-1.tar"]


@pytest.mark.parametrize("address", ["https://example.com/{000..003}.tar", "pipe:cat a.tar", "s3://bucket/a.tar"])
def test_address_is_refused(address):
    with pytest.raises(TrainingError, match="download them"):
        scan_shards(address)


def test_pattern_without_a_match_is_an_error(tmp_path):
    for pattern in (tmp_path, f"{tmp_path}/*.tar"):
        with pytest.raises(TrainingError, match=r"stands for no shard; give \.tar files, uncompressed"):
            scan_shards(pattern)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipe_with_a_shards_name_is_told_and_nobody_waits_for_it(tmp_path):
    shard(tmp_path / "a.tar", samples(2))
    os.mkfifo(tmp_path / "b.tar")
    found = scan_shards(tmp_path, RULES)
    assert len(found.items) == 2
    assert [remark.name for remark in found.skipped] == ["b.tar"]
    assert "is not a file" in found.skipped[0].reason
