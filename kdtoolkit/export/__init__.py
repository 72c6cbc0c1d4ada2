"""Export to LiteRT: quantised `.tflite` files, checked against Keras, inspected and timed.

Importing this package imports neither TensorFlow nor LiteRT. They are needed once a function
is called: `pip install "kdtoolkit[export]"`.
"""

from kdtoolkit.export.examples import TensorInfo
from kdtoolkit.export.limits import ExportMismatchError
from kdtoolkit.export.measure import measure
from kdtoolkit.export.pipeline import litert
from kdtoolkit.export.report import ExportReport
from kdtoolkit.export.run import Latency, LiteRTModel, latency
from kdtoolkit.export.summary import FileSummary, inspect
from kdtoolkit.export.verify import Comparison, OutputDifference, compare
from kdtoolkit.export.weights import WeightInfo

__all__ = [
    "Comparison",
    "ExportMismatchError",
    "ExportReport",
    "FileSummary",
    "Latency",
    "LiteRTModel",
    "OutputDifference",
    "TensorInfo",
    "WeightInfo",
    "compare",
    "inspect",
    "latency",
    "litert",
    "measure",
]
