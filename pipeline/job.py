"""Every decision of a run in one frozen value, checked before anything starts."""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from model.checkpoint import checkpoint_folder
from model.processor import VideoMarks
from model.request import Sampling
from pipeline.documents import selected_pages
from pipeline.prompts import PagePrompt, VideoPrompt
from pipeline.store import StoreOptions

SCHEMA_VERSION = 2  # of the tables and of _job.json
DEMO_MODEL = "model/demo"  # of this checkout: trained for demonstration only
CHECKOUT = Path(__file__).resolve().parents[1]
INSTRUCTION_TOKENS = 1024  # a generous bound of what stands in a prompt beside the page
SAMPLE_BYTES = 2**20
MAX_SAMPLES = 64


def _option(default: Any, help: str) -> Any:
    """A field with the text that --help shows for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What jobs have in common. The names are those of the flags and of the YAML keys.

    Raises ValueError that names the value and what to give instead.
    """

    input: str = field(
        metadata={"help": "a folder, file, glob, s3://bucket/prefix, or manifest (.txt, .csv, .parquet)"}
    )
    output: str = field(metadata={"help": "a folder or s3://bucket/prefix for the tables; run again to resume"})

    model: str = _option(DEMO_MODEL, "checkpoint: a folder, or a hub id such as Qwen/Qwen3-VL-8B-Instruct")
    max_new_tokens: int = _option(4096, "longest answer for a page or window; longer ones become 'truncated'")
    max_reasoning_tokens: int = _option(
        0, "most tokens of it that a thinking model may reason before it has to answer; 0: no limit of its own"
    )
    temperature: float | None = _option(
        None, "0: greedy, more: how freely tokens are drawn; left out: greedy, thinking models as their own file says"
    )
    top_p: float | None = _option(None, "draw from the fewest tokens that reach this sum of probabilities (0 to 1)")
    top_k: int | None = _option(None, "draw from this many of the likeliest tokens; 0: all")
    seed: int = _option(0, "makes drawn answers repeatable")
    dtype: str = _option("auto", "auto (float32 on cpu, the checkpoint's own on cuda), float32 or bfloat16")
    quantization: str | None = _option(None, "fp8: the decoder's matrices as FP8 blocks, made at load")
    kv_cache_dtype: str | None = _option(None, "fp8: the key/value cache in half the memory, less exact")
    max_context: int = _option(0, "most tokens of a prompt and its answer; 0: what the checkpoint was made for")
    rope_scaling: float = _option(
        0.0, "YaRN factor, such as 2 or 3, for prompts longer than the model was trained on; 0: none"
    )
    keep_raw: bool = _option(False, "keep what the model wrote in the column raw_output")

    device: str = _option("auto", "cpu, cuda, or auto: cuda when the cluster has GPUs")
    replicas: str = _option("1", "how many copies of the model: N, or MIN,MAX to let Ray Data choose")
    tensor_parallel: int = _option(1, "GPUs of each replica, over which the model is spread; on cpu: processes")
    cuda_graphs: bool = _option(False, "decode by recorded CUDA graphs, on one GPU per replica; not yet seen on a GPU")
    overlap: bool = _option(
        False, "prepare the next pass while the GPU is at work, prompts and decoding in turn; not yet seen on a GPU"
    )
    batch_size: int = _option(0, "prompts a replica works on at once; 0: 64 on cuda, 32 on cpu")
    tokens_per_second: float = _option(
        0.0, "visual tokens a replica reads each second, for the time --plan tells; 0: assume"
    )
    step_timeout_seconds: float = _option(
        900.0, "longest time of one step of the engine, compiling included; a longer one hangs and is ended"
    )
    decoders: int = _option(0, "processes that render pages or decode videos; 0: what the CPUs allow")
    decoder_memory_mb: int = _option(2048, "memory of each decoder; what needs more fails as render_oom")

    max_failure_rate: float | None = _option(
        None, "exit 1 when more than this share of the inputs failed (0 to 1); left out: when every one did"
    )
    endpoint_url: str | None = _option(None, "S3 endpoint, when it is not AWS's")
    profile: str | None = _option(None, "profile of the AWS configuration")
    region: str | None = _option(None, "AWS region")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "tensor_parallel"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_size", "decoders", "max_reasoning_tokens", "max_context", "rope_scaling"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 (automatic) or more, not {getattr(self, name)}")
        _require(bool(self.input), "input must name a folder, file, glob, bucket or manifest; it is empty")
        _require(bool(self.output), "output must name a folder or s3://bucket/prefix; it is empty")
        _require(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        for name in ("quantization", "kv_cache_dtype"):
            _require(
                getattr(self, name) in (None, "fp8"), f"{name} must be fp8 or left out, not {getattr(self, name)!r}"
            )
        _require(self.device in DEVICES, f"device must be one of {', '.join(DEVICES)}, not {self.device!r}")
        _require(
            self.decoder_memory_mb >= 1024, f"decoder_memory_mb must be at least 1024, not {self.decoder_memory_mb}"
        )
        _require(
            self.step_timeout_seconds > 0, f"step_timeout_seconds must be more than 0, not {self.step_timeout_seconds}"
        )
        _require(self.tokens_per_second >= 0, f"tokens_per_second must be 0 or more, not {self.tokens_per_second}")
        rate = self.max_failure_rate
        _require(rate is None or 0 <= rate <= 1, f"max_failure_rate must lie in 0 to 1, not {rate}")
        self.sampling(Sampling())
        self.store_options  # noqa: B018 - raises when it cannot be
        self.replica_range  # noqa: B018 - raises when it cannot be read

    def sampling(self, by_default: Sampling) -> Sampling:
        """How answers are written: what the options say, and `by_default` where they say nothing. Raises ValueError."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        if given["temperature"] == 0:  # greedy, whatever else the checkpoint would like
            by_default = Sampling()
        return replace(
            by_default,
            max_new_tokens=self.max_new_tokens,
            max_reasoning_tokens=self.max_reasoning_tokens or None,
            seed=self.seed,
            **{name: value for name, value in given.items() if value is not None},
        )

    @property
    def store_options(self) -> StoreOptions:
        return StoreOptions(endpoint_url=self.endpoint_url, profile=self.profile, region=self.region)

    @property
    def replica_range(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        match = re.fullmatch(r"(\d+)(?:,(\d+))?", self.replicas)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        _require(1 <= low <= high, f"replicas must be N or MIN,MAX with 1 <= MIN <= MAX, not {self.replicas!r}")
        return low, high

    @property
    def piece_ranges(self) -> str:
        """Which pieces of each asset are wanted; "" is all."""
        return ""

    @property
    def piece_timeout_seconds(self) -> float:
        raise NotImplementedError

    @property
    def answer_fields(self) -> tuple[str, ...]:
        """What the rows depend on; the rest only decides how fast and where they are made."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseJob(Job):
    """Documents in, tables out."""

    prompt: str = _option("markdown", "markdown, html (blocks with boxes), text, or a file with your own instruction")
    pages: str = _option("", "only these pages of each document, such as 1-3,7,20-; the others become rows 'skipped'")
    max_pages: int = _option(10_000, "documents with more pages fail as too_many_pages")
    max_image_megapixels: int = _option(
        179, "images of more million pixels fail as image_bomb; huge plans take a byte a pixel of --decoder-memory-mb"
    )
    password: tuple[str, ...] = _option((), "password to try on encrypted documents; may be given several times")
    min_tokens_per_page: int = _option(256, "least visual tokens a page is rendered to (one token is 32 x 32 pixels)")
    max_tokens_per_page: int = _option(
        2048, "most visual tokens a page is rendered to: more reads smaller print, slower"
    )
    page_timeout_seconds: float = _option(60.0, "longest time to open a document or to render a page")

    def __post_init__(self) -> None:
        Job.__post_init__(self)  # super() knows no dataclass with slots
        for name in ("max_pages", "max_image_megapixels", "min_tokens_per_page"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        low, high = self.min_tokens_per_page, self.max_tokens_per_page
        _require(low <= high, f"max_tokens_per_page is {high}: it must not be below min_tokens_per_page, {low}")
        _require(
            self.page_timeout_seconds > 0, f"page_timeout_seconds must be more than 0, not {self.page_timeout_seconds}"
        )
        selected_pages(self.pages, 1)

    @property
    def piece_ranges(self) -> str:
        return self.pages

    @property
    def piece_timeout_seconds(self) -> float:
        return self.page_timeout_seconds

    @property
    def answer_fields(self) -> tuple[str, ...]:
        return PARSE_ANSWER_FIELDS


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexJob(Job):
    """Videos in, an index of events out."""

    prompt: str = _option("events", "events (everything that happens), or a file with your own instruction")
    query: tuple[str, ...] = _option((), "index only when this happens; may be given several times")
    question: str = _option("", "answer this about each window, in windows.answer, instead of indexing events")
    fps: float = _option(0.0, "frames sampled each second; 0: as the checkpoint wants, mostly 2")
    window_seconds: float = _option(0.0, "length of a window; 0: 60, or less where the checkpoint takes fewer frames")
    overlap_seconds: float = _option(-1.0, "what a window shares with the next; -1: a sixth of its length")
    max_tokens_per_window: int = _option(
        0, "most visual tokens of a window: fewer make its frames smaller, more larger; 0: as the checkpoint wants"
    )
    max_frames_per_window: int = _option(0, "most frames of a window, for windows of hours; 0: as the checkpoint wants")
    max_windows: int = _option(10_000, "videos with more windows fail as too_many_windows")
    video_marks: str = _option(
        "all",
        "marks of frames in a prompt: all (around each pair and around all of a window, as transformers does from 5.10 "
        "on), or pairs (around each pair only, as before)",
    )
    shot_cuts: bool = _option(True, "a window ends early, by half of the overlap at most, where a shot does")
    window_timeout_seconds: float = _option(600.0, "longest time to open a video or to decode a window")

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        for name in ("fps", "window_seconds", "max_tokens_per_window", "max_frames_per_window"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 (automatic) or more, not {getattr(self, name)}")
        _require(self.max_windows >= 1, f"max_windows must be at least 1, not {self.max_windows}")
        _require(
            self.video_marks in get_args(VideoMarks),
            f"video_marks must be one of {', '.join(get_args(VideoMarks))}, not {self.video_marks!r}",
        )
        _require(
            self.window_timeout_seconds > 0,
            f"window_timeout_seconds must be more than 0, not {self.window_timeout_seconds}",
        )

    @property
    def piece_timeout_seconds(self) -> float:
        return self.window_timeout_seconds

    @property
    def answer_fields(self) -> tuple[str, ...]:
        return INDEX_ANSWER_FIELDS


DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
# What the rows depend on; the rest only decides how fast and where they are made.
ANSWER_FIELDS = (
    "max_new_tokens",
    "max_reasoning_tokens",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "max_context",
    "rope_scaling",
    "keep_raw",
)
PARSE_ANSWER_FIELDS = (
    *("pages", "max_pages", "max_image_megapixels", "min_tokens_per_page", "max_tokens_per_page"),
    *ANSWER_FIELDS,
)
INDEX_ANSWER_FIELDS = (
    *("query", "question", "fps", "window_seconds", "overlap_seconds", "max_tokens_per_window"),
    *("max_frames_per_window", "shot_cuts", "video_marks", "max_windows"),
    *ANSWER_FIELDS,
)
# Options that came after the first outputs were written: at these values rows are as they were before, and nothing is
# recorded, so that an output which was begun without them can be gone on with.
LATER_FIELDS = {"video_marks": "all", "max_windows": 10_000}


def resolve_model(model: str) -> str:
    """`model` where it lies on this machine: a folder of the checkout wherever Ray unpacked it, otherwise unchanged."""
    return str(CHECKOUT / model) if (CHECKOUT / model).is_dir() else model


def answer_settings(job: ParseJob | IndexJob, prompt: PagePrompt | VideoPrompt, sampling: Sampling) -> dict[str, str]:
    """Everything the answers depend on, by name, as text: two jobs with equal settings write equal rows. How tokens are
    drawn is left out where it is as before there were options for it (also a greedy answer is drawn behind a loop)."""
    draws = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")}
    return {
        "model": job.model,
        "model_fingerprint": fingerprint(checkpoint_folder(resolve_model(job.model))),
        "prompt": job.prompt,
        "instruction": "\n".join(prompt.instructions),
        "output_format": prompt.output,
        **{
            name: str(getattr(job, name))
            for name in job.answer_fields
            if name not in LATER_FIELDS or getattr(job, name) != LATER_FIELDS[name]
        },
        **{name: str(value) for name, value in draws.items() if value != getattr(Sampling(), name)},
    }


def config_hash(settings: dict[str, str]) -> str:
    """16 hex digits of `answer_settings`."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def job_record(job: Job, settings: dict[str, str]) -> dict[str, str]:
    """What an output folder belongs to: the input and the settings of the answers. Nothing secret."""
    return {"schema_version": str(SCHEMA_VERSION), "input": job.input, "config_hash": config_hash(settings), **settings}


def redacted(job: Job) -> dict[str, Any]:
    """The job for _job.json and logs: how many passwords, never which."""
    shown = {option.name: getattr(job, option.name) for option in fields(job)}
    return shown | {"password": f"{len(shown['password'])} given"} if "password" in shown else shown


def fingerprint(folder: Path) -> str:
    """16 hex digits of a checkpoint's files: names, sizes, and contents.

    Of files over 64 MiB, 64 samples of 1 MiB evenly spread are read: weights of another training differ everywhere.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".txt", ".jinja"}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        samples = min(MAX_SAMPLES, -(-size // SAMPLE_BYTES))
        step = max(SAMPLE_BYTES, (size - SAMPLE_BYTES) // max(1, samples - 1))
        with path.open("rb") as file:
            for number in range(samples):
                file.seek(number * step)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
