"""Downloads of files in Xet storage: hf_xet's own client against a storage on 127.0.0.1, and plain HTTP where that fails."""

import functools

import pytest
from hyper_sd.errors import ChecksumMismatch
from hyper_sd.models import files
from hyper_sd.models.download import download, open_hub_file
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault
from hyper_sd.tests.models.world import MIB


@pytest.fixture
def xet(world):
    """The world's hub with its file in Xet storage."""
    pytest.importorskip("hf_xet")
    from hyper_sd.models.download import _xet_streams

    if not _xet_streams():
        pytest.skip("hf_xet's streams came with 1.7")
    world.hub.xet = True
    return world


def xorbs(world):
    return [request for request in world.hub.requests if "/xorbs/" in request.path]


def test_xet_file_arrives_whole(xet):
    assert xet.download().read_bytes() == xet.content
    assert xorbs(xet)
    assert xet.starts() == []


def test_xet_goes_on_in_the_middle(xet):
    xet.root.mkdir(parents=True)
    files.part_path(xet.root, xet.entry, xet.entry.sha256).write_bytes(xet.content[: 5 * MIB])
    assert xet.download().read_bytes() == xet.content
    assert 0 < sum(request.sent for request in xorbs(xet)) < len(xet.content)


def test_broken_xet_storage_gives_way_to_http(xet):
    xet.hub.faults.append(Fault(times=ALWAYS, status=404, path="reconstructions"))
    assert xet.download().read_bytes() == xet.content
    assert xet.starts() == [0]


def test_wrong_content_by_xet_is_found(xet):
    xet.hub.faults.append(Fault(times=ALWAYS, wrong_content=True))
    with pytest.raises(ChecksumMismatch, match="expected"):
        xet.download()
    assert not xet.target.exists()


def test_stop_is_heard_while_xet_is_silent(xet):
    xet.hub.faults.append(Fault(times=ALWAYS, stall_after=1000, path="/xorbs/"))

    def stop(progress):
        if xorbs(xet):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(xet.entry, xet.root, progress=stop, opener=functools.partial(open_hub_file, endpoint=xet.hub.endpoint))
    assert not xet.target.exists()
    xet.hub.faults.clear()
    assert xet.download().read_bytes() == xet.content


def test_xet_can_be_switched_off(xet, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert xet.download().read_bytes() == xet.content
    assert not xorbs(xet)
