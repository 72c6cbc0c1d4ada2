"""Networks and files side by side: a table, a picture of each trade-off, one page of HTML.

Importing this package imports neither LiteRT nor matplotlib. Files are run and timed with
`pip install "kdtoolkit[export]"`; the rich table and the figures need `kdtoolkit[plot]`.
"""

from kdtoolkit.comparison.run import compare as compare
from kdtoolkit.comparison.table import ComparisonTable as ComparisonTable
