"""What the completions about one piece, a page or a window, add up to: the columns that both tables have."""

from collections.abc import Sequence
from typing import Any

from model.request import Completion
from pipeline.elements import clean_text
from pipeline.records import ErrorCode, Failure, Stage


def cut_off(completions: Sequence[Completion], part: str) -> Failure | None:
    """Why the answers are not whole: the first one that reached its limit or repeats itself. `part`: what each of
    several is about, such as "tile"."""
    for number, completion in enumerate(completions, 1):
        which = f" of {part} {number} of {len(completions)}" if len(completions) > 1 else ""
        if completion.finish_reason == "length":
            message = f"the answer{which} reached its limit of {len(completion.token_ids)} tokens"
            return Failure(Stage.INFER, ErrorCode.OUTPUT_TRUNCATED, message)
        if completion.finish_reason == "repetition":
            message = f"the answer{which} repeats itself; what stands before is kept"
            return Failure(Stage.INFER, ErrorCode.OUTPUT_REPEATED, message)
    return None


def answer_columns(completions: Sequence[Completion], *, keep_raw: bool) -> dict[str, Any]:
    """By name the columns of a piece that say how its answers were written: sums, means, and their texts."""
    tokens_out = [len(completion.token_ids) for completion in completions]
    logprobs = [completion.mean_logprob * count for completion, count in zip(completions, tokens_out, strict=True)]
    reasons = {completion.finish_reason for completion in completions}
    return {
        "finish_reason": next((reason for reason in ("length", "repetition", "stop") if reason in reasons), ""),
        "mean_logprob": sum(logprobs) / max(sum(tokens_out), 1),
        "min_logprob": min((completion.min_logprob for completion in completions), default=0.0),
        "tokens_in": sum(completion.prompt_tokens for completion in completions),
        "tokens_out": sum(tokens_out),
        "steps": sum(completion.steps for completion in completions),
        "drafted_tokens": sum(completion.drafted_tokens for completion in completions),
        "accepted_tokens": sum(completion.accepted_tokens for completion in completions),
        "resumes": sum(completion.resumes for completion in completions),
        "queue_ms": 1000 * sum(completion.seconds_queued for completion in completions),
        "infer_ms": 1000 * sum(completion.seconds_running for completion in completions),
        "reasoning": "\n".join(clean_text(completion.reasoning) for completion in completions if completion.reasoning),
        "raw_output": "\n".join(clean_text(completion.text) for completion in completions) if keep_raw else "",
    }
