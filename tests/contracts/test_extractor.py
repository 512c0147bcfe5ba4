"""What every expert from outside keeps to, wherever it is from; and what is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from t2v_core.architectures import architecture_of, build_network
from t2v_core.config import ExpertsSpec, ExternalExpert
from t2v_core.errors import ProbeError, UnknownNameError, WeightsError
from t2v_core.extractors import FeatureExtractor, check_extractor, extractor_of_network, extractor_of_program
from t2v_core.features import extract_features

SIZE = 32


def without_head(name: str, seed: int = 0) -> nn.Module:
    """The framework's own network, its head taken off by hand, nothing folded."""
    network = build_network(name, "random", seed, image_size=SIZE)
    parent, _, child = architecture_of(name).head.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network.eval()


def program(network: nn.Module, *, any_batch: bool = True) -> bytes:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if any_batch else None
    exported = torch.export.export(network, (torch.randn(2, 3, SIZE, SIZE),), dynamic_shapes=shapes)
    sink = io.BytesIO()
    torch.export.save(exported, sink)
    return sink.getvalue()


def by_name(name: str) -> Callable[[Path], tuple[FeatureExtractor, nn.Module]]:
    def make(_: Path) -> tuple[FeatureExtractor, nn.Module]:
        return extractor_of_network(name, "random", image_size=SIZE), without_head(name)

    return make


def from_file(suffix: str) -> Callable[[Path], tuple[FeatureExtractor, nn.Module]]:
    def make(folder: Path) -> tuple[FeatureExtractor, nn.Module]:
        network, file = without_head("resnet18", seed=3), folder / f"weights{suffix}"
        save_file(network.state_dict(), file) if suffix == ".safetensors" else torch.save(network.state_dict(), file)
        return extractor_of_network("resnet18", str(file), image_size=SIZE), network

    return make


def from_program(_: Path) -> tuple[FeatureExtractor, nn.Module]:
    network = without_head("torchvision/mobilenet_v3_small")
    return extractor_of_program(program(network), "mine.pt2", image_size=SIZE), network


KINDS = {
    "registered": by_name("efficientnet_lite0"),
    "torchvision": by_name("torchvision/shufflenet_v2_x0_5"),
    "timm": by_name("timm/resnet10t"),
    "safetensors": from_file(".safetensors"),
    "pt": from_file(".pt"),
    "program": from_program,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str, tmp_path: Path) -> None:
    made, own = KINDS[kind](tmp_path)
    check_extractor(made, made.digest)
    images = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
    got = extract_features(made, images, batch_size=3)
    with torch.no_grad():
        wanted = own(made.transform.to_tensor(images)).numpy()
    assert got.shape == (7, made.n_features)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(extract_features(made, images[:1]), got[:1], rtol=1e-3, atol=1e-4 * np.abs(got).max())
    again, _ = KINDS[kind](tmp_path)
    if kind != "program":  # an export is not the same bytes twice
        assert (again.digest, again.identity) == (made.digest, made.identity)
    assert len(made.digest) == len(made.identity) == 16
    with pytest.raises(WeightsError, match="is pinned"):
        check_extractor(made, "0" * 16)


def test_digest_tells_weights_and_identity_what_is_done_to_images() -> None:
    one = extractor_of_network("resnet18", "random", image_size=SIZE)
    other = extractor_of_network("resnet18", "random", image_size=SIZE, seed=1)
    grey = extractor_of_network("resnet18", "random", image_size=SIZE, mean=(0.5, 0.5, 0.5))
    assert one.digest != other.digest
    assert one.digest == grey.digest
    assert len({one.identity, other.identity, grey.identity}) == 3


def test_features_that_are_not_finite_are_refused() -> None:
    network = without_head("resnet18")
    with torch.no_grad():
        network.bn1.bias.fill_(float("inf"))
    broken = FeatureExtractor("mine", "0" * 16, network, 512, extractor().transform, torch.device("cpu"))
    with pytest.raises(ProbeError, match="not finite"):
        check_extractor(broken)


