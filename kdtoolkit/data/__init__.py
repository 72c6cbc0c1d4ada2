"""Data sets, seeded splits, example ids, augmentation, mixing and batches."""

from kdtoolkit.data.augment import Augmentation as Augmentation
from kdtoolkit.data.augment import FlipShift as FlipShift
from kdtoolkit.data.augment import ZeroPixels as ZeroPixels
from kdtoolkit.data.digits import load_digits as load_digits
from kdtoolkit.data.epochs import FollowEpochs as FollowEpochs
from kdtoolkit.data.keys import EXAMPLE_ID as EXAMPLE_ID
from kdtoolkit.data.keys import INPUTS as INPUTS
from kdtoolkit.data.keys import strip as strip
from kdtoolkit.data.keys import with_ids as with_ids
from kdtoolkit.data.keys import with_views as with_views
from kdtoolkit.data.mixing import CutMix as CutMix
from kdtoolkit.data.mixing import Mixer as Mixer
from kdtoolkit.data.mixing import Mixup as Mixup
from kdtoolkit.data.pipeline import ArrayPipeline as ArrayPipeline
from kdtoolkit.data.record import Dataset as Dataset
from kdtoolkit.data.reordered import ReorderedBatches as ReorderedBatches
from kdtoolkit.data.seeded import epoch_dataset as epoch_dataset
from kdtoolkit.data.splits import Split as Split
from kdtoolkit.data.splits import choose as choose
from kdtoolkit.data.splits import noisy_labels as noisy_labels
from kdtoolkit.data.splits import split as split
from kdtoolkit.data.tfds import load_tfds as load_tfds
