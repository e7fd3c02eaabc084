"""`megatron-kd evaluate` beside what the runs themselves wrote."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.commands import cli
from megatron_kd.evaluation.report import Report, table
from tests.evaluation.trained import STUDENTS, Trained
from tests.ranks import RankFailed, run_ranks
from tests.tiny import metrics_of, read_metrics

OTHER_LAYOUTS = (
    ["model.tensor_model_parallel_size=2"],
    ["model.pipeline_model_parallel_size=2"],
    ["model.tensor_model_parallel_size=1"],  # two copies
    ["model.tensor_model_parallel_size=2", "model.teacher_device_strategy=balanced"],
)


def evaluate_each(arguments: list[list[str]], output: str) -> list[dict[str, Any]]:
    """On a rank: the JSON of one evaluation after the other, rank 0's."""
    reports = []
    for index, words in enumerate(arguments):
        file = Path(f"{output}{index}.json")
        assert cli.main(["evaluate", *words, "--output", str(file)]) == 0, words
        reports.append(json.loads(file.read_text()) if os.environ["RANK"] == "0" else {})
    return reports


def record(run: Path) -> dict[str, Any]:
    """A run's last validation line, without what says which it is."""
    last = [line for line in read_metrics(run) if line["split"] == "validation"][-1]
    return metrics_of(last)


@pytest.mark.slow
def test_the_numbers_are_the_runs_own_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    runs = {"teacher": trained.teacher, **{name: trained.student(name) for name in STUDENTS}}
    reports = run_ranks(2, evaluate_each, [[str(run)] for run in runs.values()], str(tmp_path / "own"))[0]
    for (name, run), report in zip(runs.items(), reports, strict=True):
        assert report["values"] == record(run), name
        assert report["step"] == read_metrics(run)[-1]["step"]
    assert [report["layout"] for report in reports] == [f"{layout} on cpu" for layout in (
        "TP 1 x PP 1 x DP 2", "TP 2 x PP 1 x DP 1", "TP 1 x PP 2 x DP 1")]  # fmt: skip
    assert reports[0]["teacher"] is None and reports[1]["teacher"] == str(trained.teacher)
    student = reports[1]["values"]
    assert 0 < student["teacher_top1_agreement"] < student["teacher_top5_agreement"] <= 1
    assert student["teacher_kl"] > 0 and student["teacher_kl"] != student["logits_loss"]


@pytest.mark.slow
def test_other_layouts_agree(trained: Trained, tmp_path: Path) -> None:
    run = trained.student("tp2")
    arguments = [[str(run / "checkpoints"), *words] for words in OTHER_LAYOUTS]
    reports = run_ranks(2, evaluate_each, arguments, str(tmp_path / "other"))[0]
    reports += run_ranks(1, evaluate_each, [[str(run / "checkpoints/iter_0000015")]], str(tmp_path / "one"))[0]
    assert reports[-1]["layout"] == "TP 1 x PP 1 x DP 1 on cpu"
    for report in reports:
        assert report["values"] == pytest.approx(record(run), rel=1e-5, abs=1e-5), report["layout"]


@pytest.mark.slow
def test_with_another_teacher_or_none_what_can_be_compared_is_told(trained: Trained, tmp_path: Path) -> None:
    run = str(trained.student("tp2"))
    comparable = ["lm_loss", "perplexity", "teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement", "tokens"]
    arguments = [
        [run, "--teacher", str(trained.teacher)],
        [run, "--teacher", run],
        [run, "--no-teacher"],
        [str(trained.teacher), "--teacher", str(trained.teacher)],
    ]
    given, itself, alone, teacher = (
        report["values"] for report in run_ranks(1, evaluate_each, arguments, str(tmp_path / "t"))[0]
    )
    own = record(Path(run))
    assert list(given) == comparable
    assert given == pytest.approx({name: own[name] for name in comparable}, rel=1e-5)
    assert (itself["teacher_kl"], itself["teacher_top1_agreement"]) == (pytest.approx(0, abs=1e-6), 1.0)
    assert list(alone) == ["lm_loss", "perplexity", "tokens"]
    assert alone["lm_loss"] == pytest.approx(given["lm_loss"], rel=1e-5)  # of logits, not of hidden states
    assert teacher["lm_loss"] == pytest.approx(record(trained.teacher)["lm_loss"], rel=1e-5)


