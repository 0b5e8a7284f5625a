"""Stands for a module that cannot be imported where flash-attn is missing."""

raise ImportError("the stand-in's trainer.py was imported")
