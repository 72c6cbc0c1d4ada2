"""The optional packages of the evaluation: SciPy, matplotlib and rich."""

import functools

from kdtoolkit import optional

require = functools.partial(optional.require, part="kdtoolkit.evaluation", extra="plot")
