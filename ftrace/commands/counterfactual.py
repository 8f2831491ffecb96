"""``ftrace counterfactual``: does a score predict what happens when training data are left out?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jsonargparse import ArgumentParser

from ftrace.arguments import Name, Positive, Share, Within, checked
from ftrace.commands.endings import say_kept
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.options import take
from ftrace.commands.query_choice import QueryChoice
from ftrace.commands.stores import add_stores, open_stores_of_run
from ftrace.console import PlainConsole
from ftrace.evaluation import EvaluatedQueries, seeded_sample
from ftrace.evaluation.counterfactual import (
    Counterfactual,
    LeftOut,
    Subsets,
    datamodelling_scores,
    draw_kept,
    effects,
    order_seed,
    plan_facts,
    plan_top,
    reliability,
    render_counterfactual,
    write_counterfactual,
)
from ftrace.evaluation.counterfactual.subsets import Unit
from ftrace.evaluation.stores import check_store
from ftrace.files.claims import claimed
from ftrace.retraining import Budget, Retraining, claim_folder, do_retrainings, without

_Trainings = Annotated[int, Within(3, 100_000)]  # fewer have no rank correlation


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: stores and numbers of examples without brackets."""
    add_stores(command, "Without any, there is only the ceiling.", required=False)
    for name, what in (("k", "each query's top K examples"), ("facts", "all rows that state a fact of its top K")):
        command.add_argument(
            f"--leave_out_{name}", nargs="+", type=int, default=[], metavar="K",
            help=f"Retrain without {what}, for each of these K.",
        )  # fmt: skip
    command.add_function_arguments(
        leave_out_and_compare, skip={"stores", "run", "leave_out_k", "leave_out_facts", "choice", "trust"}
    )
    command.add_class_arguments(QueryChoice)


def command(**options: Any) -> None:
    """Do scores predict what happens without some training data? Retrains, and compares: LDS and leave-out."""
    choice = take(QueryChoice, options)
    leave_out_and_compare(**options, choice=choice)


