"""Loading without a word: what is wrong is raised, the rest is of no interest."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the log, progress bars and warnings of diffusers and transformers, and puts all back as it was.

    Progress bars of downloads are left on: a base from the hub is several GB.
    """
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for log in logs:
                log.set_verbosity(logging.CRITICAL)
                log.disable_progress_bar()
            yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
