"""Messages that a loss would repeat in every step, or in every stage of a cascade."""

import functools
import logging

logger = logging.getLogger("eql_d2.losses")


@functools.cache
def log_once(level: int, message: str) -> None:
    """Log ``message`` the first time it is to be logged in this process."""
    logger.log(level, message)
