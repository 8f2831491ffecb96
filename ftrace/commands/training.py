"""The LightningCLI of ``ftrace fit``, ``validate``, ``test`` and ``predict``; see :mod:`ftrace.commands.fit`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

from ftrace.callbacks import CheckpointSnapshots, OnlineTracIn
from ftrace.commands.after_training import AfterTraining, trace_run
from ftrace.commands.endings import say_kept
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.readable_errors import readable
from ftrace.commands.run_folders import claim_run_folders
from ftrace.data import FactCorpus, FactData, FtraceRumours, FtraceSynth, FtraceTrex
from ftrace.data.tokenizer import has_tokenizer
from ftrace.files.whole_files import whole_file
from ftrace.launched_processes import ending_launched
from ftrace.models import FactLM
from ftrace.named_configs import ConfigFileOrName
from ftrace.runs import WORKING_DIRECTORY

# A class that has been imported may be named without its module.
NAMED_SHORT = (FactLM, FactCorpus, FtraceRumours, FtraceSynth, FtraceTrex, CheckpointSnapshots, OnlineTracIn)


class SaveConfigInRunFolder(SaveConfigCallback):
    """Callback that saves the config beside the run's logs, with the folder that its relative paths start from.

    Never in the working directory, where Lightning would put it for a run without a logger, so that the next such run
    would fail.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._log_dir = trainer.log_dir  # a collective, which save_config can't run: it is called on process 0 alone
        if self._log_dir is None or Path(self._log_dir).resolve() == Path.cwd():
            return
        self.overwrite = True
        super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert self._log_dir is not None
        with whole_file(Path(self._log_dir) / WORKING_DIRECTORY) as temporary:
            temporary.write_text(f"{Path.cwd()}\n")


class FactTracingCLI(LightningCLI):
    """LightningCLI with a section ``trace``, which says what to do with the scores once the model is trained.

    Args:
        args: As LightningCLI takes them.
        claims: Holds the claims of the run's folders as long as it is open.
        options: As LightningCLI takes them.
    """

    def __init__(self, *args: Any, claims: ExitStack, **options: Any) -> None:
        self._claims = claims
        super().__init__(*args, **options)

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create the parser as LightningCLI does, but let ``--config`` take recipes' names, too."""
        kwargs["exit_on_error"] = False
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.__version__}"])
        parser = LightningArgumentParser(allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action=ConfigFileOrName, help="A YAML file, or a recipe's name.")
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--trace", type=AfterTraining | None, default=None, help="What fit does after training.")

    @override
    def before_instantiate_classes(self) -> None:
        """Give data without a tokenizer that of the pretrained model; the config that is saved notes it."""
        use_free_cores()
        config = self.config[self.subcommand] if self.subcommand else self.config
        model, data = (config[name].get("init_args") or {} for name in ("model", "data"))
        name = model.get("model_name_or_path")
        if name is None or data.get("tokenizer", "") is not None or not _is_fact_data(config["data"]["class_path"]):
            return
        if has_tokenizer(name):
            data["tokenizer"] = name

    @override
    def instantiate_classes(self) -> None:
        """Create what the config names; what a class raises there is the fault of the config."""
        try:
            super().instantiate_classes()
        except (AttributeError, ImportError, NotImplementedError, TypeError) as error:
            raise ValueError(str(error)) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer. What it says of its options, of whatever kind, is a message to users."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, AttributeError, RuntimeError, KeyError) as error:
            raise ValueError(f"trainer: {readable(error)}") from error

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with ending_launched(self.trainer):
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Check before training, not after it, that ``trace`` will have what it needs; then claim the run's folder."""
        say_kept(self._what_is_kept)
        if self._trace_settings is not None:
            self._check_trace(self._trace_settings)
        claim_run_folders(self.trainer.loggers, self._claims)

    def _check_trace(self, settings: AfterTraining) -> None:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for kind in (OnlineTracIn, CheckpointSnapshots):
            if not any(isinstance(callback, kind) and callback.output_dir is None for callback in callbacks):
                self.parser.error(
                    f"trace: expected the callback {kind.__name__} without output_dir, so that it writes to the folder "
                    "of the run. Add it, or set --trace null"
                )

        if settings.causal and not any(
            isinstance(callback, OnlineTracIn)
            and callback.output_dir is None
            and "layer" in callback.settings.breakdown
            for callback in callbacks
        ):
            self.parser.error("trace.causal: expected OnlineTracIn with breakdown: [layer]. Add it, or set it to false")

    def after_fit(self) -> None:
        """Compare with baselines and show some queries, if the config asks for it."""
        folder = self.trainer.log_dir  # None in a fast_dev_run
        speaks = self.trainer.is_global_zero and not self.trainer.interrupted
        if self._trace_settings is not None and folder is not None and speaks:
            trace_run(Path(folder), self._trace_settings)

    def _what_is_kept(self) -> str:
        """Say what an interrupted training has left: scores, and the newest checkpoint."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        stores = [each.incomplete_store for each in callbacks if isinstance(each, OnlineTracIn)]
        scores = "".join(f"The scores so far are in {store}. " for store in stores if store is not None)
        saved = {path for each in callbacks if isinstance(each, ModelCheckpoint) for path in _checkpoints(each)}
        if not saved:
            return f"{scores}There is no checkpoint to go on from."
        return f"{scores}Go on with --ckpt_path {max(saved, key=lambda path: path.stat().st_mtime)}"

    @property
    def _trace_settings(self) -> AfterTraining | None:
        settings: AfterTraining | None = self.config_init["fit"]["trace"]
        return settings


def train(args: Sequence[str] | None) -> None:
    """Do what the subcommand and its options say; None: those of the process."""
    with ExitStack() as claims:
        FactTracingCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigInRunFolder,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"default_root_dir": "runs"},
            args=None if args is None else list(args),
            claims=claims,
        )


def _is_fact_data(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    return isinstance(found, type) and issubclass(found, FactData)


def _checkpoints(callback: ModelCheckpoint) -> list[Path]:
    """List the checkpoints of a callback that there are."""
    paths = [callback.last_model_path, callback.best_model_path, *callback.best_k_models]
    return [Path(path) for path in paths if path and Path(path).exists()]
