"""Door 1, ComfyUI: the host calls comfy_entrypoint; nothing of the host is imported before it does."""

from .host_version import refuse_old_comfyui

WEB_DIRECTORY = "./web"

refuse_old_comfyui()


async def comfy_entrypoint():
    """Returns the pack's ComfyExtension."""
    from .nodes.extension import HyperSDExtension

    return HyperSDExtension()
