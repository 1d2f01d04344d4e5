"""The errors that users see: one clear line each, with what was asked, what was found and what to do."""


class LesionError(ValueError):
    """Base of every error that a user can cause or mend; the command line prints it as one line.

    Attributes:
        exit_code: what the command line exits with (2: bad input, 3: a run that could not finish).
    """

    exit_code = 2


class InputError(LesionError):
    """Text, images, options or paths that cannot be used as they are."""


class ModelError(LesionError):
    """A model that is missing, damaged, unsupported, or contradicts its own configuration."""


class InterventionError(LesionError):
    """An edit that is out of range, or that changed nothing."""


class RunFolderError(LesionError):
    """A run folder that is locked, foreign, read-only, or belongs to another command."""


class NonFiniteError(LesionError):
    """Activations or losses that are not finite; names the block and the lane."""

    exit_code = 3


class MemoryShortError(LesionError):
    """Memory ran out, also with the smallest pieces of work."""

    exit_code = 3
