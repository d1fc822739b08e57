"""What is shown of a registered model: a page for people, its numbers for programs, and a model card."""
