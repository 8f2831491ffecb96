"""Train a model and trace its facts while it trains.

    python train.py fit --config configs/synth_demo.yaml

LightningCLI in subclass mode: any LightningModule, LightningDataModule and callback can be named by class path, and
every option in the config overridden, such as ``--trainer.max_epochs 3`` or ``--model.init_args.answers one``. See
``python train.py fit --help`` and ``--print_config``.
"""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

from ftrace.cli import TraceSettings, trace_run


class SaveConfigInRunFolder(SaveConfigCallback):
    """Save the config beside the run's logs; without a logger in the trainer's root, but never in a bare folder.

    Lightning would write it to the working directory of a run without a logger, and make the second one fail.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.logger is None and Path(trainer.default_root_dir).resolve() == Path.cwd():
            return
        self.overwrite = True
        super().setup(trainer, pl_module, stage)


class FactTracingCLI(LightningCLI):
    """LightningCLI with a section ``trace``: what to do with the scores once the model is trained."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--trace", type=TraceSettings | None, default=None, help="What fit does after training.")

    def after_fit(self) -> None:
        """Compare with baselines and work out some queries, if the config says so."""
        settings = self.config_init["fit"]["trace"]
        folder = self.trainer.log_dir  # None in a fast_dev_run
        if settings is not None and folder is not None and not self.trainer.interrupted:
            trace_run(Path(folder), settings)


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
