"""The catalogue's routes: a page lists, starts, watches and stops downloads by id; it can name no address and no path."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server import PromptServer, web  # aiohttp's server side, as the host has it

from ..errors import CatalogError, DownloadError
from ..models.catalog import HEADINGS
from ..models.jobs import Downloads
from ..models.progress import Row

PREFIX = "/hyper_sd/models"
BODY_LIMIT = 4096  # bytes; an id and two flags need a hundred
CALLS_AT_ONCE = 16  # starts and cancels that may wait for a thread
THREADS = 2

Handler = Callable[["web.Request"], Awaitable[dict[str, Any]]]


class Refused(Exception):
    """A request that is not served.

    Args:
        status: HTTP's number for the reason.
        message: the reason, as a sentence.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def refuse_foreign(request: "web.Request") -> None:
    """Lets pass what this host's own page sends, and programs that are no browser.

    Raises: Refused for what another site's page has sent through a person's browser.
    """
    site, origin, host = (request.headers.get(name, "").lower() for name in ("Sec-Fetch-Site", "Origin", "Host"))
    if site not in {"", "same-origin", "none"} or origin not in {"", f"http://{host}", f"https://{host}"}:
        raise Refused(403, "Only this ComfyUI's own page may use the model catalogue.")


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
            raise Refused(400, f"{name} must be {'true or false' if types[name] is bool else 'a text'}.")
    return fields


def answering(handler: Handler) -> Callable[["web.Request"], Awaitable["web.Response"]]:
    """Returns the handler as aiohttp wants it: own page only, JSON always, errors with a status and a sentence."""

    @functools.wraps(handler)
    async def answer(request: "web.Request") -> "web.Response":
        try:
            refuse_foreign(request)
            content, status = await handler(request), 200
        except Refused as error:
            content, status = {"error": str(error)}, error.status
        except CatalogError as error:
            content, status = {"error": str(error)}, 404
        except DownloadError as error:
            content, status = {"error": str(error)}, 409
        return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})

    return answer


class ModelRoutes:
    """The routes' handlers over one host's downloads. What looks at a disk runs in a thread, a few at a time.

    Args:
        downloads: of this host.
    """

    def __init__(self, downloads: Downloads):
        self._downloads = downloads
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hyper_sd routes")
        self._looking: asyncio.Future | None = None
        self._calls = 0

    def register(self) -> None:
        """Adds the routes to the running server, unless there is none, or a copy of the pack has added them."""
        server = getattr(PromptServer, "instance", None)
        if server is None or any(getattr(route, "path", "").startswith(PREFIX) for route in server.routes):
            return
        server.routes.get(PREFIX)(answering(self.list))
        server.routes.get(f"{PREFIX}/status")(answering(self.status))
        server.routes.post(f"{PREFIX}/start")(answering(self.start))
        server.routes.post(f"{PREFIX}/cancel")(answering(self.cancel))

    def _listing(self) -> dict[str, Any]:
        problem = self._downloads.catalog()[1]
        return {"families": HEADINGS, "entries": [row.to_json() for row in self._downloads.rows()], "problem": problem}

    async def list(self, request: "web.Request") -> dict[str, Any]:
        """Every entry with its state. Requests that come while the folders are looked at share that look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(self._threads, self._listing)
        return await asyncio.shield(self._looking)  # one that hangs up takes nothing from the others

    async def status(self, request: "web.Request") -> dict[str, Any]:
        """The downloads under way."""
        return {"active": [row.to_json() for row in self._downloads.active()]}

    async def start(self, request: "web.Request") -> dict[str, Any]:
        """Starts an entry's download, and tells its row."""
        fields = await read_fields(request, id=str, acknowledged=bool, set_aside=bool)
        return await self._call(functools.partial(self._downloads.start, fields.pop("id"), **fields))

    async def cancel(self, request: "web.Request") -> dict[str, Any]:
        """Stops an entry's download, and tells its row."""
        fields = await read_fields(request, id=str)
        return await self._call(functools.partial(self._downloads.cancel, fields["id"]))

    async def _call(self, work: Callable[[], Row]) -> dict[str, Any]:
        if self._calls >= CALLS_AT_ONCE:
            raise Refused(429, "Too many requests at once; try again in a moment.")
        self._calls += 1
        try:
            row = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._calls -= 1
        return {"entry": row.to_json()}
