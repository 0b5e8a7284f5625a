"""Every reader of files from outside or of own files: a sound folder, the files in it, and the command that reads them.

A row's `make(folder)` writes the sound files; its `command(folder)` is what a user types. `targets` are patterns of
the files that are damaged, `marker` is what a complete result leaves. Where `counted`, a command that ends well has
counted its records, none of them bad.
"""

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from overlays.data import records
from tests.commands import run_call, run_module, run_script

Command = Callable[[Path], subprocess.CompletedProcess]


@dataclass(frozen=True)
class Reader:
    """One row; see the module's text."""

    make: Callable[[Path], None]
    command: Command
    targets: tuple[str, ...]
    marker: str = ""
    counted: bool = False
    heavy: bool = False  # takes seconds: fewer inputs


# ---- annotation files and media

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A rock."}]


def _image(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / "a.png")


def _records() -> list[dict]:
    return [{"id": f"r{i}", "image": "a.png", "target": {"x": 1.5}, "task": "t", "conversations": TURNS}
            for i in range(3)]


def _write(name: str, rows: Callable[[], list[dict]] = _records):
    def make(folder: Path) -> None:
        _image(folder)
        records.write(folder / name, rows())
    return make


def _formats() -> list[dict]:
    ask, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}
    part = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Q"}]}
    return [
        {"id": "m", "messages": [ask, answer]}, {"id": "p", "messages": [part, answer]},
        {"id": "t", "messages": [ask, call, {"role": "tool", "content": "r"}, answer],
         "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"id": "s", "conversations": TURNS, "images": ["a.png"]},
        {"id": "i", "instruction": "Q", "input": "more", "output": "A", "history": [["q", "a"]]},
        {"id": "q", "query": "Q", "response": "A", "system": "s"}, {"id": "c", "prompt": "Q", "completion": "A"},
        {"id": "v", "image": "a.png", "window": [0, 0, 32, 32], "conversations": TURNS},
    ]


def _check(name: str, *words: str) -> Command:
    return lambda folder: run_module("overlays.check", "--dataset-use", folder / name, "--workers", 1,
                                     *(word.format(folder=folder) for word in words))


def _rasters(folder: Path) -> None:
    import rasterio
    import spectral.io.envi

    values = np.random.default_rng(0).random((8, 40, 32), dtype=np.float32)
    np.save(folder / "a.npy", values)
    with rasterio.open(folder / "a.tif", "w", driver="GTiff", count=8, height=40, width=32, dtype="float32") as file:
        file.write(values)
    spectral.io.envi.save_image(str(folder / "a.hdr"), values.transpose(1, 2, 0), ext=".img",
                                metadata={"wavelength": list(range(400, 1200, 100)), "wavelength units": "Nanometers"})
    _rows(folder, [{"id": name, "image": name, "conversations": TURNS} for name in ("a.npy", "a.tif", "a.hdr")])


def _rows(folder: Path, rows: list[dict]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _video(folder: Path) -> None:
    import av

    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (folder / "frames").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(folder / "frames" / f"{number}.jpg")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, TURNS[1]]
    _rows(folder, [{"id": "file", "video": "a.mp4", "video_start": 2, "video_end": 8, "conversations": turns},
                   {"id": "frames", "video": "frames", "fps": 2, "conversations": turns}])


def _pictures(folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    names = [f"a.{suffix}" for suffix in ("png", "jpg", "webp", "bmp", "gif")]
    for name in names:
        image.save(folder / name)
    _rows(folder, [{"id": name, "image": name, "conversations": TURNS} for name in names])


def _convert(folder: Path) -> subprocess.CompletedProcess:
    return run_script("convert_to_training_format.py", folder / "rows.jsonl", "--output", folder / "out.parquet",
                      "--to", "messages")


# ---- model folders and runs


def _model(folder: Path) -> None:
    from overlays.model import tiny

    _write("rows.jsonl")(folder)
    shutil.copytree(_model.tiny or tiny.build("qwen3_vl", folder.parent / "tiny"), folder / "model")


_model.tiny = None  # a folder of a tiny Qwen3-VL, set by the tests


def _predict(folder: Path, checkpoint: str = "model") -> subprocess.CompletedProcess:
    return run_module("overlays.predict", "--checkpoint", folder / checkpoint, "--dataset-use", folder / "rows.jsonl",
                      "--output", folder / "predictions.jsonl", "--max-new-tokens", 2)


def _train(folder: Path) -> subprocess.CompletedProcess:
    return run_module("overlays.train", "stage.yaml", "--output_dir", "run", "--dataset_use", "rows.jsonl",
                      "--model_name_or_path", "model", "--max_steps", 1, "--use_cpu", True,
                      "--dataloader_num_workers", 0, cwd=folder)


def _stage(folder: Path) -> None:
    _model(folder)
    (folder / "stage.yaml").write_text(
        "# a stage\nlora_enable: true\nlora_r: 2\nlearning_rate: 1.0e-3\nmax_steps: 1\nmax_pixels: 4096\n"
        "min_pixels: 1024\nreport_to: none\nsave_strategy: steps\nsave_steps: 1\nper_device_train_batch_size: 1\n"
        "use_cpu: true\ndataloader_num_workers: 0\nlr_scheduler_kwargs: {}\nengine: native\n")


def _run(folder: Path) -> None:
    """A finished run of one step."""
    _stage(folder)
    done = _train(folder)
    assert done.returncode == 0, done.stderr


def _partial(folder: Path) -> None:
    """A prediction that was interrupted after two answers."""
    _model(folder)
    from overlays import predict
    from overlays.model import load

    rows, output = list(records.read(folder / "rows.jsonl")), folder / "predictions.jsonl"
    predict.predict(*load.load_for_inference(folder / "model"), rows[:2], folder, 8, 2, output,
                    predict.checkpoint_identity(folder / "model"), keep=True)
    output.unlink()


def _metrics(folder: Path) -> None:
    run = folder / "run"
    (run / "test").mkdir(parents=True)
    row = {"r2": 0.5, "rmse": 1.0, "mae": 0.8, "pearson": 0.7}
    (run / "test" / "metrics.json").write_text(json.dumps({
        **row, "baseline": {"mean": row, "ridge": row}, "ceiling": 0.9, "n": 12}))
    (run / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": [{"loss": 1.0, "step": 1}]}))
    (run / "preferences.json").write_text(json.dumps({"accuracy": 0.5, "n": 3, "margin": 0.1, "beta": 0.1}))


def _driving_metrics(folder: Path) -> None:
    from overlays.domains.driving.compare import MEASURED

    row = dict.fromkeys(MEASURED, 0.5)
    for name in ("video", "past"):
        (folder / "run" / name / "test").mkdir(parents=True)
        (folder / "run" / name / "test" / "metrics.json").write_text(json.dumps({**row, "baseline": {"constant": row}}))


def _registry(folder: Path) -> None:
    (folder / "data").mkdir()
    _write("rows.jsonl")(folder)
    (folder / "data" / "datasets.json").write_text(json.dumps({
        "mine": {"annotation_path": "rows.jsonl", "data_path": "."}, "other": {"annotation_path": "rows.jsonl"}}))


def _resolve(folder: Path) -> subprocess.CompletedProcess:
    from overlays import registry

    return run_call(lambda: registry.resolve("mine", folder))


# ---- raw data of the domains


def _prepare(domain: str, *words: str) -> Command:
    return lambda folder: run_module("overlays.prepare", domain, "--output", folder / "out",
                                     *(word.format(folder=folder) for word in words))


def _cube(folder: Path) -> None:
    from overlays.samples import cuprite

    cuprite.write(folder, lines=64, samples=64)
    (folder / "classes.json").write_text(json.dumps({"0": "background", "1": "alunite", "2": "kaolinite"}))
    np.save(folder / "labels.npy", np.random.default_rng(0).integers(0, 3, (64, 64)))


def _cube_formats(folder: Path) -> None:
    """A MATLAB cube with a file of wavelengths, and an EMIT NetCDF."""
    import netCDF4
    from scipy.io import savemat

    np.save(folder / "labels.npy", np.random.default_rng(0).integers(0, 3, (64, 64)))
    values = np.random.default_rng(0).uniform(0.1, 0.6, (64, 64, 120)).astype(np.float32)
    centres = np.linspace(400, 2450, 120)
    savemat(folder / "cube.mat", {"cube": values})
    (folder / "bands.txt").write_text("\n".join(f"{centre:.1f}" for centre in centres))
    with netCDF4.Dataset(folder / "cube.nc", "w") as file:
        for name, size in (("downtrack", 64), ("crosstrack", 64), ("bands", 120)):
            file.createDimension(name, size)
        file.createVariable("reflectance", "f4", ("downtrack", "crosstrack", "bands"))[:] = values
        group = file.createGroup("sensor_band_parameters")
        for name, column in (("wavelengths", centres), ("fwhm", np.full(120, 8.0))):
            group.createVariable(name, "f4", ("bands",))[:] = column


LABELS = ("--labels", "{folder}/labels.npy", "--tile-size", "16", "--stride", "16", "--workers", "1")


def _cities(folder: Path) -> None:
    import pandas as pd

    from overlays.samples import satellite

    satellite.write(folder, cities=20)
    pd.read_excel(folder / "cities.xlsx").to_csv(folder.parent / f"{folder.name}.csv", index=False)
    shutil.move(folder.parent / f"{folder.name}.csv", folder / "table.csv")


def _clips(folder: Path) -> None:
    from overlays.samples import driving

    driving.write(folder, clips=4, seconds=2.0, workers=1)


def _plain_clips(folder: Path) -> None:
    """The same, unpacked."""
    _clips(folder)
    for archive in folder.rglob("*.zip"):
        with zipfile.ZipFile(archive) as source:
            source.extractall(archive.parent)
        archive.unlink()


def _rooms(folder: Path) -> None:
    from overlays.samples import scenes

    scenes.write(folder, scenes=12, workers=1)


def _users(folder: Path) -> None:
    from overlays.samples import gui

    gui.write(folder / "raw", users=[1, 11, 74], episodes={"test": 1, "train": 1, "val": 1}, steps=2, workers=1)


def _taps(folder: Path) -> None:
    for user in (1, 11, 12, 74):  # a screenshot may stand in one split only
        Image.fromarray(np.random.default_rng(user).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(
            folder / f"{user}.png")
    rows = [{"id": f"t{i}", "user": str(user), "image": f"{user}.png", "messages": [
        {"role": "user", "content": "<image>Tap OK"}, {"role": "assistant", "content": "click(10, 20)"}]}
        for i, user in enumerate((1, 11, 12, 74))]
    _rows(folder, rows)


USERS = ("--train-users", "11-12", "--val-users", "74", "--test-users", "1")


def _archives(folder: Path) -> None:
    import tarfile

    _image(folder)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.write(folder / "a.png", "one/a.png")
        out.writestr("b.txt", "x" * 1000)
    with tarfile.open(folder / "b.tar.gz", "w:gz") as out:
        out.add(folder / "a.png", "one/a.png")


def _unpack(folder: Path) -> subprocess.CompletedProcess:
    from overlays import archives

    return run_call(lambda: [archives.unpack_beside(folder / name) for name in ("a.zip", "b.tar.gz")])


PROCESSOR = ("--model-name-or-path", "{folder}/model")
ROOMS = ("--data", "{folder}", "--num-frames", "2")

READERS = {
    "records .jsonl": Reader(_write("rows.jsonl"), _check("rows.jsonl"), ("rows.jsonl",), counted=True),
    "records .json": Reader(_write("rows.json"), _check("rows.json"), ("rows.json",), counted=True),
    "records .parquet": Reader(_write("rows.parquet"), _check("rows.parquet"), ("rows.parquet",), counted=True),
    "saved data set": Reader(_write("saved"), _check("saved"), ("saved/*",)),
    "other formats": Reader(_write("rows.jsonl", _formats), _check("rows.jsonl"), ("rows.jsonl",), counted=True),
    "converter": Reader(_write("rows.jsonl"), _convert, ("rows.jsonl",), "out.parquet"),
    "datasets.json": Reader(_registry, _resolve, ("data/datasets.json",)),
    "images": Reader(_pictures, _check("rows.jsonl"), ("a.png", "a.jpg", "a.webp", "a.bmp", "a.gif"), counted=True),
    "rasters": Reader(_rasters, _check("rows.jsonl"), ("a.npy", "a.tif", "a.hdr", "a.img"), counted=True),
    "videos": Reader(_video, _check("rows.jsonl"), ("a.mp4", "frames", "frames/1.jpg"), counted=True),
    "processor": Reader(_model, _check("rows.jsonl", *PROCESSOR),
                        ("model/processor_config.json", "model/tokenizer_config.json", "model/tokenizer.json",
                         "model/chat_template.jinja", "model/config.json"), counted=True),
    "model": Reader(_model, _predict, ("model/config.json", "model/generation_config.json", "model/model.safetensors"),
                    "predictions.jsonl", heavy=True),
    "stage .yaml": Reader(_stage, _train, ("stage.yaml",), "run/adapter_config.json", heavy=True),
    "resumed run": Reader(_run, _train, ("run/run.json", "run/trainer_state.json", "run/adapter_config.json",
                                         "run/checkpoint-1/trainer_state.json",
                                         "run/checkpoint-1/adapter_config.json"), heavy=True),
    "adapter": Reader(_run, partial(_predict, checkpoint="run"),
                      ("run/adapter_config.json", "run/adapter_model.safetensors", "run/run.json",
                       "run/processor_config.json"), "predictions.jsonl", heavy=True),
    "kept answers": Reader(_partial, _predict, ("predictions.jsonl.partial",), heavy=True),
    "metrics": Reader(_metrics, lambda folder: run_script("compare_satellite.py", f"a={folder / 'run'}"),
                      ("run/test/metrics.json", "run/trainer_state.json", "run/preferences.json")),
    "driving metrics": Reader(_driving_metrics, lambda folder: run_module(
        "overlays.domains.driving.compare", "table", folder / "run"), ("run/*/test/metrics.json",)),
    "ENVI cube": Reader(_cube, _prepare("cuprite", "--cube", "{folder}/cuprite_sample.hdr", *LABELS),
                        ("cuprite_sample.hdr", "cuprite_sample.img"), "out/metadata.json", heavy=True),
    "class map": Reader(_cube, _prepare("cuprite", "--cube", "{folder}/cuprite_sample.hdr", *LABELS,
                                        "--class-map", "{folder}/classes.json"),
                        ("classes.json", "labels.npy"), "out/metadata.json", heavy=True),
    "MATLAB cube": Reader(_cube_formats, _prepare("cuprite", "--cube", "{folder}/cube.mat", "--wavelengths",
                                                  "{folder}/bands.txt", *LABELS), ("cube.mat", "bands.txt"),
                          "out/metadata.json", heavy=True),
    "NetCDF cube": Reader(_cube_formats, _prepare("cuprite", "--cube", "{folder}/cube.nc", *LABELS), ("cube.nc",),
                          "out/metadata.json", heavy=True),
    "tiles": Reader(_cities, _prepare("satellite", "--tiles", "{folder}/tiles", "--labels", "{folder}/cities.xlsx"),
                    ("tiles/*.tif",), "out/metadata.json", heavy=True),
    "workbook": Reader(_cities, _prepare("satellite", "--tiles", "{folder}/tiles", "--labels", "{folder}/cities.xlsx"),
                       ("cities.xlsx",), "out/metadata.json"),
    "table .csv": Reader(_cities, _prepare("satellite", "--tiles", "{folder}/tiles", "--labels", "{folder}/table.csv"),
                         ("table.csv",), "out/metadata.json"),
    "archives of clips": Reader(_clips, _prepare("driving", "--raw", "{folder}", "--workers", "1"),
                                ("camera/*/*.zip", "labels/egomotion/*.zip", "clip_index.parquet", "sample.json"),
                                "out/metadata.json"),
    "clips": Reader(_plain_clips, _prepare("driving", "--raw", "{folder}", "--workers", "1"),
                    ("camera/*/*.mp4", "camera/*/*.parquet", "labels/egomotion/*.parquet"), "out/metadata.json"),
    "posed RGB-D": Reader(_rooms, _prepare("scenes", *ROOMS),
                          ("posed_images/*/*.jpg", "posed_images/*/*.png", "posed_images/*/*.txt", "*.pkl"),
                          "out/metadata.json"),
    "3-D questions": Reader(_rooms, _prepare("scenes", *ROOMS), ("questions/*/*.json",), "out/metadata.json"),
    "screens": Reader(_users, _prepare("gui", "--raw", "{folder}/raw", *USERS),
                      ("raw/*/*/action.jsonl", "raw/*/*/survey_result.json", "raw/*/*/*.xml",
                       "raw/*/*/screenshots/*.jpg"), "out/metadata.json"),
    "taps": Reader(_taps, _prepare("gui", "--jsonl", "{folder}/rows.jsonl", *USERS), ("rows.jsonl", "11.png"),
                   "out/metadata.json"),
    "archives": Reader(_archives, _unpack, ("a.zip", "b.tar.gz")),
}


def problem(reader: Reader, folder: Path) -> str:
    """What is wrong with how a command ends on a damaged folder; "" where nothing is."""
    marker = folder / reader.marker if reader.marker else None
    done = reader.command(folder)
    if done.returncode not in (0, 2):
        return f"status {done.returncode}: {done.stderr[-2000:]}"
    if "Traceback" in done.stderr + done.stdout:
        return f"traceback in the output: {(done.stderr + done.stdout)[-2000:]}"
    if done.returncode == 2:
        sentences = re.findall(r"(?:^|[\r\]])error: .*\S", done.stderr, re.MULTILINE)  # ]: of a bar
        if len(sentences) != 1 or len(sentences[0]) > 1500:
            return f"not one sentence: {done.stderr[-2000:]}"
        if marker is not None and marker.exists():
            return f"{reader.marker} was written with status 2"
        return ""
    if marker is not None and not marker.exists():
        return f"status 0 without {reader.marker}"
    for file in (folder / "out").glob("*.jsonl") if marker is not None and marker.name == "metadata.json" else ():
        defects = [str(defect) for *_, found in records.check(file, folder / "out") for defect in found]
        if file.stem in ("train", "val", "test") and defects:
            return f"status 0 with {len(defects)} defects in what was prepared, the first is {defects[0]}"
    if reader.counted:
        if not re.search(r": [1-9]\d* records, 0 bad", done.stdout):
            return f"status 0 without a count of records: {done.stdout[-500:]}"
    return ""
