"""Small networks with named stages, for examples, tests and baselines."""

from kdtoolkit.models.branches import ScaleGradient as ScaleGradient
from kdtoolkit.models.branches import branches as branches
from kdtoolkit.models.classic import all_conv as all_conv
from kdtoolkit.models.classic import lenet as lenet
from kdtoolkit.models.classic import quick as quick
from kdtoolkit.models.convnet import convnet as convnet
from kdtoolkit.models.convnet import mlp as mlp
from kdtoolkit.models.deit import deit as deit
from kdtoolkit.models.deit import distillation_heads as distillation_heads
from kdtoolkit.models.deployed import mean_output as mean_output
from kdtoolkit.models.deployed import single_output as single_output
from kdtoolkit.models.exits import attach_exits as attach_exits
from kdtoolkit.models.resnet import resnet as resnet
from kdtoolkit.models.resnet import resnet8x4 as resnet8x4
from kdtoolkit.models.resnet import resnet18 as resnet18
from kdtoolkit.models.resnet import resnet32x4 as resnet32x4
from kdtoolkit.models.resnet import resnet34 as resnet34
from kdtoolkit.models.resnet import resnet50 as resnet50
from kdtoolkit.models.vit import vit as vit
from kdtoolkit.models.vit_layers import TokensAndPositions as TokensAndPositions
