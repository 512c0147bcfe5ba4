"""Tasks and experts that people add to a pipeline: kept in the store, merged into the config whenever it is read."""

from __future__ import annotations

from pydantic import Field

from flows._format import check_format
from flows._settings import store_url
from flows._store import Store
from t2v_core.config import ExternalExpert, FrozenModel, PipelineConfig, SourceSpec, TaskRule, load_config
from t2v_core.errors import ConfigError
from t2v_core.fingerprints import readable

__all__ = [
    "Registration",
    "added_experts",
    "check_free",
    "configured",
    "register",
    "register_expert",
    "registered",
    "unregister",
    "unregister_expert",
]


class Registration(FrozenModel):
    """A source that was added, with the rules that cut its tasks."""

    source: SourceSpec = Field(description="The dataset.")
    rules: list[TaskRule] = Field(min_length=1, description="Its tasks.")


def _folder(name: str) -> str:
    return f"registered/{readable(name)}"


def _put(store: Store, folder: str, name: str, value: FrozenModel) -> bool:
    """Write a registration; whether it changed anything."""
    key, new = f"{folder}/{readable(name)}.json", value.model_dump(mode="json")
    if store.exists(key) and store.read_json(key) == new:
        return False
    store.replace_json(key, new)
    return True


def _drop(store: Store, config: PipelineConfig, folder: str, what: str, name: str, there: list[str]) -> None:
    if name not in there:
        raise ConfigError(f"no {what} {name!r} was added to {config.name!r}; added: {', '.join(there) or 'none'}")
    store.delete(f"{folder}/{readable(name)}.json")


def registered(store: Store, name: str) -> list[Registration]:
    """What was added to a config, by name."""
    return [Registration.model_validate(store.read_json(key)) for key in store.list(_folder(name))]


def check_free(config: PipelineConfig, source: str) -> None:
    """Whether a source of this name may be added.

    Raises:
        ConfigError: the config itself has one of that name.
    """
    if source in [s.name for s in config.sources]:
        raise ConfigError(f"the config {config.name!r} has a source {source!r} of its own; choose another name")


def register(store: Store, config: PipelineConfig, new: Registration) -> bool:
    """Add a source to a config; one that was added under the same name before is replaced.

    Returns:
        Whether anything changed.

    Raises:
        ConfigError: the config itself has a source of that name.
    """
    check_free(config, new.source.name)
    return _put(store, _folder(config.name), new.source.name, new)


def unregister(store: Store, config: PipelineConfig, source: str) -> None:
    """Take a source away again. Its embeddings stay in the store.

    Raises:
        ConfigError: it was not added.
    """
    _drop(
        store, config, _folder(config.name), "source", source, [r.source.name for r in registered(store, config.name)]
    )


def _own_experts(config: PipelineConfig) -> set[str]:
    return {*(e.name for e in config.experts.external), *(r.name for r in config.experts.rules)}


def _experts(name: str) -> str:
    return f"registered-experts/{readable(name)}"


def added_experts(store: Store, name: str) -> list[ExternalExpert]:
    """The experts that were added to a config, by name."""
    return [ExternalExpert.model_validate(store.read_json(key)) for key in store.list(_experts(name))]


def register_expert(store: Store, config: PipelineConfig, new: ExternalExpert) -> bool:
    """Add an expert to a config; one that was added under the same name before is replaced.

    Returns:
        Whether anything changed.

    Raises:
        ConfigError: the config itself has an expert of that name.
    """
    if new.name in _own_experts(config):
        raise ConfigError(f"the config {config.name!r} has an expert {new.name!r} of its own; choose another name")
    return _put(store, _experts(config.name), new.name, new)


def unregister_expert(store: Store, config: PipelineConfig, name: str) -> None:
    """Take an expert away again. What is known of it stays in the store.

    Raises:
        ConfigError: it was not added.
    """
    _drop(store, config, _experts(config.name), "expert", name, [e.name for e in added_experts(store, config.name)])


def configured(path: str, given_store: str = "") -> tuple[PipelineConfig, Store]:
    """A config file together with what was added to it, and its store.

    Raises:
        ConfigError: the config is wrong, or an added source or expert has the name of one of the config's.
    """
    config = load_config(path)
    store = Store(store_url(given_store, config.name))
    check_format(store)
    experts = added_experts(store, config.name)
    if experts:
        twice = [e.name for e in experts if e.name in _own_experts(config)]
        if twice:
            raise ConfigError(
                f"expert {twice[0]!r} is in {path} and was added by `t2v experts add` as well; rename one, or "
                f"`t2v experts remove {twice[0]}`"
            )
        shelf = config.experts.model_copy(update={"external": [*config.experts.external, *experts]})
        config = config.model_copy(update={"experts": shelf})
    added = registered(store, config.name)
    if not added:
        return config, store
    own = {s.name for s in config.sources}
    double = [r.source.name for r in added if r.source.name in own]
    if double:
        raise ConfigError(
            f"source {double[0]!r} is in {path} and was added by `t2v tasks add` as well; "
            f"rename one, or `t2v tasks remove {double[0]}`"
        )
    # Optional: data of one team that are gone must not stop the night of all others.
    sources = [*config.sources, *(r.source.model_copy(update={"optional": True}) for r in added)]
    library = config.library.model_copy(
        update={"rules": [*config.library.rules, *(rule for r in added for rule in r.rules)]}
    )
    return config.model_copy(update={"sources": sources, "library": library}), store
