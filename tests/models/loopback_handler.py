"""How the loopback hub answers one request."""

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from hyper_sd.tests.models.loopback_xet import ACCESS_TOKEN

COMMIT = "5eed" * 10
BLOCK = 1 << 20
MOST_RAW = 1 << 28  # bytes of an answer without an end
INVERTED = bytes(255 - value for value in range(256))
ERRORS = {
    401: ("RepoNotFound", "Invalid username or password."),
    403: ("GatedRepo", "Access to this model is restricted and you are not in the authorized list."),
    404: ("EntryNotFound", "Entry not found"),
    429: ("", "Too many requests"),
    500: ("", "Internal Error"),
}


@dataclass
class Request:
    """One request as it came in, and what it was answered.

    Args:
        server: "hub" or "cdn", the port it came to; headers: their names in lower case.
        sent: bytes of the body, counted just before they go out, so that a client that has them all finds them counted.
    """

    server: str
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    server: Any

    def log_message(self, *args: object) -> None:
        """The hub's list of requests is the log."""

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        self.record = Request(self.server.name, self.command, path, {k.lower(): v for k, v in self.headers.items()})
        hub.requests.append(self.record)
        in_cdn = self.server.name == "cdn"
        has_file = path in hub.cdn_files if in_cdn else "/resolve/" in path and not hub.redirect_to_cdn
        self.fault = hub.take_fault(self.command, path, has_file and self.command == "GET")
        self.idle(self.fault.silent)
        if self.fault.raw or self.fault.endless:
            self.send_raw()
        elif self.fault.status:
            self.refuse(self.fault.status, self.fault.error_code)
        elif in_cdn:
            self.cdn(path)
        elif hub.token and self.record.authorization != f"Bearer {hub.token}":
            message = "Invalid credentials in Authorization header" if self.record.authorization else ERRORS[401][1]
            self.refuse(401, "" if self.record.authorization else None, message)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups())
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/xet-read-token/[^/]+", path):
            self.xet_token()
        else:
            self.refuse(404, "")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def cdn(self, path: str) -> None:
        """Answers for the CDN and the Xet storage."""
        if (stored := self.server.hub.cdn_files.get(path)) is not None:
            self.serve(stored, {})
        elif path == "/v1/telemetry":
            self.answer(200, {})
        elif not (found := re.fullmatch(r"(?:/v([12]))?/reconstructions/(\w+)", path)):
            self.refuse(404, "")
        elif self.record.authorization != f"Bearer {ACCESS_TOKEN}":
            self.refuse(401, "")
        else:
            self.reconstruction(int(found[1] or 1), found[2])  # hf_xet up to 1.2 names no version

    def reconstruction(self, version: int, xet_hash: str) -> None:
        if (file := self.server.hub.xet_files.get(xet_hash)) is None:
            return self.refuse(404, "")
        start, stop = parse_range(self.record.range, file.size) or (0, file.size)
        if start >= file.size:
            return self.refuse(416)
        found = file.reconstruction(start, stop, self.server.url, version)
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def xet_token(self) -> None:
        """Answers with a token for the Xet storage, in headers and in the body, as different clients read it."""
        cas, expires = self.server.hub.cdn_endpoint, int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": ACCESS_TOKEN, "X-Xet-Token-Expiration": str(expires)}
        body = {"casUrl": cas, "accessToken": ACCESS_TOKEN, "exp": expires}
        self.answer(200, headers | {"Content-Type": "application/json"}, json.dumps(body).encode())

    def resolve(self, repo: str, revision: str, file: str) -> None:
        hub = self.server.hub
        if not any(repo == known for known, _ in hub.files):
            return self.refuse(404 if hub.token else 401, "RepoNotFound")
        if revision not in {"main", COMMIT}:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if (stored := hub.files.get((repo, file))) is None:
            return self.refuse(404)
        if self.fault.plain_etag:
            return self.serve(stored, {"X-Repo-Commit": COMMIT, "ETag": f'"{stored.sha256[:40]}"'})
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{stored.sha256}"',
            "X-Linked-Etag": f'"{stored.sha256}"',
            "X-Linked-Size": str(stored.size + self.fault.size_error),
        }
        if hub.xet:
            auth = f"{hub.endpoint}/api/models/{repo}/xet-read-token/{COMMIT}"
            info = f"{hub.cdn_endpoint}/v1/reconstructions/{stored.xet_hash}"
            headers |= {
                "X-Xet-Hash": stored.xet_hash,
                "Link": f'<{auth}>; rel="xet-auth", <{info}>; rel="xet-reconstruction-info"',
            }
        if hub.redirect_to_cdn:
            location = f"{hub.cdn_endpoint}/cdn/{stored.sha256}?Signature=signed"
            return self.answer(302, headers | {"Location": location}, b"Found. Redirecting")
        return self.serve(stored, headers)

    def refuse(self, status: int, code: str | None = None, message: str | None = None) -> None:
        usual_code, usual_message = ERRORS.get(status, ("", "Error"))
        code, message = usual_code if code is None else code, message or usual_message
        headers = {"X-Error-Message": message, "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"Retry-After": str(self.fault.retry_after)} if status == 429 else {}
        self.answer(status, headers, json.dumps({"error": message}).encode())

    def answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(headers) | dict(self.fault.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.record.sent += len(body)
            self.wfile.write(body)

    def send_raw(self) -> None:
        """Sends the fault's own bytes in place of an answer, and goes on for as long as the client listens."""
        self.close_connection = True
        self.wfile.write(self.fault.raw.replace(b"{cdn}", self.server.hub.cdn_endpoint.encode()))
        while self.fault.endless and self.record.sent < MOST_RAW and not self.server.hub.closed.is_set():
            self.record.sent += len(self.fault.endless)
            self.wfile.write(self.fault.endless)

    def serve(self, stored: Any, headers: dict[str, str]) -> None:
        """Answers with a file or the range of it that is asked for."""
        (start, stop), status, size = (0, stored.size), 200, stored.size + self.fault.size_error
        asked = None if self.fault.ignore_range or self.command == "HEAD" else parse_range(self.record.range, stored.size)
        if asked and asked[0] >= stored.size:
            return self.answer(416, {"Content-Range": f"bytes */{stored.size}"})
        if asked:
            (start, stop), status = asked, 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        length = stop - start + self.fault.size_error
        headers |= {"Content-Length": str(length), "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        self.answer(status, headers)
        if self.command == "GET":
            self.send_body(stored, start, min(stop, start + length))
            self.close_connection |= self.fault.size_error > 0  # the client waits for the rest
        return None

    def idle(self, seconds: float) -> None:
        """Waits, but no longer than the hub is open."""
        self.server.hub.closed.wait(None if seconds == math.inf else seconds)

    def send_body(self, stored: Any, start: int, stop: int) -> None:
        fault = self.fault
        end = stop if fault.cut_after is None else min(stop, start + fault.cut_after)
        pause = end if fault.stall_after is None else min(end, start + fault.stall_after)
        self.send_bytes(stored, start, pause)
        if fault.stall_after is not None:
            self.idle(fault.stall)
        self.send_bytes(stored, pause, end)
        self.close_connection |= end < stop

    def send_bytes(self, stored: Any, start: int, stop: int) -> None:
        """Sends bytes start..stop of the body, at the fault's pace."""
        rate = self.fault.bytes_per_second
        block = BLOCK if rate == math.inf else max(1, int(rate / 50))
        with stored.path.open("rb") as file:
            for part in stored.parts(start, stop):
                if isinstance(part, bytes):
                    self.record.sent += len(part)
                    self.wfile.write(part)
                    continue
                for offset in range(*part, block):
                    count = min(block, part[1] - offset)
                    self.send_block(file, offset, count)
                    self.idle(count / rate)

    def send_block(self, file: BinaryIO, offset: int, count: int) -> None:
        self.record.sent += count
        if self.fault.wrong_content:
            file.seek(offset)
            self.wfile.write(file.read(count).translate(INVERTED))
        elif self.connection.sendfile(file, offset, count) < count:
            raise ConnectionAbortedError("the file has become shorter")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Returns the (start, stop) a Range header asks for, start >= size being out of range; None for the whole file."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
