"""What an answer of the hub says by its status and its headers alone: the file, the rest of it, a refusal, a time to wait."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from ..errors import DownloadError
from .entry import Entry
from .foreign_text import shown
from .remote import Busy, StartAnew

BUSY = {429, 503}
PASSING = {408, 425, 500, 502, 504}  # what waiting may mend as well
REDIRECTS = {301, 302, 303, 307, 308}
PACKED = {"gzip", "x-gzip", "deflate", "br", "zstd"}  # what the HTTP libraries unpack
LONGEST_ASKED = 86400  # seconds; a server that asks for more is not taken at its word

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"\d{1,15}", re.ASCII)
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(?:\d{1,15}|\*)", re.ASCII)


def size_said(headers: Mapping[str, str]) -> int | None:
    """Returns a file's size in bytes, None where no number is said.

    Args:
        headers: of an answer, read in any case.
    """
    said = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    return int(said) if _SIZE.fullmatch(said) else None


def sha256_said(headers: Mapping[str, str]) -> str | None:
    """Returns a file's SHA-256 in hex, None where the ETag is of another kind.

    Args:
        headers: of an answer, read in any case.
    """
    said = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    said = said.removeprefix("W/").strip('"')
    return said if _SHA256.fullmatch(said) else None


def xet_said(headers: Mapping[str, str], links: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """Returns a file's hash in Xet storage and the address that gives a token for it, None where it is not in there.

    Source: huggingface_hub, `parse_xet_file_data_from_response`.
    Args:
        headers: of an answer, read in any case.
        links: its header Link, by rel.
    """
    xet_hash = headers.get("X-Xet-Hash", "")
    route = links.get("xet-auth", {}).get("url") or headers.get("X-Xet-Refresh-Route")
    return (xet_hash, route) if route and _SHA256.fullmatch(xet_hash) else None


def require_part(status: int, headers: Mapping[str, str], offset: int) -> None:
    """Makes sure that an answer's body begins at a byte of the file, and is sent as it is.

    A packed one was not asked for, and may unpack to nothing for ever, which no bound of time or of bytes would see.

    Args:
        status: 200 to 299.
        headers: of the answer, read in any case.
        offset: the byte that was asked for.
    Raises: StartAnew for the whole file in place of its rest; DownloadError for a part that starts elsewhere, or is packed.
    """
    encoding = headers.get("Content-Encoding", "")
    if PACKED & {word.strip().lower() for word in encoding.split(",")}:
        raise DownloadError(
            f"The hub sends the file packed ({shown(encoding, 60)}), which was not asked for. Try again later, and without a "
            "mirror (HF_ENDPOINT) or proxy if you use one."
        )
    if status == 200:
        if offset:
            raise StartAnew
        return
    said = headers.get("Content-Range", "")
    found = _RANGE.fullmatch(said)
    if status != 206 or not found or int(found[1]) != offset:
        raise DownloadError(
            f"The hub answers with another part of the file than was asked for (status {status}, from byte {offset} on, got "
            f"{shown(said, 60)!r}). Try again later, and without a mirror (HF_ENDPOINT) or proxy if you use one."
        )


def seconds_to_wait(said: str) -> float:
    """Returns how long a server asks to wait by its Retry-After, 0 where that is no time: neither seconds nor a date.

    Source: RFC 9110, 10.2.3.
    """
    if re.fullmatch(r"\d{1,6}", said, re.ASCII):
        seconds = float(said)
    else:
        try:
            seconds = parsedate_to_datetime(said[:64]).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            return 0.0
    return seconds if 0 <= seconds <= LONGEST_ASKED else 0.0


def refusal(entry: Entry, status: int, headers: Mapping[str, str]) -> DownloadError:
    """Returns what an answer other than the file means, as an error that says what to do. Its body is not read.

    Args:
        entry: that was asked for.
        status: of the answer.
        headers: of the answer, read in any case.
    """
    what = f"{entry.repo}/{entry.file}"
    if status in BUSY | PASSING:
        words = "The hub is busy" if status in BUSY else "The hub has a fault of its own"
        return Busy(f"{words} (status {status}).", seconds_to_wait(headers.get("Retry-After", "")))
    remedies = {
        401: f"The hub asks who you are for {what} (status 401). Log in with `hf auth login`, or set HF_TOKEN, and try again.",
        403: f"The hub does not let you have {what} (status 403). Open {entry.page} in a browser, accept the licence there, "
        "and log in with `hf auth login` or set HF_TOKEN to a token of that account.",
        404: f"The hub has no {what} (status 404): it was moved or removed. See {entry.page}, or update this pack.",
    }
    said = shown(headers.get("X-Error-Message") or "it says no more")
    return DownloadError(
        remedies.get(status, f"The hub does not send {what} (status {status}: {said}). Try again later, or see {entry.page}.")
    )
