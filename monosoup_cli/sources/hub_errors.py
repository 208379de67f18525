"""Turn errors of the Hub and its library into one line that says what to do next.

The library's own messages are not repeated: they contain addresses, which may contain tokens, and HTML.
"""

from __future__ import annotations

import errno
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

from monosoup_cli.errors import AccessError, CheckpointError, MonosoupError, crop, without_tokens
from monosoup_cli.sources.hub_ids import to_fill_the_cache

__all__ = ["LOG_IN", "hub_errors", "quiet_hub"]

FILE_IN_URL = re.compile(r"/resolve/[^/]+/([^?#]+)")
MAX_SERVER_TEXT = 200

LIBRARIES = {"huggingface_hub", "httpx", "httpx2", "requests", "hf_xet"}
OURS = __name__.partition(".")[0]

LOG_IN = "`hf auth login` (or HF_TOKEN)"
LATER = "try again later: finished files are kept"
AGAIN = "run it again: finished files are kept"
OFFLINE = "HF_HUB_OFFLINE=1 uses what is in the cache"
ANOTHER = "another revision may have it: NAME@REVISION"
UNREACHABLE = "cannot reach the Hub"
CUT = "the transfer was cut short"


class Advice(NamedTuple):
    """What happened, what to do about it, and the class of the error."""

    problem: str
    hint: str | None = None
    kind: type[CheckpointError] = CheckpointError


# By name, because it depends on the library's version which of them exist, and where.
ADVICE = {
    "GatedRepoError": Advice("gated on the Hub", f"accept the conditions on its page, then {LOG_IN}"),
    "DisabledRepoError": Advice("disabled on the Hub"),
    "RepositoryNotFoundError": Advice(
        "not on the Hub, or private", f"check the name; if it is private, {LOG_IN}"
    ),
    "RevisionNotFoundError": Advice(
        "no such revision on the Hub", "after @ comes a branch, a tag or a full commit hash"
    ),
    "HFValidationError": Advice("not a name on the Hub", "names are ORG/NAME or ORG/NAME@REVISION"),
    "HfUriError": Advice("not a name on the Hub", "names are hf://ORG/NAME or hf://ORG/NAME@REVISION"),
    "LocalTokenNotFoundError": Advice("there is no token for the Hub", LOG_IN, AccessError),
    "ProxyError": Advice(f"{UNREACHABLE}: the proxy fails", f"check HTTPS_PROXY and NO_PROXY; {OFFLINE}"),
    "UnsupportedProtocol": Advice(f"{UNREACHABLE}: its address is not valid", "check HF_ENDPOINT"),
    "InvalidURL": Advice(f"{UNREACHABLE}: its address is not valid", "check HF_ENDPOINT"),
    "TooManyRedirects": Advice(f"{UNREACHABLE}: too many redirects", "check HF_ENDPOINT"),
    "RemoteProtocolError": Advice(CUT, AGAIN),
    "ReadError": Advice(CUT, AGAIN),
    "WriteError": Advice(CUT, AGAIN),
    "ChunkedEncodingError": Advice(CUT, AGAIN),
    "XetDownloadError": Advice(CUT, AGAIN),
    "TimeoutException": Advice(f"{UNREACHABLE}: no answer in time", OFFLINE),
    "Timeout": Advice(f"{UNREACHABLE}: no answer in time", OFFLINE),
    "TimeoutError": Advice(f"{UNREACHABLE}: no answer in time", OFFLINE),
}


@contextmanager
def hub_errors(repository: str, action: str = "read") -> Iterator[None]:
    """Turn errors of the Hub, its library or the connection into CheckpointErrors.

    Other errors pass unchanged, also those of callbacks that the library calls.

    Args:
        repository: The repository, as the user typed it.
        action: What is done to it: "read" or "write to".
    """
    try:
        yield
    except MonosoupError:
        raise
    except Exception as error:
        if not _is_of_the_hub(error):
            raise
        advice = _advice(error, repository, action)
        raise advice.kind(advice.problem, path=repository, hint=advice.hint) from None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the library's progress bars, warnings and log lines, which contain addresses."""
    import huggingface_hub.hf_api  # noqa: F401  (sets the level of the log, so first)
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

    log = logging.getLogger("huggingface_hub")
    level, had_bars = log.level, not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        if had_bars:
            disable_progress_bars()
        try:
            yield
        finally:
            log.setLevel(level)
            if had_bars:
                enable_progress_bars()


