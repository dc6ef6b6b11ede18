"""The loopback hub against the real client: it serves files as the hub does, and each fault does what it says."""

import hashlib
import http.client
import random
import threading
import time
from pathlib import Path

import pytest
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault, LoopbackHub

REPO, FILE = "ByteDance/Hyper-SD", "folder/x.safetensors"
CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RESOLVE = f"/{REPO}/resolve/main/{FILE}"
TOKEN = "hf_" + "a" * 34


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        assert hub.add(REPO, FILE, CONTENT) == SHA256
        yield hub


@pytest.fixture
def client(monkeypatch):
    pytest.importorskip("huggingface_hub.utils")  # the package imports its modules when they are first named
    client = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return client


@pytest.fixture
def download(client, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    return lambda **more: Path(client.hf_hub_download(REPO, FILE, endpoint=hub.endpoint, cache_dir=tmp_path, **more))


def metadata(client, hub, token=False):
    return client.get_hf_file_metadata(client.hf_hub_url(REPO, FILE, endpoint=hub.endpoint), token=token)


def ask(hub, path=RESOLVE, method="GET", timeout=None, **headers):
    """Returns (status, headers, body) of one request; the body is what came until the connection closed or timed out."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=timeout)
    connection.request(method, path, headers=headers)
    answer, body = connection.getresponse(), bytearray()
    try:
        while piece := answer.read1(10_000):
            body += piece
    except TimeoutError:
        pass
    connection.close()
    return answer.status, answer.headers, bytes(body)


def seen(hub):
    return [(request.server, request.method, request.status, request.sent) for request in hub.requests]


def test_client_gets_the_whole_file(download, hub):
    assert download(token=False).read_bytes() == CONTENT
    assert seen(hub) == [("hub", "HEAD", 200, 0), ("hub", "GET", 200, len(CONTENT))]


def test_metadata_is_the_hubs(client, hub):
    found = metadata(client, hub)
    assert (found.size, found.etag, found.commit_hash) == (len(CONTENT), SHA256, hub.commit)


def test_file_on_the_disk_is_served_from_where_it_lies(hub, tmp_path):
    (tmp_path / "y").write_bytes(b"0123456789")
    hub.add(REPO, "y", tmp_path / "y")
    assert ask(hub, f"/{REPO}/resolve/{hub.commit}/y")[2] == b"0123456789"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-9", 0, 10), ("299990-", 299_990, 300_000), ("-5", 299_995, 300_000), ("299999-400000", 299_999, 300_000)],
)
def test_range_is_answered_with_that_part(hub, asked, start, stop):
    status, headers, body = ask(hub, Range=f"bytes={asked}")
    assert (status, headers["Content-Range"], body) == (206, f"bytes {start}-{stop - 1}/300000", CONTENT[start:stop])
    assert (hub.requests[0].range, hub.requests[0].sent) == (f"bytes={asked}", stop - start)


def test_range_behind_the_end_is_refused(hub):
    status, headers, body = ask(hub, Range="bytes=300000-")
    assert (status, headers["Content-Range"], body) == (416, "bytes */300000", b"")


def test_cdn_is_sent_no_token(download, hub):
    hub.token, hub.redirect_to_cdn = TOKEN, True
    assert download(token=TOKEN).read_bytes() == CONTENT
    assert [(r.server, r.status, r.authorization) for r in hub.requests if r.status != 302] == [("cdn", 200, None)]
    assert {r.authorization for r in hub.requests if r.server == "hub"} == {f"Bearer {TOKEN}"}


def test_token_is_required(client, hub):
    hub.token = TOKEN
    assert metadata(client, hub, TOKEN).etag == SHA256
    for wrong in (False, "hf_other"):
        with pytest.raises(client.utils.HfHubHTTPError) as error:
            metadata(client, hub, wrong)
        assert error.value.response.status_code == 401


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/other/repo/resolve/main/x", "RepoNotFound"),
        (f"/{REPO}/resolve/v2/{FILE}", "RevisionNotFound"),
        (f"/{REPO}/resolve/main/y", "EntryNotFound"),
    ],
)
def test_what_is_not_there_is_named_as_the_hub_names_it(hub, path, code):
    status, headers, _ = ask(hub, path)
    assert (status, headers["X-Error-Code"]) == (401 if code == "RepoNotFound" else 404, code)


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (401, None, "RepositoryNotFoundError"),
        (403, None, "GatedRepoError"),
        (403, "", "HfHubHTTPError"),
        (404, None, "EntryNotFoundError"),
        (404, "RevisionNotFound", "RevisionNotFoundError"),
    ],
)
def test_client_reads_the_error_headers(client, hub, status, code, name):
    hub.faults.append(Fault(status=status, error_code=code))
    with pytest.raises(getattr(client.utils, name)) as error:
        metadata(client, hub)
    assert error.value.response.status_code == status
    assert not hub.faults


def test_hub_that_is_busy_or_broken_says_so(hub):
    hub.faults += [Fault(status=429, retry_after=7), Fault(status=500)]  # some versions of the client try these again
    (busy, headers, _), (broken, *_), (well, *_) = ask(hub), ask(hub), ask(hub)
    assert (busy, headers["Retry-After"], broken, well) == (429, "7", 500, 200)


def test_fault_lasts_as_often_as_it_says_and_matches_method_and_path(hub):
    hub.faults += [Fault(status=500, times=2, method="GET", path="x.safe"), Fault(status=403, times=ALWAYS)]
    assert [ask(hub, method=m)[0] for m in ("HEAD", "GET", "GET", "GET")] == [403, 500, 500, 403]


def test_stream_is_cut(hub):
    hub.faults.append(Fault(cut_after=100_000, times=2))
    status, headers, body = ask(hub)
    assert (status, headers["Content-Length"], body) == (200, "300000", CONTENT[:100_000])
    assert ask(hub, Range="bytes=200000-")[2] == CONTENT[200_000:]  # shorter than the cut
    assert ask(hub)[2] == CONTENT


def test_range_is_ignored(hub):
    hub.faults.append(Fault(ignore_range=True))
    status, headers, body = ask(hub, Range="bytes=100-")
    assert (status, headers["Content-Range"], body) == (200, None, CONTENT)


@pytest.mark.parametrize("error", [-1000, 1000])
def test_wrong_size_is_announced(client, hub, error):
    hub.faults.append(Fault(size_error=error, times=2))
    assert metadata(client, hub).size == len(CONTENT) + error
    _, headers, body = ask(hub)
    assert headers["Content-Length"] == headers["X-Linked-Size"] == str(len(CONTENT) + error)
    assert body == CONTENT[: len(CONTENT) + error]


def test_wrong_content_has_the_same_size(hub):
    hub.faults.append(Fault(wrong_content=True))
    _, headers, body = ask(hub)
    assert headers["X-Linked-Etag"] == f'"{SHA256}"'
    assert len(body) == len(CONTENT)
    assert hashlib.sha256(body).hexdigest() != SHA256


def test_plain_mirror_tells_no_sha256(client, download, hub):
    hub.faults.append(Fault(plain_etag=True, times=ALWAYS))
    assert (metadata(client, hub).etag, metadata(client, hub).size) == (SHA256[:40], len(CONTENT))
    assert download(token=False).read_bytes() == CONTENT


def test_stall_ends_after_its_time(hub):
    hub.faults.append(Fault(stall_after=1000, stall=0.05))
    assert ask(hub)[2] == CONTENT


def test_slow_stream_arrives_whole(hub):
    hub.faults.append(Fault(bytes_per_second=3e6))
    assert ask(hub)[2] == CONTENT


@pytest.mark.parametrize("fault", [Fault(stall_after=1000), Fault(silent=float("inf")), Fault(bytes_per_second=10)])
def test_closing_ends_every_answer_and_every_thread(fault):
    before = threading.active_count()
    with LoopbackHub() as hub:
        hub.add(REPO, FILE, CONTENT)
        hub.faults.append(fault)
        waiting = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
        waiting.request("GET", RESOLVE)
        while not hub.requests or hub.requests[0].sent < (fault.stall_after or 0):
            time.sleep(0.001)
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        ask(hub)
