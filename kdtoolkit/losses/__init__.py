"""Losses that carry knowledge from a source to a student."""

from kdtoolkit.losses.ablation import CategoryConfidence as CategoryConfidence
from kdtoolkit.losses.ablation import PermutedDarkKnowledge as PermutedDarkKnowledge
from kdtoolkit.losses.base import FunctionLoss as FunctionLoss
from kdtoolkit.losses.base import TransferLoss as TransferLoss
from kdtoolkit.losses.feature import Hint as Hint
from kdtoolkit.losses.response import DIST as DIST
from kdtoolkit.losses.response import DecoupledKD as DecoupledKD
from kdtoolkit.losses.response import HardTargets as HardTargets
from kdtoolkit.losses.response import LogitsMSE as LogitsMSE
from kdtoolkit.losses.response import MixedTargets as MixedTargets
from kdtoolkit.losses.response import SoftCrossEntropy as SoftCrossEntropy
from kdtoolkit.losses.response import SoftTargets as SoftTargets
