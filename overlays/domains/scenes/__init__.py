"""Posed RGB-D scenes: rooms seen in several frames with depth and poses -> questions of what and where, scores."""
