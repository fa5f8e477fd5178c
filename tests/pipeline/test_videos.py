"""Videos: every sampled frame is the one that shows at its time, whatever the container does with time."""

import os
import socket
import threading
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from model.processor import Processor
from model.request import Frames, Sampling
from pipeline.job import resolve_model
from pipeline.native import inspect_asset, read_asset_pieces
from pipeline.records import BadInput, Window
from pipeline.store import Store, StoreOptions
from pipeline.video_file import open_video
from pipeline.videos import inspect_video, read_windows
from tests.pipeline.video_files import expected_times, level, options, read_all, write_frames

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "video"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample videos here")
MS, TICK = Fraction(1, 1000), Fraction(1, 90_000)


def steps(count: int, step: int, start: int = 0) -> list[int]:
    return [start + step * number for number in range(count)]


def irregular(seed: int, count: int, least: int, most: int) -> list[int]:
    return np.cumsum(np.random.default_rng(seed).integers(least, most, count)).tolist()


B_FRAMES = {"bf": "3", "g": "40", "b-adapt": "0"}
# name -> (file name, pts, time base, codec options); x264 without B-frames unless it says so
SOURCES = {
    **{
        f"cfr_{rate}": ("a.mp4", steps(max(6, 8 * rate), 120_000 // rate), Fraction(1, 120_000), {"bf": "0"})
        for rate in (1, 2, 3, 5, 10, 12, 15, 24, 25, 30, 48, 50, 60, 100, 120)
    },
    **{f"ntsc_{k}": ("a.mp4", steps(k * 8, 1001), Fraction(1, 1000 * k), {"bf": "0"}) for k in (24, 30, 60)},
    **{f"vfr_{k}": ("a.mp4", irregular(k, 90, 900, 30_000), TICK, {"bf": "0"}) for k in range(6)},
    **{f"vfr_mkv_{k}": ("a.mkv", irregular(k, 80, 10, 400), MS, {"bf": "0"}) for k in range(4)},
    **{f"vfr_b_{k}": ("a.mp4", irregular(k, 90, 3000, 20_000), TICK, B_FRAMES) for k in range(3)},
    "offset_mp4": ("a.mp4", steps(100, 4000, 7_777_777), Fraction(1, 100_000), {"bf": "0"}),
    "offset_mkv": ("a.mkv", steps(120, 40, 12_345), MS, {"bf": "0"}),
    "offset_ts": ("a.ts", steps(120, 3600, 1_234_567), TICK, {"bf": "0"}),
    "b_frames_mp4": ("a.mp4", steps(200, 3000), TICK, B_FRAMES),  # an edit list takes the decoding delay back
    "b_frames_mkv": ("a.mkv", steps(200, 40), MS, B_FRAMES),
    "b_frames_ts": ("a.ts", steps(200, 3600), TICK, B_FRAMES),
    "dropped": ("a.mp4", [p for n, p in enumerate(steps(240, 3000)) if n % 7 and not 60 < n < 110], TICK, {"bf": "0"}),
    "slides": ("a.mp4", steps(12, 450_000), TICK, {"bf": "0"}),
    "still": ("a.mkv", [0, 40, 20_000, 20_040], MS, {"bf": "0"}),
}


@pytest.fixture(scope="module")
def demo() -> Processor:
    return Processor.from_pretrained(resolve_model("model/demo"))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_frame_is_shown_at_its_own_time_and_the_prompt_says_so(name, tmp_path, demo):
    file, pts, time_base, codec_options = SOURCES[name]
    write_frames(tmp_path / file, pts, time_base, codec_options=codec_options)
    times_us = [round((time - pts[0]) * time_base * 1_000_000) for time in pts]
    tolerance = 1000 if file.endswith(".mkv") else 23  # Matroska counts milliseconds, MPEG-TS 90 kHz
    _, windows = read_all(tmp_path / file, options(window_seconds=6))
    assert windows
    for window in windows:
        assert isinstance(window, Window), window
        span = window.facts.span
        expected = expected_times(times_us, span.start_us, span.end_us, 2.0)
        if not expected:  # nothing begins to show in this window: it holds what shows already
            assert window.facts.flags == ("held_frame",)
            continue
        if tolerance < 1000:
            assert len(span.frame_us) == len(expected)
        for time_us, frame in zip(span.frame_us, window.frames_THWC, strict=True):
            number = int(np.argmin(np.abs(np.array(times_us) - time_us)))
            assert abs(times_us[number] - time_us) <= tolerance
            assert abs(frame.astype(int).mean() - level(number)) < 6, f"frame {number} was expected at {time_us}"
        seconds = [(time_us - span.origin_us) / 1e6 for time_us in span.frame_us]
        prompt = demo.encode("key", [Frames(window.frames_THWC, tuple(seconds))], Sampling())
        text = demo.tokenizer.decode(prompt.token_ids_T, skip_special_tokens=True)
        told = [float(part.split(" seconds>")[0]) for part in text.split("<")[1:] if " seconds>" in part]
        pairs = [(seconds[at], seconds[min(at + 1, len(seconds) - 1)]) for at in range(0, len(seconds), 2)]
        np.testing.assert_allclose(told, [sum(pair) / 2 for pair in pairs], atol=0.0501)


@pytest.mark.parametrize("rate", [1, 2, 3, 5, 10, 12, 15, 24, 25, 30, 48, 50, 60, 100, 120])
def test_of_a_constant_rate_the_prompt_says_what_transformers_says(rate, tmp_path, demo):
    """Their processor is given the numbers of the frames that were sampled, and the true rate."""
    write_frames(tmp_path / "a.mp4", steps(7 * rate, 120_000 // rate), Fraction(1, 120_000), codec_options={"bf": "0"})
    _, (window,) = read_all(tmp_path / "a.mp4", options())
    seconds = [time_us / 1e6 for time_us in window.facts.span.frame_us]
    prompt = demo.encode("key", [Frames(window.frames_THWC, tuple(seconds))], Sampling())
    text = demo.tokenizer.decode(prompt.token_ids_T, skip_special_tokens=True)
    numbers = [round(second * rate) for second in seconds]
    theirs = Qwen3VLProcessor._calculate_timestamps(None, numbers, rate, 2)
    assert "".join(f"<{time:.1f} seconds>" for time in theirs) in text


def test_there_are_forty_sources():
    assert len(SOURCES) >= 40


def test_decoding_order_of_avi_becomes_the_order_of_showing(tmp_path):
    write_frames(tmp_path / "a.avi", steps(100, 1), Fraction(1, 25), codec_options=B_FRAMES)
    info, (window,) = read_all(tmp_path / "a.avi", options())
    assert info.timing == "decode_order"
    for time_us, frame in zip(window.facts.span.frame_us, window.frames_THWC, strict=True):
        assert abs(frame.astype(int).mean() - level(round(time_us * 25 / 1e6))) < 6


def test_a_raw_stream_is_counted(tmp_path):
    write_frames(tmp_path / "a.h264", steps(100, 1), Fraction(1, 25), codec_options={"bf": "0"})
    info, (window,) = read_all(tmp_path / "a.h264", options())
    assert (info.timing, info.duration_us) == ("counted", 4_000_000)
    assert len(window.facts.span.frame_us) == 8
    for time_us, frame in zip(window.facts.span.frame_us, window.frames_THWC, strict=True):
        assert abs(frame.astype(int).mean() - level(round(time_us * 25 / 1e6))) < 6


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("libx265", "yuv420p10le"),
        ("libsvtav1", "yuv420p10le"),
        ("libvpx-vp9", "yuv420p"),
        ("mpeg2video", "yuv420p"),
        ("prores_ks", "yuv422p10le"),
    ],
)
def test_codecs_and_depths_come_out_in_eight_bits(codec, pixel_format, tmp_path):
    path = tmp_path / ("a.mkv" if codec != "prores_ks" else "a.mov")
    write_frames(path, steps(50, 1), Fraction(1, 25), codec=codec, pixel_format=pixel_format, size=(66, 98))
    _, (window,) = read_all(path, options())
    assert window.frames_THWC.dtype == np.uint8
    for time_us, frame in zip(window.facts.span.frame_us, window.frames_THWC, strict=True):
        assert abs(frame.astype(int).mean() - level(round(time_us / 40_000))) < 9


def test_windows_from_the_middle_are_those_of_a_read_from_the_start(tmp_path):
    write_frames(tmp_path / "a.mp4", steps(400, 9000), TICK, codec_options={"g": "37", "bf": "2"})
    wanted = options(window_seconds=8)
    info, windows = read_all(tmp_path / "a.mp4", wanted)
    assert len(windows) > 5
    for number in (2, 4, len(windows)):
        with (tmp_path / "a.mp4").open("rb") as file:
            (again,) = read_windows(file, [number], info)
        assert again.facts.span == windows[number - 1].facts.span
        np.testing.assert_array_equal(again.frames_THWC, windows[number - 1].frames_THWC)


def test_a_file_cut_off_gives_what_it_has(tmp_path):
    write_frames(
        tmp_path / "a.mp4",
        steps(600, 9000),
        TICK,
        codec_options={"bf": "0"},
        container_options={"movflags": "faststart"},
    )
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    _, windows = read_all(tmp_path / "cut.mp4", options(window_seconds=10))
    whole = [window for window in windows if isinstance(window, Window) and not window.facts.flags]
    assert whole
    assert whole == windows[: len(whole)]
    failed = [item for item in windows if isinstance(item, tuple)]
    assert {failure.code for _, failure in failed} == {"truncated_file"}
    assert len(whole) + len(failed) in (len(windows), len(windows) - 1)


def test_memory_and_seeks_do_not_grow_with_a_low_rate(tmp_path):
    """Of a sample every ten seconds the frames between are jumped over."""
    write_frames(tmp_path / "a.mp4", steps(2000, 9000), TICK, codec_options={"g": "20", "bf": "0"})
    info, windows = read_all(tmp_path / "a.mp4", options(fps=0.1, window_seconds=100))
    for window in windows:
        gaps = np.diff(window.facts.span.frame_us)
        np.testing.assert_array_equal(gaps, 10_000_000)
    assert info.fps == 0.1


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty_file"), (b"not a video", "unsupported_type"), (b"\0\0\0\x18ftypmp42" + b"\0" * 50, "corrupt")],
)
def test_what_is_no_video_says_so(data, code, tmp_path):
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(BadInput) as caught:
        read_all(tmp_path / "a.mp4", options())
    assert caught.value.failure.code == code


MANIFEST = {
    "nasa_13013.mp4": ("h264", 480, 270, 0, 13_013_000, 390, 0),
    "flipping_a_pancake.mkv": ("h264", 426, 240, 0, 10_333_000, 310, 0),
    "mv_with_2_top_shots.mp4": ("hevc", 1080, 1440, 270, 1_773_911, 53, 0),
    "iibbibb_editlist_videoonly.mp4": ("h264", 704, 576, 0, 12_500_000, 12, 0),
    "bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4": ("h264", 1137, 640, 0, 4_000_000, 120, 0),
    "corrupted.mp4": ("h264", 1280, 720, 0, 5_000_000, 48, 1),  # 49 decoded, one of them marked as damaged
    "sample_with_htc_rotation_track_name.mkv": ("h264", 1080, 720, 0, 968_000, 30, 0),
    "bbb_2500ms.ts": ("mpeg2video", 1920, 1080, 0, 2_500_000, 58, 0),
    "testvideo.mp4": ("h264", 1280, 720, 0, 24_023_333, 720, 0),
    "v_rBMQFpHspmo.mp4": ("mpeg4", 398, 224, 0, 144_666_667, 434, 0),
    "derived_vfr_needles.mp4": ("h264", 320, 180, 0, 45_150_000, 916, 0),
}


@needs_samples
@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_a_sample_is_what_its_manifest_says(name):
    codec, width, height, rotation, duration_us, frames, errors = MANIFEST[name]
    with (SAMPLES / name).open("rb") as file:
        info = inspect_video(file, options())
        assert (info.codec, info.width, info.height, info.rotation) == (codec, width, height, rotation)
        assert info.duration_us == duration_us
        file.seek(0)
        with open_video(file) as video:
            times = [time_us for time_us, _ in video.frames()]
            assert (len(times), len(video.errors_us)) == (frames, errors)
            assert times == sorted(set(times))


@needs_samples
@pytest.mark.parametrize(
    ("name", "cuts", "fps"),
    [
        ("nasa_13013.mp4", [8.008], 4),  # of its best track; the first one has it at 8.080
        ("bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4", [0.2], 10),
        ("testvideo.mp4", [1.001, 6.006], 4),
        ("derived_vfr_needles.mp4", [8.0, 9.5, 19.5, 19.9, 27.9, 28.65, 40.65], 4),
        ("v_rBMQFpHspmo.mp4", [36.33, 45.0, 66.67, 74.33, 98.67, 125.33], 3),
    ],
)
def test_cuts_are_where_they_are_to_a_sampled_frame(name, cuts, fps):
    _, windows = read_all(SAMPLES / name, options(fps=fps, window_seconds=20))
    found = sorted({time_us / 1e6 for window in windows for time_us in window.facts.cut_us})
    for cut in cuts:  # the manifest has some to a frame, those of the last one by eye
        assert any(-0.051 <= seen - cut <= 1 / fps + 0.051 for seen in found), (cut, found)


@needs_samples
def test_audio_alone_is_no_video():
    with (SAMPLES / "sample_audio_only_15s.mp4").open("rb") as file, pytest.raises(BadInput) as caught:
        inspect_video(file, options())
    assert caught.value.failure.code == "no_video"


HOSTILE = {
    "hls_http.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nhttp://127.0.0.1:{port}/seg.ts\n#EXT-X-ENDLIST\n",
    "hls_key.m3u8": '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-KEY:METHOD=AES-128,URI="http://127.0.0.1:{port}/key.bin"\n'
    "#EXTINF:10.0,\ncanary.ts\n#EXT-X-ENDLIST\n",
    "hls_local.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\ncanary.ts\n#EXT-X-ENDLIST\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nhttp://127.0.0.1:{port}/seg.ts\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile canary.ts\n",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A video in the working folder that says whether it was read."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary.ts"
    write_frames(path, steps(20, 3600), TICK)
    mark_unread(path)
    path.read_bytes()
    if is_unread(path):
        pytest.skip("this file system does not note when files are read")
    mark_unread(path)
    return path


def mark_unread(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns))


def is_unread(path: Path) -> bool:
    return path.stat().st_atime_ns == 0


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_opens_nothing_else(name, canary):
    """A listener that is never called, and a file beside it that is never read."""
    hostile, called = canary.with_name(name), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        listener = threading.Thread(target=lambda: _accept(server, called))
        listener.start()
        hostile.write_text(HOSTILE[name].format(port=server.getsockname()[1]))
        for file in hostile.open("rb"), Store().open(Store().stat(str(hostile))):
            with file, pytest.raises(BadInput) as caught:
                inspect_video(file, options())
            assert caught.value.failure.code == "unsupported_type"
        listener.join()
    assert not called
    assert is_unread(canary)


def open_unguarded(path: Path) -> None:
    with path.open("rb") as file, suppress(av.error.FFmpegError), av.open(file, timeout=5) as container:
        next(container.decode(video=0))


def test_unguarded_a_concat_script_does_open_another_file(canary):
    """So that the test above can fail."""
    canary.with_name("concat.mp4").write_text(HOSTILE["concat.mp4"])
    open_unguarded(canary.with_name("concat.mp4"))
    assert not is_unread(canary)


def test_unguarded_a_playlist_does_call_the_network(canary):
    """So that the test above can fail."""
    hostile, called = canary.with_name("hls_http.m3u8"), []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        listener = threading.Thread(target=lambda: _accept(server, called))
        listener.start()
        hostile.write_text(HOSTILE["hls_http.m3u8"].format(port=server.getsockname()[1]))
        open_unguarded(hostile)
        listener.join()
    assert called


def _accept(server: socket.socket, called: list[bool]) -> None:
    try:
        server.accept()[0].close()
        called.append(True)
    except TimeoutError:
        pass


def test_a_video_in_a_bucket_is_read_by_ranges(s3, tmp_path):
    write_frames(tmp_path / "a.mp4", steps(400, 9000), TICK, codec_options={"g": "20", "crf": "1"}, size=(256, 256))
    settings = StoreOptions(endpoint_url=s3.endpoint_url)
    store, uri = Store(settings), f"s3://{s3.new_bucket()}/a.mp4"
    store.put(uri, (tmp_path / "a.mp4").read_bytes())
    asset, wanted = store.stat(uri), options(window_seconds=8)
    info, windows = read_all(tmp_path / "a.mp4", wanted)
    assert inspect_asset(asset, settings, wanted) == info
    (window,) = read_asset_pieces(asset, [3], settings, wanted)
    np.testing.assert_array_equal(window.frames_THWC, windows[2].frames_THWC)
