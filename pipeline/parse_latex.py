"""LaTeX tables -> rows of cells: `tabular` and its kin, as Qwen3-VL writes the tables of its Markdown."""

import re

from pipeline.grids import Cell, Grid

_BEGIN = re.compile(r"\\begin\{(tabular|tabular\*|tabularx|tabulary|longtable|tblr)\}")
_END = re.compile(r"\\end\{[A-Za-z*]*\}?\s*\Z")
_RULES = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|endfoot|endlastfoot)(?![A-Za-z])(?:\[[^\]\n]*\])?"
    r"|\\(?:cline|cmidrule|rowcolor|cellcolor)(?:\[[^\]\n]*\])?(?:\([^)\n]*\))?(?:\{[^{}\n]*\})?"
)
_TOKEN = re.compile(
    r"\\\\(?:\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\s*\])?|\\[A-Za-z]+|\\.|[{}&]|[^\\{}&]+|\\", re.DOTALL
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BEFORE_ARGUMENT = re.compile(r"\s*(?:\[[^\]\n]*\]\s*)*")
_SPAN = re.compile(r"\s*\\multi(column|row)(?=[\s\[{])")
_MATH = re.compile(r"(\$[^$\n]+\$|\\\(.*?\\\))")
_FIRST_ARGUMENT = re.compile(r"\\(?:textcolor|colorbox|href|rotatebox)\{[^{}]*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+\*?(?:\[[^\]\n]*\])?\{([^{}]*)\}")
_ENVIRONMENT = re.compile(r"\\begin\{[^{}]*\}(?:\[[^\]\n]*\])?(?:\{[^{}]*\})?|\\end\{[^{}]*\}")
_SWITCH = re.compile(
    r"\\(?:bfseries|itshape|centering|raggedright|raggedleft|small|footnotesize|scriptsize)(?![A-Za-z])\s*"
)
_ESCAPED = re.compile(r"\\([&%$#_])")


def read_tabular(latex: str) -> Grid:
    """The cells of the first table environment in `latex`, from its `\\begin` to its `\\end` or wherever it breaks off.

    `\\multicolumn` and `\\multirow` become spans; the empty cells LaTeX wants below a `\\multirow` are left out.
    """
    begin = _BEGIN.search(latex)
    if begin is None:
        return ()
    at = begin.end()
    for _ in range(2 if begin[1] in ("tabular*", "tabularx", "tabulary") else 1):
        _, at = _argument(latex, at)
    body = _RULES.sub("", _END.sub("", latex[at:]))
    return _without_covered([[_cell(raw) for raw in row] for row in _raw_rows(body)])


def plain_latex(text: str) -> str:
    """LaTeX text without its formatting commands; formulas stay as they are written."""
    return "".join(part if index % 2 else _plain(part) for index, part in enumerate(_MATH.split(text))).strip()


def _plain(text: str) -> str:
    text = text.replace("\\{", "\1").replace("\\}", "\2")
    text = _FIRST_ARGUMENT.sub("", _SWITCH.sub("", _ENVIRONMENT.sub("", text)))
    for _ in range(8):  # innermost first; nobody nests deeper
        text = _COMMAND.sub(r"\1", text)
    text = re.sub(r"\s*\\\\\s*", "\n", text).replace("{", "").replace("}", "").replace("~", " ")
    return _ESCAPED.sub(r"\1", text).replace("\1", "{").replace("\2", "}")


def _raw_rows(body: str) -> list[list[str]]:
    """Splits at `\\\\` and `&` that stand in no braces and in no inner environment."""
    rows = [[""]]
    depth = 0
    for match in _TOKEN.finditer(body):
        token = match[0]
        depth += (token in ("{", "\\begin")) - (token in ("}", "\\end") and depth > 0)
        if depth == 0 and token == "&":
            rows[-1].append("")
        elif depth == 0 and token.startswith("\\\\"):
            rows.append([""])
        else:
            rows[-1][-1] += token
    return [row for row in rows if len(row) > 1 or row[0].strip()]


def _cell(raw: str) -> Cell:
    spans = {"column": 1, "row": 1}
    while span := _SPAN.match(raw):
        number, at = _argument(raw, span.end())
        _, at = _argument(raw, at)  # the column's alignment or the row's width
        content, at = _argument(raw, at)
        spans[span[1]] = _count(number)
        raw = content + raw[at:]
    text = "\n".join(" ".join(line.split()) for line in plain_latex(raw).split("\n"))
    return Cell(text.strip(), rowspan=spans["row"], colspan=spans["column"])


def _count(text: str) -> int:
    """The span written in `text`; 1 for what is none, like `*`."""
    digits = text.strip().lstrip("-")
    return max(int(digits), 1) if digits.isascii() and digits.isdigit() and len(digits) <= 3 else 1


def _argument(text: str, at: int) -> tuple[str, int]:
    """The braced argument at `at`, after blanks and bracketed options, and where it ends; ("", at) without one."""
    before = _BEFORE_ARGUMENT.match(text, at)
    opening = before.end() if before else at
    if text[opening : opening + 1] == "*":
        return "*", opening + 1
    if text[opening : opening + 1] != "{":
        return "", at
    depth = 0
    for match in _BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[opening + 1 : match.start()], match.end()
    return text[opening + 1 :], len(text)


def _without_covered(rows: list[list[Cell]]) -> Grid:
    """Leaves out empty cells in places that a cell above reaches down into."""
    grid: list[tuple[Cell, ...]] = []
    reach: dict[int, int] = {}  # column -> rows still covered from above
    for row in rows:
        kept: list[Cell] = []
        column = 0
        below: dict[int, int] = {at: left - 1 for at, left in reach.items() if left > 1}
        for cell in row:
            if not (reach.get(column, 0) and not cell.text):
                kept.append(cell)
                if cell.rowspan > 1:
                    below |= dict.fromkeys(range(column, column + cell.colspan), cell.rowspan - 1)
            column += cell.colspan
        reach = below
        grid.append(tuple(kept))
    return tuple(grid)
