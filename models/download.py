"""Fetches catalogue files from the hub, whole and verified, or not at all. The only part of the pack that uses the network."""

import functools
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

from ..errors import DownloadError
from .addresses import origin, require_new, shares_origin
from .entry import Entry
from .foreign_text import shown
from .host_folders import SAFETENSORS
from .hub_answers import REDIRECTS, refusal, require_part, sha256_said, size_said, xet_said
from .hub_errors import begun, explained
from .hub_settings import HUB, endpoint_problem, token_problem, token_source
from .progress import Progress, State
from .remote import Remote, Sink
from .transfer import Transfer

POLL = 0.2  # seconds between two looks at a running download
PIECE = 2**18  # bytes: a slow line's progress moves, and a broken one loses little
XET_SILENCE = 30.0  # seconds after which plain HTTP is tried
START_SHARE = 2  # an answer has so many times the client's patience with a silent line to begin, redirects included
_log = logging.getLogger("hyper_sd")


def download(
    entry: Entry,
    root: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    opener: Callable[[Entry], Remote] | None = None,
    also: Iterable[Path] = (),
    set_aside: bool = False,
    endings: Sequence[str] = SAFETENSORS,
    verified: Callable[[int, str], None] | None = None,
) -> Path:
    """Returns an entry's file, whole and of the right content. It is fetched only where no folder has it.

    The transfer runs in a thread of its own, so the caller is called back even while the network is silent.

    Args:
        entry: of a catalogue.
        root: the folder it goes to, made if need be.
        progress: called about five times a second in the caller's thread. What it raises stops the download and is passed on,
            and what came so far is kept for the next time.
        opener: finds the file elsewhere, None for the hub.
        also: further folders of the host for this kind of file.
        set_aside: whether a corrupt file in its place may be renamed, once the good one is there.
        endings: of file names that the host reads as safetensors files; a copy under another name has one of them.
        verified: called with (size, sha256) once a file is there whose hash the hub itself has said, and the catalogue has not.
    Raises: DownloadError saying what to do, ChecksumMismatch; OSError where the disk fails.
    """
    transfer = Transfer(entry, Path(root), opener or open_hub_file, also, set_aside, endings, verified)
    outcome: list[Path | BaseException] = []
    thread = threading.Thread(target=_run, args=(transfer, outcome), name=f"hyper_sd {entry.id}", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL)
            if progress and thread.is_alive():
                progress(transfer.progress())
    except BaseException:
        transfer.stop()
        thread.join(2.0)  # a silent server holds it longer; it ends by itself and writes nothing more
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if progress:
        size = outcome[0].stat().st_size
        progress(Progress(State.READY, size, size))
    return outcome[0]


def _run(transfer: Transfer, outcome: list) -> None:
    try:
        outcome.append(transfer.run())
    except BaseException as error:  # raised again in the caller's thread
        outcome.append(error)


def open_hub_file(entry: Entry, endpoint: str | None = None) -> Remote:
    """Returns a file of the hub, by huggingface_hub: its tokens, mirrors (HF_ENDPOINT), proxies and offline switch apply.

    Args:
        entry: of a catalogue.
        endpoint: address of a hub, None for the client's own.
    Raises: Busy when trying again may help; DownloadError when the hub refuses.
    """
    import huggingface_hub
    from huggingface_hub import constants

    with explained(entry):
        endpoint = constants.ENDPOINT if endpoint is None else endpoint
        _require_usable(endpoint)
        url = huggingface_hub.hf_hub_url(entry.repo, entry.file, endpoint=endpoint)
        with _answer("HEAD", url, endpoint, entry) as known:
            headers, links, where = known.response.headers, known.response.links, known.url
        size = size_said(headers)
        xet = _own_xet(xet_said(headers, links), endpoint)

    def send(sink: Sink, offset: int) -> None:
        with explained(entry):
            if not (xet and size and _send_by_xet(*xet, size, sink, offset)):
                _send_by_http(url, endpoint, entry, sink, sink.tell())

    return Remote(size, sha256_said(headers), send, is_hub=origin(endpoint) == origin(where) == origin(HUB))


