"""kdtoolkit: model compression for Keras 3, from distillation to a checked LiteRT file."""

from kdtoolkit import callbacks as callbacks
from kdtoolkit import data as data
from kdtoolkit import evaluation as evaluation
from kdtoolkit import export as export
from kdtoolkit import functional as functional
from kdtoolkit import gates as gates
from kdtoolkit import generations as generations
from kdtoolkit import losses as losses
from kdtoolkit import models as models
from kdtoolkit import schedules as schedules
from kdtoolkit import sources as sources
from kdtoolkit import wirings as wirings
from kdtoolkit.distiller import Distiller as Distiller
from kdtoolkit.ensemble import Ensemble as Ensemble
from kdtoolkit.generations import Recipe as Recipe
from kdtoolkit.generations import load_generations as load_generations
from kdtoolkit.generations import load_network as load_network
from kdtoolkit.generations import train_generations as train_generations
from kdtoolkit.logits import as_logits as as_logits
from kdtoolkit.models import attach_exits as attach_exits
from kdtoolkit.mutual import MutualDistiller as MutualDistiller
from kdtoolkit.self_distillation import SelfDistiller as SelfDistiller
from kdtoolkit.taps import tap as tap
from kdtoolkit.transfer import Transfer as Transfer
from kdtoolkit.version import __version__ as __version__
from kdtoolkit.views import two_views as two_views
