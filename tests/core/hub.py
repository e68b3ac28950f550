"""A Hugging Face hub of our own, on this machine, that can be told how to fail."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + 34 * "0"


@dataclass
class Hub:
    """Repositories, and how their server behaves; what is asked of it is kept in `asked`."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    store: str = ""
    """Another server that large files are redirected to."""
    token: str | None = None
    drop_after: list[int] = field(default_factory=list)
    """Bytes of the body that each of the next answers gives before the connection ends; the list is one of them."""
    stall_after: list[int] = field(default_factory=list)
    """The same, before the server falls silent."""
    states: list[int] = field(default_factory=list)
    """Of the next answers."""
    retry_after: str | None = None
    ranges: bool = True
    wrong_range: int = 0
    lie: int = 0
    """Added to every size that files are announced with when they come."""
    chunked: bool = False
    change: bytes = b""
    """What files begin with when they come, instead of what they begin with."""
    listing: bytes | None = None
    over: threading.Event = field(default_factory=threading.Event)
    """Ends the silence."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def listed(self, repository: str) -> bytes:
        """The hub's answer about a repository: files over 1,000 bytes are stored by their sha256, as LFS does."""
        return json.dumps(
            {
                "sha": COMMIT,
                "siblings": [self._entry(name, body) for name, body in self.repositories[repository].items()],
            }
        ).encode()

    def _entry(self, name: str, body: bytes) -> dict:
        entry = {"rfilename": name, "size": len(body)}
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        if len(body) > 1000:
            entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.hub
        hub.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._say(401)
        if hub.states:
            return self._say(hub.states.pop(0))
        if found := re.fullmatch(r"/api/models/(.+)\?blobs=true", self.path):
            return self._give(hub.listed(found[1]) if hub.listing is None else hub.listing, 0)
        found = re.fullmatch(rf"/([\w-]+/[\w.-]+)/resolve/{COMMIT}/([\w.-]+)", self.path)
        body = hub.repositories.get(found[1], {}).get(found[2]) if found else None
        if body is None:
            return self._say(404)
        if hub.store and len(body) > 1000:
            self.send_response(302)
            self.send_header("Location", hub.store + self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._give(hub.change + body[len(hub.change) :], hub.lie)

    def _say(self, state: int) -> None:
        self.send_response(state)
        if self.hub.retry_after:
            self.send_header("Retry-After", self.hub.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _give(self, body: bytes, lie: int) -> None:
        hub, size = self.hub, len(body)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and hub.ranges:
            begin = int(asked[1]) + hub.wrong_range
            body = body[begin:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if hub.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) + lie))
        self.end_headers()
        for fails, silent in ((hub.drop_after, False), (hub.stall_after, True)):
            if fails and (end := fails.pop(0)) < len(body):
                self._write(body[:end])
                self.wfile.flush()
                hub.over.wait(30 if silent else 0)
                return None
        self._write(body)
        if hub.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, body: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) if self.hub.chunked and body else body)

    def log_message(self, *given: object) -> None: ...


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """A hub that answers at hub.url meanwhile."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
