"""Sources: where tasks come from. `SOURCES` holds a factory per kind; `open_source` makes one from plain options."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from t2v_core.errors import ConfigError
from t2v_core.registry import Registry
from t2v_core.sources.base import LabelValue, RawImage, Row, Source, SourceInfo, each_image
from t2v_core.sources.cub import CubSource
from t2v_core.sources.deepfashion import DeepFashionSource
from t2v_core.sources.digits import DigitsSource
from t2v_core.sources.emoji_set import EmojiSetSource
from t2v_core.sources.fashion_mnist import FashionMnistSource
from t2v_core.sources.folder import FolderSource
from t2v_core.sources.huggingface import HuggingFaceSource
from t2v_core.sources.imaterialist import IMaterialistSource
from t2v_core.sources.inaturalist import INaturalistSource
from t2v_core.sources.manifest import ManifestSource
from t2v_core.sources.mnist_5k import Mnist5kSource
from t2v_core.sources.openmoji import OpenMojiSource
from t2v_core.sources.torchvision_dataset import TorchvisionSource

__all__ = ["SOURCES", "LabelValue", "RawImage", "Row", "Source", "SourceInfo", "each_image", "open_source"]

SOURCES: Registry[Callable[..., Source]] = Registry("source")
"""Kind of source to its factory; the factory's parameters are the options of that kind."""

SOURCES.add("cub", CubSource)
SOURCES.add("deepfashion", DeepFashionSource)
SOURCES.add("digits", DigitsSource)
SOURCES.add("emoji_set", EmojiSetSource)
SOURCES.add("fashion_mnist", FashionMnistSource)
SOURCES.add("folder", FolderSource)
SOURCES.add("huggingface", HuggingFaceSource)
SOURCES.add("imaterialist", IMaterialistSource)
SOURCES.add("inaturalist", INaturalistSource)
SOURCES.add("manifest", ManifestSource)
SOURCES.add("mnist_5k", Mnist5kSource)
SOURCES.add("openmoji", OpenMojiSource)
SOURCES.add("torchvision", TorchvisionSource)


def open_source(kind: str, /, **options: object) -> Source:
    """A source of one kind; its data are looked for when they are first needed.

    Args:
        kind: a name in `SOURCES`.
        **options: of that kind, as they stand in a config file.

    Raises:
        UnknownNameError: no such kind.
        ConfigError: an option that the kind has not, one that it lacks, or a value out of range.
    """
    factory = SOURCES[kind]
    known = inspect.signature(factory).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise ConfigError(f"source {kind!r} has no option {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    lacking = sorted(n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in options)
    if lacking:
        raise ConfigError(f"source {kind!r} needs the option {', '.join(lacking)}")
    return factory(**options)
