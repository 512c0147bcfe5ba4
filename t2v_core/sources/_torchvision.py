"""Classes of torchvision.datasets: which of them can be a source, how to open them, and what their objects hold."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2v_core.errors import ConfigError, MissingPackageError, SourceError, UnknownNameError

__all__ = ["DatasetClass", "class_names", "image_paths", "targets"]

_REFUSED = {
    "DatasetFolder": "needs a loader written in Python; take ImageFolder, or the kind `folder`",
    "HMDB51": "holds videos",
    "Kinetics": "holds videos",
    "LFWPairs": "holds pairs of images",
    "LSUN": "unpickles a cache file from the working folder that nothing verifies, and a pickle can run any code",
    "LSUNClass": "unpickles a cache file from the working folder that nothing verifies, and a pickle can run any code",
    "MovingMNIST": "holds videos",
    "PhotoTour": "holds pairs of patches",
    "UCF101": "holds videos",
    "VisionDataset": "is only a base of others",
}
_VERIFIES_PICKLES = {"CIFAR10", "CIFAR100"}
"""Their constructors compare every file with an MD5 sum in torchvision's code before they unpickle any."""
_NO_DOWNLOAD = {"LFWPeople", "StanfordCars"}
"""They take ``download=True`` and only raise an error."""
_NOT_OPTIONS = {
    "download": "t2v never downloads",
    "root": "it is an option of its own",
    **dict.fromkeys(("target_type", "target_types"), "labels are read as they lie in the dataset"),
    **dict.fromkeys(("transform", "target_transform", "transforms", "loader", "is_valid_file"), "it is Python code"),
}
_TRAIN = ("train", "trainval", "train-standard")
_VALIDATION = ("val", "valid")


@dataclass(frozen=True)
class DatasetClass:
    """A class of torchvision.datasets with the folder and the options to open it with."""

    name: str
    root: str | None
    options: Mapping[str, object]

    def __post_init__(self) -> None:
        names = _names()
        if self.name not in names:
            raise UnknownNameError("dataset of torchvision", self.name, names)
        reason = _REFUSED.get(self.name, "")
        if not reason and "pickle" in vars(sys.modules[self.cls.__module__]) and self.name not in _VERIFIES_PICKLES:
            reason = "may unpickle files that nothing verifies, and a pickle can run any code"
        if reason:
            raise ConfigError(f"source 'torchvision': {self.name} cannot be a source: it {reason}")
        known = self.parameters
        for option in self.options:
            if option in _NOT_OPTIONS:
                raise ConfigError(f"source 'torchvision': leave {option!r} out of `options`: {_NOT_OPTIONS[option]}")
            if option not in known:
                have = ", ".join(sorted(known.keys() - _NOT_OPTIONS.keys())) or "none"
                raise ConfigError(f"source 'torchvision': {self.name} has no option {option!r}; known: {have}")
        given = {*self.options, *({"root"} if self.root is not None else ()), *self._chosen_by_us}
        lacking = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in given]
        if lacking:
            where = "`root:`" if lacking == ["root"] else f"`options:` with {', '.join(lacking)}"
            raise ConfigError(f"source 'torchvision': {self.name} needs {where}")

    @property
    def cls(self) -> Any:
        """The class itself."""
        return getattr(_module(), self.name)

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What the constructor takes, those that it hands on to its base included."""
        found: dict[str, inspect.Parameter] = {}
        for base in self.cls.__mro__:
            if "__init__" not in vars(base):
                continue
            _, *own = inspect.signature(base.__init__).parameters.values()
            found = {**{p.name: p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}, **found}
            if not any(p.kind == p.VAR_KEYWORD for p in own):
                break
        return found

    @property
    def _chosen_by_us(self) -> tuple[str, ...]:
        """The parameter that chooses between train and test, unless the options fix it; none where there is none."""
        for name in ("train", "split"):
            if name in self.parameters:
                # EMNIST has both, and `split` there is another thing; `what` of QMNIST overrules `train`.
                return () if name in self.options or "what" in self.options else (name,)
        return ()

    def _arguments(self, part: str) -> dict[str, object]:
        chosen = {"train": part == "train", "split": part}
        out: dict[str, object] = {"root": self.root} if "root" in self.parameters else {}
        return {**out, **self.options, **{name: chosen[name] for name in self._chosen_by_us if part}}

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Each part by its name, with its dataset; one part without a name where the class has none.

        Raises:
            SourceError: the data are missing or damaged; the message has the line of Python that downloads them.
            MissingPackageError: a package that the class wants is not installed.
        """
        by = self._chosen_by_us
        if not by:
            yield "", self.open("")
        elif by == ("train",):
            for part in ("train", "test"):
                yield part, self.open(part)
        else:
            train = next((found for found in map(self._tried, _TRAIN) if found), None)
            if train is None:
                raise ConfigError(
                    f"source 'torchvision': {self.name} has no split of {', '.join(_TRAIN)}; name one in `options:`"
                )
            yield train
            for names in (("test",), _VALIDATION):
                found = next((found for found in map(self._tried, names) if found), None)
                if found is not None:
                    yield found

    def _tried(self, split: str) -> tuple[str, Any] | None:
        """One split; ``None`` where the class says that it has none of that name."""
        try:
            return split, self.cls(**self._arguments(split), **self._no_download)
        except Exception as error:
            if isinstance(error, ValueError) and "for argument split" in str(error):
                return None
            raise self._explained(error, split) from error

    @property
    def _no_download(self) -> dict[str, bool]:
        return {"download": False} if "download" in self.parameters else {}

    def open(self, part: str) -> Any:
        """The dataset of one part.

        Raises:
            SourceError: the data are missing or damaged.
            MissingPackageError: a package that the class wants is not installed.
        """
        if self.root is not None and "root" in self.parameters and not os.path.isdir(self.root):
            raise self._explained(FileNotFoundError(f"{self.root} is not a folder"), part or "train")
        try:
            return self.cls(**self._arguments(part), **self._no_download)
        except Exception as error:
            raise self._explained(error, part) from error

    def how_to_get(self, part: str) -> str:
        """What to do about missing data: the line of Python that downloads them, where there is one."""
        if "download" not in self.parameters or self.name in _NO_DOWNLOAD:
            return f"torchvision does not download it; the documentation of torchvision.datasets.{self.name} says more"
        arguments = {**self._arguments(part), "download": True}
        call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"download it in Python: import torchvision; torchvision.datasets.{self.name}({call})"

    def _explained(self, error: Exception, part: str) -> SourceError | MissingPackageError:
        if isinstance(error, ImportError) or re.search(r"\bh5py is not found\b", str(error)):
            return MissingPackageError(f"source 'torchvision': {self.name} needs another package: {error}")
        what = f"{self.name}{f' ({part})' if part else ''} cannot be opened"
        alone = "; or read one part alone with `options: {split: NAME}`" if self._chosen_by_us == ("split",) else ""
        return SourceError(f"torchvision: {what}: {type(error).__name__}: {error}; {self.how_to_get(part)}{alone}")


