"""Networks whose dropout stays on: Monte-Carlo dropout, and teachers for dropout distillation."""

from kdtoolkit.dropout.network import MonteCarloDropout as MonteCarloDropout
from kdtoolkit.dropout.prediction import MonteCarloPrediction as MonteCarloPrediction
