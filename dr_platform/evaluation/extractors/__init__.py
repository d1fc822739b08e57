"""Networks that turn pictures into features, one module each, behind the one form of `base.FeatureExtractor`."""
