"""The plan of a table: which models are trained, and which are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from ..layers.cells import CELLS, cell_options
from ..training.config import Config


class Row(NamedTuple):
    """A row of the table: a model.

    Attributes:
        key: the row's name in the names of files.
        label: the row's name in the table.
        switches: the fields of Config in which the row differs; its `overrides` are added to the config's.
        group: rows of one group are drawn in one hue.
    """

    key: str
    label: str
    switches: dict[str, Any]
    group: int

    def settings(self, config: Config) -> Config:
        """Return the settings of this row's trainings, in a table whose trainings share `config`."""
        overrides = {**config.overrides, **self.switches.get("overrides", {})}
        return replace(config, **{**self.switches, "overrides": overrides})


class Training(NamedTuple):
    """One training of a table: a row with a seed."""

    row: Row
    config: Config

    @property
    def name(self) -> str:
        return f"{self.row.key}_seed_{self.config.seed}"

    @property
    def label(self) -> str:
        return f"{self.row.label}, seed {self.config.seed}"


@dataclass(frozen=True)
class Plan:
    """The plan of a table. A bad setting raises a ValueError with the setting's name and what it should be.

    Attributes:
        command: "ablate" or "compare".
        config: the settings that all trainings share; its seed and the rows' switches are ignored.
        pairs: labels of two rows each: a row, and the row that it is compared with.
        protocol: a metrics.Protocol with what is measured, or None for the default.
    """

    command: str
    title: str
    config: Config
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    test_clips: int
    protocol: Any = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more different numbers; got {list(self.seeds)}")
        if self.test_clips < 1:
            raise ValueError(f"test_clips must be at least 1; got {self.test_clips}")
        if len(self.config.hidden) < 2:
            hidden = list(self.config.hidden)
            raise ValueError(
                f"hidden must have two layers or more, MotionGRUs lie between them; got {hidden}"
            )
        for name in ("devices", "nodes"):
            value = getattr(self.config, name)
            if value > 1:
                raise ValueError(f"{name} must be 1, trainings run one after the other; got {value}")

    def trainings(self) -> list[Training]:
        """Return the trainings seed by seed: all rows of the first seed, then all rows of the next."""
        return [
            Training(row, replace(row.settings(self.config), seed=seed))
            for seed in self.seeds
            for row in self.rows
        ]

    def settings(self) -> dict[str, Any]:
        """Return the settings that all trainings share, in plain types: all but the seed and the rows' switches."""
        varied = {"seed", *(name for row in self.rows for name in row.switches)} - {"overrides"}
        shared = {name: value for name, value in self.config.to_dict().items() if name not in varied}
        return {
            "command": self.command,
            "test_clips": self.test_clips,
            "metrics": self.metrics(),
            **shared,
        }

    def metrics(self) -> dict[str, Any]:
        """Return the settings of the protocol, in plain types; nothing without one."""
        options = {} if self.protocol is None else _plain(asdict(self.protocol))
        return {name: value for name, value in options.items() if name != "device"}


_PARTS: tuple[str, ...] = ("highway", "motion_gru", "transient", "trend")
# Label, group, remaining parts and overrides of each row of an ablation. The last two rows are not the paper's.
_ABLATIONS: tuple[tuple[str, int, tuple[str, ...], dict[str, Any]], ...] = (
    ("base", 0, (), {}),
    ("highway only", 1, ("highway",), {}),
    ("MotionGRU only", 1, ("motion_gru", "transient", "trend"), {}),
    ("both", 2, _PARTS, {}),
    ("without transient", 3, ("highway", "motion_gru", "trend"), {}),
    ("without trend", 3, ("highway", "motion_gru", "transient"), {}),
    ("offsets within 2 pixels", 4, _PARTS, {"max_offset": 2.0}),
    ("gated trend", 4, _PARTS, {"trend_gate": 1.0}),
)
_AGAINST: dict[str, tuple[str, ...]] = {"base": ("highway only", "MotionGRU only", "both")}
_AGAINST["both"] = tuple(label for label, *_ in _ABLATIONS if label not in ("base", "both"))


def ablation(config: Config, seeds: Sequence[int], test_clips: int, protocol: Any = None) -> Plan:
    """Return the plan of an ablation: the predictor alone, with each part, with both, with each half of the motion,
    and with motion that cannot go far, by a bound or by a trend that the update gate weighs.
    """
    rows = []
    for label, group, parts, overrides in _ABLATIONS:
        switches: dict[str, Any] = {name: name in parts for name in _PARTS}
        if overrides:
            switches["overrides"] = overrides
        # Without MotionGRUs these two have no effect, and keep their defaults.
        if not switches["motion_gru"]:
            switches |= {"transient": True, "trend": True}
        rows.append(Row(label.replace(" ", "_").lower(), label, switches, group))
    pairs = tuple((label, other) for other, labels in _AGAINST.items() for label in labels)
    title = f"Ablations of MotionRNN-{_bare_name(config)}"
    return Plan("ablate", title, config, tuple(rows), pairs, tuple(seeds), test_clips, protocol)


def comparison(
    config: Config,
    seeds: Sequence[int],
    test_clips: int,
    protocol: Any = None,
    predictors: Sequence[str] | None = None,
) -> Plan:
    """Return the plan of a comparison: each predictor, or those named, by itself and inside MotionRNN.

    Each predictor takes the `cell_options` that it knows. An option that none of them knows raises a ValueError.
    """
    predictors = list(dict.fromkeys(CELLS if predictors is None else predictors))
    known = {predictor: cell_options(predictor) for predictor in predictors}
    for option in config.cell_options:
        if not any(option in options for options in known.values()):
            raise ValueError(f"cell_options: none of {', '.join(predictors)} knows {option!r}")
    rows, pairs = [], []
    for group, predictor in enumerate(predictors):
        name = _bare_name(replace(config, predictor=predictor, cell_options={}))
        own = {key: value for key, value in config.cell_options.items() if key in known[predictor]}
        shared = {"predictor": predictor, "cell_options": own}
        rows.append(Row(predictor, name, {**shared, "motion_gru": False, "highway": False}, group))
        inside = {**shared, "motion_gru": True, "highway": True}
        rows.append(Row(f"motionrnn_{predictor}", f"MotionRNN-{name}", inside, group))
        pairs.append((f"MotionRNN-{name}", name))
    title = "Predictors with and without MotionRNN"
    return Plan("compare", title, config, tuple(rows), tuple(pairs), tuple(seeds), test_clips, protocol)


def _plain(value: Any) -> Any:
    """Return a value in types that JSON has."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _bare_name(config: Config) -> str:
    """Return the name of a config's predictor, without MotionRNN."""
    from ..evaluation.evaluate import model_name

    return model_name(replace(config, motion_gru=False, highway=False))
