"""Upstream's code beside the overlay: its tree (`tree`), and its train() as one of two engines (`engine`)."""
