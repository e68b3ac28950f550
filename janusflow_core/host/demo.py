"""The main job in a real ComfyUI: words to a picture and back to words, with this checkout as the pack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..device import best_device
from ..png import copy_new
from .find import Json, checked_comfyui, find_comfyui
from .server import Server
from .workflow import convert_workflow, findings, progress, prompt_text, replaced

CHECKOUT = Path(__file__).resolve().parents[2]


def there_and_back(
    prompt: str | None, comfyui: Path | None, out: Path, show: Callable[[str], object]
) -> tuple[str, Path, str]:
    """Run the demo's workflow; returns the prompt, the picture's path in `out` and the words.

    `prompt` replaces the workflow's own, `comfyui` is its folder (default: find or fetch one), `show` gets what is
    going on. Raises FileNotFoundError outside a checkout, RuntimeError when ComfyUI fails.
    """
    workflow = checkout_workflow()
    folder = checked_comfyui(comfyui, "--comfyui") if comfyui else find_comfyui()
    show("starting ComfyUI")
    cpu = best_device().type == "cpu"
    with Server(folder, pack=CHECKOUT, pack_name="ComfyUI-JanusFlow", cpu=cpu) as server:
        api = convert_workflow(workflow, server.object_info())
        own = prompt_text(api)
        if prompt is not None:
            # In the workflow too, because the picture carries it.
            api, workflow = replaced(api, own, prompt), replaced(workflow, own, prompt)
        result = server.run(api, workflow, on_event=progress(api, show))
        picture, words = findings(api, result)
        path = copy_new(out, "there_and_back", server.output_path(picture))
    return own if prompt is None else prompt, path, words


def checkout_workflow() -> Json:
    """The workflow as the editor saved it; raises FileNotFoundError outside a checkout of the pack."""
    entry, path = CHECKOUT / "__init__.py", CHECKOUT / "workflows" / "JanusFlow there and back.json"
    if not path.is_file() or not entry.is_file() or "comfy_entrypoint" not in entry.read_text(encoding="utf-8"):
        raise FileNotFoundError(
            "the demo runs from a checkout of the ComfyUI pack, not from an installed library: "
            "clone the repository and run `python3 start.py demo` in it"
        )
    return json.loads(path.read_text(encoding="utf-8"))
