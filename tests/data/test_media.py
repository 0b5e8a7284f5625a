"""Images and videos: what is opened, at which size, and what a broken file says."""

import io
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from overlays.data import chat, media, records, rgb
from overlays.data.formats import to_record
from overlays.data.media import MediaOptions, apply_resolution
from overlays.errors import UserError
from overlays.model.load import load_processor

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PROBES = SHARED / "video_probes"
needs_probes = pytest.mark.skipif(not PROBES.is_dir(), reason=f"real data {PROBES} is not here")


@pytest.fixture
def processor(tiny_model_dir, request):
    return load_processor(tiny_model_dir(getattr(request, "param", "qwen3_vl")))


def noise(path, width, height, **save):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def clip(path, frames=12, rate=6, size=(64, 48), ticks=None):
    """A video whose frame i has the grey level 20 (i mod 12), shown at `ticks`[i] / rate seconds, else i / rate."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 20 * (i % 12), np.uint8), format="rgb24")
            frame.pts, frame.time_base = ticks[i] if ticks else i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(frames):
    return [round(float(frame.float().mean()) / 20) for frame in frames]


def test_an_image_is_upright_rgb_and_its_patches_are_known_from_the_header(tmp_path, processor, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for suffix in ("jpg", "png"):
        file = noise(tmp_path / f"a.{suffix}", 400, 130, exif=exif)
        image = media.open_rgb(file)
        assert image.mode == "RGB" and image.size == (130, 400)
        grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"]
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", None)  # decoding would fail
            assert media.image_patches(file, processor.image_processor) == int(grid.prod())


def transparent(mode):
    """A black square on transparent black: 8 x 8, opaque in the right half."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    if mode == "RGBA":
        return image, {}
    if mode in ("LA", "RGBa"):
        return image.convert(mode), {}
    if mode == "La":
        return image.convert("LA").convert("La"), {}
    if mode == "PA":
        flat = Image.new("PA", (8, 8))
        flat.putalpha(image.getchannel("A"))
        return flat, {}
    clear = {"RGB": (1, 1, 1), "L": 1, "1": 0, "P": 1}[mode]  # the value that stands for transparent
    flat = Image.new(mode, (8, 8), clear)
    flat.paste({"RGB": (0, 0, 0), "L": 0, "1": 1, "P": 0}[mode], (4, 0, 8, 8))
    if mode == "P":
        flat.putpalette([0, 0, 0, 9, 9, 9])
    return flat, {"transparency": clear}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L", "1", "La", "RGBa"])
def test_white_is_behind_what_is_transparent(tmp_path, mode):
    image, info = transparent(mode)
    image.info |= info
    right = (255, 255, 255) if mode == "1" else (0, 0, 0)
    found = media.to_rgb(image)
    assert found.mode == "RGB" and found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((7, 0)) == right
    if mode in ("RGBA", "LA", "P", "RGB", "L", "1"):
        image.save(tmp_path / "a.png", **info)
        assert media.open_rgb(tmp_path / "a.png").tobytes() == found.tobytes()


@pytest.mark.parametrize("suffix", ["webp", "tif", "gif"])
def test_white_is_behind_what_is_transparent_in_other_formats(tmp_path, suffix):
    transparent("RGBA")[0].save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    found = media.open_rgb(tmp_path / f"a.{suffix}")
    assert found.getpixel((0, 0)) == (255, 255, 255) and found.getpixel((7, 0)) == (0, 0, 0)


def test_half_transparent_pixels_are_blended():
    assert media.to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 51))).getpixel((0, 0)) == (255, 204, 204)


