"""The pack's ComfyExtension: an explicit list of nodes, the two dropdown entries, and the routes."""

from comfy_api.latest import ComfyExtension, io

from . import demo_model, dropdowns, lora, lora_schedule, model_downloads, one_step, prompts, sampling, score, taste, vote
from .model_routes import ModelRoutes
from .training import loss_plot, save_lora, train_lora, training_data
from .vote_routes import VoteRoutes


class HyperSDExtension(ComfyExtension):
    """What ComfyUI loads: sampler and scheduler in the KSampler dropdowns, the nodes, and the page's routes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the nodes, and registers the rest: hosts up to 0.3.75 call this but never on_load."""
        dropdowns.register()
        model_downloads.register_folder()
        ModelRoutes(model_downloads.DOWNLOADS).register()
        VoteRoutes(vote.comparisons_folder()).register()
        models = (sampling, lora, lora_schedule, one_step, demo_model, model_downloads, prompts, score, vote, taste)
        training = (training_data, train_lora, save_lora, loss_plot)
        return [node for module in (*models, *training) for node in module.NODES]
