"""Videos: whether they are sound, and how frames are taken out of them. PyAV decodes; it comes with its own FFmpeg."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evomoe.data.images import BadImageError, open_file
from evomoe.support.errors import foreign
from evomoe.support.processor import Processor


class VideoSize(NamedTuple):
    """How many frames a video has, and their height and width in pixels."""

    frames: int
    height: int
    width: int


class Frames(NamedTuple):
    """Frames of a video (T, H, W, 3) of eight bits, and what the processor wants to know of it."""

    frames_THW3: np.ndarray
    metadata: Any


class VideoReader:
    """Takes frames out of videos as the model's processor does.

    Args:
        processor: The model's.
        frames: How many frames of each video, at most; rounded down to what the model takes at once. Of a video with fewer some are
            repeated, so that all videos of a batch are alike.

    Attributes:
        takes: Whether the processor takes videos.
        frames: How many frames each video gives.
    """

    def __init__(self, processor: Processor, frames: int) -> None:
        self._processor: Any = getattr(processor, "video_processor", None)
        self.takes = self._processor is not None
        at_once = int(getattr(self._processor, "temporal_patch_size", None) or 1)
        self.frames = max(at_once, frames // at_once * at_once)

    def read(self, path: str) -> Frames:
        """Decodes a video's frames.

        Raises:
            BadImageError: It is missing or cannot be decoded.
        """
        from transformers.video_utils import VideoMetadata

        with open_file(path, "video") as file, _opened(file, path) as container:
            stream, size = _stream(container, path), _size(container, path)
            rate = float(stream.average_rate or 0) or None
            metadata = VideoMetadata(
                total_num_frames=size.frames, fps=rate, duration=rate and size.frames / rate, video_backend="pyav",
                height=size.height, width=size.width,
            )  # fmt: skip
            metadata.frames_indices = self._indices(size.frames, metadata)
            return Frames(_decoded(container, path, metadata.frames_indices), metadata)

    def blank(self, height: int, width: int) -> Frames:
        """A black video of a second, of so many frames as each video gives."""
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(total_num_frames=self.frames, fps=float(self.frames), duration=1.0, height=height, width=width)
        metadata.frames_indices = [*range(self.frames)]
        return Frames(np.zeros((self.frames, height, width, 3), np.uint8), metadata)

    def _indices(self, count: int, metadata: Any) -> list[int]:
        """Which frames are taken, by the processor's own way if there are enough of them."""
        if count >= self.frames:
            chosen = [int(index) for index in self._processor.sample_frames(metadata, num_frames=self.frames)][: self.frames]
            if len(chosen) == self.frames:
                return chosen
        return [round(place) for place in np.linspace(0, count - 1, self.frames)]


def options_of(videos: Sequence[Frames]) -> dict[str, Any]:
    """The processor's arguments for a record's videos, whose frames are taken already."""
    return {
        "videos": [video.frames_THW3 for video in videos],
        "video_metadata": [video.metadata for video in videos],
        "do_sample_frames": False,
    }


def check_video(path: str, max_pixels: int, decode: bool = False) -> VideoSize:
    """Checks a video by what its file says of itself.

    Args:
        path: The file.
        max_pixels: The largest frame allowed.
        decode: Decode all of it too.

    Raises:
        BadImageError: It is missing, not a video, says not how long it is, has larger frames, or is damaged.
        ValueError: PyAV is not installed.
    """
    with open_file(path, "video") as file, _opened(file, path) as container:
        size = _size(container, path)
        if size.height * size.width > max_pixels:
            raise BadImageError(
                f"video {path} has frames of {size.width} x {size.height} pixels; the limit is {max_pixels:,} pixels"
            )
        if decode:
            _decoded(container, path, [0, size.frames - 1])
        return size


def _opened(file: Any, path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError("videos are decoded by PyAV, which is not installed: pip install 'evomoe[video]'.") from error
    try:
        return av.open(file)
    except Exception as error:  # FFmpeg's errors are many
        raise BadImageError(f"video {path} is not a video in a format that FFmpeg knows: {foreign(error)}") from error


def _stream(container: Any, path: str) -> Any:
    if not container.streams.video:
        raise BadImageError(f"video {path} has no pictures, only sound")
    return container.streams.video[0]


def _size(container: Any, path: str) -> VideoSize:
    stream = _stream(container, path)
    if stream.frames < 1:
        raise BadImageError(f"video {path} does not say how many frames it has; write it anew: ffmpeg -i OLD NEW.mp4")
    if stream.height < 1 or stream.width < 1:
        raise BadImageError(f"video {path} does not say how large its frames are")
    return VideoSize(stream.frames, stream.height, stream.width)


def _decoded(container: Any, path: str, indices: Sequence[int]) -> np.ndarray:
    """Some frames, in their order; the last one that is there for those that the file promised and does not have."""
    wanted, found = {*indices}, dict[int, np.ndarray]()
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    last: Any = None
    try:
        for number, frame in enumerate(container.decode(stream)):
            last = frame
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
        rest = None if len(found) == len(wanted) or last is None else last.to_ndarray(format="rgb24")
    except Exception as error:
        raise BadImageError(f"video {path} cannot be decoded: {foreign(error)}") from error
    if last is None:
        raise BadImageError(f"video {path} has no frame that can be decoded")
    frames: list[Any] = [found.get(index, rest) for index in indices]
    return np.stack(frames)
