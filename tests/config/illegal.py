"""Values and combinations of values that cannot be, and what their one line must say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAIRS = "model.kd_config.intermediate_layer_pairs"
BOTH_TP = ("model.tensor_model_parallel_size", "model.teacher.tensor_model_parallel_size")
BOTH_PP = ("model.pipeline_model_parallel_size", "model.teacher.pipeline_model_parallel_size")


def tp(size: int) -> dict[str, Any]:
    return dict.fromkeys(BOTH_TP, size)


def pp(size: int) -> dict[str, Any]:
    return dict.fromkeys(BOTH_PP, size)


def both(name: str, value: Any) -> dict[str, Any]:
    return {f"model.{name}": value, f"model.teacher.{name}": value}


def pair(student: str, teacher: str = "decoder.final_layernorm") -> dict[str, Any]:
    return {PAIRS: [[student, teacher]]}


BY_MODELOPT = {"model.kd_config.loss_balancer": "modelopt"}
FULL = {"model.recompute_granularity": "full", "model.recompute_method": "uniform", "model.recompute_num_layers": 1}

# (edits, what the one line must contain: the fields and a word of the cure)
COLOCATED = {"model.teacher_device_strategy": "colocated"}
CASES: list[tuple[dict[str, Any], list[str]]] = [
    # fake quantisation
    ({"model.teacher.quantization": "int8"}, ["model.teacher.quantization=int8", "model.teacher_quantization=int8"]),
    ({"model.quantization": "int4_weight_only", **tp(2), "model.hidden_size": 128, "model.ffn_hidden_size": 256},
     ["model.quantization=int4_weight_only", "model.tensor_model_parallel_size=2", "128 inputs in a row",
      "the outputs of attention are 128 over 2 ranks"]),
    ({"model.quantization": "nvfp4", "dist.distributed_backend": "gloo"},
     ["model.quantization=nvfp4, dist.distributed_backend=gloo", "CUDA"]),
    # architecture
    ({"model.num_query_groups": 3}, ["model.num_attention_heads=8", "model.num_query_groups=3", "divisor"]),
    ({"model.hidden_size": 60}, ["model.hidden_size=60", "model.num_attention_heads=8", "model.kv_channels"]),
    ({"model.teacher.hidden_size": 60}, ["model.teacher.hidden_size=60", "model.teacher.num_attention_heads=8"]),
    ({"model.kv_channels": 7}, ["model.kv_channels=7", "even"]),
    ({"model.hidden_size": 56}, ["model.hidden_size=56", "rotary_percent=1.0", "even"]),
    (
        {"model.rope_scaling": True, "model.position_embedding_type": "none"},
        ["model.rope_scaling=true", "model.position_embedding_type=none", "rope_scaling=false"],
    ),
    ({"model.recompute_granularity": "full"}, ["model.recompute_method=null", "recompute_method=uniform"]),
    ({"model.recompute_method": "block"}, ["model.recompute_method=block", "recompute_granularity=full"]),
    (
        {"model.recompute_granularity": "selective", "model.recompute_num_layers": 1},
        ["model.recompute_num_layers=1", "null"],
    ),
    ({**FULL, "model.recompute_num_layers": 5}, ["model.recompute_num_layers=5", "at most 4"]),
    ({**FULL, **pp(2), "model.recompute_num_layers": 3}, ["model.recompute_num_layers=3", "at most 2"]),
    # vocabulary
    (
        {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 1000, "model.teacher.vocab_size": 900},
        ["model.teacher.vocab_size=900", "tokenizer has 1000 ids", "at least 1000"],
    ),
    (
        {"model.teacher.vocab_size": 900, "model.kd_config.logit_kl_topk": 901},
        ["model.kd_config.logit_kl_topk=901", "share 900 ids", "at most"],
    ),
    (
        {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 2000, "model.teacher.vocab_size": None,
         "model.vocab_size": 2000, "model.make_vocab_size_divisible_by": 1, **tp(8),
         "model.teacher.make_vocab_size_divisible_by": 1999},
        ["model.make_vocab_size_divisible_by=1", "3998 wide", "make_vocab_size_divisible_by=8"],
    ),
    (both("make_vocab_size_divisible_by", 1) | both("vocab_size", 1001) | tp(2),
     ["model.make_vocab_size_divisible_by=1", "1001 wide", "make_vocab_size_divisible_by=2"]),
    # tensor, sequence and context parallelism
    ({"model.num_attention_heads": 4, **tp(8)}, ["model.num_attention_heads=4", BOTH_TP[0] + "=8", "divisor"]),
    ({"model.num_query_groups": 2, **tp(4)}, ["model.num_query_groups=2", BOTH_TP[0] + "=4", "at most 2"]),
    (
        both("num_attention_heads", 12) | both("hidden_size", 96) | tp(4) | {"model.num_query_groups": 6},
        ["model.num_query_groups=6", BOTH_TP[0] + "=4", "divisor"],
    ),
    ({"model.ffn_hidden_size": 99, **tp(2)}, ["model.ffn_hidden_size=99", BOTH_TP[0] + "=2", "divisor"]),
    ({"model.hidden_size": 63, "model.num_attention_heads": 8, "model.kv_channels": 8, **tp(8)},
     ["model.hidden_size=63", "252", "divisor"]),
    ({"model.tensor_model_parallel_size": 2} | COLOCATED,
     [BOTH_TP[0] + "=2", BOTH_TP[1] + "=1", "shares the student's layout", "strategy=balanced or gpu0 or cpu"]),
    (both("sequence_parallel", True) | {"model.teacher.num_layers": 8},
     ["model.sequence_parallel=true", BOTH_TP[0] + "=1", "sequence_parallel=false"]),
    ({"model.sequence_parallel": True, **tp(2)} | COLOCATED,
     ["model.sequence_parallel=true", "model.teacher.sequence_parallel=false", "set model.teacher"]),
    (both("sequence_parallel", True) | both("seq_length", 1023) | tp(2), ["model.seq_length=1023", "multiple"]),
    (both("context_parallel_size", 2), ["model.context_parallel_size=2", "TransformerEngine"]),
    # pipeline parallelism
    ({"model.num_layers": 5, **pp(2)}, ["model.num_layers=5", BOTH_PP[0] + "=2", "same number of layers"]),
    ({"model.teacher.num_layers": 5, **pp(2)}, ["model.teacher.num_layers=5", BOTH_PP[1] + "=2"]),
    ({"model.pipeline_model_parallel_size": 2} | COLOCATED, [BOTH_PP[0] + "=2", BOTH_PP[1] + "=1", "layout"]),
    ({"model.virtual_pipeline_model_parallel_size": 2, **pp(2)} | COLOCATED,
     ["model.virtual_pipeline_model_parallel_size=2", "ModelOpt's pipeline mechanism does not support"]),
    # batch
    ({"train.train_iters": None}, ["train.train_iters=null", "train.num_epochs=null", "train.train_iters=N"]),
    ({"train.num_epochs": 2.0}, ["train.num_epochs=2.0, dataset.mock=true", "no epochs"]),
    ({"train.global_batch_size": 7}, ["train.global_batch_size=7", "micro_batch_size=2", "6 or 8"]),
    ({"train.global_batch_size": 1}, ["train.global_batch_size=1", "train.global_batch_size=2"]),
    # distillation
    ({"model.teacher.seq_length": 512}, ["model.seq_length=1024", "model.teacher.seq_length=512", "same tokens"]),
    ({"model.kd_config.logit_layers": ["a", "output_layer"]}, ["model.kd_config.logit_layers=[a,", "output_layer]"]),
    ({"model.kd_config.logit_kl_topk": 8, "model.kd_config.logits_form": "fused"},
     ["logit_kl_topk=8", "logits_form=auto"]),
    ({"model.kd_config.logit_kl_topk": 8, "model.kd_config.logits_loss_kind": "jsd"},
     ["logit_kl_topk=8", "logits_loss_kind=jsd", "forward_kl"]),
    ({PAIRS: [["decoder.final_layernorm"]]}, [PAIRS, "[decoder.final_layernorm]", "pair"]),
    ({PAIRS: [["decoder.final_layernorm"] * 2] * 2}, [PAIRS, "twice"]),
    (pair("decoder.norm"), [PAIRS, "decoder.norm", "decoder.layers.N"]),
    (pair("decoder.layers.4.mlp"), [PAIRS, "decoder.layers.4.mlp", "layers 0 to 3"]),
    (pair("decoder.final_layernorm", "decoder.layers.8.mlp"), [PAIRS, "model.teacher has layers 0 to 7"]),
    (pair("decoder.layers.1.mlp") | pp(2) | COLOCATED,
     [PAIRS, "the student's layer is on pipeline stage 0", "or set model.teacher_device_strategy=balanced"]),
    (pair("decoder.final_layernorm", "decoder.layers.3.mlp") | pp(2) | COLOCATED, [PAIRS, "the teacher's on 0"]),
    (pair("decoder.layers.1.mlp", "decoder.layers.1.mlp") | pp(2) | BY_MODELOPT,
     [PAIRS, "last pipeline", "=global"]),
    (pair("decoder.layers.1.mlp") | FULL | BY_MODELOPT, [PAIRS, "recomputed", "loss_balancer=global"]),
    (pair("decoder.layers.1.mlp") | FULL | BY_MODELOPT
     | {"model.recompute_method": "block", "model.recompute_num_layers": 2}, [PAIRS, "recomputed"]),
    ({PAIRS: [["decoder.final_layernorm", "decoder.final_layernorm", "l2"]]}, [PAIRS, "l2", "cosine, mse, smooth_l1"]),
    (pair("decoder.layers.1.mlp.linear_fc1") | tp(2), [PAIRS, "split over", "norm"]),
    (pair("decoder.layers.1.self_attention.linear_qkv"), [PAIRS, "model.hidden_size", "norm"]),
    ({"model.teacher_dtype": "bfloat16", **pp(2)} | COLOCATED,
     ["model.teacher_dtype=bfloat16", "precision=fp32", "concatenated", "balanced"]),
    ({"model.teacher_micro_batch_size": 8} | COLOCATED, ["model.teacher_micro_batch_size=8", "=null"]),
    ({"model.teacher_device_strategy": "gpu0", "model.teacher.tensor_model_parallel_size": 2},
     ["model.teacher.tensor_model_parallel_size=2", "gpu0", "strategy=balanced"]),
    ({"model.teacher_device_strategy": "cpu", "model.teacher.pipeline_model_parallel_size": 2},
     ["model.teacher.pipeline_model_parallel_size=2", "cpu", "strategy=balanced"]),
    ({"model.teacher_device_strategy": "balanced", "model.teacher.virtual_pipeline_model_parallel_size": 2}
     | {"model.teacher.pipeline_model_parallel_size": 2}, ["model.teacher.virtual_pipeline", "forward only"]),
    (pair("decoder.layers.1.mlp", "decoder.layers.1.mlp.linear_fc1") | {"model.teacher_device_strategy": "gpu0"},
     [PAIRS, "not a hidden state", "strategy=colocated"]),
    ({"model.kd_config.logits_form": "fused", "model.kd_config.loss_balancer": "modelopt"},
     ["model.kd_config.logits_form=fused", "loss_balancer=modelopt", "logits_form=auto"]),
    # weights
    ({"model.init": None}, ["checkpoint.pretrained_checkpoint=null", "model.init=null", "make distill", "=random"]),
    ({"model.teacher.init": None}, ["model.teacher.checkpoint=null", "pretrain_tiny.py", "iter_0001000"]),
    ({"checkpoint.pretrained_checkpoint": "."}, ["model.init=random", "two places"]),
    ({"model.teacher.checkpoint": "."}, ["model.teacher.init=random", "two places"]),
    ({"model.checkpoint": "."}, ["model.checkpoint='.'", "checkpoint.pretrained_checkpoint=DIR"]),
    ({"model.checkpoint": ".", "model.init": None}, ["model.checkpoint='.'", "checkpoint.pretrained_checkpoint=DIR"]),
    ({"checkpoint.pretrained_checkpoint": "no/such", "model.init": None},
     ["checkpoint.pretrained_checkpoint=no/such", "no such folder", "make distill"]),
    ({"checkpoint.pretrained_checkpoint": str(Path(__file__).parent), "model.init": None},
     ["checkpoint.pretrained_checkpoint=", "no checkpoint in this folder", "iter_0001000"]),
    ({"model.teacher.checkpoint": "no/such", "model.teacher.init": None}, ["model.teacher.checkpoint=no/such"]),
    # data
    ({"dataset.mock": False, "tokenizer.tokenizer_model": "."},
     ["dataset.data_path=null", "dataset.mock=false", "megatron-kd preprocess --input TEXT"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": ["no/data"]},
     ["dataset.data_path", "no/data.bin and no/data.idx", "preprocess", "--output-prefix no/data"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": ["no/data.bin"]},
     ["dataset.data_path", "write no/data"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": [0.5, "a", "b"]},
     ["dataset.data_path=[0.5, a, b]", "a weight before every prefix"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": [-1.0, "a"]},
     ["dataset.data_path=[-1.0, a]", "greater than 0"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": []},
     ["dataset.data_path=[]", "empty"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": ["a.jsonl"]},
     ["dataset.data_path", "a.jsonl is text", "set dataset.text_path"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.text_path": "no.txt"},
     ["dataset.text_path=no.txt", "no such file"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.text_path": "a.csv"},
     ["dataset.text_path=a.csv", ".txt, .jsonl, .json", "dataset.data_path=[PREFIX]"]),
    ({"dataset.chat": True}, ["dataset.chat=true, dataset.mock=true", "does not contain conversations"]),
    ({"dataset.packed_sequence": True}, ["dataset.packed_sequence=true, dataset.chat=false", "only conversations"]),
    ({"dataset.long_samples": "drop"}, ["dataset.long_samples=drop, dataset.chat=false", "only conversations"]),
    ({"dataset.split": "0,0,0"}, ["dataset.split='0,0,0'", "three finite numbers", "949,50,1"]),
    ({"dataset.split": "a,b,c"}, ["dataset.split=a,b,c", "three finite numbers", "949,50,1"]),
    ({"tokenizer.tokenizer_model": "no/such"}, ["tokenizer.tokenizer_model=no/such", "download"]),
    ({"tokenizer.tokenizer_model": ".", "tokenizer.teacher_tokenizer_model": "no/such"},
     ["tokenizer.teacher_tokenizer_model=no/such", "download"]),
    ({"tokenizer.teacher_tokenizer_model": "."},
     ["tokenizer.teacher_tokenizer_model='.'", "tokenizer.tokenizer_model=null", "set tokenizer.tokenizer_model"]),
    (both("vocab_size", None), ["dataset.mock=true", "model.vocab_size=null", "set model.vocab_size"]),
    ({"dataset.path_to_cache": __file__}, ["dataset.path_to_cache", "is a file"]),
    # optimizer, schedule, data parallelism
    ({"optimizer.min_lr": 1.0}, ["optimizer.min_lr=1.0", "optimizer.lr=0.0003", "lower"]),
    ({"ddp.overlap_param_gather": True}, ["ddp.overlap_param_gather=true", "ddp.overlap_grad_reduce=true"]),
    ({"ddp.overlap_param_gather": True, "ddp.overlap_grad_reduce": True, "ddp.use_distributed_optimizer": False},
     ["ddp.overlap_param_gather=true", "ddp.use_distributed_optimizer=true"]),
    ({"scheduler.lr_warmup_iters": 1000}, ["scheduler.lr_warmup_iters=1000", "train.train_iters=1000"]),
    ({"scheduler.lr_warmup_iters": 9, "scheduler.lr_decay_iters": 9}, ["scheduler.lr_decay_iters=9", "lower"]),
    ({"scheduler.lr_warmup_init": 1.0}, ["scheduler.lr_warmup_init=1.0", "optimizer.lr"]),
    ({"scheduler.lr_decay_style": "WSD"}, ["scheduler.lr_wsd_decay_iters=null", "set scheduler.lr_wsd_decay_iters"]),
    ({"scheduler.lr_warmup_fraction": 1.0}, ["scheduler.lr_warmup_fraction=1.0", "less than 1"]),
    ({"scheduler.lr_warmup_fraction": 0.5, "scheduler.lr_decay_style": "WSD", "scheduler.lr_wsd_decay_iters": 501},
     ["scheduler.lr_warmup_fraction=0.5", "scheduler.lr_wsd_decay_iters=501", "do not fit"]),
    ({"scheduler.lr_decay_style": "WSD", "scheduler.lr_wsd_decay_iters": 1001},
     ["scheduler.lr_wsd_decay_iters=1001", "do not fit"]),
    ({"scheduler.start_weight_decay": 0.5}, ["scheduler.start_weight_decay=0.5", "cannot fall"]),
    ({"scheduler.end_weight_decay": 0.5}, ["scheduler.end_weight_decay=0.5", "weight_decay_incr_style=linear"]),
    # what the run writes
    ({"logger.run_dir": f"{__file__}/run"}, ["logger.run_dir", "is a file"]),
    ({"checkpoint.resume": 7}, ["checkpoint.resume=7", "iter_0000007", "auto"]),
]  # fmt: skip


# Ranges, written by hand: a value outside, a value just inside, and the message.
POSITIVE = (0, 1, "must be greater than 0")
NOT_NEGATIVE = (-1, 0, "must be 0 or greater")
FRACTION = (1.0, 0, "must be at least 0 and less than 1")
SHARE = (1.5, 1.0, "must be at least 0 and at most 1")
OF_HEAD = (1.5, 1.0, "must be greater than 0 and at most 1")
SEED = (2**31, 2**31 - 1, "must be at least 0 and less than 2^31")
TWO_OR_MORE = (1, 2, "must be 2 or greater")

_OF_A_MODEL = {
    POSITIVE: (
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels seq_length vocab_size "
        "make_vocab_size_divisible_by layernorm_epsilon rotary_base rope_scaling_factor init_method_std "
        "max_position_embeddings tensor_model_parallel_size pipeline_model_parallel_size "
        "virtual_pipeline_model_parallel_size context_parallel_size recompute_num_layers "
        "quantization_calibration_batches"
    ),
    FRACTION: "attention_dropout hidden_dropout",
    OF_HEAD: "rotary_percent",
}
_OF_A_RUN = {
    POSITIVE: (
        "train.train_iters train.num_epochs train.global_batch_size train.micro_batch_size optimizer.lr "
        "validation.patience optimizer.adam_eps scheduler.lr_decay_iters scheduler.lr_wsd_decay_iters ddp.bucket_size "
        "checkpoint.save_interval checkpoint.most_recent_k logger.log_interval dist.startup_timeout_s "
        "dist.step_timeout_s dist.checkpoint_timeout_s dist.device_memory_gb dist.num_threads "
        "model.teacher_micro_batch_size model.kd_config.kd_loss_scale model.kd_config.logit_kl_temperature "
        "model.kd_config.logit_kl_topk"
    ),
    NOT_NEGATIVE: (
        "validation.eval_interval validation.eval_iters optimizer.min_lr optimizer.weight_decay optimizer.clip_grad "
        "scheduler.lr_warmup_iters scheduler.lr_warmup_init scheduler.start_weight_decay scheduler.end_weight_decay "
        "dataset.num_workers checkpoint.resume model.teacher_rank model.kd_config.logits_loss_weight "
        "model.kd_config.intermediate_loss_weight"
    ),
    FRACTION: (
        "optimizer.adam_beta1 optimizer.adam_beta2 optimizer.sgd_momentum scheduler.lr_warmup_fraction "
        "model.kd_config.logits_loss_alpha"
    ),
    SHARE: "model.kd_config.logits_loss_beta",
    SEED: "dataset.random_seed rng.seed",
    TWO_OR_MORE: "tokenizer.vocab_size",
}
RANGES = {
    **{name: rule for rule, names in _OF_A_RUN.items() for name in names.split()},
    **{f"model.{name}": rule for rule, names in _OF_A_MODEL.items() for name in names.split()},
    **{f"model.teacher.{name}": rule for rule, names in _OF_A_MODEL.items() for name in names.split()},
}
