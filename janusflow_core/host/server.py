"""Starts, stops and talks to a real ComfyUI server."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .find import Json, tail
from .process import end_tree, free_port, install_pack

logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What one prompt left: `status` is success, error or interrupted; `error` holds the node_type and the
    exception_message; `node_errors` what validation left out; `previews` (binary event type, payload)."""

    prompt_id: str
    outputs: Json = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    previews: list[tuple[int, bytes]] = field(default_factory=list)
    status: str = "error"
    error: Json | None = None
    node_errors: Json = field(default_factory=dict)

    @property
    def images(self) -> list[dict[str, str]]:
        """Every saved or previewed image, as Server.output_path takes it."""
        return [image for output in self.outputs.values() for image in output.get("images", [])]


class Server:
    """One ComfyUI process in a folder of its own, as a context manager that leaves no process behind."""

    def __init__(
        self,
        comfyui: Path,
        *,
        pack: Path | None = None,
        pack_name: str | None = None,
        link: bool = True,
        base: Path | None = None,
        port: int | None = None,
        cpu: bool = True,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        timeout: float = 180,
    ) -> None:
        """Starts nothing yet; the pack goes in as a symlink, or with link=False as a copy without tests."""
        self.comfyui, self.port = Path(comfyui).resolve(), port or free_port()
        self.pack, self.pack_name, self.link = pack, pack_name, link
        self.cpu, self.extra_args, self.env = cpu, list(extra_args), dict(env or {})
        self.python, self.timeout = python, timeout
        self._temporary = base is None
        self.base = Path(base or tempfile.mkdtemp(prefix="janusflow-comfyui-")).resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._last_log = ""

    @property
    def url(self) -> str:
        """Where a browser finds the server."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once the server answers; raises RuntimeError with the end of its log if it never does."""
        try:
            self._prepare_base()
            # PYTHONPATH dropped: the pack must not work only because a checkout happens to be importable.
            inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            env = {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **self.env}
            with (self.base / "server.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(),
                    cwd=self.comfyui,
                    env=env,
                    stdout=log,
                    stdin=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                )
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the process with all its children and removes a temporary base folder; safe to call twice."""
        if self._process is not None:
            end_tree(self._process)
            self._process = None
        self._last_log = self.log()
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def log(self) -> str:
        """All that the server has written so far, also after it was stopped."""
        path = self.base / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else self._last_log

    def get(self, path: str) -> Any:
        """The JSON at `path`; raises RuntimeError when the server refuses or does not answer."""
        return json.loads(self._request(path))

    def object_info(self, node: str | None = None) -> Json:
        """The schema of every node, or of one, by node id."""
        return self.get(f"/object_info/{node}" if node else "/object_info")

    def upload_image(self, path: Path) -> str:
        """Puts a picture among the inputs and returns the name that LoadImage takes."""
        mark, path = uuid.uuid4().hex, Path(path)
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        reply = self._request("/upload/image", body, f"multipart/form-data; boundary={mark}")
        return json.loads(reply)["name"]

    def queue(self, prompt: Json, workflow: Json | None = None) -> str:
        """Queues an API prompt and returns its id; raises RuntimeError that names each invalid input."""
        return self._post_prompt(prompt, workflow, uuid.uuid4().hex)["prompt_id"]

    def run(
        self,
        prompt: Json,
        workflow: Json | None = None,
        on_event: Callable[[Json], None] | None = None,
        timeout: float = 600,
    ) -> Result:
        """Runs a prompt to its end, calling `on_event` with each message; raises RuntimeError for an invalid
        prompt or a dead server, TimeoutError after `timeout` seconds. The result tells of a failing node."""
        client = uuid.uuid4().hex
        connection = self._connect(client)
        try:
            reply = self._post_prompt(prompt, workflow, client)
            result = Result(reply["prompt_id"], node_errors=reply.get("node_errors") or {})
            try:
                self._follow(connection, result, on_event, time.monotonic() + timeout)
            except BaseException:
                with suppress(RuntimeError):
                    self._post("/queue", {"delete": [result.prompt_id]})
                    self.interrupt(result.prompt_id)
                raise
        finally:
            connection.close()
        return self._finished(result)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stops the running prompt, or only the one named."""
        self._post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def history(self, prompt_id: str) -> Json:
        """What the server remembers of a finished prompt (prompt, outputs, status); empty if unknown."""
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def output_path(self, item: Mapping[str, str]) -> Path:
        """The file of an image that a prompt's outputs name."""
        return self.base / item.get("type", "output") / item.get("subfolder", "") / item["filename"]

    def _prepare_base(self) -> None:
        models = ("checkpoints", "diffusion_models", "loras", "text_encoders", "vae", "vae_approx")
        folders = ("custom_nodes", "input", "output", "temp", "user", *(f"models/{name}" for name in models))
        for name in folders:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self.pack is not None:
            pack = Path(self.pack).resolve()
            install_pack(pack, self.base / "custom_nodes" / (self.pack_name or pack.name), self.link)

    def _command(self) -> list[str]:
        command = [
            self.python,
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--preview-method",
            "auto",
            *(["--cpu"] if self.cpu else []),
        ]
        # The database is kept in ComfyUI's own folder by default, where two servers would fight for its lock.
        command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        known = (self.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        if "--disable-assets-autoscan" in known:  # gone once scanning became opt-in
            command.append("--disable-assets-autoscan")
        return command + self.extra_args

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.timeout
        while self._process is not None and self._process.poll() is None:
            with suppress(RuntimeError):
                self._request("/system_stats", timeout=5)
                return
            if time.monotonic() > deadline:
                raise self._failure(f"ComfyUI did not answer within {self.timeout:.0f} s")
            time.sleep(0.2)
        raise self._failure("ComfyUI ended while starting")

    def _failure(self, what: str) -> RuntimeError:
        return RuntimeError(f"{what}; its log ends with:\n{tail(self.log())}")

    def _request(self, path: str, body: bytes | None = None, kind: str = "", timeout: float = 60) -> bytes:
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=timeout) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"ComfyUI answered {error.code} to {path}: {_reason(error.read())}") from error
        except OSError as error:
            raise self._failure(f"no answer from ComfyUI to {path} ({error})") from error

    def _post(self, path: str, body: Json) -> bytes:
        return self._request(path, json.dumps(body).encode(), "application/json")

    def _post_prompt(self, prompt: Json, workflow: Json | None, client: str) -> Json:
        extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        body = {"prompt": prompt, "client_id": client, "extra_data": extra}
        reply = json.loads(self._post("/prompt", body))
        if reply.get("node_errors"):
            logger.warning("ComfyUI leaves out invalid outputs:%s", _describe(reply["node_errors"]))
        return reply

    def _connect(self, client: str) -> Any:
        try:
            import websocket
        except ImportError as error:
            hint = 'pip install "websocket-client>=1.6"'
            raise ImportError(f"following a prompt needs websocket-client: {hint}") from error
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        try:
            connection = websocket.create_connection(address, timeout=30, http_no_proxy=["127.0.0.1"])
        except OSError as error:
            raise self._failure(f"no answer from ComfyUI to /ws ({error})") from error
        # Without this the server sends previews that do not say which node and prompt they belong to.
        connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        return connection

    def _follow(
        self, connection: Any, result: Result, on_event: Callable[[Json], None] | None, deadline: float
    ) -> None:
        while True:
            message = self._receive(connection, deadline)
            if isinstance(message, bytes):
                result.previews.append((int.from_bytes(message[:4], "big"), message[4:]))
                continue
            event = json.loads(message)
            result.events.append(event)
            if on_event is not None:
                on_event(event)
            # execution_success is sent before the history is stored, this one after it.
            if event["type"] == "executing" and event["data"].get("node") is None:
                if event["data"].get("prompt_id") == result.prompt_id:
                    return

    def _receive(self, connection: Any, deadline: float) -> str | bytes:
        import websocket

        try:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            message = connection.recv()
        except websocket.WebSocketTimeoutException as error:
            raise TimeoutError(f"the prompt did not end in time; the log:\n{tail(self.log())}") from error
        except (websocket.WebSocketConnectionClosedException, OSError):
            message = ""
        if not message:
            raise self._failure("ComfyUI closed the connection")
        return message

    def _finished(self, result: Result) -> Result:
        entry = self.history(result.prompt_id)
        status = entry.get("status") or {}
        messages = dict(status.get("messages") or [])
        result.outputs, result.error = entry.get("outputs") or {}, messages.get("execution_error")
        interrupted = "execution_interrupted" in messages
        result.status = "interrupted" if interrupted else status.get("status_str", "error")
        return result


def _reason(body: bytes) -> str:
    try:
        reply = json.loads(body)
        return f"{reply['error']['message']} {_describe(reply['node_errors'])}".strip()
    except (ValueError, TypeError, KeyError):
        return body[:500].decode(errors="replace")


def _describe(node_errors: Json) -> str:
    lines = ""
    for node, found in node_errors.items():
        reasons = "; ".join(f"{error['message']} ({error['details']})" for error in found["errors"])
        lines += f"\nnode {node}, {found['class_type']}: {reasons}"
    return lines
