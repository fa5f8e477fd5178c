"""What we ask of a page, and what kind of answer that brings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Output = Literal["markdown", "html", "text"]


@dataclass(frozen=True, slots=True)
class PagePrompt:
    """The instruction that goes with a page's image, and how its answer is to be parsed."""

    instruction: str
    output: Output


def page_prompt(name_or_file: str, *, file_output: Output = "text") -> PagePrompt:
    """The prompt called "markdown", "html" or "text"; otherwise the user's own, in the UTF-8 text file of that name.

    The instructions are those of the Qwen3-VL document parsing and OCR cookbooks. The answer to a user's own prompt
    is parsed as `file_output`. Raises ValueError when there is no such prompt and no such file, or the file is empty.
    """
    match name_or_file:
        case "markdown":
            return PagePrompt("qwenvl markdown", "markdown")
        case "html":
            return PagePrompt("qwenvl html", "html")
        case "text":
            return PagePrompt("Read all the text in the image.", "text")
    try:
        instruction = Path(name_or_file).read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name no file can have
        raise ValueError(f"prompt {name_or_file!r} is not markdown, html, text or a readable text file") from error
    if not instruction:
        raise ValueError(f"prompt file {name_or_file!r} is empty")
    return PagePrompt(instruction, file_output)
