"""The two ways a request can end badly, and the exit code of each."""

LONGEST = 2000  # characters of a message; what is longer is cut in the middle


def printable(text: str) -> str:
    """A text that a terminal shows and does not obey: control characters spelled out, and not endless."""
    clean = "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
    if len(clean) > LONGEST:
        clean = f"{clean[: LONGEST // 2]} ... {clean[-LONGEST // 2 :]}"
    return clean


class Refused(ValueError):
    """The request is impossible as given (exit code 2). The message says what was expected, what it got, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Failed(RuntimeError):
    """It was possible, and it went wrong (exit code 1): a full disk, a loss that is not a number."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
