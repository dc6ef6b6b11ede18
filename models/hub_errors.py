"""What the hub's client and its HTTP library raise, turned into our errors, and a bound for what they wait for."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import DownloadError, HyperSDError
from .entry import Entry
from .foreign_text import shown
from .hub_settings import proxy_problem, socks_problem
from .remote import Busy, StartAnew

# huggingface_hub has changed its HTTP library twice.
_HTTP_CLIENTS = {"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}
# Errors of these libraries that no waiting mends: an address they cannot use.
_LASTING = {"InvalidSchema", "InvalidURL", "MissingSchema", "UnsupportedProtocol"}
T = TypeVar("T")


@contextmanager
def explained(entry: Entry) -> Iterator[None]:
    """Turns the client's errors into ours, which say what to do.

    Args:
        entry: that is downloaded.
    """
    try:
        yield
    except (HyperSDError, StartAnew):
        raise
    except Exception as error:
        if type(error).__name__ == "OfflineModeIsEnabled":
            raise DownloadError(
                f"{entry.name} is not here, and the hub's offline mode is on (HF_HUB_OFFLINE). Unset that variable and start "
                f"the host again, or download the file elsewhere from {entry.page}."
            ) from error
        _refuse_lasting(error)
        if _is_client(error) or isinstance(error, ConnectionError):
            raise Busy(f"The connection for {entry.name} broke ({type(error).__name__}: {shown(error)}).") from error
        if isinstance(error, ValueError | LookupError):
            raise DownloadError(f"The answer for {entry.name} cannot be read ({shown(error)}). Try again later.") from error
        raise


def _is_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _HTTP_CLIENTS


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _refuse_lasting(error: Exception) -> None:
    """Raises: DownloadError for what no waiting mends: a proxy or an address that cannot be used, a package that is missing."""
    is_client = _is_client(error)
    if not is_client and not isinstance(error, ValueError | ImportError):  # httpx tells a wrong proxy by these
        return
    problem = proxy_problem(os.environ) or socks_problem(error)
    if not problem and is_client and (_LASTING & _names(error) or "location header" in str(error)):
        problem = f"an address cannot be used ({shown(error)}); check HF_ENDPOINT and the proxies, and start the host again"
    if problem:
        raise DownloadError(f"The hub could not be asked: {problem}.") from error


class _Late(BaseException):
    """No Exception, so that no library takes it for one of its own."""


def begun(ask: Callable[[], T], end: float, bound: float) -> T:
    """Returns an answer once its headers are here, and ends a call that takes longer, however busy the server keeps it.

    The libraries bound each wait for a byte alone. So every call that they make in this thread looks at the clock.

    Args:
        ask: returns the answer.
        end: when it is too late, by time.monotonic().
        bound: seconds that it had in all, for the message.
    Raises: Busy.
    """

    def look(*_: object) -> None:
        if time.monotonic() > end:
            raise _Late

    late = Busy(
        f"The hub did not begin to answer within {bound:g} s. On a slow line set HF_HUB_DOWNLOAD_TIMEOUT to more than "
        f"{bound / 2:g} and start the host again.",
        cost=2,
    )
    before = sys.getprofile()
    sys.setprofile(look)
    try:
        return ask()
    except _Late as error:
        raise late from error
    except Exception as error:
        if _is_client(error) and any("Timeout" in name for name in _names(error)):
            raise late from error
        raise
    finally:
        sys.setprofile(before)
