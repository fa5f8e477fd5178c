"""A clock that goes on where the timestamps of a file start again or jump."""

from dataclasses import dataclass, field

BACK_US = 1_000_000  # timestamps that go back by less are out of order, not started again
WRAP_US = 12 * 3600 * 1_000_000  # FFmpeg takes a clock of 33 bits that goes back for one that has run over


@dataclass(slots=True)
class Clock:
    """Puts packets, as they lie in the file, one after the other.

    Where their times go back, what follows is put behind what came: the file is several that were joined. Where they
    jump ahead by more than `longest_gap_us`, times are kept, and another stretch begins: nothing was there to show.
    """

    longest_gap_us: int
    can_wrap: bool
    least_back_us: int = BACK_US
    shift_us: int = 0  # what is added to the times of the part that is read
    has_restarted: bool = False
    stretches: list[tuple[int, int]] = field(default_factory=list)  # (start, end) of each, the last one as it grows
    _last_us: int = 0  # of the last packet that said when
    _next_us: int = 0  # where one that does not say comes

    def place(self, decode_us: int, show_us: int, duration_us: int) -> int:
        """What to add to the times of a packet, in microseconds."""
        time_us = decode_us + self.shift_us
        if not self.stretches:
            self.stretches.append((show_us, show_us))
        start_us, end_us = self.stretches[-1]
        goes_back = time_us < self._last_us - self.least_back_us and self._last_us > 0
        if goes_back or (self.can_wrap and time_us > end_us + WRAP_US):
            self.shift_us = end_us - show_us
            self.has_restarted = True
        elif time_us > end_us + self.longest_gap_us:
            start_us = show_us + self.shift_us
            self.stretches.append((start_us, start_us))
        self._last_us = decode_us + self.shift_us
        self._next_us = show_us + self.shift_us + duration_us
        self.stretches[-1] = (start_us, max(end_us, self._next_us))
        return self.shift_us

    def place_next(self, duration_us: int) -> int:
        """The same for a packet without times: it follows the one before, as in MPEG program streams."""
        if self.stretches:
            start_us, end_us = self.stretches[-1]
            self._next_us += duration_us
            self.stretches[-1] = (start_us, max(end_us, self._next_us))
        return self.shift_us