@pytest.mark.slow
def test_an_exported_student_is_its_checkpoint(trained: Trained, exported: Path, tmp_path: Path) -> None:
    run = trained.student("tp2")
    data = [f"dataset.data_path=[{run}/data/text]", "dataset.split='90,10,0'", "validation.eval_iters=1"]
    words = [str(exported), "--teacher", str(trained.teacher), *data, "model.seq_length=32"]
    (report,) = run_ranks(1, evaluate_each, [words], str(tmp_path / "hf"))[0]
    own = {name: value for name, value in record(run).items() if name in report["values"]}
    assert report["values"] == pytest.approx(own, rel=1e-5, abs=1e-6) and len(own) == 6
    assert (report["model"], report["step"], report["seq_length"]) == (str(exported), None, 32)


@pytest.mark.slow
def test_other_data(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("Zorro juggles 17 xylophones?\n" * 60)
    words = [f"dataset.text_path={tmp_path}/held_out.txt", f"logger.run_dir={tmp_path}/scratch"]
    arguments = [[str(trained.student("tp2")), *words, f"validation.eval_iters={n}"] for n in (1, 2)]
    short, long = run_ranks(1, evaluate_each, arguments, str(tmp_path / "data"))[0]
    assert (short["sequences"], long["sequences"]) == (8, 16)
    assert short["values"]["tokens"] == 8 * 32
    assert short["values"]["lm_loss"] > record(trained.student("tp2"))["lm_loss"] + 1  # not the language it knows


def evaluate_until_killed(run: str, told: str) -> None:
    """On a rank: evaluate `run`; rank 1 is killed in the first batch."""
    from megatron_kd.runtime.watch import Doing

    rank, enter = os.environ["RANK"], Doing.enter

    def enter_and_die(doing: Doing, phase: str, step: int | None = None) -> None:
        enter(doing, phase, step)
        if rank == "1" and phase == "forward and backward":
            time.sleep(1)  # in which it has said where it is
            os.kill(os.getpid(), signal.SIGKILL)

    Doing.enter = enter_and_die  # type: ignore[method-assign]
    with open(f"{told}_{rank}", "w") as file:
        os.dup2(file.fileno(), 2)
    code = cli.main(["evaluate", run])
    sys.stderr.flush()
    os._exit(code)


@pytest.mark.slow
def test_a_lost_rank_is_named(trained: Trained, tmp_path: Path) -> None:
    words = (str(trained.student("tp2")), str(tmp_path / "told"))
    with pytest.raises(RankFailed, match=r"rank 0\ndied with exit code 1\n--- rank 1\ndied with exit code -9"):
        run_ranks(2, evaluate_until_killed, *words, timeout=60, last_words=8)
    told = (tmp_path / "told_0").read_text()
    assert re.search(r"error: step 15, [a-z ]+: rank 1 died .*last seen in step 15, forward and backward", told), told
    assert "Traceback" not in told


def test_the_table() -> None:
    values = {"lm_loss": 1.5, "lm_loss_weighted": 0.0, "perplexity": 4.481689070338065, "tokens": 256}
    assert table(Report("m", 3, "t", "TP 1 x PP 1 x DP 1 on cpu", 8, 32, values)).splitlines() == [
        "model    m (step 3)",
        "teacher  t",
        "data     8 sequences of 32 tokens, TP 1 x PP 1 x DP 1 on cpu",
        "",
        "lm_loss         1.500000",
        "perplexity      4.481689",
        "tokens               256",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: MODEL=nowhere: no checkpoint there; give a folder such as"),
        (["RUN", "--teacher", "nowhere"], "error: --teacher=nowhere: no checkpoint there"),
        (["RUN", "--output", "."], "error: --output .: is a folder; name a file"),
        (["RUN", "--output", "no/such/file"], "error: --output no/such/file: there is no folder"),
        (["RUN", "validation.eval_iters=0"], "error: validation.eval_iters=0: there is nothing to evaluate"),
        (["RUN", "model.kd_config.logit_kl_temperature=1.0"], "error: model.kd_config.logit_kl_temperature: an eval"),
        (["RUN", "model.tensor_model_parallel_size=2"], "error: model.tensor_model_parallel_size=2, model.pipeline"),
        (
            ["RUN", "dataset.data_path=[nowhere]"],
            "error: dataset.data_path=[nowhere]: nowhere.bin and nowhere.idx",
        ),
        (["RUN", "model.hiden_size=3"], "error: model.hiden_size: unknown key"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *(str(trained.student("tp2")) if word == "RUN" else word for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