def test_inverted_cmyk_is_the_right_way_round(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")  # Pillow stores it inverted, as Adobe does
    assert media.open_rgb(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 0, 0)


def deep_png(path, colour_type, channels):
    """A PNG of 16 bits a channel, which Pillow cannot write for colours."""
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + b"\x12\x34" * channels * 8 for _ in range(8))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def deep_tif(path):
    import rasterio

    with rasterio.open(path, "w", driver="GTiff", width=8, height=8, count=3, dtype="uint16", photometric="RGB",
                       interleave="pixel") as file:
        file.write(np.full((3, 8, 8), 40000, np.uint16))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_16_bits_a_channel_are_refused_in_colour_too(tmp_path):
    deep_png(tmp_path / "rgb.png", 2, 3)
    deep_png(tmp_path / "rgba.png", 6, 4)
    deep_png(tmp_path / "la.png", 4, 2)
    deep_tif(tmp_path / "rgb.tif")
    (tmp_path / "rgb.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    for name in ("rgb.png", "rgba.png", "la.png", "rgb.tif", "rgb.ppm"):
        for function in (media.open_rgb, media.rgb_size):
            with pytest.raises(UserError, match=f"{name} has more than 8 bits a channel"):
                function(tmp_path / name)
    (tmp_path / "8.ppm").write_bytes(b"P6 2 2 255\n" + bytes(12))
    assert media.open_rgb(tmp_path / "8.ppm").size == (2, 2)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animated_pictures_are_refused_and_pages_are_not(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (90 * i, 0, 0)) for i in range(3)]
    for name in (f"a.{suffix}", "pages.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=f"a.{suffix} is animated"):
        media.rgb_size(tmp_path / f"a.{suffix}")
    frames[1].save(tmp_path / f"one.{suffix}")
    assert media.open_rgb(tmp_path / f"one.{suffix}").size == (8, 8)
    assert media.open_rgb(tmp_path / "pages.tif").getpixel((0, 0)) == (0, 0, 0)


def test_broken_images_are_named(tmp_path, monkeypatch):
    whole = noise(tmp_path / "a.png", 64, 64).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.png is damaged or cut short"):
        media.open_rgb(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="text.png is no image"):
        media.open_rgb(tmp_path / "text.png")
    with pytest.raises(UserError, match="gone.png is missing"):
        media.open_rgb(tmp_path / "gone.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        media.rgb_size(tmp_path / "deep.png")
    monkeypatch.setattr(rgb, "MAX_IMAGE_PIXELS", 64 * 63)
    with pytest.raises(UserError, match="above the limit of 4032"):
        media.rgb_size(tmp_path / "a.png")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    header = io.BytesIO()
    Image.new("1", (20000, 20000)).save(header, "PNG")
    (tmp_path / "bomb.png").write_bytes(header.getvalue())
    with pytest.raises(UserError, match="bomb.png has .*pixels"):
        media.open_rgb(tmp_path / "bomb.png")


def test_a_new_kind_of_image_is_one_row(tmp_path, monkeypatch, processor):
    raster = media.Opener(open=lambda path: np.load(path), size=lambda path: np.load(path).shape[:2])
    monkeypatch.setitem(media.OPENERS, ".npy", raster)
    np.save(tmp_path / "a.npy", np.zeros((64, 96, 3), np.uint8))
    opened = media.open_media({"image": "a.npy"}, tmp_path, processor)
    assert opened.images[0].shape == (64, 96, 3)
    assert media.image_patches(tmp_path / "a.npy", processor.image_processor) == 4 * 6


def test_paths_cannot_leave_the_media_root(tmp_path, processor):
    noise(tmp_path / "a.png", 32, 32)
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match="leaves the media root"):
        media.open_media({"image": "../a.png"}, tmp_path / "root", processor)


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen3_vl"), indirect=True)
def test_pixel_flags_reach_the_images_and_survive_saving(tmp_path, processor):
    apply_resolution(processor, MediaOptions(min_pixels=64 * 64, max_pixels=128 * 128))
    image = Image.fromarray(np.zeros((500, 500, 3), np.uint8))
    factor = processor.image_processor.patch_size
    grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
    assert 100 * 100 < int(grid.prod()) * factor**2 <= 128 * 128
    processor.save_pretrained(tmp_path)
    again = load_processor_folder(tmp_path)
    assert again.image_processor.size["longest_edge"] == 128 * 128
    assert again.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0].equal(grid)


