"""JanusFlow: one small model that draws pictures and reads them. Works without ComfyUI."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # The pipeline pulls in torch; `janusflow --help` and the ComfyUI setup should not wait for it.
    if name == "JanusFlowPipeline":
        from .pipeline import JanusFlowPipeline

        return JanusFlowPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
