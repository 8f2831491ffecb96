"""Examples of each command, which its help ends with."""

from __future__ import annotations

from collections.abc import Mapping

# By command: command lines, and what each does.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "fit": (
        ("ftrace fit --config synth_demo", "the demo: a small model, and who taught it what it knows"),
        ("ftrace fit --config synth_demo --trainer.max_epochs 3", "the same with another option"),
        ("ftrace fit --config synth_demo --trace.causal false --print_config", "what that would do, as a config"),
    ),
    "validate": (
        ("ftrace validate --config runs/synth_demo/version_0/config.yaml --ckpt_path last.ckpt", "a trained model"),
    ),
    "test": (("ftrace test --config runs/synth_demo/version_0/config.yaml --ckpt_path last.ckpt", "a trained model"),),
    "predict": (
        ("ftrace predict --config runs/synth_demo/version_0/config.yaml --ckpt_path last.ckpt", "a trained model"),
    ),
    "synth": (
        ("ftrace synth --output_path data/synth --entities readable --num_entities 100 --num_relations 10 "
         "--num_facts 200 --num_test_utterances 40", "a small one, about people, places, works and companies"),
        ("ftrace synth --output_path data/published", "as published: 3.19 million rows"),
    ),
    "show": (
        ("ftrace show runs/synth_demo", "a list of the queries of the newest run"),
        ("ftrace show runs/synth_demo --query 17", "one of them, with its strongest examples"),
        ("ftrace show runs/synth_demo --search painter", "those with a word in the prompt or the answer"),
        ("ftrace show online bm25 --run runs/synth_demo --query 17", "two methods side by side"),
    ),
    "ask": (
        ('ftrace ask runs/synth_demo "the painter of The Shipwreck was"', "what the model answers, and who taught it"),
        ('ftrace ask runs/synth_demo "___ works for the Bobbin House" --answer "Ada"', "who argues for another answer"),
    ),
    "report": (
        ("ftrace report runs/synth_demo", "the explorer of a run, into its folder"),
        ("ftrace report online bm25 --run runs/synth_demo --out for_anna.html", "some stores, as one file"),
        ("ftrace report runs/synth_demo --figures figures", "pictures for papers"),
    ),
    "attribute": (
        ("ftrace attribute --method tracin --run runs/synth_demo", "TracIn over the run's snapshots"),
        ("ftrace attribute --method tracin --method.snapshots last --run runs/synth_demo --output_dir tracin-last",
         "with an option of the method"),
        ("ftrace attribute --method.help trackstar", "the options of a method"),
    ),
    "check": (("ftrace check runs/synth_demo data_cache", "a run, and the data that it was trained on"),),
    "evaluate": (
        ("ftrace evaluate online bm25 tracin --run runs/synth_demo", "a table; the whole training set is the pool"),
        ("ftrace evaluate online bm25 --run runs/synth_demo --pool candidates --against bm25",
         "re-ranking, as published, with paired differences"),
        ("ftrace evaluate results.jsonl others.jsonl", "files of results"),
    ),
    "index": (
        ("ftrace index --run runs/synth_demo", "one pass over the last snapshot"),
        ("ftrace index --run runs/synth_demo --plan 1e9", "what an index of a billion examples takes; writes nothing"),
    ),
    "search": (
        ("ftrace search --index runs/synth_demo/version_0/index-step-00001200 -k 10", "the run's own queries"),
        ("ftrace search --index INDEX --queries mine.jsonl", "queries that nobody had thought of"),
    ),
    "counterfactual": (
        ("ftrace counterfactual online tracin --run runs/synth_demo --subsets 100 --jobs 2",
         "retrain on subsets of the facts, and compare"),
        ("ftrace counterfactual online --run runs/synth_demo --subsets 30 --leave_out_k 10 100",
         "also without each query's strongest examples"),
    ),
    "causal-trace": (
        ("ftrace causal-trace --run runs/synth_demo --window 1 --scores online:learning",
         "a run's queries, joined to who taught them"),
        ("ftrace causal-trace --model gpt2 --prompts known_1000.json", "a model from the hub, or a folder"),
    ),
    "ledger": (("ftrace ledger runs/synth_demo/version_0/online", "what explains the fall of the losses"),),
    "learned-when": (("ftrace learned-when online tracin --run runs/synth_demo", "online scores beside those after"),),
    "tail-patch": (
        ("ftrace tail-patch online bm25 --run runs/synth_demo -k 10", "one step on each of the ten best examples"),
    ),
    "study": (("ftrace study --config studies/saturation --jobs 2", "a study that ships with ftrace"),),
}  # fmt: skip
