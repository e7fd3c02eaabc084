"""Hugging Face folders as people have them: each input of `folders.yaml` with its expected outcome."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checkpoints.tensor_parts import Part, plan_parts
from megatron_kd.checkpoints.weights_only import weights_config
from megatron_kd.checkpoints.writing import save
from megatron_kd.commands.cli import main
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import read_architecture
from megatron_kd.huggingface.export import export_hf
from megatron_kd.huggingface.import_folder import import_hf
from megatron_kd.huggingface.tensors import huggingface_shapes, tensors_of
from tests.config.base import RECIPE

INPUTS: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("folders.yaml").read_text())
CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
          "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100,
          "max_position_embeddings": 4096}  # fmt: skip
MODEL = GPTModelProvider(num_layers=2, hidden_size=64, ffn_hidden_size=96, num_attention_heads=8, num_query_groups=2,
                         vocab_size=100)  # fmt: skip


def inputs(kind: str) -> pytest.MarkDecorator:
    """The inputs of a kind as parameters; those that fail today are expected to."""
    fails = pytest.mark.xfail(strict=True, reason="fails today")
    cases = [
        pytest.param(case, id=case["name"], marks=[fails] if case.get("fails_today") else []) for case in INPUTS[kind]
    ]
    return pytest.mark.parametrize("case", cases)


def write_config(folder: Path, changes: dict[str, Any] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if changes is not None:
        values = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None or key in changes}
        (folder / "config.json").write_text(json.dumps(values))


def write_files(folder: Path, files: dict[str, dict[str, Any]], model: GPTModelProvider) -> None:
    """The files of an input; see the head of `folders.yaml`."""
    shapes = huggingface_shapes(model)
    for name, what in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "text" in what or "json" in what:
            path.write_text(what.get("text") or json.dumps(what["json"]))
        elif "index" in what:
            words = sorted(what["index"], key=len)  # the longest word in a tensor's name decides
            found = {tensor: [what["index"][word] for word in words if word in tensor] for tensor in shapes}
            weight_map = {tensor: files[-1] for tensor, files in found.items() if files}
            path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        else:
            save_file(_tensors(shapes, what), path)
            path.write_bytes(path.read_bytes()[: -what["cut"] or None] if "cut" in what else path.read_bytes())


def _tensors(shapes: dict[str, tuple[int, ...]], what: dict[str, Any]) -> dict[str, torch.Tensor]:
    dtype = getattr(torch, what.get("dtype", "float32"))
    chosen = {
        name: shape
        for name, shape in shapes.items()
        if any(word in name for word in what.get("only", [""]))
        and not any(word in name for word in what.get("without", []))
    }
    tensors = {name: torch.full(shape, float(what.get("fill", 1)), dtype=dtype) for name, shape in chosen.items()}
    return tensors | {name: torch.ones(shape, dtype=dtype) for name, shape in what.get("plus", {}).items()}


def check_lines(case: dict[str, Any], said: str) -> None:
    """`said` has all the words, in as many lines as there should be, and no traceback."""
    assert [word for word in case["says"] if word not in said] == [], said
    if (lines := case.get("lines", 1)) is not None:
        assert len(said.strip().splitlines()) == lines, said
    assert "Traceback" not in said


@inputs("weights")
def test_weights(case: dict[str, Any], tmp_path: Path) -> None:
    folder, output = tmp_path / "model", tmp_path / "imported"
    config = case.get("config", {})
    write_config(folder, config)
    tied = bool((config or {}).get("tie_word_embeddings"))
    write_files(folder, case["files"], GPTModelProvider(**{**vars(MODEL), "share_embeddings_and_output_weights": tied}))
    if "loads" in case:
        back = export_hf(import_hf(folder, output), tmp_path / "back", dtype="float32")
        assert float(load_file(back / "model.safetensors")["model.norm.weight"][0]) == case["loads"]
        return
    with pytest.raises(InputError) as refused:
        import_hf(folder, output)
    check_lines(case, str(refused.value))
    assert not output.exists()


@inputs("configs")
def test_configs(case: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path, case["config"])
    if "means" in case:
        fields = read_architecture(tmp_path).fields
        assert {name: fields[name] for name in case["means"]} == case["means"]
        return
    with pytest.raises(InputError) as refused:
        read_architecture(tmp_path)
    check_lines(case, str(refused.value))


@inputs("commands")
def test_commands(case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, empty = tmp_path / "model", tmp_path / "empty"
    empty.mkdir()
    write_config(folder, case.get("config", {}))
    write_files(folder, {"model.safetensors": {}}, MODEL)
    write_files(empty, case.get("folder", {}), MODEL)
    places = {"recipe": str(RECIPE), "folder": str(folder), "empty": str(empty)}
    assert main([word.format(**places) for word in case["words"]]) == case["exit"]
    if case["exit"]:
        check_lines(case, capsys.readouterr().err)


def checkpoint(folder: Path, run: dict[str, Any], vocab_size: int = 100, always: int | None = None) -> Path:
    """A checkpoint of ones whose `run_config.yaml` has the sections `run` over a bare model's.

    `always`: the token that the model gives whatever it reads.
    """
    model = GPTModelProvider(**{**vars(MODEL), "vocab_size": vocab_size})
    config = yaml.safe_load(weights_config(model, vocab_size))
    for section, values in run.items():
        config[section] = {**config.get(section, {}), **values}
    parts = []
    for tensor in tensors_of(model):
        layers = () if tensor.layer is None else (model.num_layers,)
        sizes = (*(1 for _ in layers), *tensor.shape)
        offset = (*(() if tensor.layer is None else (tensor.layer,)), *(0 for _ in tensor.shape))
        shape = (*layers, *tensor.shape)
        ones = torch.ones(sizes)
        if tensor.key == "output_layer.weight" and always is not None:
            ones[torch.arange(vocab_size) != always] = 0
        parts.append(Part(tensor.key, shape, offset, sizes, torch.float32, lambda ones=ones: ones))
    text = yaml.safe_dump(config)
    return save(folder, lambda new: plan_parts(parts, new), text, RunState(0, vocab_size))


def placed(value: Any, root: Path) -> Any:
    """`value` with {root} replaced in every text."""
    if isinstance(value, dict):
        return {key: placed(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [placed(item, root) for item in value]
    return value.replace("{root}", str(root)) if isinstance(value, str) else value


@inputs("cards")
def test_cards(case: dict[str, Any], tmp_path: Path) -> None:
    run = placed(case.get("run", {}), tmp_path)
    base = case.get("base", {})
    if base is None:
        origin: dict[str, Any] = {"init": "random"}
    else:
        write_config(tmp_path / "base", case.get("base_config", {}))
        for name, text in base.items():
            (tmp_path / "base" / name).write_text(text)
        origin = {"hf_path": str(tmp_path / "base")}
    run["model"] = {**origin, **run.get("model", {})}
    saved = checkpoint(tmp_path / "run" / "checkpoints" / "iter_0000000", run)
    lines = "".join(json.dumps(line) + "\n" for line in case.get("metrics", []))
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    folder = export_hf(saved, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert [word for word in case["has"] if word not in card] == [], card
    if "license_link: LICENSE" in card:
        assert (folder / "LICENSE.txt").is_file()
    texts = {file.name: file.read_text() for file in folder.iterdir() if file.suffix in (".md", ".json", ".jinja")}
    for word in case.get("lacks", []):
        assert [name for name, text in texts.items() if word.replace("{root}", str(tmp_path)) in text] == []


@inputs("chats")
def test_chats(case: dict[str, Any], tmp_path: Path) -> None:
    """Conversations are tokenised, a checkpoint says that it was trained on them, and is exported."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = chat_tokenizer(tmp_path / "tokenizer", case["own"])
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "7 cats"}, {"role": "assistant", "content": "on a mat"}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    words = ["preprocess", "--chat", "--input", str(chats), "--output-prefix", str(tmp_path / "chat")]
    words += ["--tokenizer", str(tokenizer), "--workers", "1"]
    if case["template"] is not None:
        (tmp_path / "given.jinja").write_text(case["template"])
        words += ["--chat-template", str(tmp_path / "given.jinja")]
    assert main(words) == 0
    data = {"train_data_path": [str(tmp_path / "chat")], "chat": True}
    tokens = {"tokenizer_type": "huggingface", "tokenizer_model": str(tokenizer)}
    run = {"model": {"init": "random"}, "dataset": data, "tokenizer": tokens}
    end = load_huggingface(tokenizer).encode(case["stops"][-1])[0]
    saved = checkpoint(tmp_path / "run" / "checkpoints" / "iter_0000000", run, vocab_size=300, always=end)
    folder = export_hf(saved, tmp_path / "out")
    made = AutoTokenizer.from_pretrained(folder)
    rendered = made.apply_chat_template(turns, tokenize=False)
    if case["template"] is not None:
        assert rendered == made.apply_chat_template(turns, tokenize=False, chat_template=case["template"])
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    assert made.convert_ids_to_tokens(stops) == case["stops"]
    asked = made.apply_chat_template(turns[:1], add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answered = AutoModelForCausalLM.from_pretrained(folder).generate(asked, max_new_tokens=8, do_sample=False)
    assert answered[0, asked.shape[1] :].tolist() == [end]  # it stops there


def chat_tokenizer(folder: Path, template: str | None) -> Path:
    """A byte tokenizer with the tokens of ChatML, and a template or none."""
    from transformers import PreTrainedTokenizerFast

    train_byte_bpe(["7 cats on a mat"], 257, folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokens.chat_template = template
    shutil.rmtree(folder)
    tokens.save_pretrained(folder)
    return folder
