"""The options of gradient indexes and of their search. Parsers of commands read them, so this imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from ftrace.arguments import Name, Positive, PositiveNumber, Seed, Share, Within, checked
from ftrace.renamed import use_new_names, warn_of_old_name

Layout = Literal["pooled", "layer", "parameter"]
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
"""Of rows on disk: names, and bytes of a number."""

# As ftrace.gradients has them, which imports torch.
ProjectionSide = Annotated[int, Within(1, 4096)]
_Entries = Literal["gaussian", "rademacher", "normal", "signs"]
OLD_ENTRIES: dict[str, _Entries] = {"normal": "gaussian", "signs": "rademacher"}

PreconditionerKind = Literal["rank-one", "elementwise", "none"]
PRECONDITIONER_KINDS: tuple[PreconditionerKind, ...] = ("rank-one", "elementwise", "none")

# Old names: arguments and flags under them work for one more release; indexes on disk that have them are read.
OLD_OPTIONS = {"side": "projection_side", "groups": "layer_groups", "correction": "preconditioner"}


OLD_SEARCH_OPTIONS = {"correct_queries": "precondition_queries"}

RANK_SHARE = 1000 / 65_536

WhichR = Literal["mixed", "train", "none"]


@checked
@dataclass(frozen=True)
class FeatureSettings:
    """The options that decide what the rows of an index are.

    Raises:
        ValueError: If a number is out of range or an option unknown.
    """

    projection_side: ProjectionSide = 16
    """K: a weight's gradient becomes K x K, a block of a row K * K numbers."""
    seed: Seed = 0
    """Of the projection, and of the sample that the autocorrelation R is taken of."""
    layout: Layout = "pooled"
    """Which weights share a block: "pooled", attention and MLP weights of consecutive layers; "layer"; "parameter"."""
    layer_groups: Positive = 8
    """Of the layout "pooled": how many groups of consecutive layers, for attention and for MLP weights."""
    parameters: tuple[Name, ...] | None = None
    """Globs over parameter names, in order; one that begins with "!" excludes. Default: the matrices in the model's
    numbered blocks."""
    preconditioner: PreconditionerKind = "rank-one"
    """What gradients are divided by: "rank-one", the root of the closest outer product to the optimizer's second
    moments; "elementwise", their root as it is, which forms each example's gradient of each weight; "none"."""
    entries: _Entries = "gaussian"
    """Of the projection: "gaussian", as TrackStar has them, or "rademacher", with which products vary a little less."""

    def __post_init__(self) -> None:
        if self.entries in OLD_ENTRIES:
            warn_of_old_name("entries", self.entries, OLD_ENTRIES[self.entries])
            object.__setattr__(self, "entries", OLD_ENTRIES[self.entries])

    @staticmethod
    def under_new_names(who: str, **options: Any) -> FeatureSettings:
        """Make settings of options that may have old names, with a warning.

        Args:
            who: What the options were given to, for messages.
            options: By name; those of old names are None where they were not given.

        Raises:
            ValueError: If an option is given under both names.
        """
        return FeatureSettings(**use_new_names(who, options, OLD_OPTIONS, asdict(FeatureSettings())))


@checked
@dataclass(frozen=True)
class IndexSettings:
    """The options that decide what an index is and how it is kept.

    Raises:
        ValueError: If a number is out of range, or the dtype unknown.
    """

    features: FeatureSettings = FeatureSettings()
    """What its rows are."""
    dtype: str = "float32"
    """Of rows on disk: "float32", "float16" or "bfloat16" (or "float64")."""
    shard_bytes: Positive = 256 * 2**20
    """How large a file of rows becomes, about."""
    sample: Positive = 10_000
    """Rows, drawn at random, that the autocorrelation R is taken of."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, found {self.dtype!r}")

    def row_bytes(self, size: int) -> int:
        """Count the bytes of a row of that many numbers, with its id, step, weight and scale."""
        return size * DTYPES[self.dtype] + 24

    def rows_of_shard(self, size: int) -> int:
        """Count the rows of a shard."""
        return max(1, self.shard_bytes // self.row_bytes(size))


@checked
@dataclass(frozen=True)
class WhiteningSettings:
    """The options that decide which R a task has.

    Raises:
        ValueError: If a number is out of range or an option unknown.
    """

    autocorrelation: WhichR = "mixed"
    """R of the rows, "mixed" with that of the task's queries; of the rows alone, "train"; "none": do not whiten."""
    mix: Share | None = None
    """lambda, what the queries count of the mixture, from 0 to 1; default: by the rule on both spectra."""
    rank_share: Share = RANK_SHARE
    """The rank, as a share of all dimensions, at which the two spectra are compared to choose lambda: there, both sides
    are to have the same eigenvalue. TrackStar's is the 1,000th of 65,536."""
    damping: PositiveNumber = 0.1
    """What is added to R's diagonal, as a share of its mean eigenvalue, block by block."""

    def __post_init__(self) -> None:
        if self.mix is not None and self.autocorrelation != "mixed":
            raise ValueError(f"mix: expected it with autocorrelation=mixed alone, found {self.autocorrelation!r}")
        if not 0 < self.rank_share < 1:
            raise ValueError(f"rank_share: expected a share between 0 and 1, found {self.rank_share}")


@checked
@dataclass(frozen=True)
class SearchSettings:
    """The options that decide how examples are scored with an index."""

    whitening: WhiteningSettings = WhiteningSettings()
    """Which R."""
    unit_norm: bool = True
    """Whether both sides have their norms divided out: with it, scores are cosines."""
    weighted: bool = False
    """Whether rows count by their weights: of an index that was written while training, a step's learning rate times
    its clip factor; of one of margins, 1 - p."""
    precondition_queries: bool = True
    """Whether queries' gradients are divided by second moments as the rows' are. Without it, weighted and neither
    whitened nor of unit norm, a score is the first-order effect of the optimizer's steps, in nats."""
    learning: bool = False
    """Whether a segment counts by the root of p (1 - p), where p is the probability of the query's answer at its
    weights: of an index of several segments, those count in which the answer was being learned."""


@checked
@dataclass(frozen=True)
class ApproximateSettings:
    """The options of approximate search.

    Raises:
        ValueError: If a number is less than 1.
    """

    lists: Positive | None = None
    """Into how many lists rows are sorted; default: four times the root of their number."""
    probes: Positive = 32
    """How many lists a search looks into."""
