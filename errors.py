"""The exceptions of every part; each message says what was given, what is allowed and what to do."""


class HyperSDError(Exception):
    """Base of every error this package raises on purpose."""


class ScheduleError(HyperSDError, ValueError):
    """A step count, segment count, eta or denoise that no correct schedule exists for."""


class UnsupportedModelError(HyperSDError):
    """A model or file of a kind this package cannot use."""


class TrainingError(HyperSDError):
    """Training data, settings or a run that cannot go on."""
