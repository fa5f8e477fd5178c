"""Small pictures of moments of a video, for pages: decoded as the pipeline decodes, and JPEG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from av.video.frame import VideoFrame
from PIL import Image

from pipeline.records import BadInput
from pipeline.store import Store
from pipeline.video_file import VideoFile, open_video
from pipeline.video_frames import Painter, orientation_of

THUMBNAIL = (192, 108)  # width and height in pixels that a picture fits into
POSTER = (640, 360)
_READ_ON_US = 10_000_000  # a moment nearer than this is reached by decoding on, not by a seek


@dataclass(frozen=True, slots=True)
class Moment:
    name: str
    time_us: int  # on the video's clock
    box: tuple[int, int]  # THUMBNAIL or POSTER


def pictures_of(store: Store, uri: str, moments: Sequence[Moment]) -> Iterator[tuple[str, bytes]]:
    """(name, JPEG) of each moment that can be decoded: the frame that is shown then.

    A source that is gone or damaged gives as many as it can.
    """
    try:
        with store.open(store.stat(uri)) as file, open_video(file) as video:
            ordered = sorted(moments, key=lambda moment: moment.time_us)
            for moment, frame in zip(ordered, _shown(video, [moment.time_us for moment in ordered]), strict=False):
                yield moment.name, _jpeg(frame, moment.box, float(video.stream.sample_aspect_ratio or 1))
    except BadInput:
        return


def _shown(video: VideoFile, times_us: Sequence[int]) -> Iterator[VideoFrame]:
    """The frames that are shown at these times, which ascend, as far as the video has any."""
    frames = video.frames(times_us[0]) if times_us else iter(())
    shown = next(frames, None)
    following = next(frames, None)
    for time_us in times_us:
        if shown and time_us - shown[0] > _READ_ON_US:
            frames = video.frames(time_us)
            shown, following = next(frames, None), next(frames, None)
        while following and following[0] <= time_us:
            shown, following = following, next(frames, None)
        if shown is None:
            return
        yield shown[1]


def _jpeg(frame: VideoFrame, box: tuple[int, int], pixel_width: float) -> bytes:
    orientation = orientation_of(frame)
    width, height = frame.width * pixel_width, float(frame.height)
    if orientation.transpose:
        width, height = height, width
    scale = min(box[0] / width, box[1] / height)
    size = max(round(scale * height), 1), max(round(scale * width), 1)
    buffer = BytesIO()
    Image.fromarray(Painter(size, orientation).paint(frame)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
