"""What of a model's predictions is differentiated."""

from typing import Literal

Output = Literal["loss", "margin", "logit"]
