"""What the routes of the pack share: a page's JSON is read and answered, other sites' pages are refused."""

import functools
import ipaddress
import json
import os
import platform
import re
from collections.abc import Awaitable, Callable
from typing import Any

from server import PromptServer, web  # aiohttp's server side, as the host has it

from ..errors import CatalogError, DownloadError, EvaluationError

HOSTS = "HYPER_SD_HOSTS"  # the environment variable that names further hosts, with commas between
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^\s:@/\\\[\]]+))(?::\d*)?")
BODY_LIMIT = 4096  # bytes; an id and two flags need a hundred

Handler = Callable[["web.Request"], Awaitable["dict[str, Any] | web.Response"]]
KINDS = {bool: "true or false", str: "a text", int: "a whole number"}


class Refused(Exception):
    """A request that is not served.

    Args:
        status: HTTP's number for the reason.
        message: the reason, as a sentence.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def own_hosts() -> set[str]:
    """Returns the names under which this machine may be asked, besides its addresses."""
    name = platform.node().lower()
    named = (part.strip().lower() for part in os.environ.get(HOSTS, "").split(","))
    return {"localhost", name, f"{name.partition('.')[0]}.local", *filter(None, named)}


def is_own(host: str) -> bool:
    """Whether a Host header has an address or a name of this machine.

    Any other name may be a foreign site's that leads here (DNS rebinding), whose page the browser then takes for this
    server's own.

    Args:
        host: as it was sent, in lower case, with or without a port; "" where a program sent none.
    """
    found = _HOST.fullmatch(host)
    if not found:
        return not host
    name = (found["v6"] or found["name"]).removesuffix(".")
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name in own_hosts() or name.endswith(".localhost")


def refuse_foreign(request: "web.Request") -> None:
    """Lets pass what this host's own page sends, and programs that are no browser.

    Raises: Refused for what another site's page has sent through a person's browser.
    """
    site, origin, host = (request.headers.get(name, "").lower() for name in ("Sec-Fetch-Site", "Origin", "Host"))
    if site not in {"", "same-origin", "none"} or origin not in {"", f"http://{host}", f"https://{host}"}:
        raise Refused(403, "Only this ComfyUI's own page may use the routes of Hyper-SD.")
    if not is_own(host):
        raise Refused(
            403,
            f"ComfyUI is asked for here as {host[:80]!a}, a name that is not known to be its own. If it is, behind a "
            f"proxy or on a rented machine, set the environment variable {HOSTS} to that name, without the port, and start "
            "ComfyUI again.",
        )


async def read_fields(request: "web.Request", **types: type) -> dict[str, Any]:
    """Returns the fields of the JSON object that a request carries.

    Args:
        request: whose body is read.
        types: the allowed fields' types by their names. "id" has to be there.
    Raises: Refused for another content type, too long a body, no JSON, unknown fields or wrong types.
    """
    if request.content_type != "application/json":
        raise Refused(415, "Send application/json.")
    body = bytearray()
    async for piece in request.content.iter_chunked(BODY_LIMIT):
        body += piece
        if len(body) > BODY_LIMIT:
            raise Refused(413, f"The body may have {BODY_LIMIT} bytes.")
    try:
        fields = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is no JSON.") from error
    if not isinstance(fields, dict) or "id" not in fields or set(fields) - set(types):
        raise Refused(400, f"Send an object with id, and no other fields than {', '.join(types)}.")
    for name, value in fields.items():
        if type(value) is not types[name]:
            raise Refused(400, f"{name} must be {KINDS[types[name]]}.")
    return fields


def answering(handler: Handler) -> Callable[["web.Request"], Awaitable["web.Response"]]:
    """Returns the handler as aiohttp wants it: own page only, JSON or a picture, errors with a status and a sentence."""

    @functools.wraps(handler)
    async def answer(request: "web.Request") -> "web.Response":
        try:
            refuse_foreign(request)
            content, status = await handler(request), 200
            if isinstance(content, web.Response):
                return content
        except Refused as error:
            content, status = {"error": str(error)}, error.status
        except (CatalogError, EvaluationError) as error:
            content, status = {"error": str(error)}, 404
        except DownloadError as error:
            content, status = {"error": str(error)}, 409
        return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})

    return answer


def add_routes(prefix: str, gets: dict[str, Handler], posts: dict[str, Handler]) -> None:
    """Adds routes to the running server, unless there is none, or a copy of the pack has added them.

    Args:
        prefix: what all of them begin with.
        gets: handlers of what is only read, by the rest of their path.
        posts: handlers of what changes something, by the rest of their path.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None or any(getattr(route, "path", "").startswith(prefix) for route in server.routes):
        return
    for path, handler in gets.items():
        server.routes.get(prefix + path)(answering(handler))
    for path, handler in posts.items():
        server.routes.post(prefix + path)(answering(handler))
