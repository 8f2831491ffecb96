"""The clip factor, by which a step's gradient is multiplied between the backward pass and the optimizer."""

from __future__ import annotations

from ftrace.online.loop import TrainingLoop
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer, keeps_gradients
from ftrace.online.processes import num_processes


class Clipping:
    """The clip factor of the current step.

    Attributes:
        factor: kappa; 1 if nothing is clipped.
        is_measured: Whether the module clips by itself, so that the factor is known only after the step.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop = loop
        self.factor = 1.0
        self.is_measured = False
        self.gradient_scale = 1.0

    def before_step(self, optimizer: FollowedOptimizer, *, wants_norm: bool) -> float | None:
        """Compute the factor of a step that is about to be taken.

        Args:
            optimizer: The optimizer that is about to step.
            wants_norm: Whether the norm is needed even if the factor doesn't depend on it.

        Returns:
            The norm of its gradients, unclipped under automatic optimization; None if it isn't needed.

        Raises:
            ValueError: If there is no way to know the factor.
        """
        loop = self.loop
        self.is_measured = loop.clips_itself
        if self.is_measured and not keeps_gradients(optimizer.optimizer):
            raise ValueError(
                f"{type(loop.module).__name__} overrides configure_gradient_clipping, and its "
                "optimizer writes to the gradients, so that how much was clipped can't be told. Make it with "
                f"foreach=False, or use {loop.wording.clip}"
            )
        clips = loop.is_manual or self.is_measured or bool(loop.clip_norm)
        # All processes must leave out the same steps, so that is decided by the gradient that they share.
        norm = optimizer.gradient_norm() if clips or wants_norm or num_processes() > 1 else None
        self.gradient_scale = loop.gradient_scale(optimizer.optimizer)
        if norm is not None:
            norm /= self.gradient_scale
        if loop.is_manual:
            assert norm is not None
            norm_of_backward = optimizer.norm_of_backward
            self.factor = norm / norm_of_backward if norm_of_backward else 1.0
        elif self.is_measured or loop.clip_norm <= 0:
            self.factor = 1.0
        else:
            self.factor = optimizer.clip_factor(loop.clip_norm, self.gradient_scale)
        return norm

    def after_step(self, optimizer: FollowedOptimizer) -> None:
        """Measure the factor of a step that was taken, if it was unknown before."""
        if self.is_measured and optimizer.norm_before_step:
            self.factor = optimizer.gradient_norm() / optimizer.norm_before_step
