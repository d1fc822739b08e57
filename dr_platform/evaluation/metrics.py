"""The metrics of a report by their names: Fréchet distances and KID, each an `Estimate`.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule"; Bińkowski et al. 2018, "Demystifying MMD GANs".
"""

from dr_platform.evaluation.frechet import fid, frechet_distance
from dr_platform.evaluation.kernel_distance import kid, mmd2_jackknife

__all__ = ["fid", "frechet_distance", "kid", "mmd2_jackknife"]
