"""A language model that is fine-tuned on facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)
from typing_extensions import override

from ftrace.arguments import Count, Name, NonNegativeNumber, Share, check_arguments
from ftrace.data.tokenizer import has_tokenizer
from ftrace.models.outputs import Output
from ftrace.models.pretrained import load_pretrained, stored_dtype

IGNORED = -100
Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
_OF_ROWS = ("input_ids", "attention_mask", "labels", "other_end", "end_length")


class FactLM(LightningModule):
    """LightningModule of an encoder-decoder or decoder-only Hugging Face model that learns facts.

    Args:
        model_name_or_path: A pretrained model, by hub name or folder. Give this or ``config``.
        config: Settings of a model to build from scratch: ``model_type`` ("t5", "gpt2", "llama") and the fields of its
            Hugging Face config. Without ``vocab_size``, the datamodule's tokenizer decides.
        answers: A query's loss: "one": -log probability of the answer in the query's own surface; "any": -log of the
            summed probability of all accepted surfaces.
        end_of_sequence: Whether a query's loss counts the token that ends its answer, and a query is only right if
            greedy decoding ends there. By default, an answer is right if it is what decoding begins with: before it
            was fine-tuned, a pretrained decoder hardly ever ends a text after an answer, so that this one token would
            be most of a query's loss.
        optimizer: "adamw", "sgd", or "adafactor", as T5 is trained: PyTorch's, whose steps are relative to the size of
            each parameter (Shazeer and Stern 2018, arXiv 1804.04235).
        learning_rate: Peak learning rate, reached after the warm-up. It then falls linearly to 0.
        warmup_steps: Optimizer steps of the warm-up.
        weight_decay: The optimizer's weight decay.
        momentum: Momentum of "sgd".
        embedding_std: Standard deviation with which the token embeddings of a model built from scratch are redrawn
            (T5's default of 1 learns much worse without pretraining).
        dtype: In which a pretrained model's weights are loaded and trained; "auto": as they are stored. The default is
            what AdamW needs: most checkpoints are stored in bfloat16, in which a step below 1/512 of a weight is
            rounded away. ``Trainer(precision="bf16-mixed")`` runs passes in bfloat16 with float32 weights. A model
            that is built from ``config`` has PyTorch's default dtype, unless this names another.

    Attributes:
        model: The Hugging Face model; exists once training is set up, if its vocabulary comes from the datamodule.
        stored_dtype: The dtype that a pretrained model's config names for its stored weights; "" if there is none.

    Raises:
        ValueError: If neither or both of ``model_name_or_path`` and ``config`` are given, or an option is unknown.
    """

    model: PreTrainedModel
    stored_dtype: str = ""

    def __init__(
        self,
        model_name_or_path: Name | None = None,
        config: dict[str, Any] | None = None,
        answers: Literal["one", "any"] = "any",
        end_of_sequence: bool = False,
        optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw",
        learning_rate: NonNegativeNumber = 1e-3,
        warmup_steps: Count = 0,
        weight_decay: NonNegativeNumber = 0.0,
        momentum: Share = 0.9,
        embedding_std: NonNegativeNumber | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        check_arguments(FactLM.__init__, locals())  # a wrapper would hide a subclass's hyperparameters from Lightning
        super().__init__()
        if (model_name_or_path is None) == (config is None):
            raise ValueError("expected exactly one of model_name_or_path and config, found both or neither")
        if config is not None and "model_type" not in config:
            raise ValueError(f'config: expected a "model_type" such as "t5" or "gpt2", found {sorted(config)}')
        self.save_hyperparameters()
        if model_name_or_path is not None:
            self.model = load_pretrained(model_name_or_path, dtype=dtype).train()  # it comes in eval mode
            self.stored_dtype = stored_dtype(model_name_or_path)
        elif config is not None and "vocab_size" in config:
            self.build()

    @override
    def configure_model(self) -> None:
        datamodule = getattr(self._trainer, "datamodule", None)
        tokenizer = getattr(datamodule, "tokenizer", None)
        if not hasattr(self, "model"):
            if tokenizer is None:
                raise ValueError("config: expected vocab_size, or a datamodule with a tokenizer; found neither")
            self.build(tokenizer)
        architecture = getattr(datamodule, "architecture", self.architecture)
        if architecture != self.architecture:
            raise ValueError(f"expected a datamodule for {self.architecture} models, found one for {architecture} ones")
        words, rows = len(tokenizer or ()), self.model.get_input_embeddings().weight.shape[0]
        if words > rows:
            raise ValueError(
                f"expected a tokenizer of at most {rows} tokens, as the model has, found one of {words}. Give the "
                "datamodule the model's own: tokenizer=..."
            )
        self._check_tokenizer(tokenizer)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        check_length = getattr(datamodule, "check_length", None)
        if positions is not None and check_length is not None:
            check_length(positions)

    def _check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse data whose tokens mean something else than in the model's pretraining."""
        name = self.hparams["model_name_or_path"]
        if name is None or tokenizer is None or not has_tokenizer(name):
            return
        pretrained = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if pretrained.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"expected data in the tokens of the model {name!r}, found a tokenizer with another "
                f"vocabulary ({len(tokenizer)} tokens for {len(pretrained)}). Give the datamodule the model's own: "
                f"tokenizer={name}"
            )

    def build(self, tokenizer: Any = None) -> None:
        """Build the model from its config; a tokenizer gives the vocabulary's size and the special tokens."""
        settings = dict(self.hparams["config"])
        if tokenizer is not None:
            ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
            begin = {"decoder_start_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.eos_token_id}
            settings = {"vocab_size": len(tokenizer), **ends, **begin, **settings}
            self.hparams["config"] = settings  # so that a checkpoint can be loaded without the datamodule
        config = AutoConfig.for_model(**settings)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        self.model = auto.from_config(config, trust_remote_code=False)
        if self.hparams["embedding_std"] is not None:
            torch.nn.init.normal_(self.model.get_input_embeddings().weight, std=self.hparams["embedding_std"])
        if self.hparams["dtype"] not in ("auto", "float32"):  # else the trainer's precision, such as 64-true, decides
            self.model.to(getattr(torch, self.hparams["dtype"]))
        self.model.train()

    @override
    def on_fit_start(self) -> None:
        """Say in which dtype a pretrained model is trained."""
        if self.hparams["model_name_or_path"] is not None:
            dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in self.parameters()})
            stored = f", stored in {self.stored_dtype}" if self.stored_dtype not in ("", *dtypes) else ""
            rounds = ": steps below 1/512 of a weight are rounded away" if "bfloat16" in dtypes else ""
            count = sum(weight.numel() for weight in self.parameters())
            rank_zero_info(f"FactLM: trains {count:,} weights in {' and '.join(dtypes)}{stored}{rounds}")

    @property
    def architecture(self) -> Literal["encoder-decoder", "decoder-only"]:
        """Architecture of the model."""
        return "encoder-decoder" if self.model.config.is_encoder_decoder else "decoder-only"

    def example_losses(self, batch: Mapping[str, Tensor], end_of_sequence: bool | None = None) -> Tensor:
        """Return -log probability of each row's answer given its input, in nats, ``[B]``.

        Query batches carry their accepted answers; with ``answers="any"`` the loss is then -log of the answers' summed
        probability. If training rows have several answers, a query's answer ends with the end of the sequence or where
        another answer begins: the probability of either counts. Without their ends, answers may go on in any way, so
        one that begins with another accepted one adds nothing to its probability.

        Args:
            batch: A collator's batch.
            end_of_sequence: Whether the loss includes each answer's last token, the end of the sequence; default: for
                training rows, as in training; for queries, as the model's option of this name says.
        """
        is_query = "answer_labels" in batch
        counts_end = end_of_sequence
        if counts_end is None:
            counts_end = not is_query or bool(self.hparams["end_of_sequence"])
        if is_query:
            answers = _accepted(batch) if self.hparams["answers"] == "any" else _own(batch)
            return -torch.logsumexp(self._answer_log_probabilities(batch, answers, counts_end)[0], dim=1)
        logits, labels = self._shifted(self._logits(batch), batch["labels"])
        return _token_losses(logits, labels if counts_end else _without_end(labels, batch.get("end_length"))).sum(1)

    def answer_lengths(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the number of tokens of each query's answer in its own surface, ``[B]``, as the collator counted them.

        What a sentinel or the end of the sequence adds to a loss soon is nearly nothing, so they don't count.
        """
        return batch["answer_length"]

    def example_outputs(self, batch: Mapping[str, Tensor], output: Output = "loss") -> Tensor:
        """Return a measure of each row, ``[B]``, that falls as the row's answer becomes likelier.

        Args:
            batch: A collator's batch.
            output: "loss": :meth:`example_losses`; "margin": minus the sum over the answer's tokens of
                log(p / (1 - p)), as TRAK takes it (Park et al. 2023, arXiv 2303.14186, section 3); "logit": minus the
                sum of the tokens' logits. The last two are of the answer in the query's own surface.
        """
        if output == "loss":
            return self.example_losses(batch)
        logits, labels = self._shifted(self._logits(batch), batch["labels"])
        if "answer_labels" in batch and not self.hparams["end_of_sequence"]:
            labels = _without_end(labels, batch.get("end_length"))
        counted = labels != IGNORED
        chosen = labels.clamp(min=0).unsqueeze(-1)
        of_tokens = logits.gather(-1, chosen).squeeze(-1)
        if output == "margin":
            others = logits.scatter(-1, chosen, -torch.inf)
            of_tokens = of_tokens - others.logsumexp(-1)
        return -of_tokens.masked_fill(~counted, 0).sum(1)

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of training: the mean over all target tokens of a batch of training rows, in nats, ``[]``."""
        logits, labels = self._shifted(self._logits(batch), batch["labels"])
        return _token_losses(logits, labels).sum() / (labels != IGNORED).sum()

    @torch.no_grad()
    def learned(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return whether greedy decoding begins with one of a query's accepted answers, ``[B]`` bool.

        With ``end_of_sequence=True``, it must also end there.
        """
        ends = bool(self.hparams["end_of_sequence"])
        return self._answer_log_probabilities(batch, _accepted(batch), ends)[1].any(1)

    def _answer_log_probabilities(
        self, batch: Mapping[str, Tensor], answers: Mapping[str, Tensor], end_of_sequence: bool
    ) -> tuple[Tensor, Tensor]:
        """Return each answer's log probability, and whether greedy decoding gives it, each ``[B, A]``.

        Greedy decoding gives an answer exactly if each of its tokens is the likeliest after those before it. One pass
        over the given answer shows that. Without their ends, answers are beginnings of texts, and one that begins with
        another is contained in it: its probability is 0 here, so that probabilities can be added.
        """
        labels_BAS = answers["labels"]
        B, A, S = labels_BAS.shape
        labels = labels_BAS.reshape(B * A, S)
        if self.model.config.is_encoder_decoder:
            states = self.model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])
            hidden = states.last_hidden_state.repeat_interleave(A, 0)
            mask = batch["attention_mask"].repeat_interleave(A, 0)
            # The encoder runs once per query, not once per answer.
            logits = self._decode(labels, encoder_outputs=(hidden,), attention_mask=mask)
        else:
            rows = {name: answers[name].reshape(B * A, -1) for name in ("input_ids", "attention_mask")}
            logits = self.model(**rows, use_cache=False).logits
        logits, labels = self._shifted(logits, labels)
        end_lengths = answers["end_length"].reshape(B * A) if "end_length" in answers else None
        counted = labels if end_of_sequence else _without_end(labels, end_lengths)
        exists = (counted != IGNORED).any(1) & ~_begins_with_another(counted.view(B, A, -1)).flatten()
        of_tokens = -_token_losses(logits, counted)
        likeliest = logits.argmax(-1)
        right = likeliest == counted
        of_answers = of_tokens.sum(1)
        if end_of_sequence and "other_end" in answers:
            last, other = _is_last(labels), answers["other_end"].reshape(B * A)
            right = right | (last & (likeliest == other[:, None]))
            of_answers = of_answers + _gain_of_other_end(logits, of_tokens, last, other)
        log_probabilities = torch.where(exists, of_answers, -torch.inf)
        greedy = (right | (counted == IGNORED)).all(1) & exists
        return log_probabilities.view(B, A), greedy.view(B, A)

    def _logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if self.model.config.is_encoder_decoder:
            return self._decode(batch["labels"], **inputs)
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    def _decode(self, labels: Tensor, **inputs: Any) -> Tensor:
        """Return the logits of an encoder-decoder given the preceding labels; ``labels=`` would compute a loss, too."""
        decoder_input_ids = self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        logits: Tensor = self.model(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False).logits
        return logits

    def _shifted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Align logits with the labels that they predict: a decoder-only model's are one position apart."""
        return (logits, labels) if self.model.config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])

    @override
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.log("train/loss", loss, batch_size=len(batch["labels"]), prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self._log_queries("val", batch)

    @override
    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self._log_queries("test", batch)

    def _log_queries(self, stage: str, batch: Mapping[str, Tensor]) -> None:
        size = len(batch["labels"])
        self.log(f"{stage}/query_loss", self.example_losses(batch).mean(), batch_size=size)
        self.log(f"{stage}/queries_learned", self.learned(batch).float().mean(), batch_size=size, prog_bar=True)

    @override
    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the ids of a batch of queries, their losses in nats and whether each is learned."""
        return {"query_id": batch["query_id"], "loss": self.example_losses(batch), "learned": self.learned(batch)}

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.hparams
        optimizer: torch.optim.Optimizer
        rates = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"]}
        if settings["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), momentum=settings["momentum"], **rates)
        elif settings["optimizer"] == "adafactor":
            optimizer = torch.optim.Adafactor(self.parameters(), **rates)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), **rates)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "expected a known number of steps to schedule the learning rate. Set max_epochs or max_steps"
            )
        schedule = get_linear_schedule_with_warmup(optimizer, settings["warmup_steps"], int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log likelihood of each label, 0 where it is ignored; logits ``[B, S, V]``, labels ``[B, S]``."""
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def _accepted(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a query batch's accepted answers, ``[B, A, S]``."""
    return {name: batch[f"answer_{name}"] for name in _OF_ROWS if f"answer_{name}" in batch}


def _own(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a query batch's answers in the queries' own surface, ``[B, 1, S]``."""
    return {name: batch[name][:, None] for name in _OF_ROWS if name in batch}


def _is_last(labels: Tensor) -> Tensor:
    """Mark each row's last label in labels ``[B, S]``."""
    is_label = labels != IGNORED
    after = is_label.flip(1).cumsum(1).flip(1)  # number of labels from here on
    return is_label & (after == 1)


def _without_end(labels: Tensor, lengths: Tensor | None) -> Tensor:
    """Return labels ``[B, S]`` with those ignored that close a row, unless it has no others.

    Args:
        lengths: ``[B]``, how many of each row's last labels close it; None: one.
    """
    after = (labels != IGNORED).flip(1).cumsum(1).flip(1)  # number of labels from here on
    closing = torch.ones_like(after[:, :1]) if lengths is None else lengths[:, None]
    return labels.masked_fill((after <= closing) & (after[:, :1] > closing), IGNORED)


def _begins_with_another(labels_BAS: Tensor) -> Tensor:
    """Tell which answers begin with another one of the same query, or are the same as an earlier one, ``[B, A]``."""
    counts = labels_BAS != IGNORED
    of_other, of_one = labels_BAS[:, None, :, :], labels_BAS[:, :, None, :]  # [B, A, A, S], the other one last
    is_same = (~counts[:, None, :, :] | (of_one == of_other)).all(-1)
    first = counts.int().argmax(-1)
    is_same &= (first[:, None, :] == first[:, :, None]) & counts.any(-1)[:, None, :]
    lengths, A = counts.sum(-1), labels_BAS.shape[1]
    is_shorter = lengths[:, None, :] < lengths[:, :, None]
    is_earlier = torch.ones(A, A, dtype=torch.bool, device=labels_BAS.device).tril(-1)
    is_other = is_shorter | ((lengths[:, None, :] == lengths[:, :, None]) & is_earlier)
    return (is_same & is_other).any(-1)


def _gain_of_other_end(logits: Tensor, of_tokens: Tensor, last: Tensor, other: Tensor) -> Tensor:
    """Return the gain in log probability ``[B]`` if a row's last token may also be ``other`` ``[B]``.

    Args:
        logits: ``[B, S, V]``.
        of_tokens: Log probability of each label, ``[B, S]``.
        last: Mask of each row's last label, ``[B, S]`` bool.
        other: A token; -100 for none.
    """
    position = last.int().argmax(1)
    rows = torch.arange(len(position), device=position.device)
    expected = of_tokens[rows, position]
    others = -F.cross_entropy(logits[rows, position], other, ignore_index=IGNORED, reduction="none")
    return torch.where(other != IGNORED, torch.logaddexp(expected, others) - expected, 0.0)
