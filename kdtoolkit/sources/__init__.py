"""Teachers that aren't plain networks: what a student said before, and what it was before."""

from kdtoolkit.sources.base import Source as Source
from kdtoolkit.sources.memory import LastPredictions as LastPredictions
from kdtoolkit.sources.memory import PredictionMemory as PredictionMemory
from kdtoolkit.sources.snapshot import Snapshot as Snapshot
