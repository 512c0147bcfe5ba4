"""The paper's figures, to stand beside ours (Achille et al., ICCV 2019, Tables 1 and 2)."""

from __future__ import annotations

__all__ = ["META_TASKS", "TABLE_1", "TABLE_1_ORACLE", "TABLE_2"]

META_TASKS = ("iNat + CUB", "Mixed")
"""In the order in which a profile names its own."""

TABLE_1_ORACLE = {"iNat + CUB": 0.3124, "Mixed": 0.2290}
"""Mean error of the best expert."""

TABLE_1 = {
    "iNat + CUB": {
        "chance": 0.5952,
        "generic": 0.3018,
        "TASK2VEC": 0.4254,
        "asymmetric TASK2VEC": 0.0997,
        "MODEL2VEC": 0.0681,
    },
    "Mixed": {
        "chance": 1.1249,
        "generic": 0.7573,
        "TASK2VEC": 0.4030,
        "asymmetric TASK2VEC": 0.2923,
        "MODEL2VEC": 0.2781,
    },
}
"""Relative error increase over the oracle, by meta-task and selector."""

TABLE_2 = {
    "all tasks": {"chance": 0.5952, "VGG-13": 0.3803, "DenseNet-121": 0.1063, "ResNet-13": 0.0997},
    "10 largest": {"chance": 0.1395, "VGG-13": 0.0482, "DenseNet-121": 0.0030, "ResNet-13": 0.0000},
}
"""Relative error increase on iNat + CUB by probe. What the table calls ResNet-13 equals Table 1's ResNet-34."""
