"""Metrics of a checkpoint: features, distances, equivariance, and the report."""
