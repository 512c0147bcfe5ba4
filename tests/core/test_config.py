"""Configuration: what is wrong is said, with the nearest right word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from t2v_core import config
from t2v_core.config import FrozenModel, LibrarySpec, PipelineConfig, TaskRule, load_config
from t2v_core.errors import ConfigError
from t2v_core.sources import SOURCES

DEMO = Path(__file__).parents[2] / "examples" / "demo.yaml"


def small() -> dict[str, Any]:
    return {
        "name": "run",
        "sources": [{"name": "digits"}],
        "library": {"rules": [{"source": "digits", "label": "digit"}]},
    }


def written(folder: Path, content: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_demo_loads() -> None:
    demo = load_config(DEMO)
    assert demo.name == "demo"
    assert demo.probe.name == "efficientnet_lite0"
    assert {r.source for r in demo.library.rules} <= {s.name for s in demo.sources}
    assert load_config(str(DEMO)) == demo


def test_defaults_fill_what_is_not_said(tmp_path: Path) -> None:
    loaded = load_config(written(tmp_path, small()))
    assert loaded == PipelineConfig(**small())
    assert loaded.sources[0].loader == "digits"
    assert (
        loaded.model_copy(update={"sources": [loaded.sources[0].model_copy(update={"kind": "folder"})]})
        .sources[0]
        .loader
        == "folder"
    )
    assert PipelineConfig.model_validate_json(loaded.model_dump_json()) == loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": {"trainig": {}}}, "unknown key 'experts.trainig'; did you mean 'training'"),
        ({"embeding": {}}, "unknown key 'embeding'; did you mean 'embedding'"),
        ({"embedding": {"head": {"tolerence": 1}}}, "unknown key 'embedding.head.tolerence'; did you mean 'tolerance'"),
        ({"sources": [{"name": "digits", "test_shar": 0.1}]}, "'sources.0.test_shar'; did you mean 'test_share'"),
        ({"probe": {"zzz": 1}}, "unknown key 'probe.zzz'; known keys: name, weights, image_size, seed"),
        ({"name": None}, "name: Input should be a valid string (got None)"),
        ({"library": {}}, "missing key 'library.rules'"),
        ({"library": {"rules": []}}, "library.rules: "),
        ({"library": {"rules": [{"source": "moon", "label": "x"}]}}, "names source 'moon'; the sources are ['digits']"),
        ({"sources": [{"name": "digits"}, {"name": "digits"}]}, "source names must differ; got ['digits'] twice"),
        ({"sources": [{"name": "a/b"}]}, "sources.0.name: "),
        ({"name": "../run"}, "name: "),
        ({"experts": {"rules": [{"name": "generic", "tasks": ["a"]}]}}, "got ['generic'] twice"),
        ({"experts": {"rules": [{"name": "e", "tasks": ["a"]}, {"name": "e", "tasks": ["b"]}]}}, "got ['e'] twice"),
        ({"experts": {"rules": [{"name": "e", "tasks": []}]}}, "experts.rules.0.tasks: "),
        ({"selection": {"floor": 0}}, "selection.floor: Input should be greater than 0 (got 0)"),
        ({"model2vec": {"labels": "medium"}}, "model2vec.labels: Input should be 'hard' or 'soft' (got 'medium')"),
    ],
)
def test_problems_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, {**small(), **change})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'probe.b'.*; unknown key 'a'"):
        load_config(written(tmp_path, {**small(), "a": 1, "probe": {"b": 2}}))


def test_grouped_rules_want_groups() -> None:
    with pytest.raises(ValidationError, match="wants `name` and at least two `groups`"):
        TaskRule(source="s", label="x", kind="grouped", name="n", groups={"a": ["1"]})
    with pytest.raises(ValidationError, match="wants `name`"):
        TaskRule(source="s", label="x", kind="grouped", groups={"a": ["1"], "b": ["2"]})
    with pytest.raises(ValidationError, match="belong to kind grouped, got kind multiclass"):
        TaskRule(source="s", label="x", groups={"a": ["1"], "b": ["2"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n- 2", "holds list, wanted a mapping"),
        ("", "holds NoneType"),
        ("hello", "holds str"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, content))


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(written(tmp_path, "name: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("path", ["nowhere.yaml", "."])
def test_missing_file(path: str) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*; wanted a YAML file such as examples/demo.yaml"):
        load_config(path)


MODELS = [m for m in vars(config).values() if isinstance(m, type) and issubclass(m, BaseModel) and m is not BaseModel]


@pytest.mark.parametrize("model", MODELS)
def test_contract_of_every_model(model: type[FrozenModel]) -> None:
    """Frozen, closed, and every field is documented (the docs become the form in the Prefect UI)."""
    assert issubclass(model, FrozenModel)
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"
    assert [n for n, f in model.model_fields.items() if not f.description] == []
    assert model is FrozenModel or model.__name__ in config.__all__


def test_frozen() -> None:
    spec = LibrarySpec(rules=[TaskRule(source="s", label="x")])
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 3


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_are_whole(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert {rule.source for rule in config.library.rules} <= {source.name for source in config.sources}
    assert config.experts.rules or config.experts.collections
    for source in config.sources:
        SOURCES[source.loader]
    wanted = {"paper": 156, "paper-sparse": 156, "rehearsal": 156}.get(path.stem, 0)
    assert sum(collection.largest for collection in config.experts.collections) == wanted
