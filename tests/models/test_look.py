"""A look at the folders while their files come and go."""

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.files import Found, index_folders, look, part_path
from hyper_sd.models.progress import State


@pytest.mark.parametrize("partial", [False, True])
def test_file_that_has_gone_since_the_index_was_made_is_missing(tmp_path, partial):
    entry = load_catalog().get("hyper-sd15-1step-lora")
    path = part_path(tmp_path, entry, entry.sha256) if partial else tmp_path / entry.name
    path.write_bytes(b"something")
    index = index_folders([tmp_path])
    assert look(entry, index).state is (State.PARTIAL if partial else State.CORRUPT)
    path.unlink()
    assert look(entry, index) == Found(State.MISSING)
