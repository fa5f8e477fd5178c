"""Drafts: what the next tokens of an answer probably are, copied from a text that says nearly the same. No torch.

A page that was born digital carries its own words. The last characters of the answer are looked for in them, whatever
was misread; what stands behind that place is proposed, the network checks all of it in one pass, and only what it would
have written itself is kept. A wrong draft costs time and never changes an answer. (Copied drafts: Saxena, prompt lookup
decoding, 2023. Alignment that may begin and end anywhere in a text: Sellers, J. Algorithms 1, 1980.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

MAX_LENGTH = 24
FIRST_ACCEPTANCE = 0.8  # of a text of which nothing is known yet
SUREST = 0.99  # that the next token is kept; no text is certain
MEMORY = 0.1  # how much the last token counts in what is known of a text
PATIENCE = 4  # tokens that are written before a text whose drafts are not worth their rows is looked into again
TAIL = 8  # characters at the end of the answer that are looked for
BACK, AHEAD = 32, 64  # characters around the place they should be at; if they are not there, the whole text is searched
STRETCH = 48  # characters that are made tokens at once
SPACES = " \n\t"
UNWORDED_CHARACTERS = "#*|`>_-~" + SPACES  # what Markdown puts between the words of a page
# What an alignment costs: a character misread, left out or added; one that is no word's; being one place off.
MISREAD, UNWORDED, OFF = 50, 15, 1
LOST = 20 * TAIL


class Overhead(NamedTuple):
    """What a pass costs beside its rows, in rows."""

    of_pass: float = 0.0  # reading the weights, starting kernels
    of_sequence: float = 0.0  # reading its keys and values, its bookkeeping


# On a CPU fitted to passes of the embedded model (4.5 ms, 0.05 ms for a sequence, 0.125 ms for a row), on a GPU by the
# roofline of the 8B: weights and 1,500 cached tokens at 3 TB/s beside the operations of a row.
OVERHEADS = {"cuda": Overhead(200, 2.5), "cpu": Overhead(36, 0.4)}


@dataclass(slots=True)
class Drafter:
    """The drafts of one answer. `encode` and `decode` are the tokenizer's, without special tokens."""

    text: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    drafted: int = 0
    accepted: int = 0
    acceptance: float = FIRST_ACCEPTANCE  # share of the tokens that lately stood where they were looked for
    _place: int = 0  # in the text, where `_upcoming` began
    _break: str = " "  # what the answer last wrote where the text begins a new line
    _upcoming: list[int] = field(default_factory=list)
    _written: list[int] = field(default_factory=list)  # since then
    _is_followed: bool = True  # all of `_written` was upcoming
    _tail: list[int] = field(default_factory=list)  # the last tokens of the answer
    _codes: tuple[NDArray[np.int64], NDArray[np.int64]] = field(init=False)  # of the text

    def __post_init__(self) -> None:
        self._codes = _codes_of(self.text)

    def worth_drafting(self, threshold: float) -> int:
        """How many tokens of a draft are each kept with a probability of at least `threshold`."""
        if self.acceptance < threshold:
            return 0
        likelihood = min(self.acceptance, SUREST)
        return min(int(math.log(threshold) / math.log(likelihood)), MAX_LENGTH)

    def propose(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens; none when the answer has left the text. Whether the text is right is learned from what
        is written even where no token may be drafted."""
        count = len(self._written)
        if not self._is_followed or count >= len(self._upcoming):
            if not most and count < PATIENCE:
                return ()
            if self._align() > LOST:
                self._upcoming = []
            count = 0
        return tuple(self._upcoming[count : count + most])

    def follow(self, token_ids: Sequence[int]) -> None:
        """The answer went on with `token_ids`."""
        for token_id in token_ids:
            count = len(self._written)
            if self._is_followed and (count < len(self._upcoming) or not self._upcoming):
                self._is_followed = self._upcoming[count : count + 1] == [token_id]
                self.acceptance += MEMORY * (self._is_followed - self.acceptance)
            self._written.append(token_id)
        self._tail = [*self._tail, *token_ids][-TAIL:]

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
        self._written, self._is_followed = [], True
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


def share_budget(drafters: Sequence[Drafter], budget: int, sequences: int, overhead: Overhead) -> list[int]:
    """How many tokens each may draft in a pass for `sequences` requests with room for `budget`; the surest come first.

    A token that is kept saves its row in a later pass, and its part of what that pass costs beside its rows: a draft
    goes as far as its tokens are more likely to be kept than what a row costs of that.
    """
    if not drafters:
        return []
    saved_rows = 1 + overhead.of_sequence + overhead.of_pass / sequences
    shares = [0] * len(drafters)
    for index in sorted(range(len(drafters)), key=lambda index: -drafters[index].acceptance):
        shares[index] = min(drafters[index].worth_drafting(1 / saved_rows), budget)
        budget -= shares[index]
    return shares
