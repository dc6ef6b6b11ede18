"""What can go wrong between `python install.py demo` and the images; each message says what to do."""

from ..errors import HyperSDError


class DemoError(HyperSDError):
    """Anything that stops install.py with a message instead of a traceback."""


class HostError(DemoError):
    """No ComfyUI where one was named, or one that this pack cannot use."""


class InstallError(DemoError):
    """The environment could not be made: Python, disk space, network or a package."""


class ServerError(DemoError):
    """ComfyUI did not start, stopped by itself or does not answer."""


class WorkflowError(DemoError):
    """ComfyUI refused or broke off a workflow.

    Args:
        message: the server's own words.
        node_id: of the node where it happened, None when it names none.
        node_type: of that node.
    """

    def __init__(self, message: str, node_id: str | None = None, node_type: str | None = None):
        where = f"Node {node_id} ({node_type}): " if node_id is not None else ""
        super().__init__(f"{where}{message}")
        self.node_id, self.node_type, self.message = node_id, node_type, message
