"""Speaks to a running ComfyUI: queue a workflow, follow it step by step, fetch its images."""

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable

from .errors import ServerError, WorkflowError

Progress = Callable[[int, int, str], None]  # steps done, steps in all, node id

# The server is on this machine: a proxy meant for the outside must not stand in between.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SILENCE = 5.0  # seconds without a message after which the server is asked whether the workflow has ended


class ComfyClient:
    """One ComfyUI server's HTTP and websocket interface.

    Args:
        address: "http://host:port".
        timeout: seconds one answer may take.
    """

    def __init__(self, address: str, timeout: float = 60.0):
        self.address = address.rstrip("/")
        self.timeout = timeout

    def _fetch(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, headers={"Content-Type": "application/json"})
        with _DIRECT.open(request, timeout=self.timeout) as response:
            return response.read()

    def get(self, path: str) -> dict:
        """Returns a route's JSON.

        Raises: ServerError when the server does not answer.
        """
        try:
            return json.loads(self._fetch(path))
        except OSError as error:
            raise ServerError(f"ComfyUI at {self.address} does not answer {path}: {error}.") from error

    def object_info(self) -> dict:
        """Returns every node's description by its id."""
        return self.get("/object_info")

    def queue(self, prompt: dict, client_id: str = "") -> str:
        """Queues an API-format workflow and returns its prompt id.

        Raises: WorkflowError naming the node whose input the server refuses; ServerError.
        """
        try:
            answer = json.loads(self._fetch("/prompt", {"prompt": prompt, "client_id": client_id}))
        except urllib.error.HTTPError as error:
            raise refusal(json.loads(error.read() or b"{}")) from error
        except OSError as error:
            raise ServerError(f"ComfyUI at {self.address} does not take the workflow: {error}.") from error
        return answer["prompt_id"]

    def run(self, prompt: dict, on_progress: Progress | None = None) -> dict:
        """Runs an API-format workflow to its end.

        Args: on_progress: called with (steps done, steps in all, node id) as nodes report progress.
        Returns: the outputs by node id, {"9": {"images": [{"filename", "subfolder", "type"}]}}.
        Raises: WorkflowError with the node and the server's message; ServerError.
        """
        client_id = uuid.uuid4().hex
        prompt_id = asyncio.run(self._follow(prompt, client_id, on_progress or (lambda *_: None)))
        return self._outcome(prompt_id)["outputs"]

    async def _follow(self, prompt: dict, client_id: str, on_progress: Progress) -> str:
        import aiohttp  # ComfyUI's own need, so it is there whenever one runs

        url = f"{self.address}/ws?clientId={client_id}"
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
                prompt_id = await asyncio.to_thread(self.queue, prompt, client_id)
                while not await self._ended(socket, prompt_id, on_progress):
                    pass
        except aiohttp.ClientError as error:
            raise ServerError(f"ComfyUI at {self.address} broke the connection: {error}.") from error
        return prompt_id

    async def _ended(self, socket, prompt_id: str, on_progress: Progress) -> bool:
        """Takes one message and tells whether it ends the workflow; after a silence the history is asked instead."""
        import aiohttp

        try:
            message = await socket.receive(timeout=_SILENCE)
        except asyncio.TimeoutError:  # another class than TimeoutError on Python 3.10
            return prompt_id in await asyncio.to_thread(self.get, f"/history/{prompt_id}")
        if message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}:
            raise ServerError(f"ComfyUI at {self.address} stopped while the workflow was running.")
        if message.type != aiohttp.WSMsgType.TEXT:  # a preview picture
            return False
        event = message.json()
        data = event.get("data", {})
        if event["type"] == "progress" and data.get("prompt_id") in {prompt_id, None}:
            on_progress(data["value"], data["max"], str(data.get("node")))
        # Sent after success, error and interruption alike, and only once the history has been written.
        return event["type"] == "executing" and data.get("node") is None and data.get("prompt_id") == prompt_id

    def _outcome(self, prompt_id: str) -> dict:
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        if entry is None:
            raise ServerError(f"ComfyUI at {self.address} has no record of the workflow {prompt_id}.")
        for kind, data in entry.get("status", {}).get("messages", []):
            if kind == "execution_error":
                text = f"{data['exception_type']}: {data['exception_message'].strip()}"
                raise WorkflowError(text, data["node_id"], data["node_type"])
            if kind == "execution_interrupted":
                raise WorkflowError("interrupted", data["node_id"], data["node_type"])
        return entry

    def image(self, entry: dict) -> bytes:
        """Returns the file of one entry of a run's "images"."""
        names = {name: entry.get(name, "") for name in ("filename", "subfolder", "type")}
        try:
            return self._fetch(f"/view?{urllib.parse.urlencode(names)}")
        except OSError as error:
            raise ServerError(f"ComfyUI at {self.address} does not hand out {entry}: {error}.") from error

    def interrupt(self) -> None:
        """Asks the server to break off the running workflow."""
        self._fetch("/interrupt", {})


def refusal(answer: dict) -> WorkflowError:
    """Returns the error for a workflow the server did not accept, naming the first node at fault."""
    for node_id, node in answer.get("node_errors", {}).items():
        first = node["errors"][0]
        return WorkflowError(f"{first['message']}: {first.get('details', '')}", node_id, node.get("class_type"))
    error = answer.get("error", {})
    message = error.get("message", str(answer)) if isinstance(error, dict) else str(error)
    return WorkflowError(message)
