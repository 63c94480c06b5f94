"""H.264 in MP4, which every browser plays, written by PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

from api.models.jobs import Pixels

# crf is x264's scale, on which 18 is said to be visually lossless. On several threads, and when it looks ahead (which this tune has it
# leave out), the same small frames do not always make the same bytes: seen at 32×32 in a tenth of the runs.
OPTIONS = {"crf": "16", "preset": "veryfast", "threads": "1", "tune": "zerolatency"}
BT709, LIMITED = 1, 1  # the numbers of ITU-T H.273, which tell players how to turn the planes into colours


def film(frames: Iterable[Pixels], size: tuple[int, int], fps: int, text: str) -> bytes:
    """The frames, uint8 (height, width, 3), of the given even width and height, ``fps`` a second; ``text`` is the file's comment."""
    import av  # loads FFmpeg, which a server that makes no films need not have in memory

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=Fraction(fps), options=OPTIONS)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
