"""Thousands of requests to a running ComfyUI, made from a seed: all but those of its own page for what there is are refused."""

import http.client
import json
import random

from hyper_sd.tests.nodes.model_world import CANCEL, ROUTES, START, STATUS

REQUESTS = 3_000
ENTRY = "hyper-sd15-1step-lora"
FOREIGN_NAMES = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:1", "127.0.0.1@evil.example")
# Numbers that lead here but are no addresses as a browser writes them; nobody looks them up, so they take no time.
NUMBERS = ("127.1", "0x7f.1:8188", "2130706433", "0177.0.0.1")
FOREIGN_ORIGINS = ("http://evil.example", "null", "file://", "http://127.0.0.1:1", "https://localhost.evil.example")
FOREIGN_SITES = ("cross-site", "same-site", "nonsense")
OTHER_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonp")
VALUES = (
    None,
    7,
    -1,
    1e308,
    True,
    [],
    {},
    [ENTRY],
    {"id": ENTRY},
    "",
    "../" * 9 + "etc/passwd",
    "C:\\x",
    "\u0000",
    "id\ud800",
    "a" * 3000,
)
FIELDS = ("url", "path", "repo", "file", "root", "sha256", "set_aside", "acknowledged", "__proto__", "", "Id")
PIECES = (b"{", b"[", b'"', b"\xff", b"\x00", b"1e999", b'{"id":', b"null", b"]", b" ", b"\\u0000")


def _body(rng: random.Random) -> bytes:
    """Returns a body that asks for nothing there is: no JSON, no object, no known id, or a field that has no place there."""
    kind = rng.randrange(4)
    if kind == 0:
        return b"".join(rng.choices(PIECES, k=rng.randrange(1, 2000)))
    if kind == 1:
        return json.dumps(rng.choice([value for value in VALUES if not isinstance(value, dict)])).encode()
    if kind == 2:
        return json.dumps({"id": rng.choice(VALUES)}).encode()
    field = rng.choice([name for name in FIELDS if name not in {"set_aside", "acknowledged"}])
    return json.dumps({"id": ENTRY, field: rng.choice(VALUES)}).encode()


def _request(rng: random.Random, port: int) -> tuple[str, str, bytes | None, dict[str, str], bool]:
    """Returns method, path, body and headers of a request, and whether it is one that is to be served."""
    host, headers = f"127.0.0.1:{port}", {}
    path, body = rng.choice((ROUTES, STATUS)), None
    if rng.random() < 0.5:
        path, body = rng.choice((START, CANCEL)), _body(rng)
    hostile = body is not None
    if body is not None:
        headers["Content-Type"] = rng.choice(OTHER_TYPES) if rng.random() < 0.2 else "application/json"
    if rng.random() < 0.3:
        host, hostile = rng.choice(FOREIGN_NAMES if rng.random() < 0.03 else NUMBERS), True
        headers["Origin"] = f"http://{host}"  # to the browser the page is this server's own
    elif rng.random() < 0.3:
        headers["Origin"], hostile = rng.choice(FOREIGN_ORIGINS), True
    if rng.random() < 0.2:
        headers["Sec-Fetch-Site"], hostile = rng.choice(FOREIGN_SITES), True
    return "GET" if body is None else "POST", path, body, {"Host": host, **headers}, not hostile


def test_every_hostile_request_is_refused_and_every_other_one_is_served(world, reliability):
    rng, counts = random.Random(7), {"refused": 0, "right": 0, "wrong": 0}
    files, asked = world.files(), len(world.hub.requests)
    connection = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=60)
    for _ in range(REQUESTS):
        method, path, body, headers, own = _request(rng, world.server.port)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        content = json.loads(text) if text else {"error": "Refused by ComfyUI itself."}
        if own:
            counts["right" if answer.status == 200 and "error" not in content else "wrong"] += 1
        else:
            refused = 400 <= answer.status < 500 and content["error"].endswith(".") and content["error"].isprintable()
            counts["refused" if refused else "wrong"] += 1
    connection.close()
    assert world.ask(STATUS) == (200, {"active": []})
    assert world.files() == files
    assert len(world.hub.requests) == asked
    reliability("requests to ComfyUI's routes", tried=REQUESTS, **counts)
