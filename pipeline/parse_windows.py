"""Completions about a window -> a row of the windows table, with its events."""

from collections.abc import Sequence
from dataclasses import replace

from model.request import Completion
from pipeline.answers import answer_columns, cut_off
from pipeline.elements import clean_text
from pipeline.parse_events import parse_events
from pipeline.prompts import VideoPrompt
from pipeline.records import (
    ErrorCode,
    Failure,
    ParsedEvents,
    Stage,
    WindowEvent,
    WindowFacts,
    WindowRow,
    WindowStatus,
)

_UNREAD = frozenset({"unparseable", "broken_json", "unreadable_time"})  # where no event is left
_STATUS_OF = {ErrorCode.UNPARSEABLE: WindowStatus.UNPARSEABLE}


def parse_window(
    video_id: str, facts: WindowFacts, completions: Sequence[Completion], prompt: VideoPrompt, *, keep_raw: bool
) -> WindowRow:
    """The row of a window the model has answered about, one completion for each instruction of the prompt.

    An answer that was cut off or repeats itself makes it `truncated`, one from which nothing can be read `unparseable`.
    An event found for a query has the query as its label. Flags join those of the decoder and those of the answers.
    """
    assert len(completions) == len(prompt.instructions), (video_id, facts.number)
    events: list[WindowEvent] = []
    flags = list(facts.flags)
    failure = cut_off(completions, "prompt")
    for completion, query in zip(completions, prompt.queries, strict=True):
        if prompt.output == "events":
            parsed = parse_events(completion.text, facts.span, finish_reason=completion.finish_reason, query=query)
            events += [replace(event, label=query or event.label) for event in parsed.events]
            flags += parsed.flags
            failure = failure or _unread(completion, parsed, query)
        elif not any(character.isprintable() and not character.isspace() for character in completion.text):
            failure = failure or Failure(Stage.INFER, ErrorCode.UNPARSEABLE, "the answer is empty")
    events.sort(key=lambda event: (event.start_us, event.end_us, event.label, event.description))
    text = "\n".join(clean_text(completion.text) for completion in completions)
    return replace(
        _row(video_id, facts),
        status=WindowStatus.OK if failure is None else _STATUS_OF.get(failure.code, WindowStatus.TRUNCATED),
        failure=failure,
        flags=tuple(dict.fromkeys(flags)),
        answer=text.strip() if prompt.output == "text" else "",
        **answer_columns(completions, keep_raw=keep_raw),
        events=tuple(events),
    )


def _unread(completion: Completion, parsed: ParsedEvents, query: str) -> Failure | None:
    """Why an answer says nothing of what happens, unless it says that nothing does: an empty list does, words from
    which no time can be read do not, nor does silence when something was asked for."""
    is_silent = bool(query) and not completion.text.strip()
    if parsed.events or not (is_silent or _UNREAD.intersection(parsed.flags)):
        return None
    about = f" about {query!r}" if query else ""
    message = f"no event can be read in the answer{about}: {clean_text(completion.text)!r}"
    return Failure(Stage.INFER, ErrorCode.UNPARSEABLE, message)


def failed_window(video_id: str, window_no: int, failure: Failure) -> WindowRow:
    """The row of a window that could not be read. Its times are 0 until closing, which knows the plan."""
    return WindowRow(
        video_id=video_id,
        window_no=window_no,
        status=WindowStatus.FAILED,
        failure=failure,
        flags=(),
        start_us=0,
        end_us=0,
        core_end_us=0,
        origin_us=0,
        frame_us=(),
        width=0,
        height=0,
        decode_errors=0,
        corrupt_frames=0,
        cut_us=(),
        answer="",
        finish_reason="",
        mean_logprob=0.0,
        min_logprob=0.0,
        tokens_in=0,
        tokens_out=0,
        steps=0,
        drafted_tokens=0,
        accepted_tokens=0,
        resumes=0,
        decode_ms=0.0,
        queue_ms=0.0,
        infer_ms=0.0,
        reasoning="",
        raw_output="",
        events=(),
    )


def _row(video_id: str, facts: WindowFacts) -> WindowRow:
    """What decoding says, for a window that nobody was asked about yet."""
    empty = failed_window(video_id, facts.number, Failure(Stage.INFER, ErrorCode.INFER_REJECTED, ""))
    return replace(
        empty,
        start_us=facts.span.start_us,
        end_us=facts.span.end_us,
        core_end_us=facts.core_end_us,
        origin_us=facts.span.origin_us,
        frame_us=facts.span.frame_us,
        width=facts.width,
        height=facts.height,
        decode_errors=facts.decode_errors,
        corrupt_frames=facts.corrupt_frames,
        cut_us=facts.cut_us,
        decode_ms=facts.decode_ms,
    )
