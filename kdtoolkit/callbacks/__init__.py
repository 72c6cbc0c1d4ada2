"""Keras callbacks: when past selves teach, which weights are kept, schedules, exact resume."""

from kdtoolkit.callbacks.resume import Resume as Resume
from kdtoolkit.callbacks.rewind import BestWeights as BestWeights
from kdtoolkit.callbacks.rewind import RewindOnPlateau as RewindOnPlateau
from kdtoolkit.callbacks.schedule import Schedule as Schedule
from kdtoolkit.callbacks.teachers import BestTeacher as BestTeacher
from kdtoolkit.callbacks.teachers import PeriodicTeacher as PeriodicTeacher
