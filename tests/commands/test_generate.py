"""`megatron-kd generate` beside transformers on an exported student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_kd.commands import cli
from megatron_kd.commands.generate import show
from megatron_kd.evaluation.saved_model import saved_model
from tests.evaluation.trained import CHAT_TEMPLATE, Trained

PROMPTS = ["Ada counts", "Dan"]


def by_transformers(folder: Path, prompt: str) -> str:
    """The most likely continuation of 8 tokens, one token at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt).input_ids
    made: list[int] = []
    with torch.no_grad():
        while len(made) < 8 and tokenizer.eos_token_id not in made:
            made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return tokenizer.decode(made, skip_special_tokens=True)


def test_answers_are_those_of_transformers_exported_or_not(trained: Trained, exported: Path) -> None:
    from megatron_kd.evaluation.answers import Generation, answers

    greedy = Generation(max_new_tokens=8, temperature=0.0, seed=1, chat=False)
    expected = [by_transformers(exported, prompt) for prompt in PROMPTS]
    for place in (trained.student("tp2"), exported):
        assert answers(saved_model(place, "--student"), PROMPTS, greedy) == expected
    asked = CHAT_TEMPLATE.partition("{%")[0] + "<user>Ada counts<assistant>"
    chat = Generation(max_new_tokens=8, temperature=0.0, seed=1, chat=True)
    assert answers(saved_model(exported, "--student"), ["Ada counts"], chat) == [by_transformers(exported, asked)]


def test_a_seed_is_one_answer_whatever_was_asked_before(exported: Path) -> None:
    from megatron_kd.evaluation.answers import Generation, answers

    model = saved_model(exported, "--student")
    hot = [Generation(max_new_tokens=12, temperature=2.0, seed=seed, chat=False) for seed in (1, 1, 2)]
    first, again, other = (answers(model, ["Ben", "Cleo counts"], generation) for generation in hot)
    assert first == again != other
    assert answers(model, ["Cleo counts"], hot[0]) == first[1:]


def test_both_models_are_shown_side_by_side(
    trained: Trained, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--student", str(exported), "--teacher", str(trained.teacher), "--prompt", "Ada counts"]
    assert cli.main(["generate", *words, "--max-new-tokens", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prompt: Ada counts"
    assert lines[2].split() == ["│", "teacher", "│", "student", "│"]
    assert len(lines) == 6


def test_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(["a [bold]b"], {"student": ["[red]no markup\nsecond line"]})
    out = capsys.readouterr().out
    assert "prompt: a [bold]b" in out and "[red]no markup" in out and "second line" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student", "nowhere"], "error: --student=nowhere: no checkpoint there"),
        (["--student", "HF", "--max-new-tokens", "0"], "error: --max-new-tokens 0: must be 1 or more"),
        (["--student", "HF", "--temperature", "-1"], "error: --temperature -1.0: must be 0 or greater"),
        (["--student", "HF", "--prompt", ""], "error: --prompt '': has no tokens"),
        (["--student", "PLAIN", "--chat"], "error: PLAIN: its tokenizer has no chat template; leave --chat out"),
        (["--student", "BARE"], "error: BARE: no tokenizer is known for this model; give one with --tokenizer DIR"),
        (["--student", "BARE", "--tokenizer", "TOKENIZER"], "error: BARE: does not load: "),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, trained: Trained, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, bare = shutil.copytree(exported, tmp_path / "plain"), tmp_path / "bare"
    (plain / "chat_template.jinja").unlink()
    bare.mkdir()
    (bare / "config.json").write_text((exported / "config.json").read_text())
    places = {"HF": exported, "PLAIN": plain, "BARE": bare, "TOKENIZER": trained.tokenizer}
    given = [str(places.get(word, word)) for word in words]
    assert cli.main(["generate", *given, *([] if "--prompt" in words else ["--prompt", "Ada"])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for name, place in places.items():
        message = message.replace(f"{name}:", f"{place}:")
    assert line.startswith(message)


def test_the_chat_template_came_along(exported: Path) -> None:
    config = json.loads((exported / "tokenizer_config.json").read_text())
    assert (exported / "chat_template.jinja").read_text() == CHAT_TEMPLATE or config["chat_template"] == CHAT_TEMPLATE
