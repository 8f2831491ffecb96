from __future__ import annotations

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from ftrace.index import block_weights, make_blocks


def t5(layers: int) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=layers, num_heads=2)
    )


def test_block_weights_leave_out_embeddings_head_norms_biases_and_tables_of_positions() -> None:
    names = block_weights(t5(2))
    assert not [name for name in names if "embed" in name or "norm" in name or "bias" in name or "shared" in name]
    assert sum("SelfAttention" in name for name in names) == 16
    assert sum("EncDecAttention" in name for name in names) == 8
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8))
    assert len(block_weights(gpt2)) == 8
    assert all(name.endswith("weight") and ".h." in name for name in block_weights(gpt2))


def test_pooled_blocks_are_of_consecutive_layers_by_kind() -> None:
    names = [f"h.{layer}.{part}.weight" for layer in range(12) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
    blocks = make_blocks(names, "pooled", 8)
    assert len(blocks) == 16
    assert sorted(name for own in blocks.values() for name in own) == sorted(names)
    sizes = [len({name.split(".")[1] for name in own}) for own in blocks.values()]
    assert set(sizes) == {1, 2}
    for own in blocks.values():
        layers = sorted({int(name.split(".")[1]) for name in own})
        assert layers == list(range(layers[0], layers[-1] + 1))


def test_fewer_layers_than_groups_make_a_block_each() -> None:
    names = block_weights(t5(2))
    blocks = make_blocks(names, "pooled", 8)
    assert set(blocks) == {f"{kind} {place}" for kind in ("attention", "mlp") for place in range(4)}
    assert len(make_blocks(names, "layer")) == 4
    assert len(make_blocks(names, "parameter")) == len(names)


def test_weights_outside_of_numbered_blocks_have_a_block_of_their_own() -> None:
    blocks = make_blocks(["wte.weight", "h.0.attn.weight", "lm_head.weight"])
    assert set(blocks) == {"wte 0", "attention 0", "lm_head 0"}


@pytest.mark.parametrize(
    ("layout", "groups", "message"), [("pooled", 0, "at least 1, found 0"), ("other", 8, "'other'")]
)
def test_bad_layouts_are_refused(layout: str, groups: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_blocks(["a.weight"], layout, groups)  # type: ignore[arg-type]


def test_a_model_without_numbered_blocks_is_told_what_to_name() -> None:
    from torch import nn

    with pytest.raises(ValueError, match=r'parameters=\("\*",\)'):
        block_weights(nn.Linear(2, 2))
