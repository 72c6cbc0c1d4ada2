"""Born-again generations: networks trained one after the other, each taught by the one before."""

from kdtoolkit.generations.methods import METHODS as METHODS
from kdtoolkit.generations.methods import born_again as born_again
from kdtoolkit.generations.methods import born_again_labels as born_again_labels
from kdtoolkit.generations.methods import confidence_weighted as confidence_weighted
from kdtoolkit.generations.methods import independent as independent
from kdtoolkit.generations.methods import permuted as permuted
from kdtoolkit.generations.methods import self_distillation as self_distillation
from kdtoolkit.generations.recipe import Recipe as Recipe
from kdtoolkit.generations.records import GenerationRecord as GenerationRecord
from kdtoolkit.generations.records import load_generations as load_generations
from kdtoolkit.generations.records import load_network as load_network
from kdtoolkit.generations.runner import train_generations as train_generations
from kdtoolkit.generations.training import generation_seed as generation_seed
