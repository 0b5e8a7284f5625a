"""The one table of model families: a new family is one row, and every fact that tells it from others stands in it.

The configs of the tiny models stand here too. Nothing of torch or transformers is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from overlays.errors import UserError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """What distinguishes one model family.

    Prefixes are of parameter names in its generation class. Classes are named as in transformers. `tiny_text` and
    `tiny_vision` are the arguments of the two configs of its tiny model.
    """

    model_class: str
    tiny_text: Mapping
    tiny_vision: Mapping
    vision: tuple[str, ...] = ("model.visual.",)
    merger: tuple[str, ...] = ("model.visual.merger.",)
    embeddings: tuple[str, ...] = ("model.language_model.embed_tokens.",)
    language_model: tuple[str, ...] = ("model.language_model.", "lm_head.")
    lora_targets: tuple[str, ...] = ATTENTION
    packing: bool = True  # attention of all layers can be kept inside the samples of a concatenated row
    thinking: bool = False  # the chat template writes a block of reasoning before the last answer
    absolute_points: bool = False  # answers name points in pixels of the resized image, not on a 0-1000 grid
    patch_factor: int = 32  # side of a merged patch in pixels
    processor: str = "Qwen3VLProcessor"
    video_processor: str = "Qwen3VLVideoProcessor"
    clip_budget: bool = True  # the video processor's `size` is the budget of a whole clip, not of one frame


# ---- sizes of the tiny models

HIDDEN, HEADS, KEY_VALUE_HEADS, HEAD_DIM, LAYERS = 128, 4, 2, 32, 4

TEXT = dict(
    hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=32768,
)
VISION = dict(depth=4, num_heads=4, spatial_merge_size=2, temporal_patch_size=2)
# M-RoPE shares the HEAD_DIM / 2 frequencies out to time, height and width.
ROPE_2 = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
ROPE_3 = {**ROPE_2, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
VISION_3 = dict(
    VISION, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, out_hidden_size=HIDDEN, patch_size=16,
    num_position_embeddings=256,
)

RECURRENT_TEXT = dict(
    head_dim=HEAD_DIM, partial_rotary_factor=1.0, full_attention_interval=4, linear_key_head_dim=32,
    rope_parameters={**ROPE_3, "partial_rotary_factor": 1.0}, linear_value_head_dim=32, linear_num_key_heads=4,
    linear_num_value_heads=4,
)
EXPERTS = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=HIDDEN, shared_expert_intermediate_size=HIDDEN,
)

# ---- the table

DEEPSTACK = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
# The processors of Qwen2-VL and Qwen2.5-VL: patches of 14 pixels, a budget for each frame.
QWEN2 = {"patch_factor": 28, "video_processor": "Qwen2VLVideoProcessor", "clip_budget": False}
# Three of four layers are recurrent (gated delta net): they have other projections, and their state would run across
# the samples of a concatenated row.
RECURRENT = {
    "lora_targets": (*ATTENTION, "in_proj_qkv", "in_proj_z", "out_proj"), "packing": False, "thinking": True,
}
FAMILIES = {
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration",
        dict(TEXT, rope_parameters=ROPE_2),
        dict(VISION, embed_dim=HIDDEN, hidden_size=HIDDEN, mlp_ratio=3, patch_size=14),
        processor="Qwen2VLProcessor", **QWEN2,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        dict(TEXT, rope_parameters=ROPE_2),
        dict(VISION, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, out_hidden_size=HIDDEN, patch_size=14,
             window_size=112, fullatt_block_indexes=[1, 3]),
        absolute_points=True, processor="Qwen2_5_VLProcessor", **QWEN2,
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        dict(TEXT, head_dim=HEAD_DIM, rope_parameters=ROPE_3),
        dict(VISION_3, deepstack_visual_indexes=[1, 2]),
        merger=DEEPSTACK,
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        dict(TEXT, head_dim=HEAD_DIM, rope_parameters=ROPE_3, num_experts=4, num_experts_per_tok=2,
             moe_intermediate_size=HIDDEN, decoder_sparse_step=1),
        dict(VISION_3, deepstack_visual_indexes=[1, 2]),
        merger=DEEPSTACK,
    ),
    "qwen3_5": Family("Qwen3_5ForConditionalGeneration", dict(TEXT, **RECURRENT_TEXT), VISION_3, **RECURRENT),
    "qwen3_5_moe": Family(
        "Qwen3_5MoeForConditionalGeneration", dict(TEXT, **RECURRENT_TEXT, **EXPERTS), VISION_3, **RECURRENT,
    ),
    "qwen4_exp": Family(
        "Qwen4ExpForConditionalGeneration",
        dict(TEXT, **RECURRENT_TEXT, **EXPERTS, hc_count=2, hc_lowrank=HIDDEN // 8, ple_layer_ids=[2],
             ngram_vocab_size_base=500, split_ngram_parts=2, indexer_n_heads=2, indexer_kv_heads=1,
             indexer_head_dim=HEAD_DIM, indexer_budget=16, indexer_compress_ratio=4),
        VISION_3, **RECURRENT,
    ),
}


def family_of(config) -> Family:
    """The row of a model's config, told by `model_type` and nothing else.

    Raises:
        UserError: the family is not in the table.
    """
    row = FAMILIES.get(getattr(config, "model_type", None))
    if row is None:
        raise UserError(
            f"model type {getattr(config, 'model_type', None)!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    return row
