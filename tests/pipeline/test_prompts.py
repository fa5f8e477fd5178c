"""Prompts by name, and the user's own."""

from pathlib import Path

import pytest

from pipeline.prompts import PagePrompt, page_prompt


@pytest.mark.parametrize(
    ("name", "instruction"),
    [("markdown", "qwenvl markdown"), ("html", "qwenvl html"), ("text", "Read all the text in the image.")],
)
def test_named_prompts_are_those_of_the_cookbooks(name: str, instruction: str) -> None:
    prompt = page_prompt(name)
    assert (prompt.instruction, prompt.output) == (instruction, name)


def test_a_file_is_the_users_own_prompt(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffWhat is on the page?\nAntworte auf Französisch.\n".encode())
    instruction = "What is on the page?\nAntworte auf Französisch."
    assert page_prompt(str(file)) == PagePrompt(instruction, "text")
    assert page_prompt(str(file), file_output="markdown") == PagePrompt(instruction, "markdown")


@pytest.mark.parametrize("content", [b"", b" \n\t", b"\xff\xfe\xfa caf\xe9"])
def test_an_empty_or_unreadable_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.txt"):
        page_prompt(str(file))


@pytest.mark.parametrize("value", ["markdwon", "", "no/such/file.txt", ".", "nul\0byte", "x" * 5000])
def test_what_is_neither_a_name_nor_a_file_is_refused_with_its_value(value: str) -> None:
    with pytest.raises(ValueError, match="prompt ") as refused:
        page_prompt(value)
    assert repr(value) in str(refused.value)
