"""Compose the configs of a sweep: Hydra composes each choice of config groups once; plain values are set in the result.

Composing takes a tenth of a second, setting a value a tenth of a millisecond. The result equals that of composing each
run by itself: where that is not certain beforehand, the overrides are applied and converted anew for the run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache, cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import Container, DictConfig, ListConfig, OmegaConf, ValueNode, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from truba_runner.config.composing import hydra_private
from truba_runner.config.composing.compose import as_typed, selector, typed
from truba_runner.config.composing.hydra_errors import in_words
from truba_runner.config.omegaconf_private import leaf_at, path_of, set_leaf
from truba_runner.config.schema import Experiment
from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.sweeps.followers import followers_of, overlap

Path = tuple[str, ...]


@dataclass(frozen=True)
class Composed:
    """Config of one run of a sweep. `values` are its values of the swept keys, by key."""

    experiment: Experiment
    # How the user chose the experiment.
    selector: str
    values: Mapping[str, Any]


class Composer:
    """Composer of the runs of one sweep."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        """`master` is what Hydra composed from the command line."""
        self._loader, self._master = loader, master
        self._hydra_overrides = as_typed(master.hydra.overrides.hydra)
        self._lines: dict[str, _Line] = {}
        self._bases: dict[tuple[str, ...], _Base | Problem] = {}
        given = OverridesParser.create().parse_overrides(as_typed(master.hydra.overrides.task))
        # If a key is given twice, the last one counts.
        swept = {one.key_or_group: one.is_sweep_override() for one in given}
        self._constant = {key for key, sweeps in swept.items() if not sweeps}

    def knows(self, override: Override) -> None:
        """Register an override that is parsed already, by its text in `input_line`, to save parsing it again."""
        self._lines[str(override.input_line)] = self._line(override)

    def __call__(self, overrides: Sequence[str], number: int = 0) -> Composed:
        """Compose the run of these overrides; `number` is its index in the sweep, `${hydra:job.num}`.

        Raises:
            truba_runner.errors.Refused: a key, a type or a choice is wrong.
        """
        lines = [self._lines.get(text) or self._parsed(text) for text in overrides]
        base = self._base([line for line in lines if line.composes])
        values = {line.key: line.value for line in lines if line.key not in self._constant}
        with base.numbered(number):
            return Composed(base.experiment([line for line in lines if not line.composes]), base.selector, values)

    def all_but_the_wrong(self, overrides: Sequence[str]) -> tuple[DictConfig | None, list[Problem]]:
        """Return the config with all overrides that can be applied, and the problems of the others.

        The config is None if the choice of a config group is wrong, as the other overrides depend on it. Use a composer
        for one command line only: the values stay set in its cached config.
        """
        problems: list[Problem] = []
        wrong: dict[str, Problem] = {}
        lines = []
        for text in overrides:
            try:
                lines.append(self._parsed(text))
            except Refused as refused:
                problems += refused.problems
        lines = [line for line in lines if not line.override.is_sweep_override()]
        try:
            config = self._base([line for line in lines if line.composes]).config
        except Refused as refused:
            return None, [*problems, *refused.problems]
        with suppress(Refused):
            _apply([line for line in lines if not line.composes], config, wrong)
        return config, [*problems, *wrong.values()]

    def _parsed(self, text: str) -> _Line:
        with in_words(text):
            (override,) = OverridesParser.create(config_loader=self._loader).parse_overrides([text])
        self._lines[text] = self._line(override)
        return self._lines[text]

    def _line(self, override: Override) -> _Line:
        key, value = override.key_or_group, override.value()
        # Hydra's own rule: a config group as the key chooses a file of the group, unless the value is a mapping.
        composes = override.is_hydra_override() or (not isinstance(value, dict) and self._is_group(key))
        return _Line(str(override.input_line), override, key, path_of(key), value, composes)

    @cache  # noqa: B019  # A composer lives as long as its sweep is composed.
    def _is_group(self, key: str) -> bool:
        return bool(self._loader.get_group_options(key, overrides=self._hydra_overrides))

    def _base(self, lines: Sequence[_Line]) -> _Base:
        texts = tuple(line.text for line in lines)
        if texts not in self._bases:
            try:
                self._refuse_no_choice(lines)
                with in_words(" ".join(texts)):
                    self._bases[texts] = _Base.of(self._loader.load_sweep_config(self._master, list(texts)))
            except Refused as refused:
                self._bases[texts] = refused.problems[0]
        base = self._bases[texts]
        if isinstance(base, Problem):
            raise Refused(base)
        return base

    def _refuse_no_choice(self, lines: Sequence[_Line]) -> None:
        for line in lines:
            names = line.value if isinstance(line.value, list) and line.value else [line.value]
            if not self._is_group(line.key) or (line.override.is_delete() and line.value in (None, "")):
                continue
            if not all(isinstance(name, str) and name for name in names):
                rule = _("the config group conf/{group} takes the name of one of its files.", group=line.key)
                raise Refused(Problem(line.text, rule, nearest("", self._loader.get_group_options(line.key))))


@dataclass(frozen=True)
class _Line:
    """A parsed override, with the properties that are needed repeatedly."""

    text: str
    override: Override
    key: str
    path: Path
    value: Any
    # Whether Hydra has to compose anew for it, as for a choice of a config group; any other override sets a value.
    composes: bool

    @cached_property
    def is_scalar(self) -> bool:
        """Whether it sets one number, string, boolean or null, and does nothing else."""
        if self.override.is_delete() or self.override.package is not None:
            return False
        if isinstance(self.value, str):
            return "${" not in self.value and self.value != "???"
        return self.value is None or isinstance(self.value, (bool, int, float))


@dataclass
class _Base:
    """Config of one choice of config groups, and the variants made from it."""

    config: DictConfig
    # Hydra's own config, which resolvers may read.
    hydra: DictConfig
    selector: str
    variants: dict[tuple[str, ...], _Variant] = field(default_factory=dict)
    # Problems by the text of the override, so that a thousand runs need not detect the same one again.
    wrong: dict[str, Problem] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig) -> _Base:
        with open_dict(config):
            hydra = config.pop("hydra")
        return cls(config, hydra, selector(hydra))

    @contextmanager
    def numbered(self, number: int) -> Iterator[None]:
        """Set `${hydra:job.num}` to this number inside the context, as Hydra's own launchers do."""
        with read_write(self.hydra), open_dict(self.hydra):
            self.hydra.job.num, self.hydra.job.id = number, str(number)
        known = HydraConfig.instance()
        before, known.cfg = known.cfg, SimpleNamespace(hydra=self.hydra)  # type: ignore[assignment]
        try:
            yield
        finally:
            known.cfg = before

    def experiment(self, lines: Sequence[_Line]) -> Experiment:
        if self.wrong and (known := [self.wrong[line.text] for line in lines if line.text in self.wrong]):
            raise Refused(*known)
        alone = _alone(tuple(line.path for line in lines))
        plain = [line for line, free in zip_equal(lines, alone) if free and line.is_scalar]
        fixed = [line.text for line, free in zip_equal(lines, alone) if not (free and line.is_scalar)]
        # The order between `fixed` and `plain` does not matter: the keys of `plain` overlap no other key.
        signature = (*fixed, "", *(f"{line.override.type.name} {line.key}" for line in plain))
        if signature in self.variants:
            return self.variants[signature].experiment(plain, self.wrong)
        config = copy.deepcopy(self.config)
        _apply(lines, config, self.wrong)
        made = typed(config)
        self.variants[signature] = _Variant.of(config, made, plain)
        return made


