"""City-level numbers from 64-channel satellite embeddings: tiles of embeddings -> records with a target, scores."""
