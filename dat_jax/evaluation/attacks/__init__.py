"""The attacks: text that a user can send (`text`, `rewrites`) and perturbations of its embeddings (`embedding`)."""
