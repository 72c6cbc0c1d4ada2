"""Losses between inner features of two networks."""

from kdtoolkit.losses.feature.hints import Hint as Hint
