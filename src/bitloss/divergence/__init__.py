"""How far a candidate drifts from the base: per-token metrics, their statistics, the stored base."""
