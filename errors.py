"""The exceptions of every part; each message says what was given, what is allowed and what to do."""


class HyperSDError(Exception):
    """Base of every error this package raises on purpose."""


class ScheduleError(HyperSDError, ValueError):
    """A step count, segment count, eta or denoise that no correct schedule exists for."""


class UnsupportedModelError(HyperSDError):
    """A model or file of a kind this package cannot use."""


class TrainingError(HyperSDError):
    """Training data, settings or a run that cannot go on."""


class RewardError(HyperSDError):
    """A scorer of pictures that cannot be had, or pictures that it cannot score."""


class EvaluationError(HyperSDError):
    """Pictures, votes or settings that nothing can be measured with."""


class CatalogError(HyperSDError):
    """A catalogue id that does not exist, or a catalogue file that is wrong."""


class DownloadError(HyperSDError):
    """A file that could not be fetched; nothing stands under its final name, and what came so far is kept."""


class ChecksumMismatch(DownloadError):
    """A file whose size or content is not the released one."""
