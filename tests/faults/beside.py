"""What goes on in a thread while things break."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

PATIENCE: Final = 120.0  # seconds in which what goes on beside must come about, or to its end


class Beside:
    """Goes on in a thread from the begin of a block to its end; what breaks it off is raised there."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Return once it has come to its end; raises what broke it off."""
        self._stopping.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"the {type(self).__name__} does not come to an end"
        if self.failure is not None:
            raise self.failure

    def go_on(self) -> None:
        """Do it until `_stopping` is set."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.go_on()
        except BaseException as error:
            self.failure = error
