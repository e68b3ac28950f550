"""One file over HTTP, whole or not at all: verified, resumed, tried again. The standard library only, so that a bare
Python can get the models."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNK = 1 << 20  # bytes
SILENCE = 30.0  # seconds without a byte after which a connection is given up
TRIES = 5  # in a row that bring nothing
LONGEST_WAIT = 60.0  # seconds between two of them
LONGEST_LIST = 10_000_000  # bytes of JSON
PARTIAL = ".partial-"  # as janusflow_core.partial has it, which needs safetensors: no loader offers such a file
PASSING = {408, 425, 429, 500, 502, 503, 504}  # states of a server that may pass


@dataclass(frozen=True)
class RemoteFile:
    """A file to get and what it must be."""

    url: str
    size: int
    """Bytes."""
    digest: str
    """sha256, or, as git counts the small files, sha1 of its header and the content; hexadecimal."""


class Dropped(Exception):
    """A connection failed in a way that may pass; `wait` is how many seconds the server asks for."""

    def __init__(self, reason: object, wait: float = 0.0):
        super().__init__(" ".join(str(reason).split()) or type(reason).__name__)
        self.wait = wait


def fetch(file: RemoteFile, target: Path, token: str | None, show: Callable[[int], None]) -> None:
    """Get a file to `target`, from where an earlier call stopped; `show` gets how many bytes are there.

    Raises OSError with one sentence. What came before it stays for the next call, unless it was not what was announced.
    """
    partial = partial_of(file, target)
    with refusal_told(target.parent):
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    most, tries = size_of(partial), 0
    while size_of(partial) < file.size:
        try:
            _go_on(file, partial, token, show)
        except Dropped as dropped:
            tries, most = (0, size_of(partial)) if size_of(partial) > most else (tries + 1, most)
            give_up_or_wait(dropped, tries, file.url)
    if digest_of(partial, file.digest) != file.digest:
        partial.unlink()
        raise OSError(
            f"{target.name} came whole from {host(file.url)} but is not the file that was announced (its digest "
            "differs): run it again, and if that does not help, without the proxy or mirror"
        )
    with refusal_told(target.parent):
        os.replace(partial, target)


def fetch_json(url: str, token: str | None) -> Any:
    """What a server answers, as JSON; raises OSError with one sentence."""
    for tries in range(1, TRIES + 1):
        try:
            with _opened(url, token) as response:
                announced = response.length
                body = b"".join(_chunks(response, LONGEST_LIST))
            if announced is not None and len(body) < announced:
                raise Dropped("the connection ended early")
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise OSError(f"{url} answers something else than JSON: is HF_ENDPOINT a mirror of the hub?") from error
        except Dropped as dropped:
            give_up_or_wait(dropped, tries, url)
    raise AssertionError("give_up_or_wait raises at the last try")


def give_up_or_wait(dropped: Dropped, tries: int, url: str) -> None:
    """Wait longer with each try in a row that brought nothing; raises OSError after the last."""
    if tries >= TRIES:
        raise OSError(
            f"{host(url)} cannot be reached, or does not go on ({dropped}; {tries} tries): look at your network, proxy "
            "and HF_ENDPOINT, then run it again; what has come so far is kept"
        ) from dropped
    time.sleep(min(max(dropped.wait, 2.0 ** (tries - 1)), LONGEST_WAIT))


def _go_on(file: RemoteFile, partial: Path, token: str | None, show: Callable[[int], None]) -> None:
    """One connection: add what it brings to what is there; raises Dropped, or OSError where no other will do better."""
    there = size_of(partial)
    with _opened(file.url, token, there) as response:
        begin = _begin(response, there)
        if response.length is not None and begin + response.length != file.size:
            raise OSError(
                f"{file.url} gives {begin + response.length:,} bytes of {response.headers.get_content_type()}, "
                f"expected {file.size:,}: does a proxy ask for a login, or is a mirror out of date?"
            )
        with refusal_told(partial.parent), open(partial, "r+b") as out:
            out.seek(begin)
            out.truncate()
            show(begin)
            for chunk in _chunks(response, file.size - begin):
                out.write(chunk)
                show(out.tell())
    if size_of(partial) < file.size:
        raise Dropped("the connection ended early")


def _begin(response: Any, there: int) -> int:
    """Where in the file the answer begins: servers may refuse to go on and begin anew."""
    if response.status != 206:
        return 0
    given = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    if given != str(there):
        raise Dropped(f"asked for the bytes from {there}, got those from {given or 'nowhere'}")
    return there


def _chunks(response: Any, size: int) -> Iterator[bytes]:
    """At most `size` bytes of an answer in pieces; raises Dropped where the connection breaks or is silent."""
    while size > 0:
        try:
            chunk = response.read1(min(CHUNK, size))
        except (OSError, http.client.HTTPException) as error:
            raise Dropped(error) from error
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def _opened(url: str, token: str | None, begin: int = 0) -> Any:
    """The answer to a GET from a byte on; raises Dropped, or OSError for what will not pass."""
    request = urllib.request.Request(url, headers={"User-Agent": "janusflow"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        return _opener().open(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(error, begin) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise OSError(
                f"the certificate of {host(url)} is not trusted here ({error.reason.verify_message}): "
                "name your network's certificates in SSL_CERT_FILE, or pip install certifi"
            ) from error
        raise Dropped(error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(error) from error


def _refused(error: urllib.error.HTTPError, begin: int) -> Exception:
    """What an answer that is no file means."""
    where = f"{str(error.url).partition('?')[0]} answers {error.code} {' '.join(str(error.reason).split())}"
    if error.code in PASSING:
        asked = error.headers.get("Retry-After", "") if error.headers else ""
        return Dropped(where, float(asked) if asked.isdigit() else 0.0)
    if error.code == 416 and begin:
        return OSError(f"{where}: the file there has changed meanwhile; run it again")
    if error.code in (401, 403):
        return OSError(f"{where}: a token that may read it is needed in HF_TOKEN")
    return OSError(f"{where}: is HF_ENDPOINT a whole mirror of the hub?")


class _OwnToken(urllib.request.HTTPRedirectHandler):
    """Sends the token to the server that it is for, not to where that one sends us."""

    def redirect_request(self, req: urllib.request.Request, *given: Any) -> urllib.request.Request | None:
        request = super().redirect_request(req, *given)
        if request is not None and urlsplit(request.full_url)[:2] != urlsplit(req.full_url)[:2]:
            request.remove_header("Authorization")
        return request


def _opener() -> urllib.request.OpenerDirector:
    """Through the proxies of the environment, with the certificates of the system and, where it is there, certifi's."""
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())
    except (ImportError, OSError):
        pass
    return urllib.request.build_opener(_OwnToken(), urllib.request.HTTPSHandler(context=context))


@contextmanager
def refusal_told(folder: Path) -> Iterator[None]:
    """Turns what a full disk, or one that refuses, raises inside into an OSError with one sentence."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"nothing can be written to {folder} ({error.strerror}): free disk space or choose another folder"
        ) from error


def partial_of(file: RemoteFile, target: Path) -> Path:
    """Where a file is until it is whole: another file of that name is not mixed with it."""
    return target.with_name(f"{PARTIAL}{target.name}-{file.digest[:16]}")


def size_of(path: Path) -> int:
    """Bytes; 0 where there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def digest_of(path: Path, like: str) -> str:
    """A file's digest of the kind that `like` is: sha256, or sha1 as git counts it; hexadecimal."""
    digest = hashlib.sha256()
    if len(like) == 40:
        digest = hashlib.sha1(f"blob {size_of(path)}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def host(url: str) -> str:
    """The server of a URL."""
    return urlsplit(url).netloc
