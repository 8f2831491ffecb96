"""Train a model and trace its facts while it trains.

    python train.py fit --config configs/synth_demo.yaml

LightningCLI in subclass mode: any LightningModule, LightningDataModule and callback can be named by class path, and
every option in the config overridden, such as ``--trainer.max_epochs 3`` or ``--model.init_args.answers one``. See
``python train.py fit --help`` and ``--print_config``.
"""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

from ftrace.callbacks import CheckpointSnapshots, OnlineTracIn
from ftrace.cli import TraceSettings, trace_run
from ftrace.runs import WORKING_DIRECTORY


class SaveConfigInRunFolder(SaveConfigCallback):
    """Save the config beside the run's logs, with the folder that its relative paths start from.

    Never in the working directory, where Lightning would put it for a run without a logger, and make the second such
    run fail.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.log_dir is None or Path(trainer.log_dir).resolve() == Path.cwd():
            return
        self.overwrite = True
        super().setup(trainer, pl_module, stage)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert trainer.log_dir is not None
        (Path(trainer.log_dir) / WORKING_DIRECTORY).write_text(f"{Path.cwd()}\n")


class FactTracingCLI(LightningCLI):
    """LightningCLI with a section ``trace``: what to do with the scores once the model is trained."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--trace", type=TraceSettings | None, default=None, help="What fit does after training.")

    def before_fit(self) -> None:
        """Find out now, not after training, whether what ``trace`` needs will be there."""
        if self._trace_settings is None:
            return
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for kind in (OnlineTracIn, CheckpointSnapshots):
            if not any(isinstance(one, kind) and one.output_dir is None for one in callbacks):
                self.parser.error(
                    f"trace: expected the callback {kind.__name__} without output_dir, so that it writes to the folder "
                    "of the run. Add it, or set --trace null"
                )

        if self._trace_settings.causal and not any(
            isinstance(one, OnlineTracIn) and one.output_dir is None and "layer" in one.settings.breakdown
            for one in callbacks
        ):
            self.parser.error("trace.causal: expected OnlineTracIn with breakdown: [layer]. Add it, or set it to false")

    def after_fit(self) -> None:
        """Compare with baselines and work out some queries, if the config says so."""
        folder = self.trainer.log_dir  # None in a fast_dev_run
        if self._trace_settings is not None and folder is not None and not self.trainer.interrupted:
            trace_run(Path(folder), self._trace_settings)

    @property
    def _trace_settings(self) -> TraceSettings | None:
        settings: TraceSettings | None = self.config_init["fit"]["trace"]
        return settings


def main() -> None:
    """Run the command line."""
    FactTracingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfigInRunFolder,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={"default_root_dir": "runs"},
    )


if __name__ == "__main__":
    main()
