"""Losses between the relations of examples, or of layers, in two networks."""

from kdtoolkit.losses.relation.contrastive import (
    ContrastiveRepresentation as ContrastiveRepresentation,
)
from kdtoolkit.losses.relation.correlation import CorrelationCongruence as CorrelationCongruence
from kdtoolkit.losses.relation.distance import RelationalAngle as RelationalAngle
from kdtoolkit.losses.relation.distance import RelationalDistance as RelationalDistance
from kdtoolkit.losses.relation.flow import FlowOfSolutions as FlowOfSolutions
from kdtoolkit.losses.relation.similarity import ProbabilisticTransfer as ProbabilisticTransfer
from kdtoolkit.losses.relation.similarity import SimilarityPreserving as SimilarityPreserving
