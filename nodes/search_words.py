"""Further words under which the page's node search finds a node, on hosts that know such."""

from dataclasses import fields

from comfy_api.latest import io


def found_as(*words: str) -> dict[str, list[str]]:
    """Returns the keyword argument of io.Schema for these words; none on hosts (0.3.75) that search names alone."""
    known = any(field.name == "search_aliases" for field in fields(io.Schema))
    return {"search_aliases": list(words)} if known else {}
