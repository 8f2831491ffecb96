"""The cells of a map of effects at which the answer is read off.

Restoring the output of the last layer at the last token restores an answer of one token whatever the model, and in the
layers below, the answer is on its way there. Such cells are large in every model and say nothing about where a fact
lives. So they are neither a mediator's peak nor what a scale of colours is made for.
"""

from __future__ import annotations

import numpy as np

from ftrace.causal.prompt_trace import Stack

HIDDEN, SEVERED = "hidden", "_severed"
IN_WORDS = "where the answer is read off"


def readout_cells(
    stack: Stack, mediator: str, shape: tuple[int, int], last_row: int, *, reads_subject: bool
) -> np.ndarray:
    """Find the cells at which the answer is read off.

    Only mediators that restore a layer's output have them. In a decoder that reads the subject, they are the last token
    in all layers. In one that reads an encoder they are the last token in the last layer: before that the answer
    has yet to be fetched from the encoder, which is worth seeing. An encoder has none.

    Args:
        stack: The stack of layers.
        mediator: What is restored: "hidden", "mlp_severed", "mlp", ...
        shape: Number of rows, which are tokens or groups of them, and of layers.
        last_row: The row of the last token.
        reads_subject: Whether the stack reads the subject itself.

    Returns:
        ``[rows, layers]`` bool.

    Example:
        >>> readout_cells("decoder", "hidden", (2, 3), 1, reads_subject=True).tolist()
        [[False, False, False], [True, True, True]]
        >>> readout_cells("decoder", "hidden", (2, 3), 1, reads_subject=False).tolist()
        [[False, False, False], [False, False, True]]
    """
    cells = np.zeros(shape, dtype=bool)
    if stack == "decoder" and (mediator == HIDDEN or mediator.endswith(SEVERED)):
        cells[last_row, 0 if reads_subject else -1 :] = True
    return cells
