"""StyleGAN3 for fundus photographs, from raw images to a registered, promoted and transferred model."""

__version__ = "0.1.0"
