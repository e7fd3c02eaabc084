"""Files that would run something, or lead out of their folder, in the hands of a reader that trusts them."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.manifest import read_manifest
from tests.faults.damage import HOSTILE, Payload, hostile_object, vouch

OUTSIDE = "outside-of-all-folders"  # begins the name of what no file may lead to
_ARCHIVE = 1 << 30  # bytes that an archive of 1 MB comes to


@dataclass(frozen=True)
class Places:
    """The files that carriers are made from, and their places.

    Attributes:
        checkpoint: a copy of a whole one.
        model: a copy of a Hugging Face folder with a tokenizer.
        data: the prefix of a copy of tokenised text.
        chats: the prefix of a copy of tokenised conversations.
        mark: what a payload makes.
    """

    checkpoint: Path
    model: Path
    data: Path
    chats: Path
    mark: Path


@dataclass(frozen=True)
class Carrier:
    """A hostile file, once it is made.

    Attributes:
        reader: which of the project's readers meets it, a name in the row.
        named: what a refusal must name; None: it need not be refused, what is hostile in it is left alone.
        trusting: what an unwary reader does. It makes the mark.
    """

    reader: str
    named: str | None
    trusting: Callable[[], object]


def _unpickled(path: Path) -> Callable[[], object]:
    return lambda: pickle.loads(path.read_bytes())


def _loaded(path: Path) -> Callable[[], object]:
    import torch

    return lambda: torch.load(path, map_location="cpu", weights_only=False)


def _followed(path: Path, mark: Path) -> Callable[[], object]:
    """An unwary reader that opens `path` is out of its folder, which is all that the mark says then."""

    def trusting() -> None:
        assert path.resolve().name.startswith(OUTSIDE) and path.read_bytes()
        mark.mkdir()

    return trusting


def _outside(folder: Path, ending: str = "") -> Path:
    path = folder.parent / f"{OUTSIDE}{ending}"
    path.write_bytes(b"secret")
    return path


def metadata(at: Places) -> Carrier:
    """A checkpoint's index, with a payload beside what belongs there."""
    name = HOSTILE["hostile_metadata"](at.checkpoint, at.mark)
    vouch(at.checkpoint)
    return Carrier("checkpoint", str(at.checkpoint / name), _unpickled(at.checkpoint / name))


def common(at: Places) -> Carrier:
    """The archive of what a checkpoint's ranks share, with a payload."""
    name = HOSTILE["hostile_common"](at.checkpoint, at.mark)
    vouch(at.checkpoint)
    return Carrier("checkpoint", str(at.checkpoint / name), _loaded(at.checkpoint / name))


def bare_common(at: Places) -> Carrier:
    """The same as a bare pickle, in a checkpoint of another program."""
    name = HOSTILE["old_common"](at.checkpoint, at.mark)
    (at.checkpoint / "manifest.json").unlink()
    return Carrier("foreign checkpoint", str(at.checkpoint / name), _unpickled(at.checkpoint / name))


def shard(at: Places) -> Carrier:
    """An object among the tensors of a shard."""
    name = hostile_object(at.checkpoint, at.mark)
    vouch(at.checkpoint)
    index = pickle.loads((at.checkpoint / ".metadata").read_bytes())
    last = max((i for i in index.storage_data.values() if i.relative_path == name), key=lambda i: i.offset)

    def trusting() -> None:
        import torch

        content = (at.checkpoint / name).read_bytes()[last.offset : last.offset + last.length]
        torch.load(io.BytesIO(content), weights_only=False)

    return Carrier("checkpoint", str(at.checkpoint / name), trusting)


def archive(at: Places) -> Carrier:
    """An archive of 1 MB that comes to 1 GB."""
    path = at.checkpoint / "common.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data.pkl", "w") as record:
        for _ in range(_ARCHIVE >> 24):
            record.write(bytes(1 << 24))
    vouch(at.checkpoint)

    def trusting() -> None:
        with zipfile.ZipFile(path) as file:
            assert sum(record.file_size for record in file.infolist()) >= 900 * path.stat().st_size
        at.mark.mkdir()  # all of which would be in memory

    return Carrier("checkpoint", str(path), trusting)


