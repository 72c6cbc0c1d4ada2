"""CRD: random, so the contract has no reference for it; `test_contrastive.py` has."""

import numpy as np

from kdtoolkit.losses.relation.contrastive import ContrastiveRepresentation
from tests.contract import Case

CASES = {
    "contrastive": Case(
        make=lambda **k: ContrastiveRepresentation(20, negatives=6, dim=4, seed=0, **k),
        shapes={
            "vectors": ((5,), (3,)),
            "tokens": ((4, 5), (3, 3)),
            "maps": ((3, 3, 5), (4, 4, 2)),
            "maps and a vector": ((3, 3, 5), (4,)),
        },
        context=lambda batch: {"example_id": np.array([3, 19, 0, 7], "int32")[:batch]},
        refused=(
            ([(None, 4)], [(None, 4)], "one layer of each.*one transfer"),
            ((None, None, 4), (None, 4), r"known size.*Received: shape \(None, None"),
        ),
    ),
}
