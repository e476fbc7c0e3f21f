"""What each user of the page has running, and what they see of an error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

FAILED = "The model could not answer; the terminal of `adapt dial` says why."

logger = logging.getLogger("adapt_recipes.dial")


class Runs:
    """One computation per user: a new one, a stop and leaving the page all end what was running."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, user: str) -> None:
        """Stop what the user has running; what they start next has a stop of its own."""
        with self._lock:
            if user in self._stops:
                self._stops[user].set()
            self._stops[user] = threading.Event()

    def stop(self, user: str) -> None:
        """Stop what the user has running, or waiting in the queue."""
        with self._lock:
            if user in self._stops:
                self._stops[user].set()

    def leave(self, user: str) -> None:
        """As `stop`, and forget the user."""
        with self._lock:
            if user in self._stops:
                self._stops.pop(user).set()

    def stop_of(self, user: str) -> threading.Event:
        """The event that ends the user's computation."""
        with self._lock:
            return self._stops.setdefault(user, threading.Event())


def guarded(steps: Iterator[Any], shown: Callable[[str], Any]) -> Iterator[Any]:
    """`steps`, and after an error what `shown` makes of its text: bad input in its own words, the rest in the log."""
    try:
        yield from steps
    except (ValueError, TypeError) as error:
        yield shown(str(error))
    except Exception:
        logger.exception("a request failed")
        yield shown(FAILED)
