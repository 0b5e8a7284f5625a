"""Planned memory of a training step against the measured peak of small models on a CPU, each in its own process."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch

from overlays import plan
from overlays.files import write_json

TOKENS = plan.Tokens(longest=1024, median=1024, visual=256, images=1, source="")
STEPS = 3  # from the second on, the state of the optimizer is there from the start
LIMIT = 0.15
FULL = {"tune_mm_llm": True, "tune_mm_mlp": True, "tune_mm_vision": True}
CASES = {  # name -> (hidden size, layers, flags)
    "full": (256, 6, {**FULL, "per_device_train_batch_size": 4}),
    "full_flattened": (256, 6, {**FULL, "per_device_train_batch_size": 4, "data_flatten": True}),
    "full_checkpointed": (512, 8, {**FULL, "per_device_train_batch_size": 4, "gradient_checkpointing": True}),
    "lora": (512, 8, {"lora_enable": True, "lora_r": 16, "tune_mm_mlp": True, "per_device_train_batch_size": 2}),
}


def _config(hidden: int, layers: int) -> dict:
    """config.json of a Qwen3-VL with 30,000 tokens."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = dict(vocab_size=30_000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
                num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, head_dim=32, pad_token_id=0,
                rope_parameters=rope)
    vision = dict(depth=4, hidden_size=128, num_heads=4, intermediate_size=384, out_hidden_size=hidden,
                  num_position_embeddings=256, deepstack_visual_indexes=[1, 2])
    return dict(model_type="qwen3_vl", text_config=text, vision_config=vision, tie_word_embeddings=True,
                image_token_id=5)


def _read(name: str, folder: str):
    """(flags, config, learning rates) of a case."""
    hidden, layers, chosen = CASES[name]
    write_json(Path(folder) / "config.json", _config(hidden, layers))
    words = [word for flag, value in chosen.items() for word in (f"--{flag}", str(value))]
    flags = plan.read_flags([folder, *words])
    return flags, *plan.load_config(flags)


def _measure(name: str) -> int:
    """Bytes above what the process held before the model at the peak of some steps."""
    from overlays.model.dry_run import make_batch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        flags, config, rates = _read(name, folder)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    model = plan.make_model(config, flags, rates, "cpu")
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], fused=True)
    for _ in range(STEPS):
        model(**make_batch(config, plan.batch_shape(flags, TOKENS), "cpu")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def run() -> dict[str, float]:
    """Planned and measured GB of each case, and by how much the plan is off.

    Raises:
        AssertionError: a plan is off by more than LIMIT.
    """
    figures = {}
    for name in CASES:
        # What is freed goes back to the system at once: the peak is that of live memory, not of the allocator's pools.
        child = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True,
                               env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
        measured = int(child.stdout.split()[-1]) / plan.GB
        with tempfile.TemporaryDirectory() as folder:
            flags, config, rates = _read(name, folder)
        made = plan.Planner(config, rates, TOKENS).estimate(flags)
        planned = made.total - made.kinds["overhead"]
        figures |= {f"{name}_planned_gb": planned, f"{name}_measured_gb": measured,
                    f"{name}_error": planned / measured - 1}
    worst = max(abs(value) for name, value in figures.items() if name.endswith("_error"))
    assert worst <= LIMIT, f"a plan is off by {worst:.0%}: {figures}"
    return figures


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
