"""Fetches catalogue files from the hub, whole and verified, or not at all. The only part of the pack that uses the network."""

import importlib.metadata
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .entry import Entry
from .host_folders import SAFETENSORS
from .hub_settings import endpoint_problem, proxy_problem, socks_problem, token_problem, token_source
from .progress import Progress, State
from .remote import Busy, Remote, Sink, StartAnew
from .transfer import Transfer

POLL = 0.2  # seconds between two looks at a running download
PIECE = 2**18  # bytes: a slow line's progress moves, and a broken one loses little
XET_SILENCE = 30.0  # seconds after which plain HTTP is tried
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HTTP_CLIENTS = {"httpcore", "httpx", "httpx2", "requests", "urllib3"}  # huggingface_hub has changed its HTTP library twice
# Errors of these libraries that no waiting mends: an address they cannot use.
_LASTING = {"InvalidSchema", "InvalidURL", "MissingSchema", "UnsupportedProtocol"}
_log = logging.getLogger("hyper_sd")
_BUSY = {408, 425, 429, 500, 502, 503, 504}


def download(
    entry: Entry,
    root: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    opener: Callable[[Entry], Remote] | None = None,
    also: Iterable[Path] = (),
    set_aside: bool = False,
    endings: Sequence[str] = SAFETENSORS,
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
    Raises: DownloadError saying what to do, ChecksumMismatch; OSError where the disk fails.
    """
    transfer = Transfer(entry, Path(root), opener or open_hub_file, also, set_aside, endings)
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

    with _explained(entry):
        _require_usable(endpoint)
        url = huggingface_hub.hf_hub_url(entry.repo, entry.file, endpoint=endpoint)
        known = huggingface_hub.get_hf_file_metadata(url)
    sha256 = known.etag if known.etag and _SHA256.fullmatch(known.etag) else None

    def send(sink: Sink, offset: int) -> None:
        with _explained(entry):
            if not _send_by_xet(known, sink, offset):
                _send_by_http(url, sink, sink.tell())

    return Remote(known.size, sha256, send)


def _require_usable(endpoint: str | None) -> None:
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
            f"The token of the hub in {source} cannot be read ({error}). Check the file's permissions, or log in anew with "
            "`hf auth login`."
        ) from error
    problem = endpoint_problem(constants.ENDPOINT if endpoint is None else endpoint) or token_problem(token, source)
    if problem:
        raise DownloadError(f"The hub was not asked: {problem}.")


def _send_by_http(url: str, sink: Sink, offset: int) -> None:
    """Sends over plain HTTP through the client's session, in pieces small enough that a broken line loses little.

    The client's own download keeps no partial file since its release 1, and shows nothing for 10 MB at a time.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with _get(get_session(), url, headers, constants.HF_HUB_DOWNLOAD_TIMEOUT) as (response, pieces):
        hf_raise_for_status(response)
        if offset and response.status_code != 206:
            raise StartAnew
        for piece in pieces(PIECE):
            sink.write(piece)


@contextmanager
def _get(session: Any, url: str, headers: dict[str, str], timeout: float) -> Iterator[tuple[Any, Callable]]:
    """Opens a streamed answer. The client's session is of httpx since its release 1, of requests before."""
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=timeout) as response:
            yield response, response.iter_bytes
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response, response.iter_content


def _send_by_xet(known: Any, sink: Sink, offset: int) -> bool:
    """Sends by hf_xet's stream, which can begin anywhere, and tells whether it got to the end.

    What goes wrong there is no reason to stop: the hub serves every file over plain HTTP as well. hf_xet checks no hash itself.
    Source: https://huggingface.co/docs/xet.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    data = getattr(known, "xet_file_data", None)
    if data is None or getattr(constants, "HF_HUB_DISABLE_XET", False) or not _xet_streams():
        return False
    from hf_xet import XetConfig, XetFileInfo, XetSession

    session = XetSession(XetConfig().with_config("client.read_timeout", timedelta(seconds=XET_SILENCE)))
    sink.stop_sender = session.sigint_abort  # the only call that wakes a silent stream, and it ends the whole session
    try:
        group = session.new_download_stream_group(
            token_refresh_url=data.refresh_route, token_refresh_headers=build_hf_headers()
        )
        for piece in group.download_stream(XetFileInfo(data.file_hash, known.size), start=offset):
            sink.write(piece)
    except (RuntimeError, OSError) as error:  # what hf_xet raises; a full disk is seen again by the next sender
        sink.raise_if_cancelled()
        _log.warning("Xet did not deliver the rest of the file (%s); going on over HTTP", error)
    return sink.tell() == known.size  # a storage that has lost the file ends the stream without a word


def _xet_streams() -> bool:
    """Tells whether hf_xet is there in a release whose streams leave other threads running while they wait."""
    try:
        release = importlib.metadata.version("hf_xet").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, release[:2])) >= (1, 7)


@contextmanager
def _explained(entry: Entry) -> Iterator[None]:
    """Turns the client's errors into ours, which say what to do."""
    from huggingface_hub.utils import OfflineModeIsEnabled

    try:
        yield
    except (DownloadError, StartAnew):
        raise
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{entry.name} is not here, and the hub's offline mode is on (HF_HUB_OFFLINE). Unset that variable and start the "
            f"host again, or download the file elsewhere from {entry.page}."
        ) from error
    except Exception as error:
        if getattr(error, "response", None) is not None:  # HfHubHTTPError, or what the HTTP library raised itself
            raise _of_status(entry, error) from error
        _refuse_lasting(error)
        if type(error).__module__.partition(".")[0] in _HTTP_CLIENTS or isinstance(error, ConnectionError):
            raise Busy(f"The connection for {entry.name} broke ({type(error).__name__}: {str(error)[:200]}).") from error
        raise


def _refuse_lasting(error: Exception) -> None:
    """Raises: DownloadError for what no waiting mends: a proxy or an address that cannot be used, a package that is missing."""
    ours = type(error).__module__.partition(".")[0] not in _HTTP_CLIENTS
    if ours and not isinstance(error, ValueError | ImportError):  # httpx tells a wrong proxy by these
        return
    problem = proxy_problem(os.environ) or socks_problem(error)
    if not problem and not ours and _LASTING & {kind.__name__ for kind in type(error).__mro__}:
        problem = f"an address cannot be used ({error}); check HF_ENDPOINT and the proxies, and start the host again"
    if problem:
        raise DownloadError(f"The hub could not be asked: {problem}.") from error


def _of_status(entry: Entry, error: Exception) -> DownloadError:
    status = error.response.status_code
    what = f"{entry.repo}/{entry.file}"
    if status in _BUSY:
        wait = error.response.headers.get("Retry-After", "")
        return Busy(f"The hub is busy (status {status}).", float(wait) if wait.isdigit() else 0.0)
    remedies = {
        401: f"The hub asks who you are for {what} (status 401). Log in with `hf auth login`, or set HF_TOKEN, and try again.",
        403: f"The hub does not let you have {what} (status 403). Open {entry.page} in a browser, accept the licence there, "
        "and log in with `hf auth login` or set HF_TOKEN to a token of that account.",
        404: f"The hub has no {what} (status 404): it was moved or removed. See {entry.page}, or update this pack.",
    }
    return DownloadError(remedies.get(status, f"The hub refuses {what} (status {status}): {error}"))