def _module() -> Any:
    from torchvision import datasets  # torchvision takes a second to import

    return datasets


def _names() -> list[str]:
    return [name for name in _module().__all__ if inspect.isclass(getattr(_module(), name, None))]


def _first(dataset: Any, names: Sequence[str]) -> Any:
    return next((value for name in names if (value := getattr(dataset, name, None)) is not None), None)


def class_names(dataset: Any) -> list[str]:
    """Names of the classes by their numbers, all different; none where the dataset has none."""
    found = _first(dataset, ("classes", "all_categories", "categories", "_characters"))
    numbers = getattr(dataset, "class_to_idx", None)
    if found is None and isinstance(numbers, Mapping):
        found = sorted(numbers, key=lambda name: numbers[name])
    names = [", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name) for name in found or ()]
    # ImageNet has two cranes.
    count = Counter(names)
    return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names)]


def image_paths(dataset: Any) -> list[str] | None:
    """Paths of the images, where the dataset keeps files; read without opening any."""
    kind, root = type(dataset).__name__, Path(str(getattr(dataset, "root", "") or ""))
    if kind == "CelebA":
        folder = root / dataset.base_folder / "img_align_celeba"
        return [f"{folder}/{name}" for name in dataset.filename]
    if kind == "INaturalist":
        return [f"{root}/{dataset.all_categories[number]}/{name}" for number, name in dataset.index]
    if kind == "Omniglot":
        folders = [f"{dataset.target_folder}/{name}" for name in dataset._characters]
        return [f"{folders[number]}/{name}" for name, number in dataset._flat_character_images]
    if kind == "Caltech101":
        folders = [f"{root}/101_ObjectCategories/{name}" for name in dataset.categories]
        return [f"{folders[y]}/image_{i:04d}.jpg" for y, i in zip(dataset.y, dataset.index, strict=True)]
    if kind == "Caltech256":
        folders = [f"{root}/256_ObjectCategories/{name}" for name in dataset.categories]
        return [f"{folders[y]}/{y + 1:03d}_{i:04d}.jpg" for y, i in zip(dataset.y, dataset.index, strict=True)]
    pairs = _pairs(dataset)
    found = [pair[0] for pair in pairs] if pairs else _first(dataset, ("_image_files", "_images", "data"))
    is_files = isinstance(found, list) and bool(found) and all(isinstance(path, (str, os.PathLike)) for path in found)
    return [os.fspath(path) for path in found] if is_files else None


def _pairs(dataset: Any) -> list[tuple[Any, Any]] | None:
    found = _first(dataset, ("samples", "_samples", "imgs", "_flat_character_images"))
    is_pairs = isinstance(found, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in found)
    return found if is_pairs else None


def targets(dataset: Any) -> Sequence[Any] | NDArray[Any] | None:
    """The class of each image as the dataset keeps it, or CelebA's attributes ``[N, 40]``; ``None`` if it does not."""
    kind = type(dataset).__name__
    if kind == "CelebA":
        return np.asarray(dataset.attr)
    if kind == "INaturalist":
        return [number for number, _ in dataset.index]
    found = _first(dataset, ("targets", "labels", "_labels", "y"))
    pairs = _pairs(dataset)
    if found is None and pairs:
        found = [pair[1] for pair in pairs]
    if found is None:
        return None
    if kind == "QMNIST":
        found = found[:, 0]
    return found if isinstance(found, (list, tuple)) else np.asarray(found)
