"""A neighbour: TensorFlow Model Optimization, which works on tf_keras, beside Keras 3.

Nothing heavy is imported before one of these is called. All but `load` return or take models of
`tf_keras`, the package that goes on with Keras 2.
"""

from kdtoolkit.tfmot.bridge import to_tf_keras as to_tf_keras
from kdtoolkit.tfmot.compression import cluster as cluster
from kdtoolkit.tfmot.compression import prune as prune
from kdtoolkit.tfmot.compression import quantize as quantize
from kdtoolkit.tfmot.compression import strip as strip
from kdtoolkit.tfmot.loading import load as load
from kdtoolkit.tfmot.student import PruningStep as PruningStep
from kdtoolkit.tfmot.student import Student as Student
from kdtoolkit.tfmot.weights import copy_weights as copy_weights
