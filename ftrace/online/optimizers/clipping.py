"""What a step's gradients are multiplied with between the backward pass and the optimizer."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.processes import num_processes
from ftrace.online.training_loop import clip_factor, clips_by_itself, keeps_gradients, loss_scale, scales_inside


class Clipping:
    """The clip factor of the step that is under way.

    Args:
        trainer: The trainer.
        pl_module: The module.

    Attributes:
        factor: kappa: 1 where nothing is clipped.
        is_measured: Whether the module clips by itself, so that the factor is known only after the step.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.factor = 1.0
        self.is_measured = False

    def before_step(self, one: FollowedOptimizer, *, wants_norm: bool) -> float | None:
        """Find the factor of a step that is about to be taken.

        Args:
            one: The optimizer.
            wants_norm: Whether the norm is wanted in any case.

        Returns:
            The norm of its gradients, unclipped under automatic optimization; None where nobody needs it.

        Raises:
            ValueError: If the factor can't be told.
        """
        manual = not self.pl_module.automatic_optimization
        self.is_measured = clips_by_itself(self.pl_module)
        if self.is_measured and not keeps_gradients(one.optimizer):
            raise ValueError(
                f"{type(self.pl_module).__name__} overrides configure_gradient_clipping, and its "
                "optimizer writes to the gradients, so that how much was clipped can't be told. Make it with "
                "foreach=False, or use Trainer(gradient_clip_val=...)"
            )
        clips = manual or self.is_measured or bool(self.trainer.gradient_clip_val)
        # All processes must agree on which steps are left out, so the gradient that they share decides.
        norm = one.gradient_norm() if clips or wants_norm or num_processes() > 1 else None
        if norm is not None and scales_inside(self.trainer, one.optimizer):
            norm /= loss_scale(self.trainer)
        if manual:
            assert norm is not None
            before = one.norm_of_backward
            self.factor = norm / before if before else 1.0
        else:
            self.factor = 1.0 if self.is_measured else clip_factor(self.trainer, norm)
        return norm

    def after_step(self, one: FollowedOptimizer) -> None:
        """Measure the factor of a step that has been taken, where it was not known before."""
        if self.is_measured and one.norm_before_step:
            self.factor = one.gradient_norm() / one.norm_before_step
