"""What the reports share: one HTML file that loads nothing, its look, its tables and figures, and where it may lie."""
