"""How servers are asked how they are, away from the control loop: within a time, for a few bytes, and silence is no error."""

from __future__ import annotations

import http.client
from typing import Mapping

PATIENCE = 2.0  # seconds


def body_of(address: str, path: str, most: int, headers: Mapping[str, str] | None = None) -> bytes | None:
    """The first bytes of an answer of 200; None where a server gives another one, or none.

    Args:
        address: host and port.
        path: that is asked for.
        most: bytes that are read.
        headers: of the request.
    """
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        body = answer.read(most)
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
