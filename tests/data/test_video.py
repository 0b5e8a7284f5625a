"""Segments, exactness and kept frames: what a model sees of a video is what was asked for."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from overlays.data import chat, decode, records, video
from overlays.data.media import MediaOptions, apply_resolution
from overlays.errors import UserError
from overlays.model.load import load_processor

PROBES = Path(__file__).resolve().parents[3] / "shared" / "data" / "video_probes"
needs_probes = pytest.mark.skipif(not PROBES.is_dir(), reason=f"real data {PROBES} is not here")
NAMES = sorted(path.name for path in PROBES.glob("*.mp4")) if PROBES.is_dir() else []
EVERY_FRAME = dict(video_fps=30, video_min_frames=2, video_max_frames=30, video_min_pixels=1024, video_max_pixels=4096)


def write_clip(path, frames=90, rate=30, gop=24, size=(64, 48), bframes=2, options=None, title=None):
    """H.264 whose frame i shows i in binary: bit k is the k-th of eight columns."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": str(gop), "bf": str(bframes), "crf": "10"}
        columns = np.arange(size[0]) * 8 // size[0]
        for i in range(frames):
            row = np.where((i >> columns) & 1, 235, 20).astype(np.uint8)
            picture = np.broadcast_to(row[None, :, None], (size[1], size[0], 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def shown(frames):
    """Frame numbers that a (T, 3, H, W) clip of `write_clip` shows."""
    rows = frames.float().mean(dim=(1, 2))
    width = rows.shape[1] / 8
    bits = [rows[:, int((k + 0.5) * width)] > 128 for k in range(8)]
    return sum(bit.long() << k for k, bit in enumerate(bits)).tolist()


def burnt_number(frame):
    """The frame number of a probe (H, W, 3): bit k is the brightness at (80, 20 + 25 k)."""
    return sum(1 << k for k in range(10) if frame[80, 20 + 25 * k].mean() > 128)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("video") / "a.mp4")


@pytest.fixture
def processor(tiny_model_dir, request):
    found = load_processor(tiny_model_dir(getattr(request, "param", "qwen3_vl")))
    apply_resolution(found, MediaOptions(**EVERY_FRAME))
    return found


@needs_probes
@pytest.mark.parametrize("name", NAMES)
def test_every_frame_of_every_codec_is_the_one_asked_for(name):
    """All frames in one reading, then pairs of neighbours from all over the file, where the reader has to seek."""
    timeline = decode.BACKENDS["pyav"][0](PROBES / name)
    total = len(timeline.seconds)
    numbers = [burnt_number(frame) for frame in video.read_frames(PROBES / name, np.arange(total))]
    assert numbers == list(range(numbers[0], numbers[0] + total)) and numbers[0] == 0
    for first in range(total - 2, 0, -max(1, total // 12)):
        assert [burnt_number(f) for f in video.read_frames(PROBES / name, np.array([first, first + 1]))] == [
            first, first + 1]


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), indirect=True)
def test_thirty_frames_in_are_thirty_frames_seen_at_their_times(file, processor):
    record = {"video": file.name, "video_start": 43, "video_end": 73, "conversations": [
        {"from": "human", "value": "<video>\nHow fast?"}, {"from": "gpt", "value": "5"}]}
    shot = video.open_video(file, processor.video_processor, segment=(43, 73))
    assert shown(shot.frames) == list(range(43, 73))
    assert shot.metadata.frames_indices == list(range(30)) and shot.metadata.fps == pytest.approx(30)
    sample = chat.encode(record, processor, file.parent)
    assert sample["video_grid_thw"][0][0] == 15
    assert len(sample["input_ids"]) == chat.count_tokens(record, processor, file.parent)[0]
    if "second_per_grid_ts" in sample:
        assert sample["second_per_grid_ts"].tolist() == pytest.approx([2 / 30])
    elif "Qwen3" in type(processor).__name__:  # Qwen2-VL knows no times
        text = processor.tokenizer.decode(sample["input_ids"])
        assert text.count("seconds>") == 15 and "<0.0 seconds>" in text and "<0.9 seconds>" in text


@pytest.mark.parametrize("processor", ("qwen2_5_vl", "qwen3_vl", "qwen3_5"), indirect=True)
def test_an_odd_number_of_frames_keeps_its_times(file, processor):
    """The last frame is repeated to fill its temporal patch; that frame is not one more in the same time."""
    record = {"video": file.name, "video_start": 43, "video_end": 50, "conversations": [
        {"from": "human", "value": "<video>\nHow fast?"}, {"from": "gpt", "value": "5"}]}
    shot = video.open_video(file, processor.video_processor, segment=(43, 50))
    assert shown(shot.frames) == [*range(43, 50), 49] and shot.metadata.frames_indices == list(range(7))
    sample = chat.encode(record, processor, file.parent)
    assert sample["video_grid_thw"][0][0] == 4
    if "second_per_grid_ts" in sample:
        assert sample["second_per_grid_ts"].tolist() == pytest.approx([2 / 30])
    else:
        text = processor.tokenizer.decode(sample["input_ids"])
        assert re.findall(r"<([\d.]+) seconds>", text) == ["0.0", "0.1", "0.1", "0.2"]  # 1, 5, 9, 12 sixtieths


@pytest.mark.parametrize("processor", ("qwen2_5_vl", "qwen3_vl"), indirect=True)
def test_training_and_inference_see_the_same(file, processor, tmp_path):
    """The prompt of a checkpoint's own processor is the training sample up to the answer, pixels and times included."""
    record = {"video": file.name, "video_start": 5, "video_end": 35, "conversations": [
        {"from": "human", "value": "<video>\nHow fast?"}, {"from": "gpt", "value": "5"}]}
    sample = chat.encode(record, processor, file.parent)
    processor.save_pretrained(tmp_path)
    prompt = chat.encode_prompt(record, AutoProcessor.from_pretrained(tmp_path), file.parent)
    first = int((sample["labels"] != chat.IGNORE).nonzero()[0])
    assert prompt["input_ids"].equal(sample["input_ids"][:first])
    for key in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        assert (key in prompt) == (key in sample) and (key not in sample or prompt[key].equal(sample[key]))


@pytest.mark.parametrize("rate", (25, "30000/1001", 30))
def test_a_rate_near_the_files_own_takes_every_frame(tmp_path, processor, rate):
    from fractions import Fraction

    path = write_clip(tmp_path / "a.mp4", frames=40, rate=Fraction(rate))
    shot = video.open_video(path, processor.video_processor, segment=(8, 38))
    assert shown(shot.frames) == list(range(8, 38))
    assert shot.metadata.fps == pytest.approx(float(Fraction(rate)))


def test_only_what_a_segment_needs_is_decoded(file, processor, monkeypatch):
    starts = []
    plain = decode._pyav_decode
    monkeypatch.setattr(decode, "_pyav_decode", lambda path, wanted, start: (starts.append(start),
                                                                             plain(path, wanted, start))[1])
    stamps, keys = decode.BACKENDS["pyav"][0](file).handle
    video.open_video(file, processor.video_processor, segment=(60, 90))
    assert starts == [keys[keys <= stamps[60]][-1]]  # the key frame before, and no second attempt
    assert starts[0] >= stamps[60 - 24]


def test_segments_that_make_no_sense_are_told(file, processor):
    for start, end in ((80, 110), (-1, 5)):
        with pytest.raises(UserError, match="has 90 frames, so it has no segment"):
            video.open_video(file, processor.video_processor, segment=(start, end))
    base = {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": "5"}]}
    for keys, said in (
        ({"video_start": 5, "video_end": 5}, "video_end 5 must be above video_start 5"),
        ({"video_start": 1.5}, "video_start must be a frame number from 0 on, not 1.5"),
        ({"video_end": -3}, "from 0 on, not -3"),
        ({"video_start": [0, 30]}, "lists 2 frame numbers for 1 videos"),
    ):
        assert any(said in problem for problem in records.check_record(base | keys)), keys
    assert records.check_record(base | {"video_start": 5, "video_end": None}) == []
    text = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "5"}], "video_start": 3}
    assert records.check_record(text) == ["video_start is there, but no video"]
    two = {"video": ["a.mp4", "b.mp4"], "video_start": [3, None], "video_end": [9, None]}
    assert records.video_segments(two) == [(3, 9), None]
    assert records.video_segments({"video": ["a.mp4", "b.mp4"]}) == [None, None]


