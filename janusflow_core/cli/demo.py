"""janusflow demo: words to picture to words in a real ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import one_line, runtime_errors_in_words, status


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Words to picture to words in a real ComfyUI; prints the prompt, the picture's path and the answer."""

    prompt: str | None = None
    """Draw this instead of the workflow's own prompt."""
    comfyui: Path | None = None
    """ComfyUI's folder; by default COMFYUI_PATH, comfy-cli's workspace, or a download into the cache."""

    def run(self) -> int:
        """Start ComfyUI, run the workflow and keep its picture in demo_output; the status is 0."""
        from ..host.demo import there_and_back

        with runtime_errors_in_words(), status() as show:
            prompt, path, words = there_and_back(self.prompt, self.comfyui, Path("demo_output"), show)
        print(one_line(prompt), path, one_line(words), sep="\n")
        return 0
