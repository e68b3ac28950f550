"""JanusFlow for ComfyUI: nodes over janusflow_core. Nothing is imported before ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import JanusFlowExtension

    return JanusFlowExtension()