@pytest.fixture
def frames(tmp_path):
    """Twelve frames of one grey level each, 20 i, whose names sort by number and not by letter."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((48, 64, 3), 20 * i, np.uint8)).save(folder / f"frame_{i}.png")
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden.png").write_text("no frame")
    return folder


def frame_record(**media_keys):
    return to_record({"conversations": [
        {"from": "human", "value": "<video>\nQ"}, {"from": "gpt", "value": "A"}], **media_keys})


def test_a_folder_and_a_list_of_frames_are_a_video(tmp_path, frames, processor):
    apply_resolution(processor, MediaOptions(video_fps=2, video_min_frames=2, video_max_frames=64))
    names = [f"frames/frame_{i}.png" for i in range(12)]
    for value in ("frames", names, [names]):
        record = frame_record(video=value)
        assert records.check_record(record, tmp_path) == []
        shot = media.open_media(record, tmp_path, processor).videos[0]
        assert levels(shot.frames) == list(range(12)) and shot.metadata.fps == 2  # the default
        tokens, _ = chat.count_tokens(record, processor, tmp_path)
        assert tokens == len(chat.encode(record, processor, tmp_path)["labels"])
    shot = media.open_media(frame_record(video=names[::-1]), tmp_path, processor).videos[0]
    assert levels(shot.frames) == list(range(11, -1, -1))  # a list keeps its order


@pytest.mark.parametrize("key", ["fps", "sample_fps"])
def test_frames_have_the_rate_that_the_record_says(tmp_path, frames, processor, key):
    apply_resolution(processor, MediaOptions(video_fps=2, video_min_frames=2, video_max_frames=64))
    record = frame_record(video="frames", video_start=2, video_end=10, **{key: 4})
    shot = media.open_media(record, tmp_path, processor).videos[0]
    assert levels(shot.frames) == [2, 4, 7, 9] and shot.metadata.duration == 2  # 8 frames, 4 a second
    assert records.media_files(record, tmp_path)[1].name in ("frame_0.png", "frame_1.png")


def test_frames_are_kept_in_the_video_cache_by_their_files(tmp_path, frames, processor):
    reader = media.Reader(cache=tmp_path / "kept")
    before = media.open_video(frames, processor.video_processor, reader).frames
    assert media.open_video(frames, processor.video_processor, reader).frames.equal(before)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 1
    Image.new("RGB", (64, 48), "white").save(frames / "frame_0.png")
    assert media.open_video(frames, processor.video_processor, reader).frames[0].min() == 255


def test_broken_frames_are_named(tmp_path, frames, processor):
    names = [f"frames/frame_{i}.png" for i in range(12)]
    clip(tmp_path / "a.mp4")
    (tmp_path / "empty").mkdir()

    def problem(**media_keys):
        record = frame_record(**media_keys)
        found = records.check_record(record, tmp_path)
        if found:
            return found[0]
        with pytest.raises(UserError) as error:
            chat.count_tokens(record, processor, tmp_path)
        return str(error.value)

    assert "frames/gone.png is missing" in problem(video=[*names, "frames/gone.png"])
    assert "leaves the media root" in problem(video=["../a.png"])
    assert "fps must be a number above 0" in problem(video="frames", fps=0)
    assert "fps must be a number above 0" in problem(video="frames", fps="2")
    assert "fps lists 2 rates for 1 videos" in problem(video="frames", fps=[2, 2])
    assert "the key fps is for folders and lists of frames" in problem(video="a.mp4", fps=2)
    assert "empty holds no frames" in problem(video="empty")
    assert "12 frames, so it has no segment" in problem(video="frames", video_end=13)
    assert "image file" in problem(image="frames", conversations=[
        {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}])
    Image.new("RGB", (64, 50)).save(frames / "frame_5.png")
    assert "frame_5.png is 64 x 50 pixels" in problem(video="frames")
    (frames / "frame_5.png").write_text("text")
    assert "frame_5.png is no image" in problem(video="frames")


def load_processor_folder(folder):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def test_flags_that_contradict_each_other_are_refused(processor):
    for options, said in (
        (MediaOptions(min_pixels=9, max_pixels=4), "min_pixels 9 is above --max_pixels 4"),
        (MediaOptions(max_pixels=0), "max_pixels must be above 0"),
        (MediaOptions(video_fps=0), "video_fps must be above 0"),
        (MediaOptions(video_min_frames=8, video_max_frames=4), "above --video_max_frames"),
        (MediaOptions(video_max_frames=1), "at least 2"),
    ):
        with pytest.raises(UserError, match=said):
            apply_resolution(processor, options)


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), indirect=True)
def test_video_flags_mean_what_they_say(tmp_path, processor):
    """Twelve frames at 6 a second: 3 fps are six frames, at most four are four; pixels are those of one frame."""
    file = clip(tmp_path / "a.mp4", size=(256, 192))
    video = processor.video_processor

    def opened(**flags):
        wide = {"video_min_frames": 2, "video_max_frames": 64, "video_min_pixels": 16, "video_max_pixels": 10**6}
        apply_resolution(processor, MediaOptions(**{**wide, **flags}))
        return media.open_video(file, video)

    assert len(opened(video_fps=3).frames) == 6
    assert len(opened(video_fps=6).frames) == 12
    assert len(opened(video_fps=6, video_max_frames=4).frames) == 4
    assert len(opened(video_fps=0.5, video_min_frames=8).frames) == 8
    for frames in (4, 12):  # the limit is that of a frame, however many there are
        shot = opened(video_fps=6, video_max_frames=frames, video_max_pixels=96 * 96)
        height, width = shot.frames.shape[2:]
        assert 64 * 64 < height * width <= 96 * 96
        grid, _ = media.video_grid(file, video)
        patch = video.patch_size
        assert grid == (frames // 2, height // patch, width // patch)
    processor.save_pretrained(tmp_path / "saved")
    again = load_processor_folder(tmp_path / "saved").video_processor
    assert (again.fps, again.max_frames, again.frame_max_pixels) == (6, 12, 96 * 96)
    assert media.open_video(file, again).frames.equal(shot.frames)


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen3_vl"), indirect=True)
def test_frames_are_resized_as_the_processor_would(tmp_path, processor):
    video = processor.video_processor
    apply_resolution(processor, MediaOptions(video_fps=3, video_min_pixels=16, video_max_pixels=96 * 96))
    file = clip(tmp_path / "a.mp4", size=(256, 192))
    shot = media.open_video(file, video)
    raw = media.BACKENDS["pyav"][1](file, media.BACKENDS["pyav"][0](file), np.array(shot.metadata.frames_indices))
    per_clip = len(shot.frames) if "Qwen3" in type(video).__name__ else 1
    own = video([torch.from_numpy(raw)], do_sample_frames=False, return_tensors="pt", size={
        "shortest_edge": 16 * per_clip, "longest_edge": 96 * 96 * per_clip})
    ours = video([shot.frames], do_sample_frames=False, do_resize=False, return_tensors="pt")
    assert ours["video_grid_thw"].equal(own["video_grid_thw"])
    assert torch.allclose(ours["pixel_values_videos"], own["pixel_values_videos"], atol=1e-6)


@pytest.mark.parametrize("backend", sorted(media.BACKENDS))
def test_the_right_frames_are_shown(tmp_path, processor, backend):
    file = clip(tmp_path / "a.mp4")
    apply_resolution(processor, MediaOptions(video_fps=6, video_min_frames=2, video_max_frames=64))
    shot = media.open_video(file, processor.video_processor, backend)
    assert levels(shot.frames) == list(range(12))
    assert shot.metadata.frames_indices == list(range(12)) and shot.metadata.fps == pytest.approx(6)


@pytest.mark.parametrize("backend", sorted(media.BACKENDS))
def test_a_variable_frame_rate_is_sampled_by_time(tmp_path, processor, backend):
    """Six frames in the first second, then one a second: at 1 fps the clip's seconds, not every n-th frame."""
    file = clip(tmp_path / "a.mp4", ticks=[0, 1, 2, 3, 4, 5, 6, 12, 18, 24, 30, 36])
    apply_resolution(processor, MediaOptions(video_fps=1, video_min_frames=2, video_max_frames=64))
    shot = media.open_video(file, processor.video_processor, backend)
    seconds = np.array(shot.metadata.frames_indices) / shot.metadata.fps
    assert np.abs(np.diff(seconds) - 1).max() < 0.35 and seconds[-1] == pytest.approx(6, abs=0.01)
    assert levels(shot.frames) == [0, 6, 7, 8, 9, 11]


