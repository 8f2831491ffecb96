"""How each library computes the scores of peers.py: the model, sets of its parameters, and one adapter each."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from ftrace.gradients import GradientCapture, PerExampleGradients, QueryGradients, inner_products

Scores = Callable[[GPT2LMHeadModel, Tensor, Tensor, int], Tensor]


def build_model() -> GPT2LMHeadModel:
    """Four layers of width 128 with a tied token table; norms and biases moved off their trivial beginnings."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1024, n_positions=128, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        attn_implementation="eager", use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def losses_of_logits(logits: Tensor, ids: Tensor) -> Tensor:
    """Sum over tokens of the negative log likelihood, ``[B]``."""
    token_losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return token_losses.view(len(ids), -1).sum(1)


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """The loss of each row, ``[B]``."""
    return losses_of_logits(model(ids).logits, ids)


def loss_of_row(model: nn.Module, parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The loss of one row without a batch axis, as ``torch.func`` wants it."""
    return losses_of_logits(torch.func.functional_call(model, parameters, (ids[None],)).logits, ids[None]).sum()


def cut_tie(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """A copy that computes the same, in which ``lm_head.weight`` is a parameter of its own."""
    model = copy.deepcopy(model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@dataclass(frozen=True)
class ParameterSet:
    """Parameters by globs over their names, of the model itself or of its copy with the tie cut."""

    patterns: tuple[str, ...]
    tie_is_cut: bool

    def model(self, model: GPT2LMHeadModel) -> GPT2LMHeadModel:
        """The model to which the patterns apply."""
        return cut_tie(model) if self.tie_is_cut else model

    def has(self, name: str) -> bool:
        """Whether a parameter belongs to the set."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def share(self, model: GPT2LMHeadModel) -> str:
        """Share of the model's elements that are covered, and how far the tied table is."""
        total = sum(parameter.numel() for parameter in model.parameters())
        output = model.lm_head.weight.numel() if self.tie_is_cut else 0
        own = sum(p.numel() for name, p in self.model(model).named_parameters() if self.has(name)) - output
        if output and self.has("transformer.wte.weight"):
            return f"{own / total:.1%} (table's uses apart)"
        return f"{own / total:.1%}" + (f" + {output / total:.1%} (output use only)" if output else "")


ALL = ParameterSet(("*",), tie_is_cut=False)
LINEAR = ParameterSet(("*.c_*", "lm_head.weight"), tie_is_cut=True)
HEAD = ParameterSet(("lm_head.weight",), tie_is_cut=True)
NOT_POSITIONS = ParameterSet(("*.wte.weight", "*.ln_*", "*.c_*", "lm_head.weight"), tie_is_cut=True)


def ftrace_scores(
    model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int, *, covers: ParameterSet
) -> Tensor:
    """By ftrace.gradients."""
    model = covers.model(model)
    capture = GradientCapture(model, covers.patterns)
    names = capture.coverage.covered
    assert not capture.coverage.gaps, capture.coverage.summary()

    def gradients(ids: Tensor, take: Callable[[PerExampleGradients], None] | None = None) -> PerExampleGradients:
        with capture.recording(len(ids)) as recording:
            recording.backward(losses(model, ids), take)
        return recording.gradients()

    def products(ids: Tensor, of_queries: QueryGradients) -> Tensor:
        taken: list[Tensor] = []
        rest = gradients(ids, lambda some: taken.append(inner_products(some, of_queries, names)))
        return sum(taken, inner_products(rest, of_queries, names))

    with capture:
        gradients(queries[:2])  # a first pass also finds out whose rows are whose, at less cost in a small batch
        of_queries = PerExampleGradients.stack([gradients(ids) for ids in queries.split(batch)])
        prepared = QueryGradients(of_queries, batches=len(examples) / batch)
        return torch.cat([products(ids, prepared) for ids in examples.split(batch)])


class Logits(nn.Module):
    """A model whose output is a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Logits, ``[B, T, V]``."""
        logits: Tensor = self.model(ids).logits
        return logits


def captum_scores(
    model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int, *, sample_wise: bool
) -> Tensor:
    """By captum's TracInCP.

    Its loop sends a backward pass through the whole batch for each row of it, so large batches only cost it.
    With ``sample_wise`` it reads gradients off Linear and Conv2d layers, which leaves the output matrix.
    """
    from captum.influence import TracInCP

    def total(logits: Tensor, ids: Tensor) -> Tensor:
        return losses_of_logits(logits, ids).sum()

    tracin = TracInCP(
        Logits(copy.deepcopy(model)),
        DataLoader(TensorDataset(examples, examples), batch_size=batch),
        checkpoints=["as it is"],
        checkpoints_load_func=lambda model, checkpoint: 1.0,
        loss_fn=total if sample_wise else losses_of_logits,
        sample_wise_grads_per_batch=sample_wise,
    )
    return tracin.influence(DataLoader(TensorDataset(queries, queries), batch_size=batch)).T.detach()


def traker_scores(model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int) -> Tensor:
    """By TRAK's gradient computer, without projection; the library has no plain products, so they are taken here."""
    from trak.gradient_computers import FunctionalGradientComputer
    from trak.modelout_functions import AbstractModelOutput

    class RowLoss(AbstractModelOutput):
        def __init__(self) -> None:
            super().__init__()

        @staticmethod
        def get_output(model: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], ids: Tensor) -> Tensor:
            return loss_of_row(model, {**weights, **buffers}, ids)

        def get_out_to_loss_grad(self, *args: Any) -> Tensor:
            raise NotImplementedError

    size = sum(parameter.numel() for parameter in model.parameters())
    computer = FunctionalGradientComputer(model, RowLoss(), size, torch.float32, torch.device("cpu"))

    @torch.no_grad()  # else torch.func keeps a graph for second derivatives
    def gradients(ids: Tensor) -> dict[str, Tensor]:
        return {name: grad.flatten(1) for name, grad in computer.compute_per_sample_grad((ids,)).items()}

    per_batch = [gradients(ids) for ids in queries.split(batch)]
    of_queries = {name: torch.cat([grads[name] for grads in per_batch]).T for name in per_batch[0]}
    scores = torch.zeros(len(examples), len(queries))
    for start, ids in zip(range(0, len(examples), batch), examples.split(batch), strict=True):
        for name, grad in gradients(ids).items():
            scores[start : start + batch].addmm_(grad, of_queries[name])
    return scores


