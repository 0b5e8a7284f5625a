"""The evaluation script without a model: files it writes, what the page shows, what a mistake is told."""

import json

import numpy as np
import pytest

from overlays import evaluate
from overlays.domains.base import Evaluation
from overlays.domains.driving.answers import format_pairs, question
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl

TIMES = [0.25, 0.5, 0.75, 1.0]


def record(number):
    v, k = [10.0 + number] * 4, [0.02 * (-1) ** number] * 4
    return {
        "id": f"clip-{number}", "video": "a.mp4", "video_start": 6 * number, "video_end": 6 * number + 6,
        "conversations": [{"from": "human", "value": f"<video>\n{question(6, 4)}"},
                          {"from": "gpt", "value": format_pairs(v, k)}],
        "task": "video_only", "times": TIMES, "future": {"v": v, "k": k},
        "past": {"times": [-0.75, -0.5, -0.25, 0.0], "v": v, "k": [0.0] * 4}, "low_speed": False,
    }


@pytest.fixture
def run(tmp_path):
    """(run folder, prepared data) of a run that has ended; no weights."""
    import av

    data = tmp_path / "data"
    data.mkdir()
    with av.open(str(data / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_json(data / "metadata.json", {"domain": "driving"})
    write_jsonl(data / "train.jsonl", [record(number) for number in range(3)])
    write_jsonl(data / "test.jsonl", [record(number) for number in range(3)])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    write_json(folder / "run.json", {"base_model": "tiny", "data": {"train": [{"name": "x", "sha256": "other"}]}})
    return folder, data


def test_metrics_page_plots_and_video_are_written(run, tmp_path, monkeypatch, capsys):
    folder, data = run

    def answers(self):
        chosen = self.records
        said = [format_pairs([9.0] * 4, [0.02] * 4), "[(11.00, -0.02", "[(12.00, 0.02000)]"]
        return [{**row, "prediction": text} for row, text in zip(chosen, said, strict=True)]

    monkeypatch.setattr(Evaluation, "answers", answers)
    monkeypatch.setattr(Evaluation, "base_answers", answers)
    film = tmp_path / "film.mp4"
    evaluate.main(["--checkpoint", str(folder), "--data", str(data), "--compare_base", "--overlay-video", str(film)],
                  domain="driving")
    metrics = json.loads((folder / "test" / "metrics.json").read_text())
    assert {"n", "parse_rate", "mae_v", "mae_k", "rmse_v", "rmse_k", "ade", "fde", "turn_sign_accuracy", "base",
            "horizons", "low_speed"} <= metrics.keys()
    assert (metrics["n"], metrics["n_partial"], metrics["n_unreadable"]) == (3, 1, 1)
    assert metrics["parse_rate"] == pytest.approx(1 / 3) and metrics["turn_sign_accuracy"] == pytest.approx(2 / 3)
    assert set(metrics["baseline"]) == {"train_mean", "hold_v_zero_k", "hold_both", "linear_v_hold_k"}
    page = (folder / "test" / "report.html").read_text()
    for said in ("train mean", "linear v, hold k", "base model", "By horizon", "clip-2; the answer is partial",
                 "Warning: this run was trained on another file", "1 answers unreadable",
                 "in the 2 answers with a readable pair", "Readable answers: 1 windows"):
        assert said in page, said
    assert page.count("<img") == 4 and len(list((folder / "test" / "plots").glob("*.png"))) == 4
    told = capsys.readouterr().out
    assert "turns with the right sign" in told and "3 windows of one second (video only), 3 of them turns" in told
    import av

    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 18


def test_a_mistake_is_told_before_the_model_is_loaded(run, tmp_path):
    folder, data = run
    for words, said in (
        (["--checkpoint", str(tmp_path / "gone")], "there is no checkpoint folder"),
        (["--checkpoint", str(folder), "--data", str(tmp_path)], "run python -m overlays.prepare driving"),
        (["--checkpoint", str(folder), "--data", str(data), "--overlay-video", "film.avi"], "must end in .mp4"),
        (["--limit", "0"], "--limit: must be at least 1, not 0"), (["--batch_size", "-1"], "--batch-size: must be at"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.main(words, domain="driving")
    rows = [{**record(0), "future": None}]
    write_jsonl(data / "test.jsonl", rows)
    with pytest.raises(UserError, match="'clip-0' has no true future"):
        evaluate.main(["--checkpoint", str(folder), "--data", str(data)], domain="driving")
