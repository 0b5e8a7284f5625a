"""Mineral mapping from imaging spectroscopy: hyperspectral cube -> tiles, questions, scores."""
