"""A teacher's outputs in files: written once, read for every batch."""

from kdtoolkit.cache.building import cache_teacher as cache_teacher
from kdtoolkit.cache.source import CachedTeacher as CachedTeacher
