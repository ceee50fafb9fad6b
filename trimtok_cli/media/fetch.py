"""What an http or https address gives, within bounds of time and size. Follows no other scheme."""

import http.client
import time
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from trimtok_cli.errors import MediaError
from trimtok_cli.wording import shown, shown_name

# Bytes of one picture or video.
MOST_BYTES = 1 << 28

# Seconds that a server may stay silent, and that one download may take.
SILENCE = 20.0
PATIENCE = 90.0

_CHUNK = 1 << 16

_SILENT = "was not fetched, as the server was silent too long; run it again"

_SAVE = "save the file and name that"

# A server that is asked without one of these may answer with a page.
_HEADERS = {"User-Agent": "trimtok", "Accept": "image/*, video/*, */*;q=0.5"}


def fetch(
    url: str, *, most: int = MOST_BYTES, silence: float = SILENCE, patience: float = PATIENCE
) -> bytes:
    """The bytes at `url`. MediaError where they cannot be had, or not within the bounds.

    most: bytes; silence: seconds between any two of them; patience: seconds until the last.
    """
    name = shown(shown_name(url))
    if not url.lower().startswith(("http://", "https://")):
        raise MediaError(f"{name} is no http or https address; save the picture and name its file")
    deadline = time.monotonic() + patience
    try:
        with _opener().open(Request(url, headers=_HEADERS), timeout=silence) as answer:
            return _read(answer, name, most, deadline)
    except MediaError:
        raise
    except HTTPError as error:
        error.close()
        raise MediaError(
            f"{name} cannot be fetched: the server answered {error.code} "
            f"({shown(str(error.reason))[:80]}); check the address"
        ) from None
    except TimeoutError:
        raise MediaError(f"{name} {_SILENT}") from None
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise MediaError(f"{name} {_SILENT}") from None
        raise MediaError(f"{name} {_failed(error.reason)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MediaError(f"{name} {_failed(error)}") from None


def _opener() -> OpenerDirector:
    """An opener of http and https alone: an answer must not lead to a file or to FTP."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read(answer, name: str, most: int, deadline: float) -> bytes:
    told = answer.headers.get("Content-Length", "")
    if told.isdigit() and int(told) > most:
        raise MediaError(
            f"{name} has {int(told):,} bytes, more than the limit of {most:,}; {_SAVE}"
        )
    parts = []
    size = 0
    while chunk := answer.read1(_CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > most:
            raise MediaError(f"{name} has more bytes than the limit of {most:,}; {_SAVE}")
        if time.monotonic() > deadline:
            raise MediaError(f"{name} was not fetched in time, as the server is slow; {_SAVE}")
    if told.isdigit() and size < int(told):
        raise MediaError(f"{name} was cut off after {size:,} of {int(told):,} bytes; run it again")
    return b"".join(parts)


def _failed(error: object) -> str:
    reason = shown(str(getattr(error, "strerror", None) or error))[:120] or type(error).__name__
    return f"cannot be fetched ({reason}); check the address and the network, and run it again"