def shard_elsewhere(at: Places) -> Carrier:
    """A checkpoint's index that leads out of its folder."""
    _outside(at.checkpoint)
    index = pickle.loads((at.checkpoint / ".metadata").read_bytes())
    for key, info in list(index.storage_data.items()):
        index.storage_data[key] = type(info)(f"../{OUTSIDE}", 0, 6)
    (at.checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    vouch(at.checkpoint)
    return Carrier("checkpoint", str(at.checkpoint / ".metadata"), _followed(at.checkpoint / f"../{OUTSIDE}", at.mark))


def manifest(at: Places) -> Carrier:
    """A manifest that leads out of its folder."""
    outside = _outside(at.checkpoint)
    old = read_manifest(at.checkpoint)
    record = type(next(iter(old.files.values())))(outside.stat().st_size, "0" * 64)
    files = {**old.files, f"../{OUTSIDE}": record}
    text = type(old)(old.step, old.layout, old.config_sha256, files).text()
    (at.checkpoint / "manifest.json").write_text(text)
    return Carrier(
        "checkpoint", str(at.checkpoint / "manifest.json"), _followed(at.checkpoint / f"../{OUTSIDE}", at.mark)
    )


def link(at: Places) -> Carrier:
    """A file of a checkpoint that is a link out of its folder."""
    path = at.checkpoint / "common.pt"
    shutil.move(path, at.checkpoint.parent / OUTSIDE)
    path.symlink_to(f"../{OUTSIDE}")
    return Carrier("checkpoint", str(path), _followed(path, at.mark))


def pickled_weights(at: Places) -> Carrier:
    """The weights of a Hugging Face folder, as they once were written."""
    import torch

    (at.model / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(at.mark)}, at.model / "pytorch_model.bin")
    return Carrier("model", "pytorch_model.bin", _loaded(at.model / "pytorch_model.bin"))


def weights_elsewhere(at: Places) -> Carrier:
    """The index of a Hugging Face folder that leads out of it."""
    _outside(at.model, ".safetensors")
    index = at.model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": f"../{OUTSIDE}.safetensors"}}))
    return Carrier("model", index.name, _followed(at.model / f"../{OUTSIDE}.safetensors", at.mark))


def remote_code(at: Places) -> Carrier:
    """A model and a tokenizer that bring code of their own along."""
    code = f"import os\nos.mkdir({str(at.mark)!r})\nclass Evil: ...\n"
    (at.model / "evil.py").write_text(code)
    for name, entry in (("config.json", {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}),
                        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]})):  # fmt: skip
        values = json.loads((at.model / name).read_text())
        values |= {"auto_map": entry, "trust_remote_code": True}
        (at.model / name).write_text(json.dumps(values))
    return Carrier("model and tokenizer", None, lambda: exec(code, {}))


def tokenizer_model(at: Places) -> Carrier:
    """A pickle by the name of a SentencePiece model."""
    (at.model / "tokenizer.json").unlink()
    path = at.model / "tokenizer.model"
    path.write_bytes(pickle.dumps(Payload(at.mark)))
    return Carrier("tokenizer", str(path), _unpickled(path))


def template(at: Places) -> Carrier:
    """A chat template that reaches for the system."""
    text = "{{ cycler.__init__.__globals__.os.mkdir('" + str(at.mark) + "') }}"
    text += "{% for message in messages %}{% generation %}{{ message['content'] }}{% endgeneration %}{% endfor %}"
    (at.model / "chat_template.jinja").write_text(text)

    def trusting() -> None:
        import jinja2

        jinja2.Environment().from_string(text.partition("}}")[0] + "}}").render()

    return Carrier("chats", "chat template", trusting)


def yaml_tag(at: Places) -> Carrier:
    """YAML that asks for a call."""
    path = at.checkpoint / "run_config.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir [{str(at.mark)!r}]\n")

    def trusting() -> None:
        import yaml

        yaml.unsafe_load(path.read_text())

    return Carrier("architecture", f"{path}:1", trusting)


def index_cache(at: Places) -> Carrier:
    """A pickle by the name of an array in the cache beside tokenised text."""
    path = next(Path(f"{at.data}.cache").glob("*-sample_index.npy"))
    path.write_bytes(pickle.dumps(Payload(at.mark)))
    return Carrier("data", str(path), _array(path))


def rows_cache(at: Places) -> Carrier:
    """An array of objects in the cache beside tokenised conversations."""
    import numpy as np

    path = next(Path(f"{at.chats}.cache").glob("rows-*/samples.npy"))
    array = np.empty(1, dtype=object)
    array[0] = Payload(at.mark)
    np.save(path, array, allow_pickle=True)
    return Carrier("chat rows", str(path.parent), _array(path))


def sidecar(at: Places) -> Carrier:
    """Hashes beside tokenised text that lead elsewhere."""
    _outside(at.data.parent)
    path = Path(f"{at.data}.sha256.json")
    content: dict[str, Any] = json.loads(path.read_text())
    content["files"][f"/../../{OUTSIDE}"] = {"size": 6, "sha256": "0" * 64}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return Carrier("data", str(path), _followed(Path(os.path.normpath(f"{at.data}/../../{OUTSIDE}")), at.mark))


def _array(path: Path) -> Callable[[], object]:
    import numpy as np

    return lambda: np.load(path, allow_pickle=True)


CARRIERS: dict[str, Callable[[Places], Carrier]] = {
    f.__name__: f
    for f in (
        metadata, common, bare_common, shard, archive, shard_elsewhere, manifest, link, pickled_weights,
        weights_elsewhere, remote_code, tokenizer_model, template, yaml_tag, index_cache, rows_cache, sidecar,
    )
}  # fmt: skip
