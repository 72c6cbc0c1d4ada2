"""Teachers that are not plain networks: a student's past, and one made of the labels."""

from kdtoolkit.sources.base import Source as Source
from kdtoolkit.sources.cohort import PeerEnsemble as PeerEnsemble
from kdtoolkit.sources.memory import LastPredictions as LastPredictions
from kdtoolkit.sources.memory import PredictionMemory as PredictionMemory
from kdtoolkit.sources.snapshot import Snapshot as Snapshot
from kdtoolkit.sources.virtual import VirtualTeacher as VirtualTeacher
