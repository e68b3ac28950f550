"""janusflow demo: words to picture to words in a real ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import one_line, runtime_errors_in_words


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Words to picture to words in a real ComfyUI; prints the prompt, the picture's path and the answer."""

    prompt: str | None = None
    """Draw this instead of the workflow's own prompt."""
    comfyui: Path | None = None
    """ComfyUI's folder; by default COMFYUI_PATH, comfy-cli's workspace, or a download into the cache."""

    def run(self) -> int:
        """Start ComfyUI, run the workflow and keep its picture in demo_output; the status is 0."""
        from tqdm import tqdm

        from ..host.demo import there_and_back

        with runtime_errors_in_words(), tqdm(bar_format="{desc}", leave=False, disable=None) as bar:
            show, out = bar.set_description_str, Path("demo_output")
            prompt, path, words = there_and_back(self.prompt, self.comfyui, out, show)
        print(one_line(prompt), path, one_line(words), sep="\n")
        return 0
