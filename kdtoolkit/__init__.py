"""kdtoolkit: model compression for Keras 3."""

from kdtoolkit.version import __version__ as __version__
