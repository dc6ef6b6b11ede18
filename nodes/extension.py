"""The pack's ComfyExtension: an explicit list of nodes, and the two dropdown entries."""

from comfy_api.latest import ComfyExtension, io

from . import demo_model, dropdowns, sampling


class HyperSDExtension(ComfyExtension):
    """What ComfyUI loads: sampler and scheduler in the KSampler dropdowns, and the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the nodes, and fills the dropdowns: hosts up to 0.3.75 call this but never on_load."""
        dropdowns.register()
        return [*sampling.NODES, *demo_model.NODES]
