"""Small networks with named stages, for examples, tests and baselines."""

from kdtoolkit.models.convnet import convnet as convnet
from kdtoolkit.models.convnet import mlp as mlp
from kdtoolkit.models.resnet import resnet as resnet
from kdtoolkit.models.resnet import resnet8x4 as resnet8x4
from kdtoolkit.models.resnet import resnet18 as resnet18
from kdtoolkit.models.resnet import resnet32x4 as resnet32x4
from kdtoolkit.models.resnet import resnet34 as resnet34
from kdtoolkit.models.resnet import resnet50 as resnet50
