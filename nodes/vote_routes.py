"""The votes' routes: the page shows pairs of collected pictures blind, and sends what a person prefers."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server import web  # aiohttp's server side, as the host has it

from ..evaluation import collected
from ..evaluation.vote_file import LONGEST
from .routes import Refused, add_routes, read_fields

PREFIX = "/hyper_sd/votes"
NO_STORE = {"Cache-Control": "no-store"}


class VoteRoutes:
    """The routes' handlers over the folder of comparisons. What reads or writes a file runs in a thread.

    Args:
        root: the folder, with one folder in it for each comparison.
    """

    def __init__(self, root: Path):
        self._root = root

    def register(self) -> None:
        """Adds the routes to the running server."""
        gets = {"": self.list, "/next": self.next, "/picture": self.picture, "/results": self.results}
        add_routes(PREFIX, gets, {"/vote": self.vote, "/undo": self.undo})

    async def list(self, request: "web.Request") -> dict[str, Any]:
        """Every comparison: its name, how many pairs it has, and how many are voted on."""
        rows = await self._call(collected.comparisons, self._root)
        return {
            "comparisons": [{"name": row.name, "pairs": row.pairs, "voted": row.voted, "problem": row.problem} for row in rows]
        }

    async def next(self, request: "web.Request") -> dict[str, Any]:
        """The next pair that has no vote: the ids of its two pictures and their prompt, and nothing that tells an arm."""
        return await self._call(self._next, collected.folder_of(self._root, request.query.get("comparison", "")))

    @staticmethod
    def _next(folder: Path) -> dict[str, Any]:
        shown = collected.next_pair(folder)
        counts = {"pairs": shown.pairs, "voted": shown.voted}
        if shown.number is None:
            return counts | {"pair": None}
        return counts | {"pair": shown.number, "left": shown.left, "right": shown.right, "prompt": shown.prompt}

    async def picture(self, request: "web.Request") -> "web.Response":
        """A picture by its id. The answer tells nothing of its file, whose time would tell which arm was drawn first."""
        folder = collected.folder_of(self._root, request.query.get("comparison", ""))
        content = await self._call(collected.picture_bytes, folder, request.query.get("id", ""))
        return web.Response(body=content, content_type="image/png", headers=NO_STORE)

    async def results(self, request: "web.Request") -> dict[str, Any]:
        """What the votes so far say, in sentences."""
        folder = collected.folder_of(self._root, request.query.get("comparison", ""))
        return {"text": await self._call(collected.results, folder)}

    async def vote(self, request: "web.Request") -> dict[str, Any]:
        """Takes a vote, and tells the next pair."""
        fields = await read_fields(request, id=str, pair=int, choice=str, milliseconds=int)
        if set(fields) != {"id", "pair", "choice", "milliseconds"}:
            raise Refused(400, "Send id, pair, choice and milliseconds.")
        if not 0 <= fields["milliseconds"] < LONGEST * 1000:
            raise Refused(400, f"milliseconds must be from 0 to below {LONGEST * 1000:g}.")
        folder = collected.folder_of(self._root, fields["id"])
        await self._call(collected.vote, folder, fields["pair"], fields["choice"], fields["milliseconds"] / 1000)
        return await self._call(self._next, folder)

    async def undo(self, request: "web.Request") -> dict[str, Any]:
        """Takes the last vote back, and tells its pair."""
        fields = await read_fields(request, id=str)
        folder = collected.folder_of(self._root, fields["id"])
        await self._call(collected.undo, folder)
        return await self._call(self._next, folder)

    @staticmethod
    async def _call(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *arguments))
