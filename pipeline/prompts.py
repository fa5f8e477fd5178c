"""What we ask of a page or of a window of a video, and what kind of answer that brings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Output = Literal["markdown", "html", "text"]
EVENTS_INSTRUCTION = "qwenvl events"  # what the demonstration checkpoint was trained on; its prompts.json says so
DENSE_EVENTS = (
    "Localize a series of activity events in the video, output the start and end timestamp for each event, and "
    "describe each event with a sentence. Provide the result as a JSON list of objects with the keys start, end (in "
    "seconds, as in the timestamps of the frames) and description. Answer [] when nothing happens."
)
GROUNDING = (
    "Give the query: {query!r}, when does the described content occur in the video? Use seconds for time format. "
    "Answer with a JSON list of [start, end] pairs, [] when it does not occur."
)
PROMPTS_FILE = "prompts.json"  # in a checkpoint's folder: instructions it was trained on, by what they ask for


@dataclass(frozen=True, slots=True)
class PagePrompt:
    """The instruction that goes with a page's image, and how its answer is to be parsed."""

    instruction: str
    output: Output

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,)


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
    return PagePrompt(_own_instruction(name_or_file, "markdown, html, text"), file_output)


@dataclass(frozen=True, slots=True)
class VideoPrompt:
    """The instructions that go with a window, each a prompt of its own, and how their answers are to be read."""

    instructions: tuple[str, ...]
    queries: tuple[str, ...]  # what each asks for, which becomes the label of what it finds; "" is everything
    output: Literal["events", "text"]


def video_prompt(name_or_file: str, queries: Sequence[str], question: str, checkpoint: Path) -> VideoPrompt:
    """All events ("events"), when each of `queries` happens, the answer to a `question`, or the user's own instruction
    in a text file, whose answers are read as events. A checkpoint's own wording goes before ours.

    Raises ValueError when there is no such prompt and no such file, and for more than one wish at a time.
    """
    if sum([name_or_file != "events", bool(queries), bool(question)]) > 1:
        raise ValueError("a job has one wish: give a prompt file, or queries, or a question")
    own = _checkpoint_prompts(checkpoint)
    if question:
        return VideoPrompt((question,), ("",), "text")
    if queries:
        if not all(query.strip() for query in queries):
            raise ValueError("a query is empty")
        wording = own.get("grounding", GROUNDING)
        return VideoPrompt(tuple(wording.format(query=query) for query in queries), tuple(queries), "events")
    if name_or_file == "events":
        return VideoPrompt((own.get("events", DENSE_EVENTS),), ("",), "events")
    return VideoPrompt((_own_instruction(name_or_file, "events"),), ("",), "events")


def _checkpoint_prompts(folder: Path) -> dict[str, str]:
    path = folder / PROMPTS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _own_instruction(file: str, names: str) -> str:
    try:
        instruction = Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name no file can have
        raise ValueError(f"prompt {file!r} is not {names} or a readable text file") from error
    if not instruction:
        raise ValueError(f"prompt file {file!r} is empty")
    return instruction
