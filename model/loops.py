"""Loops: an answer that says the same over and over is seen while it is written. No torch.

Greedy decoding sometimes falls into a circle and stays there until its token limit, a large part of a batch's time.
What pages rightly repeat must pass: equal rows of a table, dotted lines of a table of contents, rules, forms.
"""

CHECK_EVERY = 32  # tokens; a check looks at a tail of constant length
TAIL = 1536  # characters that a check looks at
MIN_REPEATS = 8  # of a unit inside a line
MIN_ROWS = 24  # of a unit that holds whole lines: tables have equal rows
MIN_SPAN = 160  # characters that the repeats fill together
MIN_MARKS_SPAN = 640  # the same for a unit without letters and digits: dotted lines, rules, empty cells
LINES = 60  # lines in a row that
DISTINCT_LINES = 3  # are at most so many different ones, in any order, are a loop too
LINES_TAIL = 6144  # characters of which the lines are looked at


def clean_length(text: str) -> int | None:
    """How many characters of `text` stand before its loop, one round of it included; None when it does not end in one.

    A trailing part of a round is no reason to miss it: the period is that of the last characters, wherever they end.
    """
    tail = text[-TAIL:]
    for period, span in _periods(tail):
        unit = tail[len(tail) - period :]
        has_words = any(character.isalnum() for character in unit)
        rounds = span / period
        if span < (MIN_SPAN if has_words else MIN_MARKS_SPAN):
            continue
        if rounds >= (MIN_ROWS if "\n" in unit else MIN_REPEATS):
            return _start(text, period) + period
    return _clean_of_lines(text)


def _periods(tail: str) -> list[tuple[int, int]]:
    """(period, span) of the periodic ends of `tail`, longest span of each period, shortest period first.

    The failure function of Knuth, Morris and Pratt over the reversed tail: its first m characters have the period
    m - failure[m], so the last m of the tail have it too.
    """
    backwards = tail[::-1]
    failure = [0] * (len(backwards) + 1)
    matched = 0
    spans: dict[int, int] = {}
    for index in range(1, len(backwards)):
        while matched and backwards[index] != backwards[matched]:
            matched = failure[matched]
        if backwards[index] == backwards[matched]:
            matched += 1
        failure[index + 1] = matched
        if matched:
            spans[index + 1 - matched] = index + 1
    return sorted((period, span) for period, span in spans.items() if span >= 2 * period)


def _start(text: str, period: int) -> int:
    """Where the periodic end of `text` begins; it may be far before the tail."""
    start = len(text) - period
    while start and text[start - 1] == text[start - 1 + period]:
        start -= 1
    return start


def _clean_of_lines(text: str) -> int | None:
    """The same few lines in changing order, told by whole lines (the first and the last may be cut)."""
    last = [line for line in text[-LINES_TAIL:].split("\n")[1:-1] if line.strip()][-LINES:]
    if len(last) < LINES or len(set(last)) > DISTINCT_LINES:
        return None
    seen = set(last)
    start = text.rfind("\n") + 1  # the line that is being written
    while start:
        previous = text.rfind("\n", 0, start - 1) + 1
        if (line := text[previous : start - 1]).strip() and line not in seen:
            break
        start = previous
    end = start
    for line in dict.fromkeys(last):  # one of each is kept, in the order they first came
        found = text.find(line, start)
        end = max(end, found + len(line))
    return end
