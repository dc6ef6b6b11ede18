"""The request's part that switches the script "Hyper-SD" on, as a plain list or by name."""

NAMES = (
    "enabled", "steps", "variant", "strength", "hires_strength", "recommended", "auto_eta", "eta", "segments",
    "start_timestep", "sort_by",
)  # fmt: skip
DEFAULTS = dict(zip(NAMES, (False, 4, "auto", 0.0, 0.0, True, True, 0.3, 0, 0, "None"), strict=True))


def panel(**chosen) -> dict:
    """Returns the part of a request with the panel's checkbox on, and the values that differ from the panel's own."""
    values = {**DEFAULTS, "enabled": True, **chosen}
    return {"alwayson_scripts": {"Hyper-SD": {"args": [values[name] for name in NAMES]}}}


def by_name(**named) -> dict:
    """Returns the part of a request that names settings in one object."""
    return {"alwayson_scripts": {"Hyper-SD": {"args": [named]}}}
