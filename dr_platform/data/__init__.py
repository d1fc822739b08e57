"""Raw photographs, real and synthetic, to the batches a training reads."""
