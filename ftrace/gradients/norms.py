"""Rules of layers that normalise their input and scale it: the features are the normalised input.

Hugging Face has some 200 classes of RMSNorm in five forms, which differ in where they round. Each form's rule rounds in
the same way, so it is exact in any precision. Classes that are not listed below are covered by the fallback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients.parts import accumulation_dtype
from ftrace.gradients.rules import Rule, scale_parts


def _summable(x: Tensor) -> Tensor:
    """Convert half-precision inputs to float32, in which the layers themselves take statistics."""
    return x.to(accumulation_dtype(x))


def _layer_norm(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    return F.layer_norm(_summable(x), module.normalized_shape, eps=module.eps)


def _group_norm(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.GroupNorm)
    return F.group_norm(_summable(x), module.num_groups, eps=module.eps).movedim(1, -1)


def _batch_norm(module: nn.Module, x: Tensor) -> Tensor:
    """Normalise by running statistics: `mixes_examples` refuses anything else."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    mean, variance = module.running_mean, module.running_var
    return F.batch_norm(_summable(x), mean, variance, eps=module.eps).movedim(1, -1)


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.RMSNorm)
    return F.rms_norm(x, module.normalized_shape, eps=module.eps)


def _t5_norm(module: Any, x: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)  # T5 takes it in float32, whatever x is
    normalised = x * torch.rsqrt(variance + module.variance_epsilon)
    return normalised.to(module.weight.dtype) if module.weight.dtype in (torch.float16, torch.bfloat16) else normalised


def _llama_norm(module: Any, x: Tensor) -> Tensor:
    return _olmo_norm(module, x).to(x.dtype)


def _olmo_norm(module: Any, x: Tensor) -> Tensor:
    rounded = x.to(torch.float32)
    return rounded * torch.rsqrt(rounded.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def _gemma_norm(module: Any, x: Tensor) -> Tensor:
    rounded = x.float()
    return rounded * torch.rsqrt(rounded.pow(2).mean(-1, keepdim=True) + module.eps)


def _normalised_axes(module: nn.Module) -> int:
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return len(module.normalized_shape)


def mixes_examples(module: nn.Module) -> str | None:
    """Say why a batch norm's next output for one example depends on the others; None if it doesn't."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
        return (
            "normalises by the statistics of its batch, so no gradient is one example's alone. Put it into eval mode, "
            "or use GroupNorm or LayerNorm"
        )
    return None


_LAYER_NORM = Rule("LayerNorm", ("weight", "bias"), scale_parts, _layer_norm, parameter_axes=_normalised_axes)
_GROUP_NORM = Rule("GroupNorm", ("weight", "bias"), scale_parts, _group_norm, channel_axis=1)
_BATCH_NORM = Rule("BatchNorm", ("weight", "bias"), scale_parts, _batch_norm, mixes_examples, channel_axis=1)
_RMS_NORM = Rule("RMSNorm", ("weight",), scale_parts, _rms_norm, parameter_axes=_normalised_axes)

BY_FORWARD: dict[Callable[..., Tensor], Rule] = {
    nn.LayerNorm.forward: _LAYER_NORM,
    nn.GroupNorm.forward: _GROUP_NORM,
    nn.modules.batchnorm._BatchNorm.forward: _BATCH_NORM,
    nn.RMSNorm.forward: _RMS_NORM,
}

_FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "T5LayerNorm": (
        _t5_norm,
        "t5.T5LayerNorm mt5.MT5LayerNorm umt5.UMT5LayerNorm longt5.LongT5LayerNorm "
        "switch_transformers.SwitchTransformersLayerNorm",
    ),
    "LlamaRMSNorm": (
        _llama_norm,
        "llama.LlamaRMSNorm mistral.MistralRMSNorm mixtral.MixtralRMSNorm ministral.MinistralRMSNorm "
        "qwen2.Qwen2RMSNorm qwen2_moe.Qwen2MoeRMSNorm qwen3.Qwen3RMSNorm qwen3_moe.Qwen3MoeRMSNorm phi3.Phi3RMSNorm "
        "smollm3.SmolLM3RMSNorm granite.GraniteRMSNorm granitemoe.GraniteMoeRMSNorm olmoe.OlmoeRMSNorm "
        "deepseek_v2.DeepseekV2RMSNorm deepseek_v3.DeepseekV3RMSNorm glm.GlmRMSNorm glm4.Glm4RMSNorm",
    ),
    "Olmo2RMSNorm": (_olmo_norm, "olmo2.Olmo2RMSNorm olmo3.Olmo3RMSNorm gpt_oss.GptOssRMSNorm"),
    "GemmaRMSNorm": (
        _gemma_norm,
        "gemma.GemmaRMSNorm gemma2.Gemma2RMSNorm gemma3.Gemma3RMSNorm t5gemma.T5GemmaRMSNorm "
        "qwen3_next.Qwen3NextRMSNorm recurrent_gemma.RecurrentGemmaRMSNorm",
    ),
}


def _full_name(short: str) -> str:
    model, cls = short.split(".")
    return f"transformers.models.{model}.modeling_{model}.{cls}"


BY_CLASS: dict[str, Rule] = {
    _full_name(short): Rule(form, ("weight",), scale_parts, normalise)
    for form, (normalise, names) in _FORMS.items()
    for short in names.split()
}
