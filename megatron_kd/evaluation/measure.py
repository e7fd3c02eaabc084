"""Measuring a model on the ranks that were started."""

from __future__ import annotations

from megatron_kd.checks.inputs import checked_tokenizer
from megatron_kd.config.derived import derived
from megatron_kd.config.document import read_document
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError
from megatron_kd.evaluation.report import Report
from megatron_kd.evaluation.settings import Evaluation
from megatron_kd.huggingface.as_asked import as_trained
from megatron_kd.runtime.timeouts import set_group_timeouts
from megatron_kd.runtime.watch import end_rank, watching
from megatron_kd.training.held_out import evaluate
from megatron_kd.training.run_checkpoint import restore_losses
from megatron_kd.training.run_data import RunData
from megatron_kd.training.run_inputs import check_files, with_text_tokenised
from megatron_kd.training.run_state import ForwardRun, build_forward
from megatron_kd.training.starting import ranks_of

# Comparable between models whatever they were trained on; without a model's own run, only these are reported.
_COMPARABLE = ("lm_loss", "perplexity", "teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement", "tokens")


def measure(evaluation: Evaluation) -> Report:
    """Evaluate on this rank, as one of those that torchrun started, or alone.

    Raises:
        ConfigError: problems that show once the tokenizers are read, or of data files.
        InputError: weights that do not fit the model, or data that cannot be read.
        NumericalFault: logits that are not finite.
        LostRank: another rank died or does not respond.
    """
    cfg = evaluation.cfg
    tokenizer = checked_tokenizer(cfg)
    if isinstance(tokenizer, HuggingFaceTokenizer) and not evaluation.model.is_huggingface:
        folder = evaluation.model.folder
        tokenizer = as_trained(tokenizer, folder, read_document(folder / RUN_CONFIG).data)
    check_files(cfg)
    with ranks_of(cfg) as layout:
        cfg = with_text_tokenised(cfg, tokenizer)
        values = derived(cfg, layout.world_size, tokenizer.vocab_size)
        data = RunData(cfg, values, layout, tokenizer, trains=False)
        run = build_forward(cfg, values, layout)
        if not evaluation.model.is_huggingface:
            restore_losses(run, evaluation.model.folder, with_state=evaluation.own)
        set_group_timeouts(cfg.dist.step_timeout_s)
        run.doing.enter("evaluation", run.step)
        with watching(run.doing, None, end_rank):
            result = evaluate(run, data.validation())
        assert result is not None, "this command does not support a request to stop"
        if result["tokens"] == 0:
            why = "no token of these batches counts in the loss, so there is nothing to measure"
            raise InputError(f"validation.eval_iters={cfg.validation.eval_iters}: {why}; evaluate more data, or other")
        if not evaluation.own:
            result = {name: result[name] for name in _COMPARABLE if name in result}
        return _report(run, evaluation, result)


def _report(run: ForwardRun, evaluation: Evaluation, result: dict[str, float]) -> Report:
    layout, cfg, teacher = run.layout, run.cfg, run.cfg.models.teacher
    return Report(
        model=str(evaluation.model.folder),
        step=None if evaluation.model.is_huggingface else run.step,
        teacher=None if teacher is None else teacher.checkpoint or teacher.hf_path or "random weights",
        layout=f"TP {layout.tp.size} x PP {layout.pp.size} x DP {layout.dp.size} on {layout.device.type}",
        sequences=run.derived.global_batch_size * cfg.validation.eval_iters,
        seq_length=cfg.model.seq_length,
        values=result,
    )
