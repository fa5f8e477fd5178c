"""Words for sample pages: a vocabulary every Python carries, invented words, and strings nobody can guess."""

import math
import pydoc_data.topics
import random
import re
import string
import zlib
from collections.abc import Callable, Sequence
from functools import cache

_LETTERS = re.compile(r"[A-Za-z]{2,}")
_LIST_NUMBER = re.compile(r"\d+[.)]*$")
_ONE_MEANING = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without I l 1 O 0 o, twins in many fonts
FEWEST_WORDS = 12  # on a page that is trained on
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def is_held_out(word: str) -> bool:
    """Whether a word is kept for evaluation: one in ten, decided by a stable hash of its letters in lower case."""
    return zlib.crc32(word.lower().encode()) % 10 == 0


@cache
def vocabulary(held_out: bool) -> tuple[str, ...]:
    """The different words of Python's own help topics, lower case, sorted; either the held-out ones or the others."""
    words = set(_LETTERS.findall(" ".join(pydoc_data.topics.topics.values()).lower()))
    return tuple(sorted(word for word in words if is_held_out(word) == held_out))


def draw_vocabulary(draw: random.Random, *, held_out: bool) -> Sequence[str]:
    """The words of one sample: all held-out ones, or few or many of the others, so that the same come again. There are
    eight times as many of these, and who never saw a word twice on a page goes on reading behind the wrong one."""
    words = vocabulary(held_out)
    if held_out:
        return words
    return draw.sample(words, round(math.exp(draw.uniform(math.log(FEWEST_WORDS), math.log(len(words))))))


def invent_word(draw: random.Random, words: Sequence[str], *, held_out: bool) -> str:
    """A word joined from the halves of two; a held-out one, or not."""
    while True:
        head, tail = draw.choice(words), draw.choice(words)
        word = head[: (len(head) + 1) // 2] + tail[len(tail) // 2 :]
        if is_held_out(word) == held_out:
            return word


class TextSource:
    """Draws the tokens of a page.

    About 60 % are words of the vocabulary, 15 % words joined from the halves of two of them, 25 % numbers, dates,
    prices, addresses and random strings. Without `held_out`, no run of two or more letters in any token is a held-out
    word; with it, every word (not the random strings) is one. No token ends in "-", which at a line's end would read
    as hyphenation. With `is_plain` there are only words, nine of ten, and numbers.
    """

    def __init__(self, draw: random.Random, *, held_out: bool, is_plain: bool = False) -> None:
        self._draw = draw
        self._held_out = held_out
        self._is_plain = is_plain
        self._words = draw_vocabulary(draw, held_out=held_out)
        self._sentence_starts = True

    def first(self) -> str:
        """A token a block can start with: it begins with a letter or digit and is not the number of a list item."""
        while True:
            self._sentence_starts = True
            token = self.next()
            if token[0].isalnum() and not _LIST_NUMBER.match(token):
                return token

    def next(self) -> str:
        """The next token of running text, with its punctuation."""
        draw = self._draw
        chance = draw.random()
        if self._is_plain:
            token = self._cased(draw.choice(self._words)) if chance < 0.9 else self._number()
        elif chance < 0.75:
            is_real = chance < 0.6
            word = draw.choice(self._words) if is_real else invent_word(draw, self._words, held_out=self._held_out)
            token = self._cased(word)
        else:
            token = self._unguessable()
        self._sentence_starts = False
        chance = draw.random()
        if chance > 0.17 or not (token[0].isalnum() and token[-1].isalnum()):  # two marks together are hard to tell
            return token
        if chance < 0.05 and not self._is_plain:
            left, right = draw.choice(("()", "[]", "{}", "<>", '""', "''"))
            return f"{left}{token}{right}"
        mark = draw.choice(",,,,....;:!?")
        self._sentence_starts = mark in ".!?"
        return token + mark

    def short(self) -> str:
        """One plain token for a table cell: a word, a number or a code."""
        draw = self._draw
        chance = draw.random()
        if chance < 0.45:
            word = draw.choice(self._words)
            return draw.choice((word, word.capitalize()))
        return self._number() if chance < 0.85 or self._is_plain else self._allowed(self._code)

    def _cased(self, word: str) -> str:
        chance = self._draw.random()
        if self._sentence_starts or chance < 0.12:
            return word.capitalize()
        return word.upper() if chance < 0.2 else word

    def _unguessable(self) -> str:
        chance = self._draw.random()
        if chance < 0.35:
            return self._number()
        if chance < 0.65:
            return self._allowed(self._code)
        return self._allowed(self._symbols)

    def _allowed(self, make: Callable[[], str]) -> str:
        while True:
            token = make()
            if self._held_out or not any(map(is_held_out, _LETTERS.findall(token))):
                return token

    def _number(self) -> str:
        draw = self._draw
        number = draw.randrange(10 ** draw.randint(1, 6))
        match draw.randrange(8):
            case 0:
                return f"{draw.randint(1900, 2099)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
            case 1:
                return f"{draw.randint(1, 28)}/{draw.randint(1, 12)}/{draw.randint(1900, 2099)}"
            case 2:
                return f"{draw.choice('$$$#')}{number % 10000}.{draw.randrange(100):02}"
            case 3:
                return f"{number:,}"
            case 4:
                return f"{draw.randrange(1000) / 10}%"
            case 5:
                return f"{draw.randrange(24):02}:{draw.randrange(60):02}"
            case 6:
                return f"{draw.choice('+-')}{number}"
            case _:
                return str(number)

    def _code(self) -> str:
        draw = self._draw
        match draw.randrange(6):
            case 0:
                return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9)))
            case 1:
                return "".join(draw.choices(string.ascii_uppercase, k=draw.randint(2, 7)))
            case 2:
                name = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 6)))
                return f"{name}@{draw.choice(self._words)}.org"
            case 3:
                return "".join(draw.choices(string.ascii_uppercase, k=3)) + f"-{draw.randrange(10000)}"
            case 4:
                return f"{draw.randint(1, 28)}-{draw.choice(_MONTHS)}-{draw.randint(1990, 2035)}"
            case _:
                return "".join(draw.choices(_ONE_MEANING, k=draw.randint(3, 9)))

    def _symbols(self) -> str:
        """Symbols between or around short strings; a symbol never stands next to itself, where it is hard to count."""
        draw = self._draw
        parts = []
        for _ in range(draw.randint(1, 3)):
            parts.append("".join(draw.choices(_ONE_MEANING, k=draw.randint(0, 3))))
            parts.append(draw.choice(string.punctuation))
        if parts[-1] == "-" or draw.random() < 0.6:
            parts.append("".join(draw.choices(_ONE_MEANING, k=draw.randint(1, 3))))
        token = "".join(parts)
        return re.sub(r"([^A-Za-z0-9])\1+", r"\1", token)
