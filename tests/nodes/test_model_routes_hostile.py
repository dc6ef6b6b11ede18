"""The catalogue's routes on a running ComfyUI: what is refused, with nothing written and nothing asked of the hub."""

import http.client
import json
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
from hyper_sd.tests.nodes.model_world import CANCEL, ROUTES, START, STATUS

BAD_IDS = [
    "unknown",
    "",
    "../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "https://huggingface.co/ByteDance/Hyper-SD/resolve/main/Hyper-SD15-1step-lora.safetensors",
    "file:///etc/passwd",
    "hyper-sd15-1step-lora/../../x",
    "hyper-sd15-1step-lora\u0000",
    "HYPER-SD15-1STEP-LORA",
    "Hyper-SD15-1step-lora.safetensors",
    "a" * 3000,
]
NO_TEXT = [None, 7, True, ["hyper-sd15-1step-lora"], {"id": "hyper-sd15-1step-lora"}]
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.fixture
def untouched(world):
    """Holds that the test wrote no file, asked the hub for nothing, and left the server alive."""
    files, requests = world.files(), len(world.hub.requests)
    yield
    assert world.ask(STATUS) == (200, {"active": []})
    assert world.files() == files
    assert len(world.hub.requests) == requests


def test_released_flux_file_is_refused_without_the_licence(world, untouched):
    assert world.ask(START, {"id": "hyper-flux1-dev-8steps-lora"})[0] == 409


@pytest.mark.parametrize("route", [START, CANCEL])
@pytest.mark.parametrize("given", BAD_IDS)
def test_what_is_no_catalogue_id_is_not_found(world, untouched, route, given):
    status, answer = world.ask(route, {"id": given})
    assert status == 404
    assert "The catalogue has no" in answer["error"]


@pytest.mark.parametrize("route", [START, CANCEL])
@pytest.mark.parametrize("given", NO_TEXT)
def test_id_that_is_no_text_is_refused(world, untouched, route, given):
    assert world.ask(route, {"id": given})[0] == 400


@pytest.mark.parametrize("field", ["url", "path", "repo", "file", "root", "folder", "sha256", "acknowledge", "__proto__"])
def test_unknown_field_is_refused(world, untouched, field):
    status, answer = world.ask(START, {"id": "hyper-sd15-1step-lora", field: "https://evil.example/x.safetensors"})
    assert status == 400
    assert "no other fields" in answer["error"]


@pytest.mark.parametrize("fields", [{"acknowledged": 1}, {"acknowledged": "true"}, {"set_aside": None}])
def test_flag_that_is_no_boolean_is_refused(world, untouched, fields):
    assert world.ask(START, {"id": "hyper-flux1-dev-8steps-lora"} | fields)[0] == 400


BROKEN = [b"", b"{", b"[]", b'"id"', b"[" * 4000, b'{"id": "\xff"}', b"nonsense", b"1" * 4000, b'{"id": ' * 500, b"{}"]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:8]))
def test_body_that_is_no_object_with_an_id_is_refused(world, untouched, body):
    assert world.ask(START, body)[0] == 400


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_other_content_type_is_refused(world, untouched, kind):
    assert world.ask(START, {"id": "hyper-sd15-1step-lora"}, headers={"Content-Type": kind})[0] == 415


@pytest.mark.parametrize("padding", [5_000, 2_000_000])
def test_long_body_is_refused(world, untouched, padding):
    connection = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=60)
    connection.putrequest("POST", START)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**10))
    connection.endheaders()
    connection.send(b'{"id": "' + b"a" * padding)
    answer = connection.getresponse()
    assert answer.status == 413
    assert "4096" in json.loads(answer.read())["error"]
    connection.close()


def test_endless_body_is_refused(world, untouched):
    connection = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=60)
    pieces = (b" " * 1000 for _ in range(20))
    connection.request("POST", START, body=pieces, headers={"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_other_sites_page_is_refused_everywhere(world, untouched, headers, prefix):
    for path, body in ((ROUTES, None), (STATUS, None), (START, {"id": "hyper-sd15-1step-lora"}), (CANCEL, {"id": "x"})):
        assert world.ask(prefix + path, body, headers=headers)[0] == 403


# Names of a foreign site that lead to this machine: to the browser its page is then this server's own.
REBOUND = ["evil.example", "evil.example:8188", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example."]


@pytest.mark.parametrize("name", REBOUND)
def test_page_under_a_foreign_name_is_refused_with_how_to_allow_it(world, untouched, name):
    headers = {"Host": name, "Origin": f"http://{name}", "Sec-Fetch-Site": "same-origin"}
    for path, body in ((ROUTES, None), (START, {"id": "hyper-sd15-1step-lora"}), ("/hyper_sd/votes", None)):
        status, answer = world.ask(path, body, headers=headers)
        assert status == 403
        assert "environment variable HYPER_SD_HOSTS" in answer["error"]


def test_machines_own_names_and_addresses_are_served(world, untouched):
    port, own = world.server.port, platform.node()
    for name in (
        "127.0.0.1",
        "localhost",
        "LocalHost.",
        "comfy.localhost",
        "203.0.113.7",
        "[::1]",
        own,
        f"{own.split('.')[0]}.local",
    ):
        for host in (name, f"{name}:{port}"):
            assert world.ask(STATUS, headers={"Host": host, "Origin": f"http://{host}"})[0] == 200, host


def test_names_of_the_environment_variable_are_the_machines_own(pack, monkeypatch):
    from hyper_sd.nodes.routes import is_own

    for name in ("rented.example:8188", "[::1", "localhost\\", "a" * 300, "127.0.0.1@evil.example", " ", "\u0130"):
        assert not is_own(name)
    monkeypatch.setenv("HYPER_SD_HOSTS", "other.example, Rented.example")
    assert is_own("rented.example:8188")
    assert not is_own("more.rented.example")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_start_takes_post_only(world, untouched, method):
    assert world.ask(f"{START}?id=hyper-sd15-1step-lora", method=method)[0] in {404, 405}


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/hyper-sd15-1step-lora", "/start/x"])
def test_path_below_the_routes_is_not_found(world, untouched, path):
    assert world.ask(ROUTES + path)[0] in {404, 405}


def test_two_hundred_hostile_requests_at_once_are_all_refused(world, untouched):
    attempts = [(START, {"id": given}, {}) for given in BAD_IDS + NO_TEXT]
    attempts += [(START, {"id": "hyper-sd15-1step-lora"}, headers) for headers in FOREIGN]
    attempts += [(START, b" " * 5000, {}), (START, {"id": "hyper-flux1-dev-8steps-lora"}, {}), (START, b"[" * 4000, {})]
    attempts = (attempts * 200)[:200]
    with ThreadPoolExecutor(200) as threads:
        statuses = list(threads.map(lambda a: world.ask(a[0], a[1], headers=a[2])[0], attempts))
    assert set(statuses) <= {400, 403, 404, 409, 413, 429}
    assert {400, 403, 413} <= set(statuses)