def test_frames_are_kept_by_file_segment_and_size(file, processor, tmp_path, monkeypatch):
    reader = video.Reader(cache=tmp_path / "kept")
    fresh = video.open_video(file, processor.video_processor, reader, (10, 40))
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 1 and not list((tmp_path / "kept").rglob("*.tmp*"))
    with monkeypatch.context() as patch:
        patch.setitem(decode.BACKENDS, "pyav", (decode._pyav_timeline, None))  # decoding would fail
        kept = video.open_video(file, processor.video_processor, reader, (10, 40))
    assert kept.frames.equal(fresh.frames) and shown(kept.frames) == list(range(10, 40))
    assert shown(video.open_video(file, processor.video_processor, reader, (11, 41)).frames) == list(range(11, 41))
    apply_resolution(processor, MediaOptions(**EVERY_FRAME | dict(video_max_pixels=2048)))
    assert video.open_video(file, processor.video_processor, reader, (10, 40)).frames.shape != fresh.frames.shape
    for spoilt in (tmp_path / "kept").rglob("*.npy"):
        spoilt.write_bytes(spoilt.read_bytes()[:100])
    assert shown(video.open_video(file, processor.video_processor, reader, (10, 40)).frames) == list(range(10, 40))


def test_a_changed_file_is_read_anew(tmp_path, processor):
    reader, path = video.Reader(cache=tmp_path / "kept"), tmp_path / "a.mp4"
    write_clip(path, frames=40)
    assert shown(video.open_video(path, processor.video_processor, reader, (0, 30)).frames)[-1] == 29
    write_clip(path, frames=31)
    with pytest.raises(UserError, match="has 31 frames"):
        video.open_video(path, processor.video_processor, reader, (2, 32))