@checked
def leave_out_and_compare(
    stores: Sequence[Name],
    run: Name | None = None,
    subsets: _Trainings = 100,
    unit: Unit = "fact",
    keep: Share = 0.5,
    seeds: Annotated[int, Within(1, 1000)] = 1,
    ceiling_subsets: _Trainings = 30,
    budget: Budget = "epochs",
    choice: QueryChoice = QueryChoice(),  # noqa: B008
    leave_out_k: Sequence[Positive] = (),
    leave_out_facts: Sequence[Positive] = (),
    leave_out_queries: Positive = 8,
    jobs: Positive = 1,
    output_dir: Name | None = None,
    trust: bool = False,
) -> None:
    """Do scores predict what happens without some training data? Retrains, and compares: LDS and leave-out.

    Args:
        stores: Folders of score stores.
        run: The run that they belong to; default: the folder that the first store is in.
        subsets: On how many random subsets of its training rows to retrain the run's model.
        unit: What a subset leaves out: whole facts (each "fact" with all rows that state it), or single rows ("row").
        keep: Which share of the facts, or of the rows, a subset keeps.
        seeds: How often to train on the first subsets, each time in another order: 2 or more tell the noise ceiling.
        ceiling_subsets: How many subsets these are.
        budget: Train for as many "epochs" as the run, so in fewer steps; or for as many "steps".
        choice: Which queries to predict. Its seed is also that of subsets, of the rows' order, of queries and random
            rows, and of resampling.
        leave_out_k: Retrain without each query's top k examples, for each of these k.
        leave_out_facts: Retrain without all rows that state a fact of its top k, for each of these k.
        leave_out_queries: For how many queries, by a seeded shuffle.
        jobs: How many processes. Of several, each gets its share of the cores, or what OMP_NUM_THREADS says.
        output_dir: Where tables and retrainings go; what is retrained there is not retrained again. Default:
            "counterfactual-fact" or "counterfactual-row" in the run's folder.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    seed = choice.seed
    of_run, opened = open_stores_of_run(stores, run, trust)
    asked = choice.evaluated(of_run)
    num_rows = len(of_run.tables.train_rows)
    for store in opened.values():
        check_store(store, asked.query_ids, num_rows)  # before hours of training
    folder = Path(output_dir) if output_dir else of_run.folder / f"counterfactual-{unit}"
    from ftrace.retraining import Retrainer  # imports torch

    use_free_cores()
    retrainer = Retrainer(of_run, budget)
    facts: list[list[str]] = list(of_run.data.train_rows["facts"])
    is_kept = np.stack([draw_kept(facts, unit, keep, index, seed) for index in range(subsets)])
    some = min(ceiling_subsets, subsets) if seeds > 1 else 0
    again = [[_subset(is_kept, index, training, seed) for index in range(some)] for training in range(seeds)]
    sample = asked.among(seeded_sample(asked.query_ids.tolist(), leave_out_queries, seed), "a sample")
    plans = {f"the top {k}": plan_top(opened, sample, num_rows, k, seed) for k in leave_out_k}
    plans |= {f"all facts of the top {k}": plan_facts(opened, sample, facts, k, seed) for k in leave_out_facts}
    left_out = [without(examples) for plan in plans.values() for row in plan for examples in row.examples]

    settings = {"run": retrainer.key, "unit": unit, "keep": keep, "budget": budget, "seed": seed}
    on_subsets = [_subset(is_kept, index, 0, seed) for index in range(subsets)]
    wanted = [*on_subsets, *[retraining for training in again for retraining in training]]
    wanted += [without(()), *left_out] if plans else []
    with claimed(folder, "ftrace counterfactual"):
        claim_folder(folder, settings)
        say_kept(f"Finished retrainings are kept in {folder / 'retrainings'}; the same command goes on with them.")
        outcomes = do_retrainings(of_run, wanted, folder / "retrainings", budget, jobs)
        losses = {retraining.name: outcome.losses for retraining, outcome in zip(wanted, outcomes, strict=True)}

        positions = {query: position for position, query in enumerate(of_run.data.query_rows["query_id"])}
        columns = [positions[query] for query in asked.query_ids.tolist()]
        random_subsets = Subsets(
            is_kept,
            np.array([losses[retraining.name][columns] for retraining in on_subsets]),
            np.array([[losses[retraining.name][columns] for retraining in training] for training in again]),
            asked,
        )
        console = PlainConsole()
        result = Counterfactual(
            {**settings, "subsets": subsets, "seeds": seeds, "ceiling_subsets": some, "left_out": list(plans)},
            asked, datamodelling_scores(opened, random_subsets), reliability(random_subsets),
            sample, _left_out(plans, sample, losses, positions), seed, random_subsets.num_ranked,
            random_subsets.not_finite,
        )  # fmt: skip
        files = write_counterfactual(result, folder)
        console.print(render_counterfactual(result))
        console.print(f"\nWrote {', '.join(file.name for file in files)} to {files[0].parent}", soft_wrap=True)


def _subset(is_kept: np.ndarray, index: int, training: int, seed: int) -> Retraining:
    left_out = tuple(np.flatnonzero(~is_kept[index]).tolist())
    return Retraining(f"subset-{index:05d}-training-{training}", left_out, order_seed(seed, index, training))


def _left_out(
    plans: Mapping[str, Sequence[LeftOut]],
    queries: EvaluatedQueries,
    losses: Mapping[str, np.ndarray],
    positions: Mapping[int, int],
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Gather the effects of leaving out what was planned.

    Args:
        plans: What is left out for each row, by table.
        queries: The queries.
        losses: All queries' losses by the name of the retraining.
        positions: Each query's position among all, by its id.
    """
    columns = [positions[query] for query in queries.query_ids.tolist()]
    by_plan: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for what, plan in plans.items():
        before = losses[without(()).name][columns]
        by_plan[what] = {}
        for row in plan:
            names = [without(examples).name for examples in row.examples]
            after = np.array([losses[name][column] for name, column in zip(names, columns, strict=True)])
            by_plan[what][row.row] = effects(before, after, row, queries)
    return by_plan