def dattri_scores(model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int) -> Tensor:
    """By dattri's TracInAttributor.

    It takes the queries' gradients anew for each batch of examples, so small batches of examples are slow. It makes a
    tensor of the size of the whole gradient for each parameter, so larger batches than 8 leave the allocator's heap.
    """
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    model = copy.deepcopy(model)
    task = AttributionTask(
        loss_func=lambda parameters, data: loss_of_row(model, parameters, data[0]),
        model=model,
        checkpoints=copy.deepcopy(model.state_dict()),
    )
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None  # None as an argument means projection to 512 dimensions
    with torch.no_grad():  # else torch.func keeps a graph for second derivatives
        return attributor.attribute(
            DataLoader(TensorDataset(examples), batch_size=batch),
            DataLoader(TensorDataset(queries), batch_size=min(batch, 8)),
        )


def bergson_scores(model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int) -> Tensor:
    """By bergson's in-memory collector: the queries' gradients first, then its scorer on the fly.

    Its command line hands over the model without the head; the collector also takes the head, so it gets it here.
    """
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.score.scorer import Scorer
    from datasets import Dataset as Rows

    model = copy.deepcopy(model).requires_grad_(False)
    model.transformer.wpe.requires_grad_(True)  # hooks on gradients run if anything needs one: here a small table

    def collect(ids: Tensor, scorer: Any, folder: str) -> Any:
        data = Rows.from_dict({"input_ids": ids.tolist()})
        config = IndexConfig(run_path=f"{folder}/run", loss_reduction="sum", include_bias=True)
        config.partial_run_path.mkdir(exist_ok=True)
        processor = GradientProcessor(include_bias=True)
        collector = InMemoryCollector(model=model, data=data, cfg=config, processor=processor, scorer=scorer)
        batches = [list(range(start, min(start + batch, len(ids)))) for start in range(0, len(ids), batch)]
        CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
        return collector

    with tempfile.TemporaryDirectory() as folder:
        of_queries = collect(queries, None, folder).gradients
        writer = InMemorySequenceScoreWriter(len(examples), len(queries))
        scorer = Scorer(of_queries, list(of_queries), writer, torch.device("cpu"), torch.float32)
        collect(examples, scorer, folder)
    return writer.scores


