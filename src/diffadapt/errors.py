"""The two ways a request can end badly, and the exit code of each."""


class Refused(ValueError):
    """What was asked for is impossible as given (exit code 2): what was expected, what came, what to do."""


class Failed(RuntimeError):
    """It was possible, and it went wrong (exit code 1): a full disk, a loss that is not a number."""
