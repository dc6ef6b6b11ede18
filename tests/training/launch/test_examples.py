import logging

import pytest
from hyper_sd.tests.training.data.pictures import picture, write
from hyper_sd.training.data.images import ImageRules
from hyper_sd.training.launch.run_file import DataTable


def test_log_names_what_is_not_used_as_the_node_does(tmp_path, caplog):
    pytest.importorskip("diffusers")
    from hyper_sd.training.launch.examples import scan

    write(tmp_path, "a.png", picture())
    write(tmp_path, "a.txt", "café".encode("cp1252"))
    write(tmp_path, "b.heic", b"x")
    write(tmp_path, "c.heic", b"x")
    with caplog.at_level(logging.INFO, "hyper_sd"):
        items = scan(DataTable(folder=str(tmp_path)), ImageRules(resolution=64, step=16))
    assert [item.caption for item in items] == ["café"]
    assert caplog.messages == [
        "1 images, 2 skipped",
        "skipped: b.heic and c.heic: each is a kind of picture that is not read here; save it as .png or .jpg",
        "note: a.txt is not UTF-8 and was read as Windows-1252; save it as UTF-8 where letters are wrong",
    ]
