"""Stop strings: found across token borders, cut from the text, never leaked."""

from __future__ import annotations


class StopMatcher:
    """Passes text on, but holds back what may turn out to be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None
        self.after = ""

    def push(self, text: str) -> str:
        """The text that is safe to show; after a match `matched` is set, and `after` is what follows it."""
        text = self._held + text
        found = self._first(text)
        if found is not None:
            position, self.matched = found
            self._held, self.after = "", text[position + len(self.matched) :]
            return text[:position]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back in vain."""
        text, self._held = self._held, ""
        return text

    def _first(self, text: str) -> tuple[int, str] | None:
        """The match that is complete first, so that the result does not depend on how the text was cut;
        of those that end together, the longest."""
        found = [
            (position + len(stop), position, stop)
            for stop in self._stops
            if (position := text.find(stop)) >= 0
        ]
        if not found:
            return None
        _, position, stop = min(found)
        return position, stop


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning (not all) of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
