"""Model folders: config.json, the weights' files, adapters and tokenizers."""

import json
import pathlib
import struct

import numpy as np
from safetensors.numpy import save_file

from dat_jax.models import adapters, families, huggingface, tensors
from malformed import Row, short

CONFIG, WEIGHTS, ADAPTER, TOKENIZER = "A model's config.json", "A model's weights", "Adapters", "Tokenizers"
INDEX = tensors.INDEX
nan, inf = float("nan"), float("inf")

LLAMA = {
    "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 64,
}  # fmt: skip
LLADA = {
    "model_type": "llada", "d_model": 4, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 4, "vocab_size": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "mask_token_id": 7,
}  # fmt: skip
BASES = {
    "llama": LLAMA, "llada": LLADA, "phi3": LLAMA | {"model_type": "phi3"}, "qwen2": LLAMA | {"model_type": "qwen2"},
    "gemma2": LLAMA | {"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 2},
    "Dream": LLAMA | {"model_type": "Dream", "mask_token_id": 7}, "gemma3": {"model_type": "gemma3", "text_config": LLAMA},
}  # fmt: skip
GONE = object()


def of_config(base, changes, message):
    """A config.json that is right but for these keys."""
    fields = {key: value for key, value in (BASES[base] | changes).items() if value is not GONE}
    said = {key: "(not there)" if value is GONE else value for key, value in changes.items()}

    def run(folder: pathlib.Path) -> None:
        (folder / "config.json").write_text(json.dumps(fields))
        huggingface.read_config(folder)

    return Row(CONFIG, f"{base} with {short(said)}", run, message)


def of_text(content, message):
    """A config.json of this content."""

    def run(folder: pathlib.Path) -> None:
        if content is not None:
            (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        huggingface.read_config(folder)

    return Row(CONFIG, "it is not there" if content is None else short(content), run, message)


def whole(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of LLAMA, and its config.json in the folder."""
    (folder / "config.json").write_text(json.dumps(LLAMA))
    config = families.read(LLAMA)
    return {name: np.ones(shape, np.float32) for name, shape in tensors.tensor_shapes(config, families.family("llama").names(config)).items()}


def load(folder: pathlib.Path) -> None:
    """What `models.load` does up to the arrays."""
    config = huggingface.read_config(folder)
    with tensors.opened(folder) as found:
        tensors.read(found, config, families.family(config.model_type).names(config), "float32", None)


def of_tensors(what, message, change):
    """Weights of which `change` makes other ones."""

    def run(folder: pathlib.Path) -> None:
        found = whole(folder)
        save_file(change(found) or found, folder / "model.safetensors")
        load(folder)

    return Row(WEIGHTS, what, run, message)


def of_bytes(what, message, damage):
    """A safetensors file that is damaged."""

    def run(folder: pathlib.Path) -> None:
        save_file(whole(folder), folder / "model.safetensors")
        (folder / "model.safetensors").write_bytes(damage((folder / "model.safetensors").read_bytes()))
        load(folder)

    return Row(WEIGHTS, f"model.safetensors: {what}", run, message)


def of_index(content, message):
    """An index beside a whole model.safetensors."""

    def run(folder: pathlib.Path) -> None:
        save_file(whole(folder), folder / "model.safetensors")
        (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
        load(folder)

    return Row(WEIGHTS, f"model.safetensors.index.json: {short(content if isinstance(content, str) else json.dumps(content))}", run, message)


def headed(change):
    """A safetensors file whose header is changed."""

    def damage(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
        return struct.pack("<Q", len(header)) + header + data[8 + length :]

    return damage


def put(key, value):
    """Sets one key of a tensor's entry in a header."""

    def change(header):
        header["model.norm.weight"][key] = value
        return header

    return headed(change)


def set_(name, value):
    def change(found):
        found[name] = value

    return change


def spoilt(name, value):
    def change(found):
        found[name].flat[1] = value

    return change


STATE = "weight.quant_state.bitsandbytes__nf4"


def text(content):
    return np.frombuffer(content.encode(), np.uint8)


def quantized(beside, codes=np.zeros((8, 1), np.uint8)):
    """q of the first layer as codes, and tensors beside it."""

    def change(found):
        found |= {Q: codes} | {Q.replace("weight", name): x for name, x in beside.items()}

    return change


def of_adapter(what, message, fields=None, factors=None, weights=True):
    """A PEFT folder for LLAMA."""
    module = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    given = {f"{module}A.weight": np.ones((2, 4), np.float32), f"{module}B.weight": np.ones((4, 2), np.float32)}

    def run(folder: pathlib.Path) -> None:
        content = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, "base_model_name_or_path": "base"} | (fields or {})
        (folder / "adapter_config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not GONE}))
        if weights:
            save_file(given | (factors or {}), folder / "adapter_model.safetensors")
        if weights == "cut":
            (folder / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:-9])
        adapters.base(folder)
        adapters.load_adapter(folder, families.read(LLAMA))

    return Row(ADAPTER, what, run, message)


def of_tokenizer(name, content, message):
    """A file of a tokenizer."""

    def run(folder: pathlib.Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        huggingface.load_tokenizer(folder, "llada")

    return Row(TOKENIZER, f"{name}: {short(content)}", run, message)


PLAIN = "; allowed: the model that is not quantized (...), or bitsandbytes's int8, nf4 or fp4"
LONG = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "original_max_position_embeddings": 8}
Q = "model.layers.0.self_attn.q_proj.weight"

ROWS = [
    of_text(None, 'FOLDER/config.json does not exist'),
    of_text("", 'FOLDER/config.json: the file is empty'),
    of_text("[]", 'FOLDER/config.json holds list; a JSON object is needed'),
    of_text("null", 'FOLDER/config.json holds NoneType; a JSON object is needed'),
    of_text('{\n"model_type": llama}', 'FOLDER/config.json, line 2: not JSON: Expecting value'),
    of_text('{"model_type": "llama"', "FOLDER/config.json, line 1: not JSON: Expecting ',' delimiter"),
    of_text('{"model_type": "llama", "model_type": "qwen2"}', "FOLDER/config.json: the key 'model_type' stands in one object more than once"),
    of_text(b'{"model_type": "ll\xe4ma"}', 'FOLDER/config.json, line 1: byte 0xe4 is not UTF-8; allowed: UTF-8 text'),
    of_text("{}", "FOLDER: config.json has model_type=None; supported: ..."),
    of_text('{"model_type": null}', "FOLDER: config.json has model_type=None; supported: ..."),
    of_text('{"model_type": ["llama"]}', "FOLDER: config.json has model_type=['llama']; supported: ..."),
    of_text('{"model_type": "gpt2"}', "FOLDER: model_type 'gpt2' is not supported; supported: ..."),
    of_text('{"a":' * 100_000, 'FOLDER/config.json: lists or objects inside each other too deeply'),
    of_text('{"vocab_size": ' + "9" * 5000 + "}", 'FOLDER/config.json: a number has more digits than are read'),
    of_config("llama", {"quantization_config": {"bits": 4}}, f'FOLDER/config.json has a quantization_config without a quant_method{PLAIN}'),
    of_config("llama", {"quantization_config": {"quant_method": "gptq"}}, f"FOLDER/config.json has a quantization_config of quant_method 'gptq'{PLAIN}"),
    of_config("llama", {"num_hidden_layers": 10**9}, 'FOLDER: config.json has num_hidden_layers=1000000000; allowed: an integer from 1 to 4096'),
    of_config("llama", {"num_hidden_layers": 0}, 'FOLDER: config.json has num_hidden_layers=0; allowed: an integer from 1 to 4096'),
    of_config("llama", {"num_hidden_layers": -1}, 'FOLDER: config.json has num_hidden_layers=-1; allowed: an integer from 1 to 4096'),
    of_config("llama", {"num_hidden_layers": "16"}, "FOLDER: config.json has num_hidden_layers='16'; allowed: an integer from 1 to 4096"),
    of_config("llama", {"num_hidden_layers": 1.5}, 'FOLDER: config.json has num_hidden_layers=1.5; allowed: an integer from 1 to 4096'),
    of_config("llama", {"num_hidden_layers": True}, 'FOLDER: config.json has num_hidden_layers=True; allowed: an integer from 1 to 4096'),
    of_config("llama", {"vocab_size": 10**12}, 'FOLDER: config.json has vocab_size=1000000000000; allowed: an integer from 1 to 16777216'),
    of_config("llama", {"vocab_size": 0}, 'FOLDER: config.json has vocab_size=0; allowed: an integer from 1 to 16777216'),
    of_config("llama", {"vocab_size": "8"}, "FOLDER: config.json has vocab_size='8'; allowed: an integer from 1 to 16777216"),
    of_config("llama", {"hidden_size": 0}, 'FOLDER: config.json has hidden_size=0; allowed: an integer from 1 to 1048576'),
    of_config("llama", {"hidden_size": [4]}, 'FOLDER: config.json has hidden_size=[4]; allowed: an integer from 1 to 1048576'),
    of_config("llama", {"hidden_size": 5}, 'FOLDER: config.json has hidden_size=5, which is not a multiple of num_attention_heads=2'),
    of_config("llama", {"hidden_size": 6}, 'FOLDER: head_dim=3 is odd; rotary embedding needs pairs'),
    of_config("llama", {"intermediate_size": 10**10}, 'FOLDER: config.json has intermediate_size=10000000000; allowed: an integer from 1 to 16777216'),
    of_config("llama", {"num_attention_heads": 0}, 'FOLDER: config.json has num_attention_heads=0; allowed: an integer from 1 to 65536'),
    of_config("llama", {"num_attention_heads": 3, "head_dim": 2, "num_key_value_heads": 2}, 'FOLDER: config.json has num_attention_heads=3, which is not a multiple of num_key_value_heads=2'),
    of_config("llama", {"num_key_value_heads": 0}, 'FOLDER: config.json has num_key_value_heads=0; allowed: an integer from 1 to 65536'),
    of_config("llama", {"num_key_value_heads": "1"}, "FOLDER: config.json has num_key_value_heads='1'; allowed: an integer from 1 to 65536"),
    of_config("llama", {"head_dim": 3}, 'FOLDER: head_dim=3 is odd; rotary embedding needs pairs'),
    of_config("llama", {"head_dim": -2}, 'FOLDER: config.json has head_dim=-2; allowed: an integer from 1 to 65536'),
    of_config("llama", {"rms_norm_eps": nan}, 'FOLDER: config.json has rms_norm_eps=nan; allowed: a number above 0 and below 1'),
    of_config("llama", {"rms_norm_eps": -1e-5}, 'FOLDER: config.json has rms_norm_eps=-1e-05; allowed: a number above 0 and below 1'),
    of_config("llama", {"rms_norm_eps": 0}, 'FOLDER: config.json has rms_norm_eps=0; allowed: a number above 0 and below 1'),
    of_config("llama", {"rms_norm_eps": 2.0}, 'FOLDER: config.json has rms_norm_eps=2.0; allowed: a number above 0 and below 1'),
    of_config("llama", {"rms_norm_eps": "1e-5"}, "FOLDER: config.json has rms_norm_eps='1e-5'; allowed: a number above 0 and below 1"),
    of_config("llama", {"rope_theta": 0}, 'FOLDER: config.json has rope_theta=0; allowed: a number above 0 and below 1e+30'),
    of_config("llama", {"rope_theta": nan}, 'FOLDER: config.json has rope_theta=nan; allowed: a number above 0 and below 1e+30'),
    of_config("llama", {"rope_theta": inf}, 'FOLDER: config.json has rope_theta=inf; allowed: a number above 0 and below 1e+30'),
    of_config("llama", {"rope_theta": "10000"}, "FOLDER: config.json has rope_theta='10000'; allowed: a number above 0 and below 1e+30"),
    of_config("llama", {"rope_scaling": "linear"}, "FOLDER: config.json has rope_scaling='linear'; allowed: an object"),
    of_config("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "FOLDER: rope_scaling of type 'yarn' is not supported; supported: 'default', 'linear', 'llama3', 'longrope'"),
    of_config("llama", {"rope_scaling": {"rope_type": "linear"}}, 'FOLDER: config.json is none that transformers reads as \'llama\': ...'),
    of_config("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, 'FOLDER: config.json has rope_scaling.factor=0; allowed: a number above 0 and below 1e+30'),
    of_config("llama", {"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "FOLDER: config.json has rope_scaling.factor='4'; allowed: a number above 0 and below 1e+30"),
    of_config("llama", {"rope_scaling": {"rope_type": ["linear"], "factor": 4.0}}, "FOLDER: config.json has rope_scaling.rope_type=['linear']; allowed: a text"),
    of_config("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 'FOLDER: config.json is none that transformers reads as \'llama\': ...'),
    of_config("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0,
                                         "original_max_position_embeddings": 8}}, 'FOLDER: config.json has rope_scaling.low_freq_factor=2.0 and the same high_freq_factor; allowed: two different numbers'),
    of_config("llama", {"max_position_embeddings": 0}, 'FOLDER: config.json has max_position_embeddings=0; allowed: an integer from 1 to 1099511627776'),
    of_config("llama", {"max_position_embeddings": "long"}, "FOLDER: config.json has max_position_embeddings='long'; allowed: an integer from 1 to 1099511627776"),
    of_config("llama", {"hidden_act": "relu"}, "FOLDER: config.json has hidden_act='relu'; supported: ..."),
    of_config("llama", {"hidden_act": ["silu"]}, "FOLDER: config.json has hidden_act=['silu']; allowed: a text"),
    of_config("llama", {"hidden_act": None}, "FOLDER: config.json is none that transformers reads as 'llama': ..."),
    of_config("llama", {"attention_bias": True}, "FOLDER: config.json (model_type 'llama') has attention_bias=True; supported: False"),
    of_config("llama", {"attention_bias": "no"}, "FOLDER: config.json has attention_bias='no'; allowed: true or false"),
    of_config("llama", {"tie_word_embeddings": "false"}, "FOLDER: config.json has tie_word_embeddings='false'; allowed: true or false"),
    of_config("llama", {"layer_types": "full_attention"}, "FOLDER: config.json has layer_types='full_attention'; allowed: a list of texts"),
    of_config("qwen2", {"layer_types": ["full_attention"] * 2}, 'FOLDER: config.json has layer_types of 2 layers; allowed: num_hidden_layers=1'),
    of_config("qwen2", {"layer_types": [1]}, 'FOLDER: config.json has layer_types=[1]; allowed: a list of texts'),
    of_config("qwen2", {"sliding_window": -4, "use_sliding_window": True}, 'FOLDER: config.json has sliding_window=-4; allowed: an integer from 1 to 1099511627776'),
    of_config("phi3", {"rope_scaling": LONG | {"long_factor": [1.0, 2.0]}}, "FOLDER: config.json is none that transformers reads as 'phi3': ..."),
    of_config("phi3", {"rope_scaling": LONG | {"short_factor": [0.0]}}, 'FOLDER: config.json has rope_scaling.short_factor=[0.0]; allowed: a list of positive numbers'),
    of_config("phi3", {"rope_scaling": LONG | {"short_factor": 1.0}}, 'FOLDER: config.json has rope_scaling.short_factor=1.0; allowed: a list of positive numbers'),
    of_config("gemma2", {"query_pre_attn_scalar": 0}, 'FOLDER: config.json has query_pre_attn_scalar=0; allowed: a number above 0 and below 1e+30'),
    of_config("gemma2", {"attn_logit_softcapping": -50.0}, 'FOLDER: config.json has attn_logit_softcapping=-50.0; allowed: a number above 0 and below 1e+30'),
    of_config("gemma2", {"final_logit_softcapping": "30"}, "FOLDER: config.json has final_logit_softcapping='30'; allowed: a number above 0 and below 1e+30"),
    of_config("gemma2", {"head_dim": 1}, 'FOLDER: head_dim=1 is odd; rotary embedding needs pairs'),
    of_config("gemma3", {"text_config": [1]}, 'FOLDER: config.json has text_config=[1]; allowed: an object'),
    of_config("gemma3", {"text_config": {"hidden_size": 0}}, 'FOLDER: config.json has hidden_size=0; allowed: an integer from 1 to 1048576'),
    of_config("llada", {"n_layers": 10**9}, 'FOLDER: config.json has n_layers=1000000000; allowed: an integer from 1 to 4096'),
    of_config("llada", {"n_layers": GONE}, "FOLDER: config.json (model_type 'llada') has no 'n_layers', which this family needs"),
    of_config("llada", {"d_model": None}, "FOLDER: config.json (model_type 'llada') has no 'd_model', which this family needs"),
    of_config("llada", {"n_heads": 3}, 'FOLDER: config.json has d_model=4, which is not a multiple of n_heads=3'),
    of_config("llada", {"n_kv_heads": 3}, 'FOLDER: config.json has n_heads=2, which is not a multiple of n_kv_heads=3'),
    of_config("llada", {"mask_token_id": 8}, 'FOLDER: config.json has mask_token_id=8; allowed: an id of the vocabulary, which has 8'),
    of_config("llada", {"mask_token_id": -1}, 'FOLDER: config.json has mask_token_id=-1; allowed: an id of the vocabulary, which has 8'),
    of_config("llada", {"mask_token_id": "7"}, "FOLDER: config.json has mask_token_id='7'; allowed: an id of the vocabulary, which has 8"),
    of_config("llada", {"mask_token_id": GONE}, "FOLDER: config.json (model_type 'llada') has no 'mask_token_id', which this family needs"),
    of_config("llada", {"rms_norm_eps": GONE}, "FOLDER: config.json (model_type 'llada') has no 'rms_norm_eps', which this family needs"),
    of_config("llada", {"alibi": True}, "FOLDER: config.json (model_type 'llada') has alibi=True; supported: False"),
    of_config("llada", {"block_type": "sequential"}, "FOLDER: config.json (model_type 'llada') has block_type='sequential'; supported: 'llama'"),
    of_config("llada", {"mlp_hidden_size": GONE, "mlp_ratio": 0.5}, 'FOLDER: config.json has mlp_ratio=0.5; allowed: an integer from 1 to 65536'),
    of_config("Dream", {"mask_token_id": 151666}, 'FOLDER: config.json has mask_token_id=151666; allowed: an id of the vocabulary, which has 8'),
    of_config("Dream", {"use_sliding_window": True}, "FOLDER: config.json (model_type 'Dream') has use_sliding_window=True; supported: False"),
    of_config("Dream", {"rope_theta": -1.0}, 'FOLDER: config.json has rope_theta=-1.0; allowed: a number above 0 and below 1e+30'),
    of_tensors("a tensor is missing", 'the tensors in FOLDER do not fit its config.json: missing model.layers.0.self_attn.q_proj.weight', lambda found: {name: x for name, x in found.items() if name != Q}),
    of_tensors("a tensor too many", "the tensors in FOLDER do not fit its config.json: not part of a 'llama' model: model.layers.1.mlp.up_proj.weight", set_("model.layers.1.mlp.up_proj.weight", np.ones((4, 4), np.float32))),
    of_tensors("a tensor of another shape", 'the tensors in FOLDER do not fit its config.json: shapes model.layers.0.self_attn.q_proj.weight (4, 5) instead of (4, 4)', set_(Q, np.ones((4, 5), np.float32))),
    of_tensors("a tensor of another rank", 'the tensors in FOLDER do not fit its config.json: shapes model.norm.weight (2, 2) instead of (4,)', set_("model.norm.weight", np.ones((2, 2), np.float32))),
    of_tensors("a tensor of integers", 'the tensors in FOLDER do not fit its config.json: kinds other than F32, F16, BF16: model.norm.weight is I32', set_("model.norm.weight", np.ones(4, np.int32))),
    of_tensors("GPTQ's or AWQ's tensors", "FOLDER: tensor 'model.layers.0.self_attn.q_proj.qweight' is of a checkpoint quantized by GPTQ or AWQ" + PLAIN, set_(Q.replace("weight", "qweight"), np.zeros((1, 4), np.int32))),
    of_tensors("int8 rows with too few scales", "FOLDER: tensor 'model.layers.0.self_attn.q_proj.SCB' is F32 of (3,); allowed: F32 or F16 or BF16 of (4,)", quantized({"SCB": np.ones(3, np.float32)}, np.zeros((4, 4), np.int8))),
    of_tensors("int8 in the layout of an old GPU", "FOLDER: model.layers.0.self_attn.q_proj.weight_format is 2; allowed: 0, rows as they are; ...", quantized({"SCB": np.ones(4, np.float32), "weight_format": np.array(2, np.uint8)}, np.zeros((4, 4), np.int8))),
    of_tensors("nf4 whose description is no JSON", "FOLDER: tensor '...q_proj.weight.quant_state.bitsandbytes__nf4' is not JSON: ...; allowed: what bitsandbytes writes", quantized({STATE: text("{")})),
    of_tensors("nf4 whose description has no shape", "FOLDER: tensor '...q_proj.weight.quant_state.bitsandbytes__nf4' says {...}; allowed: shape of two sizes, ...", quantized({STATE: text('{"blocksize": 64}')})),
    of_tensors("nf4 without absmax", "FOLDER: tensor 'model.layers.0.self_attn.q_proj.weight.absmax' is missing beside the others of its matrix; ...", quantized({STATE: text('{"blocksize": 64, "shape": [4, 4]}')})),
    of_tensors("nf4 of another matrix", "FOLDER: tensor 'model.layers.0.self_attn.q_proj.weight' is U8 of (8, 1); allowed: U8 of (16, 1)", quantized({STATE: text('{"blocksize": 64, "shape": [4, 8]}')})),
    of_tensors("an empty file of tensors", "the tensors in FOLDER do not fit its config.json: missing lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight, model.layers.0.mlp.down_proj.weight, model.layers.0.mlp.gate_proj.weight and 7 more; not part of a 'llama' model: x", lambda found: {"x": np.ones(0, np.float32)}),
    of_tensors("NaN in a matrix", "FOLDER/model.safetensors: tensor 'model.layers.0.self_attn.q_proj.weight' holds NaN or infinity; allowed: finite numbers", spoilt(Q, nan)),
    of_tensors("infinity in the embedding", "FOLDER/model.safetensors: tensor 'model.embed_tokens.weight' holds NaN or infinity; allowed: finite numbers", spoilt("model.embed_tokens.weight", inf)),
    of_tensors("minus infinity in a norm", "FOLDER/model.safetensors: tensor 'model.norm.weight' holds NaN or infinity; allowed: finite numbers", spoilt("model.norm.weight", -inf)),
    of_tensors("NaN in half precision", "FOLDER/model.safetensors: tensor 'model.norm.weight' holds NaN or infinity; allowed: finite numbers", set_("model.norm.weight", np.array([1, nan, 1, 1], np.float16))),
    of_bytes("empty", 'FOLDER/model.safetensors is damaged: ...', lambda data: b""),
    of_bytes("7 bytes", 'FOLDER/model.safetensors is damaged: ...', lambda data: data[:7]),
    of_bytes("cut in the header", 'FOLDER/model.safetensors is damaged: ...', lambda data: data[:40]),
    of_bytes("cut in the tensors", 'FOLDER/model.safetensors is damaged: ...', lambda data: data[:-5]),
    of_bytes("longer than its header says", 'FOLDER/model.safetensors is damaged: ...', lambda data: data + b"\0" * 8),
    of_bytes("a header of 10^18 bytes", 'FOLDER/model.safetensors is damaged: ...', lambda data: struct.pack("<Q", 10**18) + data[8:]),
    of_bytes("a header that is no JSON", 'FOLDER/model.safetensors is damaged: ...', lambda data: data[:8] + b"x" + data[9:]),
    of_bytes("a header of zeros", 'FOLDER/model.safetensors is damaged: ...', lambda data: data[:8] + b"\0" * 100 + data[108:]),
    of_bytes("a shape of 10^12", 'FOLDER/model.safetensors is damaged: ...', put("shape", [10**12])),
    of_bytes("a negative shape", 'FOLDER/model.safetensors is damaged: ...', put("shape", [-4])),
    of_bytes("offsets beyond the file", 'FOLDER/model.safetensors is damaged: ...', put("data_offsets", [0, 10**9])),
    of_bytes("offsets that go backwards", 'FOLDER/model.safetensors is damaged: ...', put("data_offsets", [16, 0])),
    of_bytes("a kind that is none", 'FOLDER/model.safetensors is damaged: ...', put("dtype", "F7")),
    of_bytes("a pickle", 'FOLDER/model.safetensors is damaged: ...', lambda data: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x01x\x94."),
    of_index("{", 'FOLDER/model.safetensors.index.json, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_index("[]", 'FOLDER/model.safetensors.index.json has no weight_map; allowed: an object of tensor names and file names'),
    of_index({}, 'FOLDER/model.safetensors.index.json has no weight_map; allowed: an object of tensor names and file names'),
    of_index({"weight_map": []}, 'FOLDER/model.safetensors.index.json has no weight_map; allowed: an object of tensor names and file names'),
    of_index({"weight_map": {}}, 'FOLDER/model.safetensors.index.json has no weight_map; allowed: an object of tensor names and file names'),
    of_index({"weight_map": {"a": 3}}, "FOLDER/model.safetensors.index.json: weight_map['a'] is 3; allowed: the name of a .safetensors file in this folder"),
    of_index({"weight_map": {"a": "../outside.safetensors"}}, "FOLDER/model.safetensors.index.json: weight_map['a'] is '../outside.safetensors'; allowed: the name of a .safetensors file in this folder"),
    of_index({"weight_map": {"a": "/etc/x.safetensors"}}, "FOLDER/model.safetensors.index.json: weight_map['a'] is '/etc/x.safetensors'; allowed: the name of a .safetensors file in this folder"),
    of_index({"weight_map": {"a": "model.bin"}}, "FOLDER/model.safetensors.index.json: weight_map['a'] is 'model.bin'; allowed: the name of a .safetensors file in this folder"),
    of_index({"weight_map": {"a": "gone.safetensors"}}, 'FOLDER/model.safetensors.index.json names gone.safetensors, which is not in the folder'),
    of_index({"weight_map": {"a": "model.safetensors"}}, 'FOLDER/model.safetensors.index.json and its files disagree on a, lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight, model.layers.0.mlp.down_proj.weight and 8 more'),
    Row(WEIGHTS, "a folder with pytorch_model.bin alone", lambda folder: (whole(folder), load(folder)), 'FOLDER has no *.safetensors file; other formats are not read, since they can run code'),
    of_adapter("no adapter_model.safetensors", 'FOLDER has no adapter_model.safetensors; other formats are not read, since they can run code', weights=False),
    of_adapter("adapter_model.safetensors is cut", 'FOLDER/adapter_model.safetensors is damaged: ...', weights="cut"),
    of_adapter("peft_type IA3", 'FOLDER/adapter_config.json has no peft_type LORA; other adapters are not read', {"peft_type": "IA3"}),
    of_adapter("use_dora", 'FOLDER/adapter_config.json: use_dora is True; allowed: False', {"use_dora": True}),
    of_adapter("bias all", "FOLDER/adapter_config.json: bias is 'all'; allowed: 'none'", {"bias": "all"}),
    of_adapter("no base_model_name_or_path", 'FOLDER/adapter_config.json has no base_model_name_or_path; allowed: a folder or hub id', {"base_model_name_or_path": GONE}),
    of_adapter("lora_alpha \"16\"", "FOLDER/adapter_config.json: lora_alpha is '16'; allowed: a number", {"lora_alpha": "16"}),
    of_adapter("lora_alpha NaN", 'FOLDER/adapter_config.json: lora_alpha is nan; allowed: a number', {"lora_alpha": nan}),
    of_adapter("alpha_pattern that is a list", 'FOLDER/adapter_config.json: alpha_pattern is [1]; allowed: an object of patterns and numbers', {"alpha_pattern": [1]}),
    of_adapter("alpha_pattern with a bad regular expression", "FOLDER/adapter_config.json: alpha_pattern has '(': missing ), unterminated subpattern at position 0; allowed: a regular expression", {"alpha_pattern": {"(": 1}}),
    of_adapter("a factor of a layer that the base lacks", 'FOLDER/adapter_model.safetensors: no place in the base model for base_model.model.model.layers.7.mlp.up_proj.lora_A.weight', factors={"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": np.ones((2, 4), np.float32)}),
    of_adapter("a factor of another shape", 'FOLDER: q of layer 0 has factors (4, 2), (2, 5); the base has 4 x 4', factors={"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((5, 2), np.float32)}),
    of_adapter("a factor of rank one", "FOLDER/adapter_model.safetensors: the factors of 'base_model.model.model.layers.0.self_attn.q_proj' are (4,), (4, 2); allowed: two matrices", factors={"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones(4, np.float32)}),
    of_adapter("NaN in a factor", "FOLDER/adapter_model.safetensors: tensor 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' holds NaN or infinity; allowed: finite numbers", factors={"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.full((2, 4), nan, np.float32)}),
    of_tokenizer("tokenizer.json", "", 'FOLDER/tokenizer.json: the file is empty'),
    of_tokenizer("tokenizer.json", "{", 'FOLDER/tokenizer.json, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_tokenizer("tokenizer.json", "[]", 'FOLDER/tokenizer.json holds no JSON object; allowed: the file of a tokenizer'),
    of_tokenizer("tokenizer.json", "{}", "FOLDER: its tokenizer can not be read: ...; allowed: files of a fast tokenizer"),
    of_tokenizer("tokenizer.json", '{"version": "1.0", "model": {"type": "None"}}', "FOLDER: its tokenizer can not be read: ...; allowed: files of a fast tokenizer"),
    of_tokenizer("tokenizer.json", b'{"version": "\xff"}', 'FOLDER/tokenizer.json, line 1: byte 0xff is not UTF-8; allowed: UTF-8 text'),
]