def _is_of_the_hub(error: BaseException) -> bool:
    """Whether the Hub's library, or what it calls, has failed.

    An answer that is not the Hub's, such as the page of a captive portal, makes the library raise
    ValueError, KeyError or worse. The same errors are not the library's own if our code raises them, or a
    callback of ours that the library calls.
    """
    frames = traceback.walk_tb(error.__traceback__)
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    first = next((at for at, package in enumerate(packages) if package in LIBRARIES), None)
    return first is not None and OURS not in packages[first:]


def _advice(error: BaseException, repository: str, action: str) -> Advice:
    """Describe an error, and say what to do about it."""
    causes = list(_causes(error))
    kinds = [[kind.__name__ for kind in type(cause).__mro__] for cause in causes]
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return Advice(
                "no space left for the Hub's cache", f"free some space, or move it with HF_HOME; {AGAIN}"
            )
    if any("OfflineModeIsEnabled" in names for names in kinds):
        return Advice(f"offline, and {_extent(kinds)} in the cache", to_fill_the_cache(repository))
    for cause, names in zip(causes, kinds, strict=True):
        if "RemoteEntryNotFoundError" in names:
            return Advice(f"no file {_file_of(cause)} on the Hub", ANOTHER)
        known = next((ADVICE[name] for name in names if name in ADVICE), None)
        if known is not None:
            return known
        if getattr(cause, "response", None) is not None:
            return _status_advice(cause, action)
        if "HTTPError" in names or "RequestException" in names:
            return Advice(_unreachable(causes), OFFLINE)
        if "LocalEntryNotFoundError" not in names and isinstance(cause, ConnectionError):
            return Advice(_unreachable(causes), OFFLINE)
    if any("LocalEntryNotFoundError" in names or "RevisionResolutionError" in names for names in kinds):
        return Advice(f"{_extent(kinds)} in the cache", to_fill_the_cache(repository))
    if isinstance(error, OSError) and error.strerror:
        return Advice(f"cannot use the Hub's cache: {error.strerror}", "HF_HOME sets where it is")
    if isinstance(error, FileNotFoundError):
        return Advice("a file that it should have is not on the Hub", ANOTHER)
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return Advice(CUT, AGAIN)
    return Advice(f"cannot {action} it: the Hub's response is not valid", "check HF_ENDPOINT and the proxy")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, from the outside in.

    The library wraps a failed request into an error that only says that the file is not in the cache either.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _extent(kinds: list[list[str]]) -> str:
    partly = any("IncompleteSnapshotError" in names for names in kinds)
    return "only a part of it is" if partly else "it is not"


def _unreachable(causes: list[BaseException]) -> str:
    reason = next((c.strerror for c in reversed(causes) if isinstance(c, OSError) and c.strerror), None)
    return UNREACHABLE if reason is None else f"{UNREACHABLE}: {_one_line(reason)}"


def _status_advice(error: Any, action: str) -> Advice:
    status = error.response.status_code
    if status == 401:
        return Advice("the Hub does not accept the token", f"renew it with {LOG_IN}", AccessError)
    if status == 403:
        return Advice(f"the token may not {action} it", f"use one that may: {LOG_IN}", AccessError)
    if status == 412:
        return Advice("someone else has changed it in the meantime")
    if status == 429:
        wait = _wait(error.response.headers)
        when = "later" if wait is None else f"in {wait} s"
        return Advice("too many requests to the Hub", f"try again {when}: finished files are kept")
    if status >= 500:
        return Advice(f"the Hub has an internal problem (status {status})", LATER)
    message = _one_line(getattr(error, "server_message", None) or "")
    return Advice(f"the Hub refused the request (status {status}){': ' if message else ''}{message}")


def _wait(headers: Any) -> int | None:
    """How many seconds the server asks to wait; None if it does not say."""
    for name, pattern in (("retry-after", r"\s*(\d{1,9})\s*"), ("ratelimit", r".*\bt\s*=\s*(\d{1,9})\b.*")):
        if match := re.fullmatch(pattern, headers.get(name, "")):
            return int(match[1])
    return None


def _file_of(error: Any) -> str:
    """The name of the requested file."""
    match = FILE_IN_URL.search(str(error.response.request.url))
    return crop(repr(without_tokens(unquote(match[1]))), MAX_SERVER_TEXT) if match else "of this name"


def _one_line(text: str) -> str:
    """The message of a server in one line, cropped; empty for a page of HTML."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return "" if "<" in text else crop(without_tokens(" ".join(printable.split())), MAX_SERVER_TEXT)
