"""Completions about a window -> a row of the windows table, with its events."""

from collections.abc import Sequence
from dataclasses import replace

from model.request import Completion
from pipeline.elements import clean_text
from pipeline.parse_events import parse_events
from pipeline.prompts import VideoPrompt
from pipeline.records import ErrorCode, Failure, Stage, WindowEvent, WindowFacts, WindowRow, WindowStatus


def parse_window(
    video_id: str, facts: WindowFacts, completions: Sequence[Completion], prompt: VideoPrompt, *, keep_raw: bool
) -> WindowRow:
    """The row of a window the model has answered about, one completion for each instruction of the prompt.

    An event found for a query has the query as its label. Flags join those of the decoder and those of the answers.
    """
    assert len(completions) == len(prompt.instructions), (video_id, facts.number)
    events: list[WindowEvent] = []
    flags = list(facts.flags)
    for completion, query in zip(completions, prompt.queries, strict=True):
        if prompt.output == "events":
            parsed = parse_events(completion.text, facts.span, finish_reason=completion.finish_reason, query=query)
            events += [replace(event, label=query or event.label) for event in parsed.events]
            flags += parsed.flags
    events.sort(key=lambda event: (event.start_us, event.end_us, event.label, event.description))
    cut_off = any(completion.finish_reason == "length" for completion in completions)
    tokens_out = [len(completion.token_ids) for completion in completions]
    logprobs = [completion.mean_logprob * count for completion, count in zip(completions, tokens_out, strict=True)]
    text = "\n".join(clean_text(completion.text) for completion in completions)
    message = f"the answer is longer than {max(tokens_out)} tokens: the rest of the window is missing"
    return replace(
        _row(video_id, facts),
        status=WindowStatus.TRUNCATED if cut_off else WindowStatus.OK,
        failure=Failure(Stage.INFER, ErrorCode.OUTPUT_TRUNCATED, message) if cut_off else None,
        flags=tuple(dict.fromkeys(flags)),
        answer=text.strip() if prompt.output == "text" else "",
        finish_reason="length" if cut_off else "stop",
        mean_logprob=sum(logprobs) / max(sum(tokens_out), 1),
        min_logprob=min(completion.min_logprob for completion in completions),
        tokens_in=sum(completion.prompt_tokens for completion in completions),
        tokens_out=sum(tokens_out),
        queue_ms=1000 * sum(completion.seconds_queued for completion in completions),
        infer_ms=1000 * sum(completion.seconds_running for completion in completions),
        reasoning="\n".join(clean_text(completion.reasoning) for completion in completions if completion.reasoning),
        raw_output=text if keep_raw else "",
        events=tuple(events),
    )


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
