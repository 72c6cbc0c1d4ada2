"""The record that an export returns."""

from dataclasses import asdict, dataclass
from pathlib import Path

from kdtoolkit.export.examples import TensorInfo
from kdtoolkit.export.run import Latency
from kdtoolkit.export.verify import finite


@dataclass(frozen=True)
class ExportReport:
    """What was exported, how large it is, and how far it is from Keras.

    Attributes:
        path: The file.
        quantize: The mode, `None` for float32. `"mixed"` stands for rules by layer, `"recipe"`
            for a ready recipe.
        bytes: Size of the file.
        gzip_bytes: Size after gzip.
        parameters: Number of weights of the Keras model.
        inputs: Tuple of `TensorInfo`, as stored in the file.
        outputs: Tuple of `TensorInfo`, as stored in the file.
        ops: Number of operators by name.
        tensor_counts: Number of tensors by dtype.
        tensor_bytes: Bytes of the constants by dtype.
        full_integer: `True` if no operator computes in floats.
        examples: Number of examples on which the file was compared with Keras.
        max_difference: Largest absolute difference from Keras over all outputs.
        mean_difference: Mean absolute difference of the output where it is largest.
        agreement: Top-1 agreement with Keras, 0 to 1, of the output where it is lowest.
            `None` if no output has several entries in its last axis.
        sqnr_db: Signal to noise ratio in decibels of the output where it is lowest. Infinite
            without any difference.
        latency: A `Latency`, or `None` if it was not measured.
    """

    path: str
    quantize: str | None
    bytes: int
    gzip_bytes: int
    parameters: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ops: dict[str, int]
    tensor_counts: dict[str, int]
    tensor_bytes: dict[str, int]
    full_integer: bool
    examples: int
    max_difference: float
    mean_difference: float
    agreement: float | None
    sqnr_db: float
    latency: Latency | None = None

    def to_dict(self):
        """Return the attributes as a dict that JSON can store, infinite numbers as `None`."""
        return finite(asdict(self))

    def __str__(self):
        parts = [
            f"{Path(self.path).name}: {self.quantize or 'float32'}",
            f"{self.bytes:,} bytes ({self.gzip_bytes:,} gzipped)",
            f"{self.parameters:,} parameters",
            f"largest difference {self.max_difference:.3g} ({self.sqnr_db:.1f} dB)",
        ]
        if self.full_integer:
            parts.insert(1, "full integer")
        if self.agreement is not None:
            parts.append(f"top-1 agreement {self.agreement:.1%}")
        if self.latency is not None:
            parts.append(str(self.latency))
        return ", ".join(parts)
