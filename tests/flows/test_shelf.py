"""Experts from outside on the shelf of a pipeline, trainings that are killed, and experts that are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save, save_file
from typer.testing import CliRunner

import flows._units
from flows._keys import ERROR_MATRIX
from flows._registered import configured
from flows._stage import StageFailed, StageParams
from flows._store import Store
from flows._units import evaluate_unit, train_unit
from flows.cli import app
from flows.evaluate_experts import evaluate_experts
from flows.train_experts import train_experts
from t2v_core.architectures import build_network
from t2v_core.config import EvaluationSpec
from t2v_core.errors import ConfigError
from t2v_core.finetune import State
from t2v_core.library import TaskLibrary

RESNET = "timm/resnet10t"


def t2v(params: StageParams, *args: str) -> Any:
    command = ["experts", "--config", params.config, "--store", params.store, *args]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def weights(folder: Path, seed: int = 5, **changes: float) -> str:
    network = build_network(RESNET, "random", seed, image_size=32)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    for name, value in changes.items():
        state[name.replace("__", ".")].fill_(value)
    save_file(state, folder / f"resnet-{seed}.safetensors")
    return str(folder / f"resnet-{seed}.safetensors")


def test_an_expert_from_outside_is_tried_on_every_task(params: StageParams, tmp_path: Path) -> None:
    file = weights(tmp_path)
    added = t2v(
        params, "add", "mine", "--architecture", RESNET, "--weights", file, "--image-size", "32",
        "--trained-on", "digits/*", "--licence", "CC0-1.0",
    )  # fmt: skip
    assert added.exit_code == 0, added.output
    assert "mine added: 512 features at 32 pixels" in added.output
    Path(file).unlink()  # workers elsewhere never had it
    assert "mine: added, not tried yet" in t2v(params).output
    assert t2v(params, "check").exit_code == 0
    train_experts(params)
    evaluate_experts(params)
    store = Store(params.store)
    shelf = {e["name"]: e for e in store.read_json("latest/mini/experts.json")["experts"]}
    assert list(shelf) == ["generic", "digits-expert", "mine"]
    assert all(t.startswith("digits/") for t in shelf["mine"]["tasks"])
    assert len(shelf["mine"]["tasks"]) == 3
    cells = store.read_table(ERROR_MATRIX).to_pandas()
    of_mine = cells[cells["expert"] == "mine"]
    assert set(of_mine["task_id"]) == set(cells["task_id"])
    assert of_mine["error"].between(0, 1).all()
    listed = t2v(params).output
    assert "CC0-1.0" in listed
    assert shelf["mine"]["extractor"]["digest"] in listed
    # The same again is no change; taken away, it is gone from the next run.
    again = t2v(params, "add", "mine", "--architecture", RESNET, "--weights", weights(tmp_path), "--image-size", "32",
                "--trained-on", "digits/*", "--licence", "CC0-1.0")  # fmt: skip
    assert "was there already" in again.output
    assert t2v(params, "remove", "mine").exit_code == 0
    assert [e.name for e in configured(params.config, params.store)[0].experts.external] == []


def test_other_weights_under_a_pinned_name_are_left_out_and_said(params: StageParams, tmp_path: Path) -> None:
    from t2v_core.config import load_config

    path = Path(params.config)
    import yaml

    content = yaml.safe_load(path.read_text())
    good = {"architecture": RESNET, "weights": weights(tmp_path, 5), "image_size": 32}
    content["experts"]["external"] = [
        {"name": "pinned", **good, "digest": "0123456789abcdef"},
        {"name": "diverged", **good, "weights": weights(tmp_path, 6, bn1__bias=float("nan"))},
        {"name": "nowhere", **good, "weights": "no/such.safetensors"},
        {"name": "fine", **good},
    ]
    path.write_text(yaml.safe_dump(content))
    assert load_config(path).experts.external[0].digest
    result = train_experts(params)
    said = " ".join(result.notes)
    assert "pinned left out" in said
    assert "0123456789abcdef is pinned" in said
    assert "diverged left out" in said
    assert "not finite" in said
    assert "nowhere left out" in said
    shelf = Store(params.store).read_json("latest/mini/experts.json")["experts"]
    assert [e["name"] for e in shelf] == ["generic", "digits-expert", "fine"]
    bad = t2v(params, "check")
    assert bad.exit_code == 1
    assert "nowhere" in bad.output


def test_an_expert_may_not_take_a_name_of_the_config(params: StageParams) -> None:
    answer = t2v(params, "add", "digits-expert", "--architecture", RESNET, "--weights", "random")
    assert isinstance(answer.exception, ConfigError)
    assert "of its own; choose another name" in str(answer.exception)


def unit_payload(params: StageParams) -> tuple[Store, dict[str, Any]]:
    """The payload of the one training, as the flow sends it."""
    sent: list[dict[str, Any]] = []
    from flows import train_experts as module

    original = module.run_units

    def caught(run: Any, stage: str, function: Any, units: Any, **options: Any) -> Any:
        sent.extend(u.payload for u in units)
        return original(run, stage, function, [], **options)

    module.run_units = caught
    try:
        with pytest.raises(Exception, match="expert.json"):
            train_experts(params)  # it was not trained, so that its record is missing
    finally:
        module.run_units = original
    return Store(params.store), sent[0]


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(
    params: StageParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, payload = unit_payload(params)
    payload["expert"]["training"] |= {"steps": 6, "checkpoint_every": 2}
    whole = {**payload, "key": "experts/whole"}
    train_unit(store.url, whole)

    class Killed(BaseException):
        pass

    original, saved = Store.replace, []

    def killed(self: Store, key: str, data: bytes) -> None:
        original(self, key, data)
        saved.append(key)
        if len(saved) == 2:
            raise Killed

    monkeypatch.setattr(flows._units.Store, "replace", killed)
    with pytest.raises(Killed):
        train_unit(store.url, payload)
    monkeypatch.undo()
    folder = payload["key"]
    assert saved == [f"{folder}/checkpoint.safetensors"] * 2
    assert len(load(store.read(saved[0]))["losses"]) == 4
    answer = train_unit(store.url, payload)
    assert any("went on from step 4" in message for _, message in answer["records"])
    for name in ("weights.safetensors", "heads.safetensors"):
        assert store.read(f"{folder}/{name}") == store.read(f"experts/whole/{name}")
    assert not store.exists(f"{folder}/checkpoint.safetensors")


@pytest.mark.parametrize("damage", ["half", "other", "text"])
def test_a_damaged_checkpoint_is_said_and_training_starts_over(params: StageParams, damage: str) -> None:
    store, payload = unit_payload(params)
    whole = {**payload, "key": "experts/whole"}
    train_unit(store.url, whole)
    other: State = {"now/network/x": torch.zeros(3)}
    data = {"half": save(dict(other))[:20], "other": save(dict(other)), "text": b"not tensors at all"}[damage]
    store.put(f"{payload['key']}/checkpoint.safetensors", data)
    answer = train_unit(store.url, payload)
    assert any("was damaged and is deleted, training starts over" in message for _, message in answer["records"])
    assert store.read(f"{payload['key']}/weights.safetensors") == store.read("experts/whole/weights.safetensors")


def test_a_trained_expert_whose_features_are_nan_loses_its_cells_only(params: StageParams) -> None:
    """Its weights were damaged in the store after the training: a unit fails with the reason, the others go on."""
    train_experts(params)
    store = Store(params.store)
    shelf = store.read_json("latest/mini/experts.json")
    key = shelf["experts"][1]["extractor"]["weights"].removeprefix("store:")
    state = load(store.read(key))
    state["conv_stem.weight"] = torch.full_like(state["conv_stem.weight"], float("nan"))
    store.replace(key, save(state))
    with pytest.raises(StageFailed, match=r"2 of 4 units failed.*digits-expert on digits.*not finite"):
        evaluate_experts(params)
    blocks = store.list("units/error_matrix")
    assert len(list(blocks)) == 2
    assert all("generic" in key for key in store.list("units/error_matrix"))


def test_a_task_that_fails_in_a_block_is_a_row_with_its_reason(params: StageParams) -> None:
    """Features of the fives are NaN in the store: the tasks that use them fail, the one that does not is judged."""

    train_experts(params)  # makes the generic expert's features of the digits
    store = Store(params.store)
    (key,) = [k for k in store.list("features") if "digits" in k]
    values = load_arrays(store.read(key))["features"].copy()
    prefix = store.read_json("latest/mini/sources.json")["sources"]["digits"]
    digits = np.array(store.read_table(f"{prefix}/annotations.parquet")["digit"].to_pylist())
    values[digits == "5"] = np.nan
    store.replace(key, save_arrays({"features": values}))
    library = TaskLibrary.from_table(store.read_table(store.read_json("latest/mini/library.json")["manifest"]))
    tasks = [t for t in library.tasks if t.spec.source == "digits"]
    change = {"task_id": "digits/two", "classes": ("0", "1"), "values": (("0",), ("1",)), "class_lineage": ()}
    spared = tasks[0].spec.model_copy(update=change)
    record = store.read_json("latest/mini/experts.json")["experts"][0]
    payload = {
        "key": "units/error_matrix/generic/digits.parquet",
        "expert": "generic",
        "digest": record["digest"],
        "extractor": record["extractor"],
        "prefix": prefix,
        "tasks": [t.spec.model_dump(mode="json") for t in tasks] + [spared.model_dump(mode="json")],
        "task_fingerprints": [t.fingerprint for t in tasks] + ["two"],
        "evaluation": EvaluationSpec().model_dump(mode="json"),
    }
    evaluate_unit(store.url, payload)
    cells = store.read_table(payload["key"]).to_pandas().set_index("task_id")
    assert cells.loc["digits/digit", "reason"] != ""
    assert "not finite" in cells.loc["digits/digit", "reason"]
    assert np.isnan(cells.loc["digits/digit", "error"])
    assert cells.loc["digits/two", "reason"] == ""
    assert cells.loc["digits/two", "error"] < 0.3
