"""What a person sees while a replica loads its weights: a line at once, one every ten seconds, one at the end."""

import time
from typing import TextIO

from model.checkpoint import LoadProgress

QUIET_BYTES = 500_000_000  # less than this is there before anybody has read the line
SECONDS_BETWEEN_LINES = 10.0


class LoadingLines:
    """Writes how far loading is."""

    def __init__(self, model: str, stream: TextIO) -> None:
        self._model = model
        self._stream = stream
        self._began = time.monotonic()
        self._shown_at = float("-inf")

    def __call__(self, progress: LoadProgress) -> None:
        now, ended = time.monotonic(), progress.tensors == progress.tensors_total
        if progress.num_bytes_total < QUIET_BYTES or (not ended and now - self._shown_at < SECONDS_BETWEEN_LINES):
            return
        self._shown_at = now
        self._stream.write(
            f"loading {self._model}: {progress.tensors:,} of {progress.tensors_total:,} tensors, "
            f"{progress.num_bytes / 1e9:.1f} of {progress.num_bytes_total / 1e9:.1f} GB, {now - self._began:.0f} s\n"
        )
        self._stream.flush()
