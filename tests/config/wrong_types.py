"""Overrides whose values have not the field's type, and what their one line must say."""

from __future__ import annotations

WRONG_TYPES: list[tuple[str, list[str]]] = [
    ("train.train_iters='7'", ["train.train_iters='7'", "a whole number", "leave out the quotes"]),
    ("train.train_iters=true", ["train.train_iters=true", "a whole number"]),
    ("train.train_iters=1e3", ["train.train_iters=1000.0", "write 1000"]),
    ("rng.seed=null", ["rng.seed=null", "a whole number"]),
    ("optimizer.lr=fast", ["optimizer.lr=fast", "a finite number"]),
    ("optimizer.lr='1e-3'", ["optimizer.lr='1e-3'", "leave out the quotes"]),
    ("optimizer.lr=inf", ["optimizer.lr=inf", "finite"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
    ("checkpoint.save=1", ["checkpoint.save=1", "true or false"]),
    ("checkpoint.save='true'", ["checkpoint.save='true'", "leave out the quotes"]),
    ("checkpoint.resume=atuo", ["checkpoint.resume=atuo", "did you mean auto?"]),
    ("checkpoint.resume=true", ["checkpoint.resume=true", "a whole number"]),
    ("logger.run_dir=7", ["logger.run_dir=7", "text", "in quotes"]),
    ("dataset.data_path=data/a", ["dataset.data_path=data/a", "a list"]),
    ("dataset.data_path=[null]", ["dataset.data_path=[null]", "text or a finite number"]),
    ("model.normalization=rmsnorm", ["model.normalization=rmsnorm", "did you mean RMSNorm?"]),
    ("model.kd_config.intermediate_layer_pairs=[a]", ["intermediate_layer_pairs=[a]", "list"]),
    ("mixed_precision.precision=fp8", ["mixed_precision.precision=fp8", "one of fp32, bf16"]),
    ("logger.run_dir=${oc.env:HOME}", ["logger.run_dir", "${...}", "the value itself"]),
]
