"""Answers of a model on disk to prompts, by `transformers`' own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_kd.config.hub_names import absent
from megatron_kd.errors import InputError
from megatron_kd.evaluation.as_huggingface import default_device, huggingface_folder
from megatron_kd.evaluation.saved_model import SavedModel
from megatron_kd.messages import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Generation:
    """How answers are made.

    Attributes:
        max_new_tokens: the longest answer.
        temperature: of the distribution that tokens are drawn from; 0 takes the most likely.
        seed: of each answer's draws, so that it does not depend on what was asked before.
        chat: whether a prompt is what a user says, put into the tokenizer's chat template.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    chat: bool


def answers(
    model: SavedModel, prompts: Sequence[str], generation: Generation, tokenizer: str | None = None
) -> list[str]:
    """The continuation of each prompt, without special tokens.

    Args:
        model: where it lies.
        prompts: at least one.
        generation: how.
        tokenizer: a folder; None: the model's own.

    Raises:
        InputError: a folder that does not load, no tokenizer, a chat without a template, or a prompt without tokens.
    """
    with huggingface_folder(model, tokenizer) as folder:
        tokens = _tokenizer(folder if tokenizer is None else Path(tokenizer))
        inputs = [_input(tokens, prompt, generation.chat, model.folder) for prompt in prompts]
        network = _model(folder, model.folder)
        return [_answer(network, tokens, ids_1S, generation) for ids_1S in inputs]


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not folder.exists():
        raise InputError(f"--tokenizer {folder}: " + "; ".join(absent(folder)))
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{folder}: its tokenizer does not load: {first_line(error)}") from error


def _model(folder: Path, model: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "dtype": "auto"}
    try:
        network = AutoModelForCausalLM.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{model}: does not load: {first_line(error)}") from error
    return network.to(default_device()).eval()


def _input(tokens: PreTrainedTokenizerBase, prompt: str, chat: bool, model: Path) -> Tensor:
    """The prompt's ids, [1, S]."""
    if not chat:
        ids = tokens(prompt, return_tensors="pt").input_ids
    elif not tokens.chat_template:
        raise InputError(f"{model}: its tokenizer has no chat template; leave --chat out")
    else:
        said = [{"role": "user", "content": prompt}]
        ids = tokens.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    if ids.numel() == 0:
        raise InputError(f"--prompt {prompt!r}: has no tokens; write some text to continue")
    return ids.long()


@torch.no_grad()
def _answer(network: PreTrainedModel, tokens: PreTrainedTokenizerBase, ids_1S: Tensor, generation: Generation) -> str:
    torch.manual_seed(generation.seed)
    ids_1S = ids_1S.to(network.device)
    drawn = {"do_sample": True, "temperature": generation.temperature} if generation.temperature > 0 else {}
    # Of a folder's own generation settings only its ends count: top-k and the like would change what is compared.
    made_1S = network.generate(
        ids_1S,
        attention_mask=torch.ones_like(ids_1S),
        max_new_tokens=generation.max_new_tokens,
        pad_token_id=tokens.pad_token_id if tokens.pad_token_id is not None else tokens.eos_token_id,
        **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **drawn},
    )
    return str(tokens.decode(made_1S[0, ids_1S.shape[1] :], skip_special_tokens=True))
