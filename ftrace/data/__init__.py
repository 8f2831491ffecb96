"""Data sets, tokenizer and collators for fact tracing."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.data.bm25_index import Bm25Index
    from ftrace.data.collators import make_collator
    from ftrace.data.corpus_files import read_queries
    from ftrace.data.example_ids import WithExampleIds
    from ftrace.data.fact_corpus import FactCorpus
    from ftrace.data.fact_data import FactData
    from ftrace.data.fact_keys import FactParts, parts_of_key
    from ftrace.data.fact_prompts import FactPrompt, read_prompts
    from ftrace.data.fact_tables import Architecture, FactDataSettings, FactTables
    from ftrace.data.ftrace_rumours import FtraceRumours
    from ftrace.data.ftrace_synth import FtraceSynth
    from ftrace.data.ftrace_trex import FtraceTrex
    from ftrace.data.kept_rows import CollatedRows, KeptRows
    from ftrace.data.prompt_tokens import TokenizedPrompt, tokenize_prompt
    from ftrace.data.query_prompts import prompts_of_queries
    from ftrace.data.question_form import QuestionForm, unknown_words
    from ftrace.data.rumours import RumourCorpus, RumourSettings
    from ftrace.data.subject_spans import subject_span
    from ftrace.data.synth import SynthCorpus
    from ftrace.data.synth_files import write_synth
    from ftrace.data.synth_settings import SynthSettings
    from ftrace.data.text import SENTINEL, answers_in, fill_in
    from ftrace.data.text_files import read_texts
    from ftrace.data.tokenizer import train_word_tokenizer
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "SENTINEL",
    "Architecture",
    "Bm25Index",
    "CollatedRows",
    "FactCorpus",
    "FactData",
    "FactDataSettings",
    "FactParts",
    "FactPrompt",
    "FactTables",
    "FtraceRumours",
    "FtraceSynth",
    "FtraceTrex",
    "KeptRows",
    "QuestionForm",
    "RumourCorpus",
    "RumourSettings",
    "SynthCorpus",
    "SynthSettings",
    "TokenizedPrompt",
    "WithExampleIds",
    "answers_in",
    "fill_in",
    "make_collator",
    "parts_of_key",
    "prompts_of_queries",
    "read_prompts",
    "read_queries",
    "read_texts",
    "subject_span",
    "tokenize_prompt",
    "train_word_tokenizer",
    "unknown_words",
    "write_synth",
]
