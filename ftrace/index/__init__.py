"""Gradient indexes on disk: rows of projected gradients, written once, searched for any queries. Knows no model.

An index is written while a model trains (the callback GradientIndexWriter) or in one pass over a snapshot (``ftrace
index``), and searched with ``ftrace search``.
"""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.gradients import OLD_ENTRIES, Entries
    from ftrace.index.approximate import approximate_top_k, open_approximate, recall
    from ftrace.index.blocks import block_weights, make_blocks
    from ftrace.index.features import (
        GradientFeatures,
        as_dtype,
        moved_like,
        preconditioner_for_index,
    )
    from ftrace.index.fingerprints import model_fingerprint, snapshot_fingerprint
    from ftrace.index.gradient_index import (
        EXAMPLES,
        GradientIndex,
        begin_index,
        write_examples,
        write_names,
    )
    from ftrace.index.gradient_rows import GradientRows
    from ftrace.index.manifest import read_manifest
    from ftrace.index.plan import IndexPlan, readable
    from ftrace.index.prepared_search import PreparedSearch, prepare_search
    from ftrace.index.search import SegmentQueries, TopExamples, prepare_queries, row_norms, scored_chunks, top_k
    from ftrace.index.segment import Segment, close_segment, read_preconditioners, shard_files, write_preconditioners
    from ftrace.index.segment_facts import read_begun, write_begun
    from ftrace.index.settings import (
        OLD_OPTIONS,
        OLD_SEARCH_OPTIONS,
        PRECONDITIONER_KINDS,
        ApproximateSettings,
        FeatureSettings,
        IndexSettings,
        Layout,
        PreconditionerKind,
        SearchSettings,
        WhichR,
        WhiteningSettings,
    )
    from ftrace.index.shards import Rows, Shard, write_shard
    from ftrace.index.whitening import (
        Whitening,
        autocorrelation_of,
        balanced_mix,
        make_whitening,
    )
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "EXAMPLES",
    "OLD_ENTRIES",
    "OLD_OPTIONS",
    "OLD_SEARCH_OPTIONS",
    "PRECONDITIONER_KINDS",
    "ApproximateSettings",
    "Entries",
    "FeatureSettings",
    "GradientFeatures",
    "GradientIndex",
    "GradientRows",
    "IndexPlan",
    "IndexSettings",
    "Layout",
    "PreconditionerKind",
    "PreparedSearch",
    "Rows",
    "SearchSettings",
    "Segment",
    "SegmentQueries",
    "Shard",
    "TopExamples",
    "WhichR",
    "Whitening",
    "WhiteningSettings",
    "approximate_top_k",
    "as_dtype",
    "autocorrelation_of",
    "balanced_mix",
    "begin_index",
    "block_weights",
    "close_segment",
    "make_blocks",
    "make_whitening",
    "model_fingerprint",
    "moved_like",
    "open_approximate",
    "preconditioner_for_index",
    "prepare_queries",
    "prepare_search",
    "read_begun",
    "read_manifest",
    "read_preconditioners",
    "readable",
    "recall",
    "row_norms",
    "scored_chunks",
    "shard_files",
    "snapshot_fingerprint",
    "top_k",
    "write_begun",
    "write_examples",
    "write_names",
    "write_preconditioners",
    "write_shard",
]