def kronfluence_scores(model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int) -> Tensor:
    """By kronfluence's pairwise scores with the identity for a Hessian. It knows Linear layers, but not GPT-2's own."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class LanguageModeling(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return losses(model, batch[0]).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return losses(model, batch[0]).sum()

    train: Dataset[Any] = TensorDataset(examples)
    task = LanguageModeling()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_model(with_linear_layers(model), task)
        analyzer = Analyzer("peers", prepared, task, cpu=True, disable_tqdm=True, output_dir=folder)
        factors = FactorArguments(strategy="identity")
        analyzer.fit_all_factors("identity", train, per_device_batch_size=batch, factor_args=factors)
        analyzer.compute_pairwise_scores(
            "scores",
            "identity",
            TensorDataset(queries),
            train,
            per_device_query_batch_size=len(queries),  # a pass over the examples for each batch of queries
            per_device_train_batch_size=batch,
            score_args=ScoreArguments(),
        )
        scores: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return scores.T.float()


def dattri_llm_scores(
    model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int, *, covers: ParameterSet
) -> Tensor:
    """By dattri-llm's TracInAttributor, on the fly.

    It adds the gradients of positions up over the batch (and says so), and takes the two uses of a tied table for two
    layers, without the products between them.
    """
    from dattri_llm import AttributionArguments, AttributionTask, HookManagerConfig, TracInAttributor

    model = copy.deepcopy(covers.model(model)).requires_grad_(False)
    model.transformer.wte.requires_grad_(True)  # hooks on frozen layers run if anything before them needs a gradient
    hooked = [path for path, _ in model.named_modules() if covers.has(f"{path}.weight")]
    config = HookManagerConfig(
        linear_io=[f"^{re.escape(path)}$" for path in hooked],
        capture_style="auto",
        include_frozen=True,
    )
    task = AttributionTask(lambda model, batch: losses(model, batch["input_ids"]).sum(), model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = AttributionArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=len(queries),  # products with each batch of queries
            max_grad_norm=None,
        )
        attributor = TracInAttributor(arguments, task=task)
        score = attributor.attribute(_as_rows(examples), _as_rows(queries), hook_config=config)
    scores: Tensor = score.agnostic_matrix()[1]
    return scores


def _as_rows(ids: Tensor) -> Any:
    return [{"input_ids": row} for row in ids]


def with_linear_layers(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """A copy whose Conv1D layers are Linear layers."""
    model = copy.deepcopy(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Conv1D):
            linear = nn.Linear(layer.nx, layer.nf)
            linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
            linear.bias = nn.Parameter(layer.bias.detach().clone())
            model.set_submodule(path, linear)
    return model


@dataclass(frozen=True)
class Method:
    """A library's way to the scores.

    Args:
        package: What it is installed as.
        scores: The function.
        covers: Parameters that its scores see.
        batch_sizes: Those to choose the fastest from.
    """

    package: str
    scores: Scores
    covers: ParameterSet
    batch_sizes: tuple[int, ...]


METHODS = {
    "ftrace": Method("ftrace", partial(ftrace_scores, covers=ALL), ALL, (16, 32, 64)),
    "captum": Method("captum", partial(captum_scores, sample_wise=False), ALL, (1, 2, 4)),
    "traker": Method("traker", traker_scores, ALL, (8, 16, 32, 64)),
    "dattri": Method("dattri", dattri_scores, ALL, (8, 32, 128)),
    "ftrace-linear": Method("ftrace", partial(ftrace_scores, covers=LINEAR), LINEAR, (16, 32, 64)),
    "bergson": Method("bergson", bergson_scores, LINEAR, (8, 16, 32, 64)),
    "kronfluence": Method("kronfluence", kronfluence_scores, LINEAR, (16, 32, 64, 128)),
    "dattri-llm-linear": Method("dattri-llm", partial(dattri_llm_scores, covers=LINEAR), LINEAR, (16, 32, 64, 128)),
    "ftrace-untied": Method("ftrace", partial(ftrace_scores, covers=NOT_POSITIONS), NOT_POSITIONS, (16, 32, 64)),
    "dattri-llm": Method(
        "dattri-llm", partial(dattri_llm_scores, covers=NOT_POSITIONS), NOT_POSITIONS, (16, 32, 64, 128)
    ),
    "ftrace-head": Method("ftrace", partial(ftrace_scores, covers=HEAD), HEAD, (16, 32, 64)),
    "captum-samplewise": Method("captum", partial(captum_scores, sample_wise=True), HEAD, (8, 16, 32, 64)),
}
