"""The tab with the downloads on a stand-in for gradio: built, and looked through by a component's kind and options."""

import sys

from hyper_sd.webui_extension.checkpoint_builder import CheckpointBuilder


def of(components, kind, **options):
    """Returns the components of a kind whose options are these."""
    return [c for c in components if type(c).__name__ == kind and all(c.options.get(k) == v for k, v in options.items())]


def built(tab, tmp_path):
    module, components = tab
    builder = CheckpointBuilder(lambda kind: [tmp_path / kind])
    ((page, title, tab_id),) = module.build_tab(sys.modules["hyper_sd.webui_extension.host_models"].DOWNLOADS, builder)
    assert (title, tab_id) == ("Hyper-SD models", "hyper_sd_models")
    return page, components
