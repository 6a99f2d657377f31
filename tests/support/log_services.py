"""Stand-ins for the packages wandb and mlflow, as much of them as Lightning's loggers call, which keep what they are
told; and a reader of the same from the real MLflow."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class Kept:
    """A run of a service."""

    metrics: list[tuple[int, str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    status: str = "RUNNING"
    project: str = ""


class Wandb:
    """A stand-in for wandb: `runs` by id."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.runs: dict[str, Kept] = {}
        self.module = _module(patch, "wandb", run=None, init=self._init)
        _module(patch, "wandb.sdk")
        _module(patch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
        _module(patch, "wandb.wandb_run", Run=SimpleNamespace)
        patch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)

    def _init(self, **options: Any) -> Any:
        name = options["id"] or f"id{len(self.runs)}"
        kept = self.runs.setdefault(name, Kept(project=options["project"]))
        kept.status = "RUNNING"
        assert options["resume"] == "allow" and Path(options["dir"]).is_dir()

        def log(values: dict[str, float]) -> None:
            step = int(values["trainer/global_step"])
            kept.metrics += [(step, *pair) for pair in values.items() if pair[0] != "trainer/global_step"]

        def finish(code: int) -> None:
            kept.status, self.module.run = "FAILED" if code else "FINISHED", None

        config = SimpleNamespace(update=lambda values, allow_val_change: kept.settings.update(values))
        self.module.run = SimpleNamespace(
            id=name, config=config, log=log, finish=finish, define_metric=lambda *_, **__: None
        )
        return self.module.run


class Mlflow:
    """A stand-in for mlflow: `runs` by id."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        runs: dict[str, Kept] = {}
        self.runs = runs

        class Client:
            def __init__(self, uri: str) -> None:
                assert uri == "the store"

            def get_experiment_by_name(self, name: str) -> Any:
                return SimpleNamespace(experiment_id=name, lifecycle_stage="active")

            def create_run(self, experiment_id: str, tags: dict[str, Any]) -> Any:
                name = f"id{len(runs)}"
                runs[name] = Kept(tags=tags, project=experiment_id)
                return self.get_run(name)

            def get_run(self, name: str) -> Any:
                if name not in runs:
                    raise exception(f"Run '{name}' not found")
                data = SimpleNamespace(params=runs[name].settings)
                return SimpleNamespace(
                    info=SimpleNamespace(run_id=name, experiment_id=runs[name].project), data=data
                )

            def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
                for param in params:
                    assert runs[run_id].settings.setdefault(param.key, param.value) == param.value
                runs[run_id].metrics += [(metric.step, metric.key, metric.value) for metric in metrics]

            def set_tag(self, run_id: str, name: str, value: str) -> None:
                runs[run_id].tags[name] = value

            def update_run(self, run_id: str, status: str) -> None:
                runs[run_id].status = status

            set_terminated = update_run

        exception = type("MlflowException", (Exception,), {"__module__": "mlflow.exceptions"})
        _module(patch, "mlflow", get_tracking_uri=lambda: "the store", set_tracking_uri=lambda uri: None)
        _module(patch, "mlflow.tracking", MlflowClient=Client, context=SimpleNamespace(registry=None))
        _module(patch, "mlflow.tracking.context")
        _module(patch, "mlflow.tracking.context.registry", resolve_tags=lambda tags: tags)
        _module(patch, "mlflow.entities", Param=SimpleNamespace, Metric=SimpleNamespace)
        _module(patch, "mlflow.utils")
        _module(patch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
        patch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)


class RealMlflow:
    """The package itself, with a store in a file."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.package = pytest.importorskip("mlflow", reason="mlflow is not installed")
        store = "mlflow.store.tracking.sqlalchemy_store"
        pytest.importorskip(store, reason="what mlflow's database needs is not installed")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")

    @property
    def runs(self) -> dict[str, Kept]:
        client = self.package.tracking.MlflowClient()
        (experiment,) = client.search_experiments(filter_string="name = 'motionrnn'")
        found = {}
        for run in client.search_runs([experiment.experiment_id]):
            metrics = [
                (metric.step, name, metric.value)
                for name in run.data.metrics
                for metric in client.get_metric_history(run.info.run_id, name)
            ]
            found[run.info.run_id] = Kept(
                metrics, run.data.params, run.data.tags, run.info.status, experiment.name
            )
        return found


def _module(patch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = f"{name}.py"
    vars(module).update(content)
    patch.setitem(sys.modules, name, module)
    return module