@lru_cache(maxsize=64)
def _alone(paths: tuple[Path, ...]) -> tuple[bool, ...]:
    """Return for each path whether no other equals it, contains it or is inside it."""
    return tuple(sum(overlap(one, other) for other in paths) == 1 for one in paths)


def _apply(lines: Sequence[_Line], config: DictConfig, wrong: dict[str, Problem]) -> None:
    """Apply overrides as Hydra does, but report all wrong ones, not only the first."""
    problems = []
    for line in lines:
        try:
            with in_words(line.text):
                hydra_private.apply(line.override, config)
        except Refused as refused:
            (wrong[line.text],) = refused.problems
            problems.append(wrong[line.text])
    if problems:
        raise Refused(*problems)


@dataclass
class _Variant:
    """Config of the first of several runs that set the same keys; the others set their values in it."""

    config: DictConfig
    first: Experiment
    # The values that the first run set, by key.
    values: Mapping[str, Any]
    # Interpolations that may depend on the keys that are set.
    followers: Sequence[Path]

    @classmethod
    def of(cls, config: DictConfig, made: Experiment, plain: Sequence[_Line]) -> _Variant:
        followers = followers_of(config, [line.path for line in plain])
        return cls(config, made, {line.key: line.value for line in plain}, followers)

    def experiment(self, plain: Sequence[_Line], wrong: dict[str, Problem]) -> Experiment:
        try:
            return self._with(self._followed(plain) if self.followers else self._changed(plain))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, OmegaConfBaseException):
            pass  # The slow path below handles more kinds of keys, and has error messages.
        config = copy.deepcopy(self.config)
        # FORCE_ADD, as keys that the first run added exist by now.
        setting = [replace(line, override=replace(line.override, type=OverrideType.FORCE_ADD)) for line in plain]
        _apply(setting, config, wrong)
        return typed(config)

    def _changed(self, plain: Sequence[_Line]) -> dict[Path, Any]:
        changed = [line for line in plain if not _same(line.value, self.values[line.key])]
        return {line.path: self._leaf(line.path).validate_and_convert(line.value) for line in changed}

    def _followed(self, plain: Sequence[_Line]) -> dict[Path, Any]:
        """Return the set values and those that depend on them, after setting all of the run's values in the config."""
        for line in plain:
            set_leaf(self._leaf(line.path), line.value)
        return {path: _value(self.config, path) for path in (*(line.path for line in plain), *self.followers)}

    @cache  # noqa: B019  # A variant lives as long as its sweep is composed.
    def _leaf(self, path: Path) -> ValueNode:
        return leaf_at(self.config, path)

    def _with(self, values: Mapping[Path, Any]) -> Experiment:
        made: Any = self.first
        for path, value in values.items():
            made = _replaced(made, path, value)
        assert isinstance(made, Experiment)  # noqa: S101
        return made

    __hash__ = object.__hash__


def _same(one: Any, other: Any) -> bool:
    """Compare value and type: 1, 1.0 and True are equal in Python, but different in a config."""
    return type(one) is type(other) and bool(one == other)


def _value(config: DictConfig, path: Path) -> Any:
    value: Any = config
    for part in path:
        value = value[int(part)] if isinstance(value, ListConfig) else value[part]
    return OmegaConf.to_object(value) if isinstance(value, Container) else value


def _replaced(whole: Any, path: Path, value: Any) -> Any:
    """Return a copy with another value at `path`; everything outside the path is shared with the original."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if is_dataclass(whole) and not isinstance(whole, type):
        return replace(whole, **{first: _replaced(getattr(whole, first), rest, value)})
    if isinstance(whole, dict):
        return {**whole, first: _replaced(whole[first], rest, value)}
    return [_replaced(item, rest, value) if index == int(first) else item for index, item in enumerate(whole)]
