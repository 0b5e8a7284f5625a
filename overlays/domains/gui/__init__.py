"""Per-user GUI grounding: where this user would tap, on the 0-1000 grid."""
