"""Drafts: what the next tokens of an answer probably are, copied from a text that says nearly the same. No torch.

A page that was born digital carries its own words. The last characters of the answer are looked for in them, whatever
was misread; what stands behind that place is proposed, the network checks all of it in one pass, and only what it would
have written itself is kept. A wrong draft costs time and never changes an answer. (Copied drafts: Saxena, prompt lookup
decoding, 2023. Alignment that may begin and end anywhere in a text: Sellers, J. Algorithms 1, 1980.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

FIRST_LENGTH = 4  # of a draft, before anything is known about the text; and of later ones where the text is followed
SHORTEST_LENGTH = 2  # where it is not
MAX_LENGTH = 16
LOW_ACCEPTANCE = 0.5  # a text whose drafts are kept more rarely than this waits while the batch is full
TAIL = 8  # characters at the end of the answer that are looked for
BACK, AHEAD = 32, 64  # characters around the place they should be at; if they are not there, the whole text is searched
STRETCH = 64  # characters that are made tokens at once
SPACES = " \n\t"
UNWORDED_CHARACTERS = "#*|`>_-~" + SPACES  # what Markdown puts between the words of a page
# What an alignment costs: a character misread, left out or added; one that is no word's; being one place off.
MISREAD, UNWORDED, OFF = 50, 15, 1
LOST = 20 * TAIL


@dataclass(slots=True)
class Drafter:
    """The drafts of one answer. `encode` and `decode` are the tokenizer's, without special tokens."""

    text: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    length: int = FIRST_LENGTH  # of the next draft
    drafted: int = 0
    accepted: int = 0
    acceptance: float = 1.0  # share of the drafted tokens that was kept, the last drafts counting most
    _place: int = 0  # in the text, where `_upcoming` began
    _break: str = " "  # what the answer last wrote where the text begins a new line
    _upcoming: list[int] = field(default_factory=list)
    _written: list[int] = field(default_factory=list)  # since then
    _tail: list[int] = field(default_factory=list)  # the last tokens of the answer
    _codes: tuple[NDArray[np.int64], NDArray[np.int64]] = field(init=False)  # of the text

    def __post_init__(self) -> None:
        self._codes = _codes_of(self.text)

    def propose(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens; none when the answer has left the text."""
        count = len(self._written)
        if count >= len(self._upcoming) or self._upcoming[:count] != self._written:
            cost = self._align()
            # Where drafts were mostly wrong, words that are only alike are not enough to try again.
            if cost > (LOST if self.acceptance >= LOW_ACCEPTANCE else TAIL * OFF):
                return ()
            count = 0
        return tuple(self._upcoming[count : count + min(most, self.length)])

    def follow(self, token_ids: Sequence[int]) -> None:
        """The answer went on with `token_ids`."""
        self._written += token_ids
        self._tail = [*self._tail, *token_ids][-TAIL:]

    def learn(self, drafted: int, accepted: int) -> None:
        """A draft of `drafted` tokens was checked: longer ones after success, about as long as what was kept else."""
        if not drafted:
            return
        self.drafted += drafted
        self.accepted += accepted
        self.acceptance += 0.3 * (accepted / drafted - self.acceptance)
        if accepted == drafted:
            self.length = min(2 * self.length, MAX_LENGTH)
        else:
            least = FIRST_LENGTH if self.acceptance >= LOW_ACCEPTANCE else SHORTEST_LENGTH
            self.length = max(least, min(accepted + 2, MAX_LENGTH))

    def _align(self) -> int:
        """Finds where in the text the answer has come to, and makes tokens of what stands there -> what it cost."""
        tail = self.decode(self._tail)[-TAIL:]
        expected = min(self._place + len(self.decode(self._written)), len(self.text))
        first = max(expected - BACK, 0)
        wanted = _codes_of(tail)
        near = _costs(*wanted, *(part[first : expected + AHEAD] for part in self._codes))
        near += OFF * abs(np.arange(first, first + len(near)) - expected)
        self._place, cost = first + int(near.argmin()), int(near.min())
        if cost > LOST:
            anywhere = _costs(*wanted, *self._codes)
            if anywhere.min() + 2 * MISREAD < cost:
                self._place, cost = int(anywhere.argmin()), int(anywhere.min())
        self._pass_break(tail)
        ahead = self.text[self._place : self._place + STRETCH].replace("\n", self._break)
        if tail[-1:].isspace():
            ahead = ahead.lstrip()
        # The tokens at the cut would be others if the text went on.
        self._upcoming = self.encode(ahead)[: None if self._place + STRETCH >= len(self.text) else -2]
        self._written = []
        return cost

    def _pass_break(self, tail: str) -> None:
        """If the answer has just written a break where the text has one: the next ones are probably alike."""
        written = tail[len(tail.rstrip(UNWORDED_CHARACTERS)) :]
        if not written:
            return
        start = max(self._place - TAIL, 0)
        before, behind = self.text[start : self._place], self.text[self._place : self._place + TAIL]
        first = start + len(before.rstrip(UNWORDED_CHARACTERS))  # of what no word is made of, around the place
        last = self._place + len(behind) - len(behind.lstrip(UNWORDED_CHARACTERS))
        if "\n" in self.text[first:last]:
            self._break = written
            self._place = last


def _codes_of(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Its characters, spaces alike, and what each costs when the other side has nothing in its place."""
    codes = [ord(" ") if character in SPACES else ord(character) for character in text]
    costs = [UNWORDED if character in UNWORDED_CHARACTERS else MISREAD for character in text]
    return np.array(codes, dtype=np.int64), np.array(costs, dtype=np.int64)


@numba.njit(cache=True, nogil=True)
def _costs(
    tail: NDArray[np.int64], tail_costs: NDArray[np.int64], text: NDArray[np.int64], text_costs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """What it costs at least to align `tail` with something that ends in front of text[n], for n from 0 to its end."""
    row = np.zeros(len(text) + 1, np.int64)
    for i in range(len(tail)):
        diagonal = row[0]
        row[0] += tail_costs[i]
        for j in range(len(text)):
            replaced = diagonal + (0 if tail[i] == text[j] else MISREAD)
            diagonal = row[j + 1]
            row[j + 1] = min(replaced, row[j + 1] + tail_costs[i], row[j] + text_costs[j])
    return row


def share_budget(drafters: Sequence[Drafter], budget: int) -> list[int]:
    """How many tokens each may draft in a pass with room for `budget`: those whose drafts are kept most come first.

    In a crowded pass (less than `FIRST_LENGTH` tokens for each) a text that is not followed waits: its drafts would
    take the device from tokens that are needed.
    """
    shares = [0] * len(drafters)
    crowded = budget < FIRST_LENGTH * len(drafters)
    for index in sorted(range(len(drafters)), key=lambda index: -drafters[index].acceptance):
        if crowded and drafters[index].acceptance < LOW_ACCEPTANCE:
            continue
        shares[index] = min(drafters[index].length, budget)
        budget -= shares[index]
    return shares