def test_a_single_frame_fills_the_temporal_patch(tmp_path, processor):
    shot = media.open_video(clip(tmp_path / "a.mp4", frames=1), processor.video_processor)
    assert len(shot.frames) == 2 and shot.frames[0].equal(shot.frames[1])


def test_a_missing_backend_is_an_error_and_not_replaced(tmp_path, processor, monkeypatch):
    file = clip(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UserError, match="decord is not installed"):
        media.open_video(file, processor.video_processor, "decord")
    with pytest.raises(UserError, match="'opencv' is unknown"):
        media.open_video(file, processor.video_processor, "opencv")


@pytest.mark.parametrize("backend", sorted(media.BACKENDS))
def test_broken_videos_are_named(tmp_path, processor, backend):
    whole = clip(tmp_path / "a.mp4", frames=60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("hello" * 100)
    for name in ("cut.mp4", "text.mp4"):
        with pytest.raises(UserError, match=f"{name} is no video"):
            media.open_video(tmp_path / name, processor.video_processor, backend)
    with pytest.raises(UserError, match="gone.mp4 is missing"):
        media.open_video(tmp_path / "gone.mp4", processor.video_processor, backend)


def burnt_number(frame):
    """The frame number of a probe: bit k is the brightness at (80, 20 + 25 k)."""
    return sum(1 << k for k in range(10) if frame[:, 80, 20 + 25 * k].float().mean() > 128)


@needs_probes
@pytest.mark.parametrize("name", sorted(path.name for path in PROBES.glob("*.mp4")) if PROBES.is_dir() else [])
def test_real_codecs_show_the_frame_of_each_time(processor, name):
    """B-frames, open GOP, start delay, variable rate, HEVC, MPEG-4, AV1."""
    apply_resolution(processor, MediaOptions(
        video_fps=2, video_min_frames=2, video_max_frames=8, video_min_pixels=192 * 320, video_max_pixels=192 * 320))
    shot = media.open_video(PROBES / name, processor.video_processor)
    numbers = [burnt_number(frame) for frame in shot.frames]
    ticks = shot.metadata.frames_indices
    assert ticks[0] == 0 and len(numbers) == 8
    if name != "h264_vfr.mp4":
        assert numbers == ticks and shot.metadata.fps == pytest.approx(30)
        return
    shown = media.BACKENDS["pyav"][0](PROBES / name).seconds[numbers]
    times = np.array(ticks) / shot.metadata.fps
    assert (shown <= times + 0.25 / shot.metadata.fps + 1e-6).all() and (times - shown < 0.1).all()
