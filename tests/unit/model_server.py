"""A web server with the faults of real ones, on loopback."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Site:
    """What the server has, how it errs, and what it was asked.

    Attributes:
        data: the file's bytes.
        etag: its ETag; empty for none.
        cuts: for each answer to come, after how many bytes the connection breaks.
        statuses: for each answer to come, an error instead.
        ranges: it honours Range, and If-Range.
        if_range: it honours If-Range.
        token: what it asks for; empty for nothing.
        redirect: where it sends to instead.
        pause: an answer waits for this event before its second half.
        requests: path and headers of each request.
    """

    data: bytes = b""
    etag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True
    token: str = ""
    redirect: str = ""
    pause: threading.Event | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    @property
    def asked(self) -> list[str]:
        """The Range of each request."""
        return [headers.get("range", "") for _, headers in self.requests]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, headers = self.site, {name.lower(): value for name, value in self.headers.items()}
        site.requests.append((self.path, headers))
        self.close_connection = True
        if site.token and headers.get("authorization") != f"Bearer {site.token}":
            return self._say(401)
        if site.statuses:
            return self._say(site.statuses.pop(0))
        if site.redirect:
            return self._say(302, {"Location": site.redirect})
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if wanted and site.ranges and (not site.if_range or headers.get("if-range", site.etag) == site.etag):
            start, status = int(wanted[1]), 206
            if start >= len(site.data):
                return self._say(416)
        rest = site.data[start:]
        more = {"Content-Range": f"bytes {start}-{len(site.data) - 1}/{len(site.data)}"} if status == 206 else {}
        self._say(status, {**more, **({"ETag": site.etag} if site.etag else {})}, len(rest))
        if site.cuts:
            rest = rest[: site.cuts.pop(0)]
        half = len(rest) // 2 if site.pause else len(rest)
        with contextlib.suppress(OSError):
            self.wfile.write(rest[:half])
            if site.pause:
                self.wfile.flush()
                site.pause.wait(20)
            self.wfile.write(rest[half:])
        return None

    def _say(self, status: int, headers: dict[str, str] | None = None, length: int = 0) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Run a server for this site; its address stands in ``site.url``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