def test_features_that_depend_on_the_batch_are_refused() -> None:
    network = without_head("resnet18").train()
    loose = FeatureExtractor("mine", "0" * 16, network, 512, extractor().transform, torch.device("cpu"))
    with pytest.raises(ProbeError, match="depend on the others in the batch"):
        check_extractor(loose)


def extractor() -> FeatureExtractor:
    return extractor_of_network("resnet18", "random", image_size=SIZE)


def test_unknown_names_suggest() -> None:
    with pytest.raises(UnknownNameError, match="torchvision/resnet34"):
        extractor_of_network("torchvision/resnet43")
    with pytest.raises(UnknownNameError, match="torchvision/mobilenet_v3_small"):
        extractor_of_network("mobilenet_v3_small")


def test_a_network_without_a_linear_head_is_an_error() -> None:
    with pytest.raises(ProbeError, match="no linear layer for a head"):
        extractor_of_network("torchvision/squeezenet1_0", "random")


# Programs


@pytest.fixture(scope="module")
def small() -> bytes:
    return program(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def rewritten(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return sink.getvalue()


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_a_program_with_a_pickle_is_refused_and_not_run(small: bytes, tmp_path: Path) -> None:
    sink = io.BytesIO()
    torch.save(Evil(str(tmp_path / "pwned")), sink)

    def change(name: str, data: bytes) -> bytes:
        return sink.getvalue() if "/sample_inputs/" in name and name.endswith(".pt") else data

    changed = rewritten(small, change)
    assert changed != rewritten(small, lambda _, data: data)
    with pytest.raises(WeightsError, match="pickled objects"):
        extractor_of_program(changed, "evil.pt2", image_size=SIZE)
    assert not (tmp_path / "pwned").exists()


def test_a_program_whose_weights_are_pickled_is_refused(small: bytes, tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(str(tmp_path / "pwned")))

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(data)
            for entry in config["config"].values():
                entry["use_pickle"] = True
            return json.dumps(config).encode()
        return evil if "/data/weights/weight" in name else data

    with pytest.raises(WeightsError, match="pickled objects"):
        extractor_of_program(rewritten(small, change), "evil.pt2", image_size=SIZE)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "no program of torch.export"), (b"PK", "no program"), (b"\x80\x04K\x01.", "no program")]
)
def test_what_is_no_program(data: bytes, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        extractor_of_program(data, "mine.pt2", image_size=SIZE)


def test_a_zip_of_something_else_is_no_program() -> None:
    sink = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, sink)
    with pytest.raises(WeightsError, match="it lists no weights"):
        extractor_of_program(sink.getvalue(), "weights.pt", image_size=SIZE)


def test_a_program_for_one_size_of_batch_says_how_to_export_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ProbeError, match=r"does not run on 5 images .*Dim.DYNAMIC"):
        extractor_of_program(program(network, any_batch=False), "mine.pt2", image_size=SIZE)


def test_a_program_with_maps_instead_of_features() -> None:
    with pytest.raises(ProbeError, match=r"gives \(2, 4, 30, 30\) for 2 images; wanted features of shape \(2, D\)"):
        extractor_of_program(program(nn.Conv2d(3, 4, 3)), "mine.pt2", image_size=SIZE)


# Config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "a"}, "either `architecture` or `program`"),
        ({"name": "a", "architecture": "resnet18", "program": "x.pt2"}, "either `architecture` or `program`"),
        ({"name": "a", "program": "x.pt2"}, "pin it with `digest`"),
        ({"name": "generic", "architecture": "resnet18"}, "is kept for"),
        ({"name": "a", "architecture": "resnet18", "digest": "abc"}, "pattern"),
    ],
)
def test_what_a_config_may_not_say(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExternalExpert.model_validate(given)


def test_names_of_experts_differ() -> None:
    one = {"name": "a", "architecture": "resnet18"}
    with pytest.raises(ValueError, match="expert names must differ"):
        ExpertsSpec.model_validate({"external": [one, copy.copy(one)]})
