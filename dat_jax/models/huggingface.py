"""Hugging Face folders in and out: the weights, and config, tokenizer and chat template carried along unchanged."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import zlib
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from dat_jax.data import files, manifest
from dat_jax.data.answers import checksum, short_name
from dat_jax.models import families, prequantized, quantized, remote, tensors, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.families import gemma
from dat_jax.models.quantized import Quantized

DTYPES = ("float32", "bfloat16")
PRECISIONS = (*DTYPES, *quantized.KINDS)  # in which weights are held; the last ones are frozen
CARRIED = (".json", ".jinja", ".model", ".txt", ".py")  # files beside the weights that belong to a model; .py is never run here
MANIFEST = "manifest.json"  # of a folder that `save` wrote, last
VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclasses.dataclass
class Model:
    """A language model: parameters, config, tokenizer (None when the folder has none) and the folder that it was read from."""

    params: dict[str, Any]
    config: ModelConfig
    tokenizer: Any
    source: str = ""


def load(
    folder_or_id: str,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    cache_dir: str | None = None,
    compute_dtype: str | None = None,
) -> Model:
    """Load a model from a Hugging Face folder (local or gs://) or a hub id, reading weights straight into their shards on the mesh.

    dtype: of the parameters, one of PRECISIONS. "int8" and "nf4" quantize the layers' matrices as they are read; the rest is in
    compute_dtype, that of matrix products: by default dtype, or float32 with these two. The hub token is taken from the environment.
    Raises ValueError naming the key, tensor or file that this package cannot honor; no code of the model is ever run.
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype is {dtype!r}; allowed: {PRECISIONS}")
    folder = locate(folder_or_id, cache_dir)
    if (folder / MANIFEST).exists():  # a folder that this package wrote
        manifest.check(folder / MANIFEST, f"put it back as it was, or, where the change is meant, delete {MANIFEST}")
    computed = compute_dtype or (dtype if dtype in DTYPES else "float32")
    fields, config = read_fields(folder), dataclasses.replace(read_config(folder), compute_dtype=computed)
    weights.abstract(config, dtype)  # raises for a precision that the sizes do not allow
    with tensors.opened(folder) as found:
        names = families.family(config.model_type).names(config)
        if fields["model_type"] == "gemma3":
            names = gemma.multimodal_names(config)
        params = tensors.read(found, config, names, dtype, mesh, VISION if fields["model_type"] == "gemma3" else ())
    return Model(params, config, load_tokenizer(folder, config.model_type), str(folder))


def save(model: Model, folder: str, dtype: str | None = None, shard_bytes: int = 4 << 30) -> None:
    """Write a Hugging Face folder: sharded safetensors, config, generation config, tokenizer and chat template.

    Files beside the weights are copied from where the model was read; a model made here gets a config.json of its own.
    dtype: of the written weights, by default that of the parameters. Every process calls this, process 0 writes.
    """
    if any(isinstance(weight, Quantized) for weight in model.params["layers"].values()):
        raise ValueError(f"the model's weights are quantized and cannot be written to {folder}; allowed: a model in {', '.join(DTYPES)}")
    if model.source and not files.is_remote(folder) and pathlib.Path(folder).resolve() == pathlib.Path(model.source).resolve():
        raise ValueError(f"{folder} is the folder the model was read from; choose another")
    dtype = dtype or str(model.params["embedding"].dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {DTYPES}")
    fields = written_fields(model, dtype)
    place = epath.Path(folder)
    if place.exists() and (old := sorted(path.name for path in place.iterdir() if path.suffix == ".safetensors")):
        raise ValueError(f"{folder} already holds weights ({', '.join(old[:3])}); choose an empty folder")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checked {folder}")  # before process 0 writes what the others would find
    with remote.written(folder) as target:
        if jax.process_index() == 0:
            carried = carry(model, target)
            (target / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        names = families.family(model.config.model_type).names(model.config)
        tensors.write(model.params, model.config, names, target, dtype, shard_bytes)
        if jax.process_index() == 0:
            ours = {*carried, "config.json", tensors.INDEX}
            manifest.write(target / MANIFEST, {}, manifest.of_folder(target, lambda name: name in ours or name.endswith(".safetensors")))


def locate(folder_or_id: str, cache_dir: str | None = None) -> pathlib.Path:
    """Return the local folder of a model; of a hub id or gs:// folder its safetensors, tokenizer and config files are copied first."""
    if files.is_remote(folder_or_id):
        return remote.fetched(folder_or_id, (".safetensors", *CARRIED), cache_dir)
    if (folder := pathlib.Path(folder_or_id)).is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", folder_or_id):
        raise ValueError(f"{folder_or_id!r} is neither a folder nor a hub id of the form organization/name")
    from huggingface_hub import errors, snapshot_download  # only needed for downloads

    patterns = ["*.safetensors", *(f"*{suffix}" for suffix in CARRIED)]
    try:
        return pathlib.Path(snapshot_download(folder_or_id, allow_patterns=patterns, cache_dir=cache_dir))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:  # no such id, no access, no network
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder_or_id!r} is no folder here and the hub does not give it: {reason}") from error


def weights_identity(source: str) -> str | None:
    """Returns a checksum of the weights' files of a local folder: their names, sizes and samples of their content; None for anything else.

    It is the same wherever the folder lies and into whatever dtype the weights are read.
    """
    if not source or files.is_remote(source) or not (folder := pathlib.Path(source)).is_dir():
        return None
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        size, pieces = path.stat().st_size, []
        with path.open("rb") as file:
            for start in (0, size // 3, size // 2, max(0, size - 4096)):
                file.seek(start)
                pieces.append(zlib.crc32(file.read(4096)))
        found.append([path.name, size, *pieces])
    return checksum(found) if found else None


def read_fields(folder: pathlib.Path) -> dict[str, Any]:
    """Return the contents of config.json; ValueError when the file is absent or no JSON object, or the weights are of a format not read."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    fields = files.read_json(str(path))
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds {type(fields).__name__}; a JSON object is needed")
    prequantized.check_config(fields, str(path))
    return fields


def read_config(folder: pathlib.Path) -> ModelConfig:
    """Return what config.json says of a model, without its weights; ValueError naming the folder and the key."""
    fields = read_fields(folder)
    try:
        return families.read(fields)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def identity(folder_or_id: str) -> str:
    """Return what a folder's weights are, told from samples of their files: the last part of its name and a checksum.

    A hub id or gs:// folder is its own identity. Other weights under the same name give another one; moving the folder does not.
    """
    folder = pathlib.Path(folder_or_id)
    if not folder_or_id or files.is_remote(folder_or_id) or not folder.is_dir():
        return folder_or_id
    return f"{short_name(folder_or_id)} {checksum([_sampled(path) for path in sorted(folder.glob('*.safetensors'))])}"


def _sampled(path: pathlib.Path) -> list[Any]:
    """A file's name, size and a few bytes of its beginning, middle and end."""
    size, pieces = path.stat().st_size, []
    with path.open("rb") as file:
        for start in (0, size // 3, size // 2, max(0, size - 4096)):
            file.seek(start)
            pieces.append(zlib.crc32(file.read(4096)))
    return [path.name, size, *pieces]


def load_tokenizer(folder: pathlib.Path, model_type: str) -> Any:
    """Return the folder's tokenizer, or None when it has none; tokenizers that need code of their own are read as what they are."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    import transformers  # takes seconds

    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        if path.exists() and not isinstance(files.read_json(str(path)), dict):
            raise ValueError(f"{path} holds no JSON object; allowed: the file of a tokenizer")
    kind: Any = transformers.AutoTokenizer
    options = {"trust_remote_code": False}
    if (folder / "tokenizer.json").exists() and model_type in ("llada", "illada", "Dream"):
        kind, options = transformers.PreTrainedTokenizerFast, {}
    elif model_type == "Dream":
        kind, options = transformers.Qwen2Tokenizer, {}
    try:
        return kind.from_pretrained(folder, **options)
    except Exception as error:  # tokenizers' parser raises Exception itself, and transformers what it meets
        reason = files.one_line(error)
        raise ValueError(f"{folder}: its tokenizer can not be read: {reason}; allowed: files of a fast tokenizer") from error


def written_fields(model: Model, dtype: str) -> dict[str, Any]:
    """Return the config.json to write: the source's, or a new one with the tokenizer's special ids, stating the weights' dtype."""
    if model.source:
        fields = read_fields(pathlib.Path(model.source))
        if fields["model_type"] == "gemma3":  # only the text part was read
            fields = {**fields["text_config"], "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    else:
        fields = families.describe(model.config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            fields[name] = None if model.tokenizer is None else getattr(model.tokenizer, name)
    for name in ("dtype", "quantization_config"):  # what is written is not quantized
        fields.pop(name, None)
    return fields | {"torch_dtype": dtype}


def carry(model: Model, target: pathlib.Path) -> list[str]:
    """Copy what belongs to the model beside its weights and config; save the tokenizer of a model without a source.

    Returns the names of the files that are written, without those of a folder of more templates, which nothing here reads.
    """
    if not model.source:
        saved = () if model.tokenizer is None else model.tokenizer.save_pretrained(target)
        return [pathlib.Path(path).name for path in saved]
    names = []
    source = pathlib.Path(model.source)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in CARRIED and path.name not in ("config.json", MANIFEST, tensors.INDEX):
            shutil.copyfile(path, target / path.name)
            names.append(path.name)
    templates = "additional_chat_templates"
    if (source / templates).is_dir():
        shutil.copytree(source / templates, target / templates, dirs_exist_ok=True)
    return names
