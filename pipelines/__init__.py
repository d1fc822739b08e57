"""The DVC stages: one script each, named as the stage and its section of params.yaml."""
