"""LaTeX tables, whole, odd and cut off."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grids import Cell, grid_html
from pipeline.parse_latex import plain_latex, read_tabular


def texts(latex: str) -> list[list[str]]:
    return [[cell.text for cell in row] for row in read_tabular(latex)]


@pytest.mark.parametrize(
    "latex",
    [
        r"\begin{tabular}{ll} a & b \\ 1 & 2 \\ \end{tabular}",
        r"\begin{tabular}{|l|p{3cm}|} \hline a & b \\ \hline 1 & 2 \\ \hline \end{tabular}",
        r"\begin{tabular}[t]{l@{~}r} \toprule a & b \\[2pt] \midrule 1 & 2 \\ \bottomrule \end{tabular}",
        r"\begin{tabularx}{\textwidth}{XX} a & b \\ \cline{1-2} \cmidrule(lr){1-2} 1 & 2 \end{tabularx}",
        r"\begin{longtable}{ll} a & b \\ \endhead 1 & 2 \\ \end{longtable} and text behind",
        r"\begin{tabular}{ll} \textbf{a} & \emph{\textit{b}} \\ {1} & \small 2",
    ],
)
def test_rules_options_and_formatting_are_not_content(latex: str) -> None:
    assert texts(latex.partition(" and text")[0]) == [["a", "b"], ["1", "2"]]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (r"a \& b\_c 5\,\% \$1", r"a & b_c 5\,% $1"),
        (r"$x_{1} \times 2$ m", r"$x_{1} \times 2$ m"),
        (r"\makecell{one \\ two}", "one\ntwo"),
        (r"\begin{tabular}{l} i \\ j \end{tabular}", "i\nj"),
        (r"\textcolor{red}{hot} \href{http://x}{link}", "hot link"),
        (r"\{a\}~b", "{a} b"),
        (r"\checkmark", r"\checkmark"),
    ],
)
def test_a_cell_reads_as_plain_text_with_its_formulas(cell: str, text: str) -> None:
    assert texts(rf"\begin{{tabular}}{{ll}} {cell} & z \\ \end{{tabular}}") == [[text, "z"]]


def test_multicolumn_and_multirow_become_spans_without_the_cells_below() -> None:
    grid = read_tabular(
        r"""\begin{tabular}{lll}
        \multicolumn{2}{c}{\textbf{head}} & x \\
        \multirow{2}{*}{tall} & 1 & 2 \\
         & 3 & 4 \\
        \multicolumn{2}{c}{\multirow{2}{2cm}{both}} & 5 \\
        \multicolumn{2}{c}{} & 6 \\
        \end{tabular}"""
    )
    assert grid == (
        (Cell("head", colspan=2), Cell("x")),
        (Cell("tall", rowspan=2), Cell("1"), Cell("2")),
        (Cell("3"), Cell("4")),
        (Cell("both", rowspan=2, colspan=2), Cell("5")),
        (Cell("6"),),
    )
    assert '<td rowspan="2" colspan="2">both</td>' in grid_html(grid)


def test_a_reference_number_at_the_start_of_a_row_is_no_length() -> None:
    assert texts("\\begin{tabular}{ll} a & b \\\\\n[1] & c \\\\ \\end{tabular}") == [["a", "b"], ["[1]", "c"]]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "\\begin{tabular}{ll}",
                "\\end{tabular}",
                "\\\\",
                "&",
                "{",
                "}",
                "\\multirow{2}{*}",
                "\\multicolumn{",
                "[",
                "$",
                "\\",
            ]
        )
        | st.text(max_size=4)
    ).map("".join)
)
def test_no_latex_makes_it_raise_and_spans_stay_small(latex: str) -> None:
    for cell in (cell for row in read_tabular("\\begin{tabular}{l}" + latex) for cell in row):
        assert 1 <= cell.rowspan <= 999
        assert 1 <= cell.colspan <= 999
    plain_latex(latex)


@pytest.mark.parametrize("span", ["0", "-2", "*", "", "1e3", "99999999", "²"])
def test_a_span_that_is_no_sensible_number_is_one_or_its_size(span: str) -> None:
    ((cell, _),) = read_tabular(rf"\begin{{tabular}}{{ll}} \multirow{{{span}}}{{*}}{{a}} & b \end{{tabular}}")
    assert (cell.text, cell.rowspan) == ("a", 2 if span == "-2" else 1)
