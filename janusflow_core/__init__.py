"""JanusFlow: one small model that draws pictures and reads them. Works without ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat import Chat
    from .pipeline import JanusFlowPipeline

__version__ = "0.1.0"
__all__ = ["Chat", "JanusFlowPipeline", "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    # The pipeline pulls in torch; `janusflow --help` and the ComfyUI setup should not wait for it.
    if name == "JanusFlowPipeline":
        from .pipeline import JanusFlowPipeline

        return JanusFlowPipeline
    if name == "Chat":
        from .chat import Chat

        return Chat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
