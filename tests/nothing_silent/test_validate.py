"""Runs the inputs of validate.yaml: tokenizers that users have, `validate` and `plan`, and what commands import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from megatron_kd.commands.cli import main

INPUTS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_suffix("").with_name("validate.yaml").read_text()
)
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
RECIPE = """\
from dataclasses import replace
from megatron_kd import ConfigContainer, GPTDistillationProvider, GPTModelProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import DatasetConfig, LoggerConfig, TokenizerConfig, TrainConfig, ValidationConfig

STUDENT = GPTModelProvider(num_layers=2, hidden_size=64, ffn_hidden_size=64, num_attention_heads=4, seq_length=16,
                           init="random")

def recipe():
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(STUDENT, teacher=replace(STUDENT, num_layers=4),
                                                   kd_config=ModelOptDistillConfig()),
        train=TrainConfig(train_iters=3, global_batch_size=2, micro_batch_size=1),
        validation=ValidationConfig(eval_iters=0),
        dataset=DatasetConfig(data_path=["own"]),
        tokenizer=TokenizerConfig(tokenizer_model="tokenizer"),
        logger=LoggerConfig(run_dir="run"),
    )

if __name__ == "__main__":
    raise SystemExit(main(recipe))
"""


def cases(kind: str) -> list[Any]:
    """The inputs of a kind as parameters."""
    marks = [pytest.mark.xfail(strict=True, reason="fails today")]
    return [
        pytest.param(case, id=case["name"], marks=marks if case.get("fails_today") else []) for case in INPUTS[kind]
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, tokenizers, two Hugging Face folders, texts, chats and tokenised data, good and bad."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "recipe.py").write_text(RECIPE)
    _write_tokenizers(folder)
    _write_texts(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _write_tokens()
        _write_model(Path("hf_a"))
    return folder


def _write_tokenizers(folder: Path) -> None:
    from megatron_kd.data.tokens.byte_bpe import train_byte_bpe

    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for name, source in (("tokenizer", "argparse.py"), ("other", "inspect.py")):
        train_byte_bpe([(stdlib / source).read_text()], 300, folder / name)
    backend = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer/tokenizer.json"))
    (folder / "tokenizer/chat_template.jinja").write_text(TEMPLATE)
    for name, file, content in (
        ("no_eos", "tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        ("damaged", "tokenizer.json", "{"),
    ):
        shutil.copytree(folder / "tokenizer", folder / name)
        (folder / name / file).write_text(content)


def _write_texts(folder: Path) -> None:
    chats = "".join(json.dumps(CHAT) + "\n" for _ in range(40))
    texts = {
        "words.txt": "some words\n" * 40,
        "chats.jsonl": chats,
        "broken.jsonl": '{"text": "a"}\n{"text": \n',
        "keyless.jsonl": '{"body": "a"}\n',
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def _write_tokens() -> None:
    """In the working directory: `own` and damaged copies of it."""
    for name, options in (
        ("own", ["--split-lines", "--input", "words.txt"]),
        ("chat", ["--chat", "--input", "chats.jsonl"]),
    ):
        words = ["--workers", "1", "--tokenizer", "tokenizer", "--output-prefix", name]
        assert main(["preprocess", *words, *options]) == 0
    for source, name in (("own", "flipped"), ("own", "foreign"), ("chat", "unlearnt")):
        for path in Path().glob(f"{source}.*"):
            if path.is_file() and (name == "flipped" or not path.name.endswith("sha256.json")):
                shutil.copyfile(path, path.name.replace(source, name, 1))
    ids = np.fromfile("own.bin", dtype=np.uint16)
    first = int(np.argmax(ids == 0)) + 1  # of the second document
    for name, token in (("flipped", 5), ("foreign", 302)):
        ids[first] = token
        ids.tofile(f"{name}.bin")
    Path("unlearnt.loss_mask.bin").write_bytes(bytes(Path("unlearnt.loss_mask.bin").stat().st_size))


def _write_model(folder: Path) -> None:
    """A Llama with the tokens of `other`."""
    from safetensors.numpy import save_file

    from megatron_kd.huggingface.architecture import read_architecture
    from megatron_kd.huggingface.tensors import huggingface_shapes

    shutil.copytree("other", folder)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False,
        "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = huggingface_shapes(_provider(read_architecture(str(folder))))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")


def _provider(found: Any) -> Any:
    from megatron_kd.config.gpt_model import GPTModelProvider

    return GPTModelProvider(**found.fields)


@pytest.mark.parametrize("case", cases("tokenizers"))
def test_tokenizer(case: dict[str, Any], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    for name, content in case["files"].items():
        path = home / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "one.jsonl").write_text(json.dumps(CHAT) + "\n")
    words = ["--input", str(tmp_path / "one.jsonl"), "--output-prefix", str(tmp_path / "out"), "--tokenizer", str(home)]
    code = main(["preprocess", "--chat", "--workers", "1", *words])
    err = capsys.readouterr().err
    if "refused" in case:
        assert code == 2
        assert all(word in err for word in case["refused"]), err
        assert err.count("\n") == 1, err
    else:
        assert code == 0, err
        assert learnt(tmp_path / "out", home) == case["text"]


def learnt(prefix: Path, tokenizer: Path) -> str:
    """The text of a `.bin` file, with what is learnt in double brackets."""
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ids = np.fromfile(f"{prefix}.bin", dtype=np.uint16).tolist()
    mask = np.fromfile(f"{prefix}.loss_mask.bin", dtype=np.uint8).tolist()
    text, inside = "", 0
    for token, bit in zip(ids, mask, strict=True):
        text += ("[[" if bit else "]]") if bit != inside else ""
        text, inside = text + backend.decode([token], skip_special_tokens=False), bit
    return text + ("]]" if inside else "")


@pytest.mark.parametrize("case", cases("commands"))
def test_command(
    case: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code = main([case.get("command", "validate"), "recipe.py", *case["words"]])
    out, err = capsys.readouterr()
    assert code == case["exit"], err
    assert all(word in err for word in case.get("err", ())), err
    assert all(word in out for word in case.get("out", ())), out
    if "problems" in case:
        assert err.count("error: ") == case["problems"], err


BLOCKED = """\
import sys
blocked = sys.argv[1].split(",")
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == other or name.startswith(other + ".") for other in blocked):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, Blocked())
"""
COMMAND = BLOCKED + "from megatron_kd.commands.cli import main\nraise SystemExit(main(sys.argv[2:]))\n"
AS_SCRIPT = BLOCKED + "import runpy\nsys.argv = ['recipe.py']\nrunpy.run_path('recipe.py', run_name='__main__')\n"


@pytest.mark.parametrize("case", cases("imports"))
def test_imports(case: dict[str, Any], folder: Path) -> None:
    code = AS_SCRIPT if case.get("recipe") else COMMAND
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(case["without"]), *case["words"]],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == case.get("exit", 0), done.stderr
    assert all(word in done.stderr.partition("Traceback")[0] for word in case.get("err", ())), done.stderr
