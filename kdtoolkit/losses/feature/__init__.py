"""Losses between inner features of two networks."""

from kdtoolkit.losses.feature.attention import AttentionTransfer as AttentionTransfer
from kdtoolkit.losses.feature.boundaries import ActivationBoundaries as ActivationBoundaries
from kdtoolkit.losses.feature.channelwise import ChannelWise as ChannelWise
from kdtoolkit.losses.feature.factor import FactorTransfer as FactorTransfer
from kdtoolkit.losses.feature.factor import paraphraser as paraphraser
from kdtoolkit.losses.feature.generative import MaskedGenerative as MaskedGenerative
from kdtoolkit.losses.feature.hints import Hint as Hint
from kdtoolkit.losses.feature.overhaul import Overhaul as Overhaul
from kdtoolkit.losses.feature.overhaul import bn_margin as bn_margin
from kdtoolkit.losses.feature.review import ReviewKD as ReviewKD
from kdtoolkit.losses.feature.selectivity import NeuronSelectivity as NeuronSelectivity
from kdtoolkit.losses.feature.variational import VariationalInformation as VariationalInformation
