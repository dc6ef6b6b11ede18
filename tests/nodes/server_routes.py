"""What a test asks of a running ComfyUI's routes."""

import json
import urllib.error
import urllib.request
from typing import Any

PATIENCE = 180.0  # seconds until a test gives up waiting for an answer


def fetch(server, path: str, body: Any = None) -> bytes:
    """Returns a route's answer; one of status 400, by which ComfyUI refuses a workflow, is an answer too.

    Args:
        server: the running ComfyServer.
        path: the route.
        body: what is sent as JSON; without it the route is only read.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        return error.read()


def ask(server, path: str, body: Any = None) -> Any:
    """Returns a route's JSON, {} where it answers nothing; the arguments are those of `fetch`."""
    return json.loads(fetch(server, path, body) or b"{}")
