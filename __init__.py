"""Door 1, ComfyUI: the host calls comfy_entrypoint; nothing of the host is imported before it does."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Returns the pack's ComfyExtension."""
    from .nodes.extension import HyperSDExtension

    return HyperSDExtension()
