"""An overlay on the official Qwen3-VL fine-tuning code: new inputs and answers for Qwen-VL models."""
