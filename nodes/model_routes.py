"""The catalogue's routes: a page lists, starts, watches and stops downloads by id; it can name no address and no path."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server import web  # aiohttp's server side, as the host has it

from ..models.catalog import HEADINGS
from ..models.chinese import translations
from ..models.jobs import Downloads
from ..models.progress import Row
from .routes import Refused, add_routes, read_fields

PREFIX = "/hyper_sd/models"
CALLS_AT_ONCE = 16  # starts and cancels that may wait for a thread
THREADS = 2


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
        """Adds the routes to the running server."""
        add_routes(PREFIX, {"": self.list, "/status": self.status}, {"/start": self.start, "/cancel": self.cancel})

    def _listing(self) -> dict[str, Any]:
        rows, problem = self._downloads.rows(), self._downloads.catalog()[1]
        chinese = translations(row.entry for row in rows)
        return {"families": HEADINGS, "entries": [row.to_json() for row in rows], "problem": problem, "chinese": chinese}

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
