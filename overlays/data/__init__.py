"""Record to batch."""
