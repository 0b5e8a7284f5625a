"""Checkpoint to trainable model."""
