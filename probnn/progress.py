"""One progress bar for everything that takes long."""

from __future__ import annotations

from typing import Any


class Progress:
    """A tqdm bar, or nothing; results never depend on it.

    Args:
        total: Number of steps.
        label: What is shown in front of the bar.
        enabled: False shows nothing and imports nothing.
    """

    def __init__(self, total: int, label: str, enabled: bool):
        self._bar: Any = None
        if enabled:
            from tqdm.auto import tqdm

            # A refresh ten times a second costs well under one per cent of any step worth showing.
            self._bar = tqdm(total=total, desc=label, mininterval=0.1, leave=True)

    def update(self, steps: int = 1, **shown: Any) -> None:
        """Advance by `steps`, showing the given figures behind the bar."""
        if self._bar is not None:
            if shown:
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(steps)

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
