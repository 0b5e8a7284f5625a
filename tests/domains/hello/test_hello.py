"""A domain of another package is prepared, trained and scored by the shared commands."""

import json

from overlays import domains, evaluate, prepare, train

PLACE = "tests.domains.hello.domain:HELLO"


def test_hello_is_prepared_trained_and_scored(tiny_model_dir, tmp_path, monkeypatch, capsys):
    raw = domains.get(PLACE).sample(tmp_path / "raw")
    data, run = tmp_path / "data", tmp_path / "run"
    prepare.main([PLACE, "--raw", str(raw), "--output", str(data), "--side_px", "32"])
    assert "train: 18" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["train", *(
        f"--model_name_or_path {tiny_model_dir('qwen3_vl')} --dataset_use {data}/train.jsonl --output_dir {run} "
        "--report_to none --tune_mm_mlp True --max_steps 4 --per_device_train_batch_size 2").split()])
    train.main("SFT", "sft")
    capsys.readouterr()
    evaluate.main(["--domain", PLACE, "--checkpoint", str(run), "--split", "val", "--batch-size", "2"])
    metrics = json.loads((run / "val" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["domain"], metrics["split"], metrics["n"], metrics["warning"]) == ("hello", "val", 6, None)
    assert metrics["data"] == str(data) and set(metrics["interval"]) == {"accuracy"}
    assert "majority" in capsys.readouterr().out and "Which colour" in (run / "val" / "report.html").read_text()
    monkeypatch.setitem(domains.DOMAINS, "hello", PLACE)  # as domains.register does
    assert evaluate.evaluate(run, split="test", limit=2)["n"] == 2  # the run says which domain and data
