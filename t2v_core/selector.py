"""The selector: all that is needed to rank experts for an embedding, in one small file without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load, save

from t2v_core.distances import symmetric_matrix
from t2v_core.errors import DataError
from t2v_core.model2vec import Model2Vec
from t2v_core.prediction import ErrorModel

__all__ = ["Selector"]

TIE = 0.05
"""An expert is told apart from the first where fewer than this share of resamples put it before the first."""
RISK = 0.25
"""It cannot be told apart either where it has a lower error than the first with at least this probability."""


@dataclass(frozen=True, eq=False)
class Selector:
    """MODEL2VEC with the names, the training tasks, the predicted errors and the costs of its experts."""

    model: Model2Vec
    experts: tuple[str, ...]
    base: np.ndarray
    """``[E, P]``, F_i; zeros where no task is known."""
    probe: str
    """Architecture and digest of the weights that the embeddings are by."""
    probe_name: str
    image_size: int
    mean_error: np.ndarray
    """``[E]``, mean error over the library's tasks."""
    image_seconds: np.ndarray
    """``[E]``, measured: features of one image. Where it was not, the median of the others; NaN where none was."""
    head_seconds: np.ndarray
    """``[E]``, measured: one head on the expert's features, median over the tasks."""
    device: str
    """Where that was measured."""
    n_tasks: int
    fingerprint: str
    tasks: tuple[tuple[str, ...], ...] = ()
    """Of each expert: the tasks that it was trained on."""
    predictions: Mapping[str, ErrorModel] = field(default_factory=dict)
    """``head``: for those who know the error of the probe's own head; ``embedding``: for those who do not."""

    def dumps(self) -> bytes:
        """As safetensors; settings are in the file's metadata. The same selector gives the same bytes."""
        settings = {
            "gamma": self.model.gamma,
            "alpha": self.model.alpha,
            "l2": self.model.l2,
            "experts": list(self.experts),
            "tasks": [list(t) for t in self.tasks],
            "probe": self.probe,
            "probe_name": self.probe_name,
            "image_size": self.image_size,
            "device": self.device,
            "n_tasks": self.n_tasks,
            "fingerprint": self.fingerprint,
        }
        tensors = {
            "vectors": self.model.vectors.astype(np.float32),
            "base": self.base.astype(np.float32),
            "trivial": self.model.trivial.astype(np.float32),
            "mean_error": self.mean_error.astype(np.float64),
            "image_seconds": self.image_seconds.astype(np.float64),
            "head_seconds": self.head_seconds.astype(np.float64),
            "settings": np.frombuffer(json.dumps(settings, sort_keys=True).encode(), np.uint8),
        }
        if self.model.offsets is not None:
            tensors["offsets"] = self.model.offsets.astype(np.float64)
        if self.model.base is not None:
            tensors["first_order_base"] = self.model.base.astype(np.float32)
        for what, model in self.predictions.items():
            tensors |= {f"predictions/{what}/{name}": value for name, value in model.tensors().items()}
        return bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}))

    @classmethod
    def loads(cls, data: bytes) -> Selector:
        """Read `dumps`'s bytes.

        Raises:
            DataError: not a selector.
        """
        try:
            tensors = load(data)
            settings = json.loads(tensors["settings"].tobytes())
            model = Model2Vec(
                tensors["vectors"].astype(np.float64),
                settings.pop("gamma"),
                settings.pop("alpha"),
                tensors["trivial"].astype(np.float64),
                settings.pop("l2"),
                tensors.get("offsets"),
                tensors["first_order_base"].astype(np.float64) if "first_order_base" in tensors else None,
            )
            found: dict[str, dict[str, np.ndarray]] = {}
            for key, value in tensors.items():
                if key.startswith("predictions/"):
                    _, what, name = key.split("/")
                    found.setdefault(what, {})[name] = value
            return cls(
                model=model,
                experts=tuple(settings.pop("experts")),
                tasks=tuple(tuple(t) for t in settings.pop("tasks")),
                base=tensors["base"].astype(np.float64),
                mean_error=tensors["mean_error"],
                image_seconds=tensors["image_seconds"],
                head_seconds=tensors["head_seconds"],
                predictions={what: ErrorModel.of_tensors(t) for what, t in sorted(found.items())},
                **settings,
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"not a selector of this version: {error}; run the pipeline again") from error

    def error_model(self, head_error: float = float("nan")) -> ErrorModel | None:
        """What predicts errors, with or without the error of the probe's head; None in a library of few tasks."""
        return self.predictions.get("head" if np.isfinite(head_error) else "embedding")

    def rank(
        self,
        vector: np.ndarray,
        groups: np.ndarray | None = None,
        *,
        head_error: float = float("nan"),
        n_images: int = 0,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Experts, the nearest first.

        Args:
            vector: ``[P]``, a task embedding by the same probe.
            groups: ``[G, P]``, embeddings of disjoint groups of the task's images; where given, the ranking is
                repeated on resamples of the groups, and says which experts cannot be told apart from the first.
            head_error: balanced error that the embedding's head had on held-out images; NaN where it is not known.
            n_images: that the task has; for the costs.
            seed: of the resamples.

        Returns:
            Columns: rank, expert, distance (d_asym to m_i, with its level), task_distance (d_sym to F_i, NaN where
            unknown), probability (of being the best), expected_place (1 is best), predicted_error with its interval low
            and high, better (probability of a lower error than the first's), mean_error (over the library), seconds
            (that trying it on n_images would take), tied (it cannot be told apart from the first).

        Raises:
            DataError: another number of filters.
        """
        vector = np.asarray(vector, np.float64).reshape(-1)
        if len(vector) != self.model.vectors.shape[1]:
            raise DataError(
                f"got an embedding of {len(vector)} filters; this selector wants {self.model.vectors.shape[1]}, "
                f"made by probe {self.probe}"
            )
        distance = self.model.distances(vector)[0]
        p = self.model.probabilities(vector)[0]
        order = np.argsort(distance, kind="stable")
        place = 1 + (p[None, :] / (p[None, :] + p[:, None])).sum(1) - 0.5
        known = (self.base > 0).any(1)
        task_distance = np.full(len(p), np.nan)
        task_distance[known] = symmetric_matrix(vector[None], self.base[known])[0]
        tied = np.zeros(len(p), bool)
        if groups is not None and len(groups) > 1:
            tied = self._beats_first(np.asarray(groups, np.float64), order[0], seed) >= TIE
        predicted, low, high, better = (np.full(len(p), np.nan) for _ in range(4))
        model = self.error_model(head_error)
        if model is not None:
            complexity = float(np.abs(vector - self.model.trivial).sum())
            hardness = head_error if model.uses_head else complexity
            predicted, low, high = model.predict(hardness, task_distance)
            better = model.better(hardness, task_distance, int(order[0]))
            tied |= (better >= RISK) & (np.arange(len(p)) != order[0])
        tied[order[0]] = tied.any()
        frame = pd.DataFrame(
            {
                "expert": self.experts,
                "distance": distance,
                "task_distance": task_distance,
                "probability": p,
                "expected_place": place,
                "predicted_error": predicted,
                "low": low,
                "high": high,
                "better": better,
                "mean_error": self.mean_error,
                "seconds": self.image_seconds * n_images + self.head_seconds,
                "tied": tied,
            }
        ).iloc[order]
        frame.insert(0, "rank", np.arange(1, len(p) + 1))
        return frame.reset_index(drop=True)

    def _beats_first(self, groups: np.ndarray, first: int, seed: int, resamples: int = 100) -> np.ndarray:
        """Share of resamples of the groups in which each expert is nearer than the first."""
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples) / len(groups)
        distances = self.model.distances(weights @ groups)
        share = (distances < distances[:, [first]]).mean(0)
        share[first] = 0.0
        return np.asarray(share)