def test_a_video_cut_short_or_damaged_is_named(tmp_path, processor):
    """With its index at the front, half a file still opens."""
    path = write_clip(tmp_path / "a.mp4", size=(256, 192), options={"movflags": "faststart"})
    whole = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.6)])
    with pytest.raises(UserError, match="cut.mp4 is cut short: 90 frames are promised"):
        video.open_video(tmp_path / "cut.mp4", processor.video_processor)
    start = whole.index(b"mdat") + 4 + 3 * (len(whole) // 8)
    (tmp_path / "holed.mp4").write_bytes(whole[:start] + bytes(len(whole) // 4) + whole[start + len(whole) // 4:])
    with pytest.raises(UserError, match="holed.mp4"):
        for first in range(0, 60, 30):
            video.open_video(tmp_path / "holed.mp4", processor.video_processor, segment=(first, first + 30))


def test_a_title_that_is_no_text_does_not_matter(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=4, title="ABCD")
    path.write_bytes(path.read_bytes().replace(b"ABCD", b"\xdf\xe4\xf6\xfc"))
    assert len(video.read_frames(path, np.arange(4))) == 4


def test_a_codec_without_a_decoder_is_one_sentence(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=4)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz9"))
    with pytest.raises(UserError, match="a.mp4 cannot be read: there is no decoder for its codec"):
        video.read_frames(path, np.arange(4))


def test_an_avi_file_that_does_not_tell_the_order_of_its_frames_is_refused(tmp_path):
    assert len(video.read_frames(write_clip(tmp_path / "a.avi", frames=12, bframes=0), np.arange(12))) == 12
    with pytest.raises(UserError, match="AVI file with B-frames.*write it as .mp4"):
        video.read_frames(write_clip(tmp_path / "b.avi", frames=12, bframes=2), np.arange(4))


def test_the_pixels_of_a_frame_do_not_depend_on_the_number_of_frames(file, processor):
    for start, end in ((0, 2), (0, 30)):
        height, width = video.open_video(file, processor.video_processor, segment=(start, end)).frames.shape[2:]
        assert (height, width) == (64, 64) or 1024 <= height * width <= 4096
    assert torch.is_tensor(video.open_video(file, processor.video_processor, segment=(0, 2)).frames)


def test_decoding_threads_never_wait_for_the_log_callback():
    import av.logging

    av.logging.set_level(av.logging.ERROR)  # as torchvision up to 0.24 does when it is imported
    decode.import_av()
    assert av.logging.get_level() is None