def _require_usable(endpoint: str) -> None:
    """Looks at the hub's address and the person's token before the client stumbles over them.

    Raises: DownloadError saying what is wrong.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    source = token_source(os.environ, str(constants.HF_TOKEN_PATH))
    try:
        token = build_hf_headers().get("authorization", "").removeprefix("Bearer ")
    except (OSError, UnicodeError) as error:
        raise DownloadError(
            f"The token of the hub in {source} cannot be read ({shown(error)}). Check the file's permissions, or log in anew "
            "with `hf auth login`."
        ) from error
    problem = endpoint_problem(endpoint) or token_problem(token, source)
    if problem:
        raise DownloadError(f"The hub was not asked: {problem}.")


class _Answer(NamedTuple):
    """The start of an answer: of the HTTP library; pieces: its body, by the size of a piece; url: that it came from."""

    response: Any
    pieces: Callable
    url: str


@contextmanager
def _answer(method: str, url: str, endpoint: str, entry: Entry, offset: int = 0) -> Iterator[_Answer]:
    """Asks for a file, and for what is said of it, through the client's session. Nothing of a refusal's body is read.

    Redirects are followed here, so that a token goes to the endpoint alone and none of them leads in a circle or elsewhere.

    Raises: Busy, DownloadError.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    own, foreign = headers, {name: value for name, value in headers.items() if name.lower() != "authorization"}
    bound, visited = START_SHARE * constants.HF_HUB_DOWNLOAD_TIMEOUT, []
    end = time.monotonic() + bound
    while True:
        visited.append(url)
        sent = own if origin(url) == origin(endpoint) else foreign
        ask = functools.partial(_open, get_session(), method, url, sent, constants.HF_HUB_DOWNLOAD_TIMEOUT)
        response, pieces = begun(ask, end, bound)
        try:
            # A HEAD's own answer says it all, whether or not the file lies elsewhere.
            if response.status_code in REDIRECTS and not (method == "HEAD" and "X-Linked-Etag" in response.headers):
                url = urljoin(url, response.headers.get("Location", "about:blank"))
                require_new(visited, url)
                continue
            if not (response.status_code in REDIRECTS or 200 <= response.status_code < 300):
                raise refusal(entry, response.status_code, response.headers)
            yield _Answer(response, pieces, url)
            return
        finally:
            response.close()


def _open(session: Any, method: str, url: str, headers: dict[str, str], timeout: float) -> tuple[Any, Callable]:
    """Opens a streamed answer, whatever it is. The client's session is of httpx since its release 1, of requests before."""
    if callable(getattr(session, "stream", None)):
        request = session.build_request(method, url, headers=headers, timeout=timeout)
        response = session.send(request, stream=True, follow_redirects=False)
        return response, response.iter_bytes
    from requests import Request

    prepared = session.prepare_request(Request(method, url, headers=headers))
    settings = session.merge_environment_settings(prepared.url, {}, True, None, None)
    # The session's own way would read a redirect's body to its end.
    response = session.get_adapter(prepared.url).send(prepared, timeout=timeout, **settings)
    return response, response.iter_content


def _send_by_http(url: str, endpoint: str, entry: Entry, sink: Sink, offset: int) -> None:
    """Sends over plain HTTP through the client's session, in pieces small enough that a broken line loses little.

    The client's own download keeps no partial file since its release 1, and shows nothing for 10 MB at a time.
    """
    with _answer("GET", url, endpoint, entry, offset) as answer:
        require_part(answer.response.status_code, answer.response.headers, offset)
        for piece in answer.pieces(PIECE):
            sink.write(piece)


def _own_xet(said: tuple[str, str] | None, endpoint: str) -> tuple[str, str] | None:
    """Returns a file's hash and route of Xet where that route is the endpoint's own, since the person's token is sent there."""
    if said and not shares_origin(said[1], endpoint):
        _tell_foreign_xet(shown(said[1], 80), shown(endpoint))
        return None
    return said


@functools.cache  # once for each address
def _tell_foreign_xet(route: str, endpoint: str) -> None:
    _log.warning(
        "The hub %s names %s as its way into Xet storage. A token is not sent to another address: going over HTTP",
        endpoint,
        route,
    )


def _send_by_xet(xet_hash: str, route: str, size: int, sink: Sink, offset: int) -> bool:
    """Sends by hf_xet's stream, which can begin anywhere, and tells whether it got to the end.

    What goes wrong there is no reason to stop: the hub serves every file over plain HTTP as well. hf_xet checks no hash itself.
    Source: https://huggingface.co/docs/xet.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    if getattr(constants, "HF_HUB_DISABLE_XET", False) or not _xet_streams():
        return False
    from hf_xet import XetConfig, XetFileInfo, XetSession

    session = XetSession(XetConfig().with_config("client.read_timeout", timedelta(seconds=XET_SILENCE)))
    sink.stop_sender = session.sigint_abort  # the only call that wakes a silent stream, and it ends the whole session
    try:
        group = session.new_download_stream_group(token_refresh_url=route, token_refresh_headers=build_hf_headers())
        for piece in group.download_stream(XetFileInfo(xet_hash, size), start=offset):
            sink.write(piece)
    except (RuntimeError, OSError) as error:  # what hf_xet raises; a full disk is seen again by the next sender
        sink.raise_if_cancelled()
        _log.warning("Xet did not deliver the rest of the file (%s); going on over HTTP", shown(error))
    return sink.tell() == size  # a storage that has lost the file ends the stream without a word


def _xet_streams() -> bool:
    """Tells whether hf_xet is there in a release whose streams leave other threads running while they wait."""
    try:
        release = importlib.metadata.version("hf_xet").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, release[:2])) >= (1, 7)
