"""A small hub on 127.0.0.1: answers the real client as the Hugging Face Hub does, and goes wrong in the ways asked for."""

import contextlib
import hashlib
import math
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyper_sd.tests.models.loopback_handler import COMMIT, Handler, Request
from hyper_sd.tests.models.loopback_xet import XetFile, Xorb, lay_out

ALWAYS = sys.maxsize
PIECE = 4 << 20


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next requests it matches; several fields may be set at once.

    Args:
        times: requests it is for; method: "GET", "HEAD" or "" for either; path: a part of the requests' path.
        status: answered instead, with the hub's own error headers; error_code: instead of the usual one; retry_after: seconds.
        silent: seconds before the answer begins; cut_after, stall_after: bytes of the body after which the connection closes,
            or nothing comes for stall seconds (math.inf: until the hub closes).
        bytes_per_second: of the body; ignore_range: 200 with the whole file; wrong_content: every bit of the file flipped.
        size_error: added to each size that is announced; plain_etag: no LFS headers, a 40-hex ETag as a plain mirror sends it.
        headers: of the hub's usual answer, added or changed.
        raw: bytes sent in place of any answer, with the other port's address for {cdn}; endless: bytes sent after it for ever.
    """

    times: int = 1
    method: str = ""
    path: str = ""
    status: int | None = None
    error_code: str | None = None
    retry_after: int = 1
    silent: float = 0
    cut_after: int | None = None
    stall_after: int | None = None
    stall: float = math.inf
    bytes_per_second: float = math.inf
    ignore_range: bool = False
    wrong_content: bool = False
    size_error: int = 0
    plain_etag: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes = b""
    endless: bytes = b""

    def matches(self, method: str, path: str, has_file: bool) -> bool:
        """Tells whether it is for this request; has_file: whether the answer would carry bytes of a file."""
        slow = self.bytes_per_second < math.inf or self.stall_after is not None
        in_body = slow or self.cut_after is not None or self.ignore_range or self.wrong_content
        return self.method in {"", method} and self.path in path and (has_file or not in_body)


@dataclass(frozen=True)
class Stored:
    """A file of the hub."""

    path: Path
    size: int
    sha256: str
    xet_hash: str

    def parts(self, start: int, stop: int) -> Iterator[bytes | tuple[int, int]]:
        """Yields what bytes start..stop of the body are: bytes as they are, or (start, stop) within the file."""
        yield start, stop


class LoopbackHub:
    """Serves files from 127.0.0.1 as the hub and its CDN do, each on its own port; `with` starts and stops it.

    Args:
        token: required of every request to the hub; redirect_to_cdn: whether files are fetched from the CDN's port.
        xet: whether they lie in Xet storage, also on the CDN's port, where clients that know it fetch them.
    """

    def __init__(self, *, token: str | None = None, redirect_to_cdn: bool = False, xet: bool = False):
        self.token, self.redirect_to_cdn, self.xet = token, redirect_to_cdn, xet
        self.files: dict[tuple[str, str], Stored] = {}
        self.xet_files: dict[str, XetFile] = {}
        self.cdn_files: dict[str, Stored | Xorb] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.commit = COMMIT
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory()
        self._servers = {name: _Server(self, name) for name in ("hub", "cdn")}

    def __enter__(self) -> "LoopbackHub":
        for server in self._servers.values():
            server.loop.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every answer, also one that stalls, and closes both ports."""
        self.closed.set()
        for server in self._servers.values():
            server.stop()
        self._folder.cleanup()

    @property
    def endpoint(self) -> str:
        return self._servers["hub"].url

    @property
    def cdn_endpoint(self) -> str:
        return self._servers["cdn"].url

    def add(self, repo: str, file: str, content: bytes | Path) -> str:
        """Puts a file into a repository, a path being served from where it lies, and returns its sha256."""
        if isinstance(content, bytes):
            path = Path(self._folder.name, str(len(self.files)))
            path.write_bytes(content)
        else:
            path = Path(content)
        digest = hashlib.sha256()
        with path.open("rb") as opened:
            while piece := opened.read(PIECE):
                digest.update(piece)
        size, sha256 = path.stat().st_size, digest.hexdigest()
        in_xet = lay_out(path, size, sha256)
        stored = self.files[repo, file] = self.cdn_files[f"/cdn/{sha256}"] = Stored(path, size, sha256, in_xet.hash)
        self.xet_files[in_xet.hash] = in_xet
        self.cdn_files |= {f"/xorbs/{xorb.hash}": xorb for xorb in in_xet.xorbs}
        return stored.sha256

    def take_fault(self, method: str, path: str, has_file: bool) -> Fault:
        """Returns the first fault for this request, which is one fewer from then on, or one in which nothing is wrong."""
        with self._lock:
            for index, fault in enumerate(self.faults):
                if fault.matches(method, path, has_file):
                    self.faults[index : index + 1] = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                    return fault
        return Fault()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, name: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.name = hub, name
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.loop = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.open: dict[threading.Thread, socket.socket] = {}

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.open[thread] = request
        thread.start()

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.open.pop(threading.current_thread(), None)

    def handle_error(self, request: socket.socket, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that hangs up is no error here
            super().handle_error(request, client_address)

    def stop(self) -> None:
        if self.loop.is_alive():
            self.shutdown()
        self.server_close()
        for thread, connection in list(self.open.items()):
            with contextlib.suppress(OSError):  # closed in the meantime
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(1)
