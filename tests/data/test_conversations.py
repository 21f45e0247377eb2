"""One layout for every family's chat template: what is perturbed, what is scored, where a turn ends."""

import importlib.util
import pathlib

import numpy as np
import pytest
import transformers

from dat_jax.data.conversations import encode_prompt, encode_response, lay_out, stop_tokens, tokenize

spec = importlib.util.spec_from_file_location("chat_templates", pathlib.Path(__file__).with_name("chat_templates.py"))
chat_templates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat_templates)

USER, ANSWER = "Ask the assistant: user or system?", "An answer <of> two\nlines"
DIALOG = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
SYSTEM = "Be a kind user of words."


@pytest.fixture(params=list(chat_templates.FAMILIES))
def family(request):
    template, special, bos, eos, end, takes_system = chat_templates.FAMILIES[request.param]
    return chat_templates.byte_tokenizer(template, special, bos, eos), end, takes_system


def text(tokenizer, tokens, mask):
    return tokenizer.decode(np.asarray(tokens)[np.asarray(mask)])


def test_user_scope_is_exactly_the_users_words(family):
    tokenizer, _, takes_system = family
    systems = [None, SYSTEM] if takes_system else [None]
    for system in systems:
        rows = tokenize(tokenizer, [DIALOG], 192, 64, "user", system)
        assert text(tokenizer, rows.tokens_BxT[0], rows.prompt_mask_BxT[0]) == USER
        assert not np.any(rows.prompt_mask_BxT & rows.response_mask_BxT)


def test_wider_scopes(family):
    tokenizer, _, takes_system = family
    whole = tokenizer.apply_chat_template(DIALOG[:1], tokenize=False, add_generation_prompt=True)
    rows = tokenize(tokenizer, [DIALOG], 192, 64, "all")
    assert text(tokenizer, rows.tokens_BxT[0], rows.prompt_mask_BxT[0]) == whole
    if takes_system:
        messages = [{"role": "system", "content": SYSTEM}, *DIALOG]
        whole = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
        rows = tokenize(tokenizer, [messages], 192, 64, "user+template")
        assert text(tokenizer, rows.tokens_BxT[0], rows.prompt_mask_BxT[0]) == whole.replace(SYSTEM, "")


def test_prompt_and_response_join_to_the_templates_own_text(family):
    """The joined ids spell the whole conversation as the template renders it, up to the token that ends the turn."""
    tokenizer, end, _ = family
    rows = tokenize(tokenizer, [DIALOG], 192, 64)
    whole = tokenizer.apply_chat_template(DIALOG, tokenize=False)
    assert (
        text(tokenizer, rows.tokens_BxT[0], rows.valid_BxT[0])
        == whole[: whole.index(ANSWER) + len(ANSWER)]
        + whole[whole.index(ANSWER) + len(ANSWER) :][: whole[whole.index(ANSWER) + len(ANSWER) :].index(end) + len(end)]
    )
    response = text(tokenizer, rows.tokens_BxT[0], rows.response_mask_BxT[0])
    assert response.endswith(end) and ANSWER in response
    assert tokenizer.convert_tokens_to_ids(end) in stop_tokens(tokenizer)


def test_layout_is_left_padded_prompt_and_right_padded_response(family):
    tokenizer, _, _ = family
    rows = tokenize(tokenizer, [DIALOG, [*DIALOG[:1], {"role": "assistant", "content": ""}]], 192, 64)
    valid = rows.valid_BxT
    assert np.all(np.diff(valid[:, :192].astype(int)) >= 0) and valid[:, 191].all()
    assert np.all(np.diff(valid[:, 192:].astype(int)) <= 0)
    assert rows.response_mask_BxT[0, 192:].any() and not rows.response_mask_BxT[1].any()  # an empty answer is a prompt to decode from
    np.testing.assert_array_equal(rows.tokens_BxT[0, :192], rows.tokens_BxT[1, :192])


def test_several_turns_score_the_last_answer_alone(family):
    tokenizer, _, _ = family
    dialog = [*DIALOG, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Later."}]
    rows = tokenize(tokenizer, [dialog], 256, 64)
    assert "Later." in text(tokenizer, rows.tokens_BxT[0], rows.response_mask_BxT[0])
    assert ANSWER not in text(tokenizer, rows.tokens_BxT[0], rows.response_mask_BxT[0])
    assert text(tokenizer, rows.tokens_BxT[0], rows.prompt_mask_BxT[0]) == USER + "And now?"


def test_a_system_prompt_the_template_refuses_is_one_clear_error():
    tokenizer = chat_templates.byte_tokenizer(*chat_templates.FAMILIES["gemma"][:4])
    with pytest.raises(ValueError, match="refuses a conversation with roles system, user: System role not supported"):
        tokenize(tokenizer, [DIALOG], 192, 64, system="be kind")


def test_a_prompt_that_does_not_fit_names_its_row_and_the_key():
    tokenizer = chat_templates.byte_tokenizer(*chat_templates.FAMILIES["llama3"][:4])
    with pytest.raises(ValueError, match=r"behavior 'b7' has \d+ tokens; allowed: config.data.prompt_length = 8"):
        tokenize(tokenizer, [DIALOG], 8, 64, names=["behavior 'b7'"])


def test_a_tokenizer_without_chat_template_is_one_clear_error():
    tokenizer = chat_templates.byte_tokenizer(None, ["<s>"], "<s>", None)
    with pytest.raises(ValueError, match="has no chat template"):
        tokenize(tokenizer, [DIALOG], 64, 64)


def test_a_long_response_is_cut_and_a_prompt_is_not():
    rows = lay_out([[1, 2]], [[True, False]], [[5, 6, 7, 8]], 3, 2)
    np.testing.assert_array_equal(rows.tokens_BxT, [[0, 1, 2, 5, 6]])
    np.testing.assert_array_equal(rows.prompt_mask_BxT, [[False, True, False, False, False]])
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        lay_out([[]], [[]], [[1]], 3, 2)


def test_smollm2_offsets_against_golden_ids(shared):
    """The real tokenizer's own template puts "assistant" into the system prompt; the mask still covers the user's words alone."""
    import json
    import os

    folder = os.environ.get("DAT_JAX_SMOLLM2", "")
    if not os.path.isdir(folder):
        pytest.skip("no SmolLM2 folder (set DAT_JAX_SMOLLM2)")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    golden = json.loads((shared / "golden" / "smollm2" / "golden.json").read_text())
    arrays = np.load(shared / "golden" / "smollm2" / "golden.npz")
    for i, prompt in enumerate(golden["prompts"]):
        ids, mask = encode_prompt(tokenizer, [{"role": "user", "content": prompt}], "user")
        np.testing.assert_array_equal(ids, arrays[f"p{i}_input_ids"])
        assert tokenizer.decode(np.asarray(ids)[mask]) == prompt
    assert (
        encode_response(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])[-1] == tokenizer.eos_token_id
    )
