"""Drafts: what the next tokens of an answer probably are, copied from a text that says nearly the same. No torch.

A page that was born digital carries its own words. A pointer follows them while the answer is written; what stands
behind it is proposed, the network checks all of it in one pass, and only what it would have written itself is kept. A
wrong draft costs time and never changes an answer. (Copy lookup: Saxena, prompt lookup decoding, 2023; Duan, arXiv
2512.18122.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FIRST_LENGTH = 4  # of a draft, before anything is known about the text
MAX_LENGTH = 16
REACH = 32  # how far ahead a single token may move the pointer; two in a row may move it anywhere
LOW_ACCEPTANCE = 0.4  # a text whose drafts are kept more rarely than this waits while the batch is full


class Pointer:
    """Follows one spelling of the text, as tokens. Where the text breaks a line, the break that the answer wrote last
    is proposed in its place: newlines, marks of headings and lists, bars between cells."""

    def __init__(self, token_ids: Sequence[int], is_format: Callable[[int], bool]) -> None:
        self.token_ids = token_ids
        self.place = 0
        self.run = 1  # tokens in a row that were followed; 0: lost
        self._is_format = is_format
        self._break: list[int] = []  # the format tokens written since the last word
        self._usual_break: list[int] = []
        self._last = -1
        self._pairs: dict[tuple[int, int], list[int]] = {}
        for index in range(len(token_ids) - 1):
            self._pairs.setdefault((token_ids[index], token_ids[index + 1]), []).append(index)

    def follow(self, token_id: int) -> None:
        """The answer went on with `token_id`."""
        word = self._next_word(self.place)
        if self._is_format(token_id):
            if not self._break and word == self.place:  # a break where this spelling has none
                self.run = min(self.run, 1)
            self._break.append(token_id)
            self.place = word
        else:
            if not self._break and word > self.place:  # no break where this spelling has one
                self.run = 0
            self._usual_break = self._break or self._usual_break
            self._break = []
            if word < len(self.token_ids) and self.token_ids[word] == token_id:
                self.place = word + 1
                self.run += 1
            else:
                self._find(token_id)
        self._last = token_id

    def propose(self, most: int) -> tuple[int, ...]:
        """What probably comes next."""
        proposed: list[int] = []
        if self._break and self._usual_break[: len(self._break)] == self._break:
            proposed += self._usual_break[len(self._break) :]
        place = self.place
        while len(proposed) < most and place < len(self.token_ids):
            word = self._next_word(place)
            proposed += (self._usual_break or self.token_ids[place:word]) if word > place else ()
            proposed += self.token_ids[word : word + 1]
            place = word + 1
        return tuple(proposed[:most])

    def _next_word(self, place: int) -> int:
        while place < len(self.token_ids) and self._is_format(self.token_ids[place]):
            place += 1
        return place

    def _find(self, token_id: int) -> None:
        pairs = self._pairs.get((self._last, token_id), ())
        ahead = [index + 2 for index in pairs if index + 2 > self.place]
        near = self.token_ids[self.place : self.place + REACH]
        if pairs:
            self.place, self.run = (ahead or [pairs[0] + 2])[0], 2
        elif token_id in near:
            self.place, self.run = self.place + near.index(token_id) + 1, 1
        else:
            self.run = 0


@dataclass(slots=True)
class Drafter:
    """The drafts of one answer: the text in one or several spellings, and how long a draft pays."""

    pointers: Sequence[Pointer]
    length: int = FIRST_LENGTH
    drafted: int = 0
    accepted: int = 0
    _recent: float = field(default=1.0)  # share of the drafted tokens that was kept, the last drafts counting most

    @property
    def acceptance(self) -> float:
        return self._recent

    def propose(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens; none when the answer has left the text."""
        best = max(self.pointers, key=lambda pointer: pointer.run, default=None)
        # Where drafts were mostly wrong, one word in the right place is not enough to try again.
        if best is None or best.run < (1 if self.acceptance >= LOW_ACCEPTANCE else 2):
            return ()
        return best.propose(min(most, self.length))

    def follow(self, token_ids: Sequence[int]) -> None:
        """The answer went on with `token_ids`."""
        for pointer in self.pointers:
            for token_id in token_ids:
                pointer.follow(token_id)

    def learn(self, drafted: int, accepted: int) -> None:
        """A draft of `drafted` tokens was checked: longer ones after success, about as long as what was kept else."""
        if not drafted:
            return
        self.drafted += drafted
        self.accepted += accepted
        self._recent += 0.3 * (accepted / drafted - self._recent)
        if accepted == drafted:
            self.length = min(2 * self.length, MAX_LENGTH)
        else:
            self.length = max(1, min(accepted + 2 if accepted else self.length // 2, MAX_LENGTH))


def drafter(spellings: Sequence[Sequence[int]], is_format: Callable[[int], bool]) -> Drafter:
    """`spellings`: the text as tokens, its lines kept and its lines joined, say; equal ones count once."""
    unique = {tuple(token_ids): None for token_ids in spellings if token_ids}
    return Drafter([Pointer(token_ids, is_format) for token_ids in unique])


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
