"""The loopback hub's Xet storage against the real clients, and its layout by itself."""

import datetime
import hashlib
import importlib.metadata
import random
import threading
from pathlib import Path

import pytest
from hyper_sd.tests.models import loopback_xet
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault, LoopbackHub

REPO, FILE = "ByteDance/Hyper-SD", "x.safetensors"
CONTENT = random.Random(0).randbytes(300_000)
TOKEN = "hf_" + "a" * 34


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(loopback_xet, "CHUNK", 1000)
    monkeypatch.setattr(loopback_xet, "CHUNKS_IN_XORB", 70)
    with LoopbackHub(xet=True, token=TOKEN) as hub:
        hub.add(REPO, FILE, CONTENT)
        yield hub


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")


@pytest.fixture
def session(environment):
    hf_xet = pytest.importorskip("hf_xet")
    if tuple(map(int, importlib.metadata.version("hf_xet").split(".")[:2])) < (1, 7):
        pytest.skip("hf_xet before 1.7 keeps every other thread, and so the hub, from running while it waits")
    session = hf_xet.XetSession(hf_xet.XetConfig().with_config("client.retry_base_delay", datetime.timedelta(milliseconds=10)))
    guard = threading.Timer(20, session.sigint_abort)
    guard.start()
    yield session
    guard.cancel()


@pytest.fixture
def stream(hub, session):
    import hf_xet

    url = f"{hub.endpoint}/api/models/{REPO}/xet-read-token/{hub.commit}"
    group = session.new_download_stream_group(token_refresh_url=url, token_refresh_headers={"authorization": f"Bearer {TOKEN}"})
    file = hf_xet.XetFileInfo(hub.files[REPO, FILE].xet_hash, len(CONTENT))
    return lambda **more: group.download_stream(file, **more)


def count(hub, part):
    return sum(part in request.path for request in hub.requests)


def unpack(xorb):
    """Returns the chunks in the bytes of a xorb."""
    chunks = []
    while xorb:
        version, packed, compression, size = xorb[0], int.from_bytes(xorb[1:4], "little"), xorb[4], xorb[5:8]
        assert (version, compression, int.from_bytes(size, "little")) == (0, 0, packed)
        chunks.append(xorb[8 : 8 + packed])
        xorb = xorb[8 + packed :]
    return chunks


def read(xorb, start, stop):
    data = xorb.path.read_bytes()
    return b"".join(part if isinstance(part, bytes) else data[slice(*part)] for part in xorb.parts(start, stop))


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 3000, 3001, 10_500])
def test_xorbs_hold_the_file(monkeypatch, tmp_path, size):
    monkeypatch.setattr(loopback_xet, "CHUNK", 1000)
    monkeypatch.setattr(loopback_xet, "CHUNKS_IN_XORB", 3)
    (tmp_path / "x").write_bytes(CONTENT[:size])
    file = loopback_xet.lay_out(tmp_path / "x", size, "")
    whole = [read(xorb, 0, xorb.size) for xorb in file.xorbs]
    assert [len(data) for data in whole] == [xorb.size for xorb in file.xorbs]
    assert b"".join(chunk for data in whole for chunk in unpack(data)) == CONTENT[:size]
    xorb, data = file.xorbs[0], whole[0]
    cuts = [0, 3, 8, 500, 1007, 1008, 1012, 1016, 2017, len(data)]
    assert all(read(xorb, a, b) == data[a:b] for a in cuts for b in cuts if a <= b <= len(data))


@pytest.mark.parametrize("version", [1, 2])
def test_reconstruction_names_the_chunks_that_hold_a_range(hub, version):
    file = hub.xet_files[hub.files[REPO, FILE].xet_hash]
    found = file.reconstruction(69_500, 71_001, "http://cas", version)
    first, second = (xorb.hash for xorb in file.xorbs[:2])
    assert found["offset_into_first_range"] == 500
    assert found["terms"] == [
        {"hash": first, "unpacked_length": 1000, "range": {"start": 69, "end": 70}},
        {"hash": second, "unpacked_length": 2000, "range": {"start": 0, "end": 2}},
    ]
    if version == 2:
        ((fetch,),) = [found["xorbs"][second]]
        assert fetch["ranges"] == [{"chunks": {"start": 0, "end": 2}, "bytes": {"start": 0, "end": 2015}}]
    else:
        ((fetch,),) = [found["fetch_info"][second]]
        assert (fetch["range"], fetch["url_range"]) == ({"start": 0, "end": 2}, {"start": 0, "end": 2015})
    assert fetch["url"].startswith(f"http://cas/xorbs/{second}?")


def test_client_downloads_from_xet_storage(environment, hub, tmp_path, monkeypatch):
    pytest.importorskip("hf_xet")
    pytest.importorskip("huggingface_hub.utils._xet", reason="this huggingface_hub knows no Xet storage")
    client = pytest.importorskip("huggingface_hub")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", False, raising=False)
    try:
        path = client.hf_hub_download(REPO, FILE, endpoint=hub.endpoint, cache_dir=tmp_path, token=TOKEN)
    except ValueError as error:
        pytest.skip(f"hf_xet is too old for this huggingface_hub: {error}")
    assert Path(path).read_bytes() == CONTENT
    assert count(hub, "/xorbs/") >= 5
    assert not any(request.method == "GET" and "/resolve/" in request.path for request in hub.requests)
    assert all(request.authorization != f"Bearer {TOKEN}" for request in hub.requests if request.server == "cdn")


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (1, None), (70_000, None), (123_456, None), (299_999, None), (69_999, 140_001)]
)
def test_stream_starts_and_ends_anywhere(stream, start, stop):
    assert b"".join(stream(start=start, end=stop)) == CONTENT[start:stop]


def test_stream_falls_back_to_version_1(hub, stream):
    hub.faults.append(Fault(status=404, path="/v2/reconstructions"))
    assert b"".join(stream(start=123_456)) == CONTENT[123_456:]
    assert count(hub, "/v1/reconstructions") == 1


def test_stream_tries_again_what_was_cut_or_refused(hub, stream):
    hub.faults += [Fault(cut_after=5000, path="/xorbs/"), Fault(status=500, path="/v2/"), Fault(status=403, path="/xorbs/")]
    assert b"".join(stream()) == CONTENT
    assert not hub.faults


def test_stream_does_not_notice_wrong_content(hub, stream):
    hub.faults.append(Fault(wrong_content=True, path="/xorbs/", times=ALWAYS))
    got = b"".join(stream())
    assert len(got) == len(CONTENT)
    assert hashlib.sha256(got).hexdigest() != hub.files[REPO, FILE].sha256


def test_stream_needs_the_hubs_token(hub, session):
    url = f"{hub.endpoint}/api/models/{REPO}/xet-read-token/main"
    with pytest.raises(Exception, match="401"):
        session.new_download_stream_group(token_refresh_url=url, token_refresh_headers={})


def test_cancelled_stream_ends(stream):
    got = stream()
    assert CONTENT.startswith(next(iter(got)))
    got.cancel()
    assert list(got) == []


def test_stalled_stream_ends_with_its_session(hub, session, stream):
    hub.faults.append(Fault(stall_after=1000, path="/xorbs/", times=ALWAYS))
    aborting = threading.Timer(0.2, session.sigint_abort)
    aborting.start()
    with pytest.raises(RuntimeError):
        list(stream())
    aborting.join()
