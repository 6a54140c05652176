"""JSON over HTTP by the standard library: what has failed, and whether to try again."""

import json
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

LONGEST_WAIT = 30.0  # seconds between two tries
T = TypeVar("T")


class ServiceError(Exception):
    """A request without a usable answer; `again`: another try may help."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def post_json(
    url: str, question: Any, timeout: float, headers: Mapping[str, str] | None = None
) -> Any:
    """The JSON that a service answers.

    Args:
        url: where it is asked.
        question: what is sent, as JSON.
        timeout: seconds.
        headers: beside the content type.

    Raises:
        ServiceError: no answer in time, a status that is none of success, or no JSON.
    """
    body = json.dumps(question, default=str).encode()  # dates, as `datasets` holds them
    request = Request(url, body, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urlopen(request, timeout=timeout) as reply:
            return json.loads(reply.read())
    except HTTPError as error:
        said = error.read(500).decode("utf-8", "replace").strip()
        again = error.code >= 500 or error.code in (408, 429)
        raise ServiceError(f"HTTP {error.code} {error.reason} {said}".strip(), again) from None
    except TimeoutError:
        reason = f"no answer within timeout = {timeout:g} s"
        raise ServiceError(reason, again=True) from None
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise ServiceError(str(getattr(error, "reason", error)), again=True) from None
    except ValueError as error:
        raise ServiceError(f"the answer is not JSON ({error})", again=True) from None


def with_retries(ask: Callable[[], T], retries: int) -> T:
    """Ask, and ask again after 1, 2, 4, ... seconds while that may help.

    Raises:
        ServiceError: the last try failed, or one failed for good.
    """
    for tried in range(retries):
        try:
            return ask()
        except ServiceError as error:
            if not error.again:
                raise
        time.sleep(min(2.0**tried, LONGEST_WAIT))
    return ask()
